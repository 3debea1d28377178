"""MD5, the floor of taking contents in: of one stream by the interpreter's own, of several streams at once by kernels."""
