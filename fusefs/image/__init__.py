"""A version as the image of an EROFS file system, made block by block as the kernel asks for it."""
