"""The daemon: store, protocol, workers, project formats, mounts."""
