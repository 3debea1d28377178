"""DVC's formats and the workspace."""
