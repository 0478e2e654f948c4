"""The catalogue of data sets: one table, and the settings that name one of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import pydantic
from pydantic import Field
from torchvision import datasets as tv

from memorization.data.fake import make_fake_arrays
from memorization.data.image_folder import list_image_folder
from memorization.data.listings import TEST_SHARE
from memorization.data.manifest import read_manifest
from memorization.data.published_files import Published, list_files, read_arrays
from memorization.errors import WrongUse
from memorization.fields import LEAST_PIXELS, MOST_PIXELS, NOT_COMPARED, PathName
from models.settings import Settings


class DataSet(NamedTuple):
    """How a data set is read.

    read: a function from DataSettings to (train, test, class names), each split as pixels
    (N, C, H, W) uint8 and labels (N,) int64, or as a Listing if in_files. mean, std: of each
    channel, of pixels in [0, 1]. needs_size: whether `data.size` chooses the size of the images.
    in_files: whether the images are files, to be decoded, which come class by class.
    """

    read: Callable
    mean: tuple
    std: tuple
    needs_size: bool = False
    in_files: bool = False


def _arrays(reader, splits, mean, std):
    """A DataSet that torchvision reads as arrays. splits: the arguments of its class."""

    def read(settings):
        published = Published(settings.name, reader, splits)
        return read_arrays(published, Path(settings.root).expanduser(), settings.verify)

    return DataSet(read, mean, std)


def _files(reader, splits, mean, std):
    """A DataSet of image files that torchvision lists. splits: the arguments of its class."""

    def read(settings):
        published = Published(settings.name, reader, splits)
        return list_files(published, Path(settings.root).expanduser())

    return DataSet(read, mean, std, needs_size=True, in_files=True)


def _read_folder(settings):
    root, share = Path(settings.root).expanduser(), settings.given_test_share
    classes, listings = list_image_folder(root, share)
    return listings["train"], listings["test"], classes


def _read_manifest(settings):
    if settings.manifest is None:  # which records of encoders do not have
        raise WrongUse("data.manifest is missing: name: manifest needs one, such as images.csv")
    path, root = (Path(name).expanduser() for name in (settings.manifest, settings.root))
    return read_manifest(path, root, settings.given_test_share)


BY_TRAIN = {"train": True}, {"train": False}
BY_SPLIT = {"split": "train"}, {"split": "test"}
WITH_UNLABELED = {"split": "train+unlabeled"}, {"split": "test"}
# Mean and standard deviation of ImageNet, by which images in files are normalized.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# One line a data set of torchvision: its class, the arguments of the two splits, mean and std.
OF_TORCHVISION = {
    "fashion_mnist": _arrays(tv.FashionMNIST, BY_TRAIN, (0.2860,), (0.3530,)),
    "cifar10": _arrays(tv.CIFAR10, BY_TRAIN, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": _arrays(tv.CIFAR100, BY_TRAIN, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": _arrays(tv.SVHN, BY_SPLIT, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "stl10": _arrays(tv.STL10, WITH_UNLABELED, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "gtsrb": _files(tv.GTSRB, BY_SPLIT, *IMAGENET),
}
DATASETS = OF_TORCHVISION | {
    "image_folder": DataSet(_read_folder, *IMAGENET, needs_size=True, in_files=True),
    "manifest": DataSet(_read_manifest, *IMAGENET, needs_size=True, in_files=True),
    "fake": DataSet(make_fake_arrays, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), needs_size=True),
}
OF_PEOPLE = ("image_folder", "manifest")  # without a published list of their test images
IN_FILES = [name for name, dataset in DATASETS.items() if dataset.in_files]


class DataSettings(Settings):
    name: Literal[tuple(DATASETS)] = Field(description="the dataset")
    root: PathName = Field(
        "data", description="folder of the dataset", json_schema_extra=NOT_COMPARED
    )
    manifest: PathName | None = Field(
        None,
        description="manifest: the table of the images, CSV or Parquet",
        json_schema_extra=NOT_COMPARED,
    )
    test_share: float = Field(
        TEST_SHARE,
        gt=0,
        lt=1,
        description="image_folder and manifest without a test part: the share of the images that "
        "is held out as test images, by a hash of their paths",
    )
    prepared: PathName = Field(
        "data/prepared",
        description="folder for the decoded maps of images in files",
        json_schema_extra=NOT_COMPARED,
    )
    size: int | None = Field(
        None,
        ge=LEAST_PIXELS,
        le=MOST_PIXELS,
        description="images in files, and fake: height and width of the prepared images",
    )
    skip_broken: bool = Field(
        False,
        json_schema_extra=NOT_COMPARED,
        description="images in files: leave out those that cannot be decoded, and take others",
    )
    verify: bool = Field(
        True,
        json_schema_extra=NOT_COMPARED,
        description="published datasets: refuse a file whose checksum is not the published one",
    )

    @property
    def given_test_share(self):
        """`test_share`, or None if it was not given."""
        return self.test_share if "test_share" in self.model_fields_set else None

    @pydantic.model_serializer(mode="wrap")
    def _leave_out_usual_share(self, dump):
        """Records of earlier versions have no test_share."""
        values = dump(self)
        if values.get("test_share") == TEST_SHARE:
            del values["test_share"]
        return values

    @pydantic.model_validator(mode="after")
    def _check_manifest(self):
        if self.name != "manifest" and self.manifest is not None:
            raise ValueError(
                f"manifest is {self.manifest!r}, but name is {self.name}; leave it out"
            )
        if self.name not in OF_PEOPLE and self.given_test_share is not None:
            own = f"but {self.name} has test images of its own"
            raise ValueError(f"test_share is {self.test_share}, {own}; leave it out")
        return self

    @pydantic.model_validator(mode="after")
    def _check_size(self):
        needs_size = DATASETS[self.name].needs_size
        if needs_size and self.size is None:
            raise ValueError(f"size is missing: {self.name} needs one, such as 224")
        if not needs_size and self.size is not None:
            own = f"but the images of {self.name} have a size of their own"
            raise ValueError(f"size is {self.size}, {own}; leave it out")
        return self
