"""The Python library: open, read, get_url, and a filesystem for fsspec. Its names are those of `millpond` itself."""
