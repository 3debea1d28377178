"""Several processes on one mount: servers beside the holder. See DESIGN.md, Several processes on one mount."""
