"""Engines that speak FUSE for a read-only tree."""
