"""Supervision of mount holders."""
