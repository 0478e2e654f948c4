"""Representations are computed once, and only believed of what they are of."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CPU, Counting, fake_images, flat_pixels

from memorization.checkpoint import _encoder, checksum
from memorization.errors import WrongUse
from memorization.measuring import representations
from memorization.measuring.representations import (
    stored_examples,
)
from models.encoders import encoder_settings, make_encoder


def test_representations_are_computed_once_and_kept_apart(tmp_path):
    images, rows = fake_images(), torch.arange(20)
    encoder = flat_pixels()

    def stored(encoder, split=images.train, rows=rows):
        return stored_examples(encoder, split, rows, tmp_path, CPU).values

    first = stored(encoder)
    assert torch.equal(stored(encoder), first) and sum(encoder.network.images) == 20
    for change in (
        {"identity": "b"},
        {"size": 4},
        {"normalization": ((0.0,) * 3, (1.0,) * 3)},
        {"channels": 1, "normalization": ((0.5,), (0.5,))},
    ):
        stored(replace(encoder, **change))
    stored(encoder, split=images.test)
    stored(encoder, rows=rows + 1)
    assert sum(encoder.network.images) == 7 * 20 and len(list(tmp_path.glob("*.npy"))) == 7
    for file in tmp_path.glob("*.npy"):
        file.unlink()  # safe to delete
    assert torch.equal(stored(encoder), first)


def test_a_broken_file_of_representations_is_named(tmp_path):
    images = fake_images()
    stored_examples(flat_pixels(), images.train, torch.arange(20), tmp_path, CPU)
    (file,) = tmp_path.glob("*.npy")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(WrongUse, match=f"{file.name}.*delete it"):
        stored_examples(flat_pixels(), images.train, torch.arange(20), tmp_path, CPU)


def test_swapped_files_of_representations_are_made_again(tmp_path, capsys):
    """As are those of earlier versions, which do not tell what they are of."""
    images, rows = fake_images(), torch.arange(20)
    encoders = [
        replace(flat_pixels(identity=name), network=network)
        for name, network in (("f", Counting()), ("g", Halved()))
    ]

    def stored(encoder):
        return stored_examples(encoder, images.train, rows, tmp_path, CPU).values

    f, g = map(stored, encoders)
    files = sorted(tmp_path.glob("*.npy"))
    contents = [file.read_bytes() for file in files]
    old = contents[0][: -representations.DIGEST_BYTES].rpartition(representations.OF)[0]
    old += hashlib.sha256(old).digest()
    assert not torch.equal(f, g)
    for changed in (contents[::-1], [old, contents[1]]):
        for file, content in zip(files, changed):
            file.write_bytes(content)
        assert torch.equal(stored(encoders[0]), f) and torch.equal(stored(encoders[1]), g)
        assert [file.read_bytes() for file in files] == contents
        count = sum(a != b for a, b in zip(changed, contents))
        assert capsys.readouterr().out.count("made again") == count
    # a plain .npy for others
    assert np.array_equal(np.load(files[0]), f if np.array_equal(np.load(files[0]), f) else g)


class Halved(Counting):
    def forward(self, pixels):
        return super().forward(pixels) / 2


def test_two_encoders_that_differ_in_their_pooling_alone_are_kept_apart():
    encoders = []
    for pooling in ("mean", "class"):
        torch.manual_seed(0)
        settings = encoder_settings(name="vit_mini", pooling=pooling)
        images = {"channels": 3, "size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}
        record = images | {"config": {"encoder": settings.model_dump()}}
        encoders.append(_encoder(pooling, make_encoder(settings, 3, 8), record))
    assert checksum(encoders[0].network.state_dict()) == checksum(encoders[1].network.state_dict())
    assert encoders[0].identity != encoders[1].identity
