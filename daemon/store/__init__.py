"""The content store: chunks in append-only segments, indexed in LMDB."""
