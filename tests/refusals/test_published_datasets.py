"""Published datasets: what is there is never written over, what is missing alone is fetched, and
pickles call nothing.
"""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from memorization.data import published_files
from memorization.data.catalogue import IN_FILES, OF_TORCHVISION, DataSettings
from memorization.data.images import open_images
from memorization.errors import WrongUse

LABELS = {"data_batch_1": [1, 0], "test_batch": [2]}


def opened(root, name="cifar10", **settings):
    return open_images(DataSettings(name=name, root=str(root), **settings))


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10 with three images as it is "published": ({name: content}, the archive's content).
    downloads: of its URL.
    """
    chance = np.random.default_rng(0)
    files = {"batches.meta": pickle.dumps({"label_names": ["a", "b", "c"]}, protocol=2)}
    for name, labels in LABELS.items():
        pixels = chance.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        files[name] = pickle.dumps({"data": pixels, "labels": labels}, protocol=2)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for attribute, names in (("train_list", ["data_batch_1"]), ("test_list", ["test_batch"])):
        monkeypatch.setattr(
            datasets.CIFAR10, attribute, [[name, md5(files[name])] for name in names]
        )
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", md5(files["batches.meta"]))
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(packed.getvalue()))
    return files, packed.getvalue()


@pytest.fixture
def downloads(cifar, monkeypatch):
    """The addresses that were downloaded from; each gives CIFAR's archive."""
    fetched = []

    def download(url, root, filename, md5):
        fetched.append(url)
        Path(root, filename).write_bytes(cifar[1])

    monkeypatch.setattr(datasets.utils, "download_url", download)
    return fetched


def write(root, files):
    (root / "cifar-10-batches-py").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / "cifar-10-batches-py" / name).write_bytes(content)


def contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_what_is_missing_is_downloaded_once_and_leaves_nothing_else(tmp_path, cifar, downloads):
    images = opened(tmp_path / "data")
    assert images.train.labels.tolist() == [1, 0] and images.classes == ("a", "b", "c")
    assert contents(tmp_path / "data") == {
        f"cifar-10-batches-py/{name}": content for name, content in cifar[0].items()
    }
    opened(tmp_path / "data")
    assert len(downloads) == 1


def test_a_file_that_is_not_the_published_one_is_refused_kept_and_never_downloaded(
    tmp_path, cifar, downloads
):
    changed = pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [2]}, protocol=2)
    write(tmp_path, cifar[0] | {"test_batch": changed})
    before = contents(tmp_path)
    with pytest.raises(
        WrongUse,
        match="cifar10: .*/test_batch: its checksum is not the published one.*data.verify: false",
    ):
        opened(tmp_path)
    assert contents(tmp_path) == before and downloads == []
    assert opened(tmp_path, verify=False).test.pixels.sum() == 0
    assert contents(tmp_path) == before and downloads == []


def test_a_changed_file_beside_missing_ones_is_refused_before_a_download(
    tmp_path, cifar, downloads
):
    write(tmp_path, {"test_batch": b"mine"})
    with pytest.raises(WrongUse, match="test_batch: its checksum"):
        opened(tmp_path)
    with pytest.raises(WrongUse, match="test_batch"):
        opened(tmp_path, verify=False)  # the others are downloaded, and mine is no pickle
    assert contents(tmp_path)["cifar-10-batches-py/test_batch"] == b"mine"


def test_a_half_unpacked_folder_is_completed_from_the_archive_beside_it(tmp_path, cifar, downloads):
    write(tmp_path, {"data_batch_1": cifar[0]["data_batch_1"]})
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar[1])
    written = (tmp_path / "cifar-10-batches-py/data_batch_1").stat().st_mtime_ns
    assert len(opened(tmp_path).train) == 2 and downloads == []
    assert (tmp_path / "cifar-10-batches-py/data_batch_1").stat().st_mtime_ns == written


def test_an_archive_whose_download_was_interrupted_is_named_and_kept(tmp_path, cifar, downloads):
    tmp_path.joinpath("cifar-10-python.tar.gz").write_bytes(cifar[1][:200])
    with pytest.raises(
        WrongUse,
        match="10-python.tar.gz: its checksum is not the published one.*delete it if a download",
    ):
        opened(tmp_path)
    with pytest.raises(WrongUse, match="cifar-10-python.tar.gz cannot be unpacked"):
        opened(tmp_path, verify=False)
    assert contents(tmp_path) == {"cifar-10-python.tar.gz": cifar[1][:200]} and downloads == []


def test_what_a_killed_download_left_behind_is_deleted_by_the_next(tmp_path, downloads):
    (tmp_path / ".cifar10_killed").mkdir()
    (tmp_path / ".cifar10_killed/download").write_bytes(b"half")
    opened(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_starts_at_once_in_an_empty_folder_download_once(tmp_path, downloads):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: opened(tmp_path).fingerprint, range(4)))
    assert len(downloads) == 1 and all(fingerprint == found[0] for fingerprint in found)


def test_a_complete_folder_is_read_without_a_lock(tmp_path, cifar, monkeypatch):
    write(tmp_path, cifar[0])
    monkeypatch.setattr(published_files, "sole_process", None)  # would be called
    assert len(opened(tmp_path).train) == 2


class Harm:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [(os.system, ("touch harm",)), (eval, ("1",)), (open, ("harm", "w")), (getattr, ("", "join"))],
)
def test_a_pickle_that_would_call_something_is_refused_and_calls_nothing(
    call, tmp_path, cifar, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path,
        cifar[0] | {"data_batch_1": pickle.dumps({"data": Harm(*call), "labels": [1]}, protocol=2)},
    )
    with pytest.raises(WrongUse, match="data_batch_1: it would call"):
        opened(tmp_path, verify=False)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_in_pickles_of_every_protocol_are_read(tmp_path, cifar, protocol):
    files = {
        name: pickle.dumps(pickle.loads(content), protocol=protocol)
        for name, content in cifar[0].items()
    }
    write(tmp_path / "one", cifar[0])
    write(tmp_path / "other", files)
    assert (
        opened(tmp_path / "other", verify=False).fingerprint == opened(tmp_path / "one").fingerprint
    )


@pytest.mark.parametrize("name, file", [
    ("fashion_mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte"),
    ("fashion_mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz"),
    ("cifar10", "cifar-10-batches-py/data_batch_2"), ("cifar100", "cifar-100-python/meta"),
    ("svhn", "test_32x32.mat"),
    ("stl10", "stl10_binary/train_y.bin"),
])  # fmt: skip
def test_every_published_dataset_is_checked(tmp_path, name, file, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a download")

    monkeypatch.setattr(datasets.utils, "download_url", refuse)
    monkeypatch.setattr(published_files, "DEBIAN_FASHION_MNIST", tmp_path / "no_package")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    content = gzip.compress(b"other")
    (tmp_path / file).write_bytes(content)
    if name == "fashion_mnist" and file.endswith(".gz"):  # the others of its archives must be there
        sums = {path: md5(b"published") for path in published_files.UNPACKED[name]}
        monkeypatch.setitem(published_files.UNPACKED, name, sums)
        for path in set(sums) - {"t10k-labels-idx1-ubyte"}:
            (tmp_path / file).with_name(path).write_bytes(b"published")
    with pytest.raises(
        WrongUse, match=f"{name}: {tmp_path / file}: its checksum is not the published one"
    ):
        opened(tmp_path, name)
    assert (tmp_path / file).read_bytes() == content


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_a_folder_that_was_not_there_is_not_left_empty(tmp_path, name, no_network, monkeypatch):
    monkeypatch.setattr(published_files, "DEBIAN_FASHION_MNIST", tmp_path / "no_package")
    (tmp_path / "there").mkdir()
    for root in ("nowhere/at/all", "there"):
        with pytest.raises(WrongUse, match=f"looked for in {tmp_path / root}"):
            opened(tmp_path / root, name, size=64 if name in IN_FILES else None)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_download_into_a_folder_that_was_not_there_stays(tmp_path, cifar, downloads):
    opened(tmp_path / "new" / "root")
    assert contents(tmp_path / "new" / "root")


def test_an_archive_that_lacks_a_file_is_named_with_the_file(tmp_path, cifar, downloads):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        archive.addfile(member, io.BytesIO())
    lacking = "cannot be unpacked to .*(test_batch|batches.meta) is not in it"
    with pytest.raises(WrongUse, match=f"cifar-10-python.tar.gz {lacking}"):
        opened(tmp_path, verify=False)
    assert list(contents(tmp_path)) == ["cifar-10-python.tar.gz"] and downloads == []


def test_a_file_that_torchvision_cannot_read_is_the_one_that_was_changed(tmp_path, cifar):
    other = {"labels": [2]}
    write(tmp_path, cifar[0] | {"test_batch": pickle.dumps(other, protocol=2)})
    with pytest.raises(
        WrongUse, match="^cifar10: cannot be read .[^,]*/test_batch: KeyError: 'data'"
    ):
        opened(tmp_path, verify=False)
    write(
        tmp_path, {"test_batch": pickle.dumps({"data": np.zeros((1, 3072)), **other}, protocol=2)}
    )
    with pytest.raises(WrongUse, match="test_batch: pixels of float64, not uint8"):
        opened(tmp_path, verify=False)


@pytest.mark.parametrize("pipe", ["cifar-10-batches-py/test_batch", "cifar-10-python.tar.gz"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, cifar, pipe):
    write(tmp_path, {name: content for name, content in cifar[0].items() if name != "test_batch"})
    os.mkfifo(tmp_path / pipe)
    for verify in (True, False):
        with pytest.raises(WrongUse, match=f"{pipe}: it is a pipe, not a file"):
            opened(tmp_path, verify=verify)
