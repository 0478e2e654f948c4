"""Made-up images for tests, without files."""

import torch
import torch.nn.functional as F

from memorization.data.randomness import sample_keys, stream, uniform

COUNTS = {"train": 1024, "test": 256}
CLASSES = 10
GRID = 4  # height and width of the random grid behind a smooth pattern


def make_fake_arrays(settings):
    """((train pixels, labels), (test pixels, labels), class names) of made-up images.

    Class and instance can be learned from them: an image mixes the pattern of its class, a pattern
    of its own, and a little noise. settings: DataSettings.
    """
    train, test = (_make_split(name, settings.size) for name in COUNTS)
    return train, test, tuple(map(str, range(CLASSES)))


def _make_split(name, size):
    class_keys = sample_keys(stream(0, "fake", view=0), torch.arange(CLASSES))
    of_classes = _smooth_patterns(class_keys, size)
    labels = torch.arange(COUNTS[name]) % CLASSES
    slots, pixels = torch.arange(3 * size * size), []
    for indices in torch.arange(len(labels)).split(128):
        own = _smooth_patterns(sample_keys(stream(0, "fake", name, view=1), indices), size)
        noise = uniform(sample_keys(stream(0, "fake", name, view=2), indices), slots)
        noise = noise.view(-1, 3, size, size)
        mixture = 0.45 * of_classes[labels[indices]] + 0.45 * own + 0.1 * noise
        pixels.append((255 * mixture).round().to(torch.uint8))
    return torch.cat(pixels).numpy(), labels.numpy()


def _smooth_patterns(keys, size):
    """One smooth random pattern a key, (B, 3, size, size) float64 in [0, 1)."""
    grid = uniform(keys, torch.arange(3 * GRID**2)).view(-1, 3, GRID, GRID)
    return F.interpolate(grid, size=(size, size), mode="bilinear")
