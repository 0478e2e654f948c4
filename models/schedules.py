"""Schedules: numbers that change during a training."""

import math


def half_cosine(progress, start, end):
    """A number that goes from start to end by half a cosine.

    progress: share of the training before this step, in [0, 1].
    """
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2
