"""Duplicates: copies are found, and images that are merely alike are not."""

import functools
import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from memorization.data import duplicates
from memorization.data.duplicates import (
    CELLS,
    Duplicates,
    find_duplicates,
    fingerprints_of,
    number_digests,
)
from memorization.data.images import Split

CPU = torch.device("cpu")


@functools.cache
def draw_scenes(count, size=64, seed=0):
    """Made-up scenes of ellipses and rectangles over clouds, (count, size, size) uint8, gray."""
    generator = np.random.default_rng(seed)
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequencies[0, 0] = 1

    def draw_clouds(contrast, level):
        noise = np.fft.fft2(generator.normal(size=(size, size)))
        clouds = np.real(np.fft.ifft2(noise / frequencies))
        return clouds / clouds.std() * contrast + level

    y, x = np.mgrid[:size, :size] / size
    scenes = []
    for _ in range(count):
        scene = draw_clouds(35, generator.uniform(60, 190))
        for _ in range(8):
            across, along = generator.uniform(0.05, 0.3, 2)
            u = (x - generator.uniform()) / across
            v = (y - generator.uniform()) / along
            is_round = generator.random() < 0.5
            inside = u**2 + v**2 < 1 if is_round else np.maximum(abs(u), abs(v)) < 1
            scene[inside] = draw_clouds(15, generator.uniform(10, 245))[inside]
        scenes.append(scene.clip(0, 255).astype(np.uint8))
    return np.array(scenes)


def find(pixels):
    """The Duplicates among gray images (n, S, S)."""
    split, indices = Split.from_array(np.asarray(pixels)), np.arange(len(pixels))
    return find_duplicates(split.digests_of(indices), fingerprints_of(split, indices), CPU)


def compress(scene, quality=50):
    with io.BytesIO() as file:
        Image.fromarray(scene).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))


def resize(scene, share):
    small = Image.fromarray(scene).resize((round(len(scene) * share),) * 2, Image.BILINEAR)
    return np.asarray(small.resize(scene.shape, Image.BILINEAR))


def crop(scene, edge):
    size = len(scene)
    box = (edge, 0, size, size - edge)
    return np.asarray(Image.fromarray(scene).resize((size, size), Image.BILINEAR, box=box))


def brighten(scene, factor, offset=0):
    return (scene * factor + offset).clip(0, 255).astype(np.uint8)


COPIES = {
    "the same": lambda scene: scene,
    "compressed": compress,
    "compressed a lot": lambda scene: compress(scene, 20),
    "resized": lambda scene: resize(scene, 0.5),
    "cropped": lambda scene: crop(scene, 2),
    "brighter": lambda scene: brighten(scene, 1.2, 10),
    "darker": lambda scene: brighten(scene, 0.5),
    "mirrored": lambda scene: scene[:, ::-1],
    "mirrored and compressed": lambda scene: compress(np.ascontiguousarray(scene[:, ::-1])),
}


def test_a_fingerprint_is_the_shrunk_gray_image_without_mean_and_scale():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 30, 30, 3), dtype=np.uint8)
    fine = pixels.astype(float).sum(3).repeat(CELLS, 1).repeat(CELLS, 2)  # the slow way
    cells = fine.reshape(3, CELLS, 30, CELLS, 30).mean((2, 4)).reshape(3, -1)
    cells -= cells.mean(1, keepdims=True)
    cells /= np.linalg.norm(cells, axis=1, keepdims=True)
    fingerprints = fingerprints_of(Split.from_array(pixels), np.arange(3))
    assert np.allclose(fingerprints, cells, atol=1e-6)
    assert np.array_equal(
        fingerprints_of(Split.from_array(pixels), np.array([2])), cells[2:].astype("f4")
    )


@pytest.mark.parametrize("size", [4, 11, 12, 28])
def test_images_of_any_size_have_fingerprints_and_those_of_one_gray_have_none(size):
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size), dtype=np.uint8)
    pixels[1] = 200
    norms = np.linalg.norm(fingerprints_of(Split.from_array(pixels), np.arange(2)), axis=1)
    assert np.allclose(norms, [1, 0], atol=1e-6)


def test_products_are_those_with_the_image_or_with_its_mirror_image():
    scenes = draw_scenes(6)
    plain, mirrored = (
        fingerprints_of(Split.from_array(pixels), np.arange(6)).astype(float)
        for pixels in (scenes, np.ascontiguousarray(scenes[:, :, ::-1]))
    )
    expected = np.maximum(plain @ plain.T, plain @ mirrored.T)
    halves = duplicates._halves(plain.astype("f4"))
    assert np.allclose(duplicates._products(halves, halves), expected, atol=1e-5)


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("count", [30, 400])
def test_copies_are_found_and_other_scenes_are_not(kind, count):
    scenes = draw_scenes(count)
    found = find([*scenes, *(COPIES[kind](scene) for scene in scenes[:20])])
    assert np.array_equal(found.groups[:20], found.groups[-20:])
    assert found.repeated.sum() == 40 and len(np.unique(found.groups)) == count
    assert found.is_exact.sum() == (40 if kind == "the same" else 0)
    assert (found.distances[:20] == 0).all() == (kind in ("the same", "mirrored"))


def test_all_copies_of_an_image_are_one_group_and_groups_are_numbered_by_their_first_images():
    scenes = draw_scenes(40)
    copies = [change(scenes[7]) for change in COPIES.values()]
    found = find([*scenes[:20], *copies, *scenes[20:], scenes[30]])
    assert set(np.flatnonzero(found.groups == found.groups[7])) == {7, *range(20, 29)}
    assert found.groups[:20].tolist() == list(range(20)) and found.groups[29] == 20
    assert found.groups[-1] == found.groups[39] == 30
    assert np.flatnonzero(found.is_exact).tolist() == [7, 20, 39, 49]  # 20 is "the same"
    assert (found.distances[22:27] > 0).all() and np.isinf(found.distances[29])


def test_the_distance_is_that_to_the_nearest_image_of_the_group():
    scenes = draw_scenes(30)
    chain = [scenes[0], crop(scenes[0], 1), crop(scenes[0], 2)]
    found = find([*chain, *scenes[1:]])
    split = Split.from_array(np.array(chain))
    vectors = fingerprints_of(split, np.arange(3)).astype(float)
    between = np.linalg.norm(vectors[:, None] - vectors, axis=2) + np.diag([9] * 3)
    assert np.allclose(found.distances[:3], between.min(1)) and len(set(found.groups[:3])) == 1


def test_images_that_are_alike_anyway_are_no_duplicates_though_they_are_near():
    """As trousers are: each is a mixture of few patterns, and no two are the same."""
    generator, patterns = np.random.default_rng(0), draw_scenes(9).astype(float)
    weights = np.concatenate([np.ones((600, 1)), generator.normal(0, 0.12, (600, 8))], axis=1)
    alike = np.einsum("nk,kij->nij", weights, patterns).clip(0, 255).astype(np.uint8)
    copies = [compress(image, 90) for image in alike[:20]]
    found, with_copies = find(alike), find([*alike, *copies])
    vectors = fingerprints_of(Split.from_array(alike), np.arange(600))
    nearest = np.sort(2 - 2 * vectors @ vectors.T, axis=1)[:, 1] ** 0.5
    assert np.median(nearest) < duplicates.FAR / 2  # of scenes they would be duplicates
    assert found.repeated.mean() < 0.02
    assert np.array_equal(with_copies.groups[:20], with_copies.groups[-20:])


def test_images_of_one_gray_are_duplicates_only_if_they_are_equal():
    grays = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), 256).reshape(-1, 16, 16)
    found = find([*grays, grays[3]])
    assert np.flatnonzero(found.repeated).tolist() == [3, 25] and found.is_exact[3]


def test_blocks_and_their_sizes_change_nothing(monkeypatch):
    scenes = draw_scenes(90)
    pixels = [*scenes, *(compress(scene) for scene in scenes[:30])]
    whole = find(pixels)
    for name, value in {"ROWS": 7, "COLUMNS": 11, "CHECKED": 3, "VALUES": 5000}.items():
        monkeypatch.setattr(duplicates, name, value)
    in_blocks = find(pixels)
    for name in ("groups", "pixels", "distances"):
        assert np.array_equal(getattr(whole, name), getattr(in_blocks, name)), name


def test_a_sample_of_many_images_gives_their_spacing_and_a_few_images_have_none(monkeypatch):
    scenes = draw_scenes(500, size=24)
    fingerprints = fingerprints_of(Split.from_array(scenes), np.arange(500))
    halves, own = duplicates._halves(fingerprints), np.arange(500)
    whole = duplicates._thresholds(halves, own)
    monkeypatch.setattr(duplicates, "SAMPLE", 100)  # every fifth image
    assert np.abs(duplicates._thresholds(halves, own) / whole - 1).mean() < 0.1
    few = duplicates._thresholds([half[:5] for half in halves], own[:5])
    assert (few == duplicates.CLOSE).all()
    for count in (0, 1, 2):
        assert not find(scenes[:count]).repeated.any()


def test_thousands_of_frames_of_a_still_scene_are_one_group_in_seconds():
    generator, start = np.random.default_rng(0), time.process_time()
    (scene,) = draw_scenes(1, size=24)
    frames = (scene + generator.normal(0, 2, (3000, 24, 24))).clip(0, 255).astype(np.uint8)
    found = find([*frames, *draw_scenes(50, size=24, seed=1)])
    assert (found.groups[:3000] == 0).all() and not found.repeated[3000:].any()
    assert time.process_time() - start < 20


def test_ten_thousand_images_are_compared_in_seconds():
    generator, start = np.random.default_rng(0), time.process_time()
    pixels = generator.integers(0, 256, (10_000, 12, 12), dtype=np.uint8)
    pixels[-5:] = 255 - (255 - pixels[:5]) // 2  # paler
    found = find(pixels)
    assert np.flatnonzero(found.repeated).tolist() == [*range(5), *range(9_995, 10_000)]
    assert time.process_time() - start < 20


def test_digests_are_numbered_alike_if_they_are_equal():
    digests = np.array([[1, 2], [1, 3], [1, 2], [0, 0]], dtype=np.uint8)
    numbers = number_digests(digests)
    assert len(set(numbers)) == 3 and numbers[0] == numbers[2]
    assert Duplicates(numbers, numbers, np.zeros(4)).is_exact.tolist() == [True, False, True, False]
