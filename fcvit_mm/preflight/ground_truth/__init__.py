"""Checks of the ground truth: used as predictions, it must reach the best value of each metric of an evaluator."""
