"""Remotes: where objects are shared. Everything here runs as the caller, in a worker or in a mount's source."""
