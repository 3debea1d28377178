"""Plots of data files over revisions: what dvc.yaml defines, the points, the report."""
