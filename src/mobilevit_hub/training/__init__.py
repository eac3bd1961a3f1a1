"""Training in either framework, by one function."""

from .report import draw_learning_curve, training_card
from .run import train

__all__ = ["draw_learning_curve", "train", "training_card"]
