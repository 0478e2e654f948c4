"""S_S, S_C, S_I and S_E: which images are in both training sets, in f's, in g's, and in neither."""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memorization.errors import WrongUse
from memorization.randomness import shuffled
from memorization.storage import write_atomically

# In the order of every table; external images come from the test set, the others from the training set.
SUBSETS = {"shared": "train", "candidate": "train", "independent": "train", "external": "test"}
ROLES = ("candidate", "independent")  # of the two encoders, f and g


@dataclass(frozen=True)
class Subsets:
    """Indices of the four subsets, each (n,) int64, and the fingerprint of the images they lead to, once those are prepared."""

    shared: np.ndarray
    candidate: np.ndarray
    independent: np.ndarray
    external: np.ndarray
    data: dict | None = None

    def training_set(self, role):
        """The training set of f (role "candidate") or g ("independent"), shared samples first. Returns (n,) int64."""
        assert role in ROLES
        return np.concatenate([self.shared, getattr(self, role)])

    @property
    def train(self):
        """All indices into the training set, (n,) int64."""
        return np.concatenate([self.shared, self.candidate, self.independent])

    @property
    def fingerprint(self):
        """A hash of the indices and of the data set, hexadecimal."""
        digest = hashlib.sha256(json.dumps(self.data, sort_keys=True).encode())
        for name in SUBSETS:
            digest.update(f"{name} {len(getattr(self, name))} ".encode())
            digest.update(getattr(self, name).astype("<i8").tobytes())
        return digest.hexdigest()


def draw_subsets(settings, images):
    """The Subsets of a config, their `data` still to be filled in. settings: its `subsets:` section; images: of open_images, to be counted.

    Raises WrongUse where there are too few images.
    """
    counts = [settings.shared, settings.candidate, settings.independent]
    train = _ordered(len(images.train), sum(counts), "train", settings)
    external = _ordered(len(images.test), settings.external, "test", settings)
    shared, candidate, independent = np.split(train, np.cumsum(counts)[:-1])
    return Subsets(shared, candidate, independent, external)


def _ordered(available, wanted, split, settings):
    """The first `wanted` indices of a split, in file order or shuffled."""
    if wanted > available:
        names = "external" if split == "test" else "shared + candidate + independent"
        raise WrongUse(f"subsets: {names} is {wanted}, but the {split} set has only {available} images")
    order = shuffled(available, settings.seed, "subsets", split).numpy() if settings.order == "shuffled" else np.arange(available)
    return order[:wanted]


def save_subsets(subsets, path):
    """Write subsets.npz: the four arrays, the data set's fingerprint as JSON, and the fingerprint of all."""
    content = io.BytesIO()
    arrays = {name: getattr(subsets, name) for name in SUBSETS}
    np.savez(content, **arrays, data=json.dumps(subsets.data), fingerprint=subsets.fingerprint)
    write_atomically(path, content.getvalue())


def load_subsets(path):
    """The Subsets in a subsets.npz. Raises WrongUse where the file is missing, broken or not consistent."""
    if not Path(path).exists():
        raise WrongUse(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in SUBSETS}
            data, fingerprint = json.loads(str(file["data"])), str(file["fingerprint"])
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise WrongUse(f"{path}: not a whole file of subsets ({error})") from None
    for name, indices in arrays.items():
        if indices.ndim != 1 or indices.dtype != np.int64:
            raise WrongUse(f"{path}: {name} is {indices.dtype} of shape {indices.shape}, but must be a list of int64")
    subsets = Subsets(**arrays, data=data)
    if subsets.fingerprint != fingerprint:
        raise WrongUse(f"{path}: its fingerprint does not fit its indices; the file was changed")
    check_pair(subsets, path)
    return subsets


def check_pair(subsets, source="subsets"):
    """Raise WrongUse unless the subsets are what a pair is trained on: no image twice, and as many candidates as independents."""
    if len(subsets.candidate) != len(subsets.independent):
        raise WrongUse(
            f"{source}: {len(subsets.candidate)} candidates, but {len(subsets.independent)} independents; they must be equally many"
        )
    for split, indices in (("train", subsets.train), ("test", subsets.external)):
        values, counts = np.unique(indices, return_counts=True)
        if (counts > 1).any():
            raise WrongUse(f"{source}: {split} image {values[counts > 1][0]} stands in the subsets more than once")
