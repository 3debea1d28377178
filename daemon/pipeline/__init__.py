"""Pipelines: dvc.yaml and dvc.lock, what is out of date and why, and running it."""
