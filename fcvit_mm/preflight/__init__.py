"""What is tried before a run: data, checkpoints, classes, disk; then one step, one evaluation batch, one checkpoint."""
