"""The fast arithmetic: one file per operation, each with a plain definition in PyTorch and its faster forms."""
from .dispatch import use_ops

__all__ = ['use_ops']
