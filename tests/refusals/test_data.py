"""Data sets by name: what the files hold is what the tensors hold, and bad files are one line."""

import gzip
import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch
from conftest import random_bytes, write_fashion_mnist
from torchvision import datasets

from memorization.data import published_files
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.errors import WrongUse

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(autouse=True)
def no_check(monkeypatch):
    """Torchvision, which compares md5 sums, takes small files for the true ones."""
    for module in (datasets.mnist, datasets.cifar, datasets.svhn, datasets.stl10, datasets.utils):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: os.path.isfile(path))


@pytest.fixture(autouse=True)
def no_debian_package(monkeypatch, tmp_path):
    monkeypatch.setattr(published_files, "DEBIAN_FASHION_MNIST", tmp_path / "no_package")


def opened(name, root, **settings):
    return open_images(DataSettings(name=name, root=str(root), **settings))


# --- Fashion-MNIST: idx files, big-endian header, then rows of pixels -----------------------------


def write_five_images(folder, **how):
    """Three training images and two test images; returns them."""
    images = {"train": random_bytes(3, 28, 28), "t10k": random_bytes(2, 28, 28, seed=1)}
    write_fashion_mnist(folder, images, [7, 0, 9], **how)
    return images


def write_debian_package(folder):
    def write(path, content):
        path.write_bytes(gzip.compress(content))

    return write_five_images(folder, write=write, ending=".gz")


def test_fashion_mnist_is_read_from_the_folder_of_torchvision(tmp_path):
    written = write_five_images(tmp_path / "FashionMNIST" / "raw")
    images = opened("fashion_mnist", tmp_path)
    assert (images.channels, images.train.size, len(images.train), len(images.test)) == (
        1,
        28,
        3,
        2,
    )
    assert torch.equal(images.train.pixels[:, 0], torch.from_numpy(written["train"]))
    assert torch.equal(images.test.pixels[:, 0], torch.from_numpy(written["t10k"]))
    assert images.train.labels.tolist() == [7, 0, 9] and images.train.labels.dtype == torch.int64
    assert images.classes[9] == "Ankle boot"


def test_fashion_mnist_is_unpacked_from_the_debian_package(tmp_path, monkeypatch):
    written = write_debian_package(tmp_path / "package")
    monkeypatch.setattr(published_files, "DEBIAN_FASHION_MNIST", tmp_path / "package")
    images = opened("fashion_mnist", tmp_path / "root")
    assert torch.equal(images.train.pixels[:, 0], torch.from_numpy(written["train"]))
    assert len(list((tmp_path / "root" / "FashionMNIST" / "raw").iterdir())) == 4


def test_a_broken_debian_package_is_named_and_leaves_no_file(tmp_path, monkeypatch):
    write_debian_package(tmp_path / "package")
    broken = tmp_path / "package" / "train-images-idx3-ubyte.gz"
    broken.write_bytes(broken.read_bytes()[:-100])
    monkeypatch.setattr(published_files, "DEBIAN_FASHION_MNIST", tmp_path / "package")
    with pytest.raises(WrongUse, match=str(broken)):
        opened("fashion_mnist", tmp_path / "root")
    assert not list(tmp_path.glob("root/**/*ubyte"))


def test_a_missing_fashion_mnist_names_all_three_places(tmp_path):
    with pytest.raises(WrongUse) as error:
        opened("fashion_mnist", tmp_path)
    message = str(error.value)
    for part in (
        f"{tmp_path}/FashionMNIST/raw",
        str(tmp_path / "no_package"),
        "dataset-fashion-mnist",
        "by download",
        "no network here",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("length", [0, 3, 9])
def test_a_truncated_fashion_mnist_is_wrong_use(tmp_path, name, length):
    raw = tmp_path / "FashionMNIST" / "raw"
    write_five_images(raw)
    (raw / name).write_bytes((raw / name).read_bytes()[:length])
    with pytest.raises(WrongUse, match=f"fashion_mnist.*{raw}"):
        opened("fashion_mnist", tmp_path)


def test_images_and_labels_of_different_number_are_wrong_use(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    write_five_images(raw)
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(WrongUse, match="3 train images, but 2 labels"):
        opened("fashion_mnist", tmp_path)


def test_a_label_beyond_the_classes_is_wrong_use(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    write_five_images(raw)
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(WrongUse, match="a train label outside of the 10 classes"):
        opened("fashion_mnist", tmp_path)


# --- CIFAR: pickled rows of 3,072 bytes, red before green before blue -----------------------------


def write_cifar(folder, files, labels_key, meta):
    folder.mkdir()
    for seed, (name, labels) in enumerate(files.items()):
        (folder / name).write_bytes(
            pickle.dumps(
                {"data": random_bytes(len(labels), 3072, seed=seed), labels_key: labels}, protocol=2
            )
        )
    name, key, classes = meta
    (folder / name).write_bytes(pickle.dumps({key: classes}, protocol=2))


def write_cifar10(root):
    files = {f"data_batch_{i}": [i, 9 - i] for i in range(1, 6)} | {"test_batch": [3]}
    write_cifar(
        root / "cifar-10-batches-py",
        files,
        "labels",
        ("batches.meta", "label_names", list("abcdefghij")),
    )


def test_cifar10_has_the_batches_in_order_and_channels_first(tmp_path):
    write_cifar10(tmp_path)
    images = opened("cifar10", tmp_path)
    assert images.train.pixels.shape == (10, 3, 32, 32) and images.test.pixels.shape == (
        1,
        3,
        32,
        32,
    )
    assert images.train.labels.tolist() == [
        1,
        8,
        2,
        7,
        3,
        6,
        4,
        5,
        5,
        4,
    ] and images.test.labels.tolist() == [3]
    # the first image of the second batch
    third = torch.from_numpy(random_bytes(2, 3072, seed=1)[0])
    assert torch.equal(images.train.pixels[2].flatten(), third)
    assert images.train.pixels.is_contiguous() and images.classes == tuple("abcdefghij")


def test_cifar100_has_the_fine_labels(tmp_path):
    classes = [f"class {i}" for i in range(100)]
    write_cifar(
        tmp_path / "cifar-100-python",
        {"train": [99, 0], "test": [50]},
        "fine_labels",
        ("meta", "fine_label_names", classes),
    )
    images = opened("cifar100", tmp_path)
    assert images.train.labels.tolist() == [99, 0] and images.test.labels.tolist() == [50]
    assert images.classes == tuple(classes)
    assert torch.equal(
        images.train.pixels.flatten(1), torch.from_numpy(random_bytes(2, 3072, seed=0))
    )


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", pickle.dumps({"data": random_bytes(1, 3072)}), pickle.dumps([1])]
)
def test_a_wrong_pickle_is_wrong_use(tmp_path, content):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(WrongUse, match=f"cifar10: .*{tmp_path}"):
        opened("cifar10", tmp_path)


# --- SVHN and STL-10 ------------------------------------------------------------------------------


def test_svhn_is_read_from_mat_files_with_the_digit_0_as_label_0(tmp_path):
    # (row, column, channel, image)
    pixels = {"train": random_bytes(32, 32, 3, 3), "test": random_bytes(32, 32, 3, 2, seed=1)}
    for name, labels in {"train": [10, 1, 9], "test": [5, 10]}.items():
        scipy.io.savemat(
            tmp_path / f"{name}_32x32.mat",
            {"X": pixels[name], "y": np.array(labels, dtype=np.uint8)[:, None]},
        )
    images = opened("svhn", tmp_path)
    assert images.train.labels.tolist() == [0, 1, 9] and images.test.labels.tolist() == [5, 0]
    assert images.train.pixels.shape == (3, 3, 32, 32)
    assert images.train.pixels[2, 1, 30, 4] == int(pixels["train"][30, 4, 1, 2])
    assert torch.equal(
        images.train.pixels[1], torch.from_numpy(pixels["train"][..., 1]).permute(2, 0, 1)
    )
    assert images.classes == tuple("0123456789")


def test_a_truncated_mat_file_is_wrong_use(tmp_path):
    for name in ("train", "test"):
        path = tmp_path / f"{name}_32x32.mat"
        scipy.io.savemat(
            path, {"X": random_bytes(32, 32, 3, 2), "y": np.array([[1], [2]], dtype=np.uint8)}
        )
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(WrongUse, match=f"svhn: .*{tmp_path}"):
        opened("svhn", tmp_path)


def write_stl10(root):
    """Two labelled, three unlabeled and one test image, as (3, column, row) bytes; returns them by
    name.
    """
    folder = root / "stl10_binary"
    folder.mkdir()
    images = {
        name: random_bytes(count, 3, 96, 96, seed=count)
        for name, count in {"train": 2, "unlabeled": 3, "test": 1}.items()
    }
    for name, pixels in images.items():
        (folder / f"{name}_X.bin").write_bytes(pixels.tobytes())
    (folder / "train_y.bin").write_bytes(bytes([10, 1]))
    (folder / "test_y.bin").write_bytes(bytes([4]))
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    return images


def test_stl10_trains_on_the_labelled_images_first_and_then_the_unlabeled(tmp_path):
    written = write_stl10(tmp_path)
    images = opened("stl10", tmp_path)
    assert images.train.labels.tolist() == [9, 0, -1, -1, -1] and images.test.labels.tolist() == [3]
    expected = np.concatenate([written["train"], written["unlabeled"]]).transpose(0, 1, 3, 2)
    assert torch.equal(images.train.pixels, torch.from_numpy(expected.copy()))
    assert images.train.pixels.is_contiguous() and images.classes == tuple("abcdefghij")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "stl10"])
def test_a_failed_download_is_wrong_use_with_dataset_root_and_reason(tmp_path, name):
    words = f"{tmp_path}/.* is missing; http.*no network here.*{tmp_path}.*"
    with pytest.raises(WrongUse, match=f"^{name}: cannot be read .{words}$"):
        opened(name, tmp_path)


# --- fingerprints and fake images -----------------------------------------------------------------


def test_the_fingerprint_changes_with_one_pixel_and_with_one_label():
    images = opened("fake", "unused", size=8)
    changed_pixels, changed_labels = images.train.pixels.clone(), images.train.labels.clone()
    changed_pixels[1000, 2, 7, 7] ^= 1
    changed_labels[1000] += 1
    changes = [{}, {"pixels": changed_pixels}, {"labels": changed_labels}]
    fingerprints = [
        replace(images, train=replace(images.train, **change)).fingerprint for change in changes
    ]
    assert fingerprints[0] == images.fingerprint == json.loads(json.dumps(images.fingerprint))
    assert len({fingerprint["train"]["sha256"] for fingerprint in fingerprints}) == 3
    assert len({fingerprint["test"]["sha256"] for fingerprint in fingerprints}) == 1
    assert {**images.fingerprint["train"], "sha256": None} == {
        "count": 1024,
        "shape": [1024, 3, 8, 8],
        "sha256": None,
    }


def test_fake_images_are_the_same_twice_and_train_differs_from_test():
    images, again = opened("fake", "unused", size=8), opened("fake", "unused", size=8)
    assert (len(images.train), len(images.test), images.channels, len(images.classes)) == (
        1024,
        256,
        3,
        10,
    )
    assert images.fingerprint == again.fingerprint
    distances = torch.cdist(
        images.test.pixels.double().flatten(1), images.train.pixels.double().flatten(1)
    )
    assert distances.min() > 250  # the noise of two images alone: 7.4 sqrt(2 x 192) = 145
    assert images.prepare([0], [0]) is images


def test_fake_images_show_their_class_in_both_splits_and_differ_within_it_by_more_than_noise():
    images = opened("fake", "unused", size=8)
    train, test = images.train.pixels.double().flatten(1), images.test.pixels.double().flatten(1)
    centres = torch.stack([train[images.train.labels == label].mean(0) for label in range(10)])
    assert (torch.cdist(test, centres).argmin(1) == images.test.labels).double().mean() > 0.9
    # the noise alone has 255 x 0.1 / sqrt(12) = 7.4
    assert (train - centres[images.train.labels]).std() > 20


def test_a_split_is_gathered_by_index_in_the_order_asked_for():
    train = opened("fake", "unused", size=8).train.to(torch.device("cpu"))
    assert torch.equal(
        train.gather(torch.tensor([5, 3, 5])),
        torch.stack([train.pixels[5], train.pixels[3], train.pixels[5]]),
    )


def test_a_home_folder_is_understood_in_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_debian_package(tmp_path / "package")
    monkeypatch.setattr(published_files, "DEBIAN_FASHION_MNIST", tmp_path / "package")
    assert len(opened("fashion_mnist", "~/data").train) == 3 and (tmp_path / "data").is_dir()
