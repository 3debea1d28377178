"""Processes that act as the caller: zygotes, workers, the spawner."""
