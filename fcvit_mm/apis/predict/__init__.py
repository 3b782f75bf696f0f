"""Predicting many images, and writing the results to files."""

from .options import Options
from .predictor import BatchPredictor
from .results import PredictionError
from .run import Summary, predict

__all__ = ['BatchPredictor', 'Options', 'PredictionError', 'Summary', 'predict']
