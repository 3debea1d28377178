"""The page cache filled ahead of who reads many small files. See DESIGN.md, The page cache, filled ahead."""
