"""Train the pair of a config in float64, whatever its method: what test_processes.py starts as one
process, or as several by torchrun.

    python tests/train_in_double.py CONFIG METHOD [STEPS]

With STEPS this process gets SIGTERM after so many steps.
"""

import os
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import torch.nn as nn  # noqa: E402
from conftest import METHODS  # noqa: E402

from memorization.config import read_config  # noqa: E402
from memorization.machine.command import one_line_errors  # noqa: E402
from memorization.training import ROLE_ACTION, loop, open_training_images, train_pair  # noqa: E402
from models.encoders import make_encoder  # noqa: E402

FIRST_LAYERS = nn.Conv2d, nn.Linear  # of an encoder: a convolution, or a map of patches


@one_line_errors
def main(argv):
    path, method, *last_step = argv
    config = read_config("", ["--config", path], method=METHODS[method].schema, actions=ROLE_ACTION)
    images = open_training_images(config.data, config.device, config.threads)
    step, steps = loop.train_step, 0

    def make_method():
        encoder = make_encoder(config.encoder, images.channels, config.augmentation.size)
        first = next(part for part in encoder.modules() if isinstance(part, FIRST_LAYERS))
        first.register_forward_pre_hook(
            lambda module, pixels: tuple(values.double() for values in pixels)
        )
        arguments = config.method.arguments(config.training)
        return METHODS[method].module(encoder, **arguments).double()

    def counted_step(*arguments):
        nonlocal steps
        steps += 1
        if [str(steps)] == last_step and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    loop.train_step = counted_step
    try:
        train_pair(make_method, images, config)
    finally:
        loop.train_step = step


if __name__ == "__main__":
    main(sys.argv[1:])
