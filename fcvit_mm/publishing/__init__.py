"""Weights stripped and named by their hash, model cards, metafile entries."""
