"""Checks of the data before a run: each data set is loaded by its library, then compared with the model."""
