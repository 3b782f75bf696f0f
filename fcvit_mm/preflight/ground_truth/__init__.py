"""Checks of the ground truth: as predictions, it must be perfect to every metric of an evaluator."""
