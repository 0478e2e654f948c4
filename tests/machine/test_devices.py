"""Images and encoders that are moved to a device."""

from dataclasses import replace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import CPU, fake_images, flat_pixels

from memorization.data.images import Split
from memorization.measuring.fine_tuning import fine_tune
from memorization.measuring.probing import ProbeSettings
from memorization.measuring.representations import in_channels, stored_examples


def test_images_on_a_gpu_turn_gray_there():
    meta = torch.device("meta")
    pixels = torch.zeros(5, 3, 4, 4, dtype=torch.uint8, device=meta)
    gray = in_channels(Split("train", pixels, torch.zeros(5), device=meta), 1).pixels
    assert gray.device == meta and gray.shape == (5, 1, 4, 4)


class MovedInto(nn.Module):
    """Makes weights anew when it is moved to a device, as an encoder does that comes to a GPU."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 4)

    def to(self, device):
        self.layer = nn.Linear(192, 4)
        return self

    def forward(self, pixels):
        return self.layer(pixels.flatten(1))


@pytest.mark.parametrize("count", [5, 600])
def test_what_was_encoded_can_be_trained_afterwards(count):
    images, encoder = fake_images(), replace(flat_pixels(), network=MovedInto().eval())
    values = stored_examples(encoder, images.train, torch.arange(count), None, CPU).values
    assert not values.is_inference()
    assert not any(weight.is_inference() for weight in encoder.network.parameters())
    encoder.network.requires_grad_(True)
    F.mse_loss(encoder.network(images.train.pixels[:2] / 255), values[:2] + 1).backward()
    fine_tune(encoder, images, ProbeSettings(fine_tune_epochs=1, seeds=[0]), CPU)
