"""Checks of the data before a run: each data set by its own library, then against the model."""
