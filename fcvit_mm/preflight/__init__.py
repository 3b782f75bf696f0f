"""Preflight checks: data, checkpoints, classes, disk; then a trial of one step, one evaluation, one checkpoint."""
