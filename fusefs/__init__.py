"""A version as a directory: folders, reader, engines."""
