"""Training: a pair of encoders, their progress, and what is written of it."""

from memorization.training.log import read_log, whole_lines
from memorization.training.loop import train_step
from memorization.training.pair import ROLE_ACTION, open_training_images, train_pair

__all__ = [
    "ROLE_ACTION",
    "open_training_images",
    "read_log",
    "train_pair",
    "train_step",
    "whole_lines",
]
