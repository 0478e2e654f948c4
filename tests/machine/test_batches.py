"""What is worked on together, in pieces or by threads comes out as what is worked on alone."""

import multiprocessing
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import (
    EVERY_OPERATION,
    NORMALIZATION,
    keys_of,
    made_up_split,
    read_table,
    score,
    table_with,
)

from memorization.data import augmentations
from memorization.data.augmentations import (
    Draw,
    augment,
    augment_all,
    draw_parameters,
    transform,
)
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.data.randomness import sample_keys, stream, uniform
from memorization.data.recipes import ViewRecipe
from memorization.data.transforms import jitter_step
from memorization.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")  # on which torch adds up in one order


def test_batch_size_does_not_change_a_score_under_a_mask(masked_run, tmp_path):
    path, run = masked_run[0], shutil.copytree(masked_run[1], tmp_path / "run")
    for representation in ("pooled", "tokens"):
        tables = []
        for size in ("256", "7"):
            score(
                path,
                "--run",
                str(run),
                "--scores.representation",
                representation,
                "--scores.batch_size",
                size,
            )
            tables.append(
                read_table(run / "scores" / ("" if representation == "pooled" else "tokens"))[1]
            )
        assert (
            np.abs(tables[0]["score"] - tables[1]["score"]).max() < 1e-6
            and tables[0]["score"].any()
        )


def test_batch_size_does_not_change_a_score(scored_run, run_copy):
    whole = read_table(scored_run[1] / "scores")[1]
    for size in ("1", "7"):
        table = table_with(run_copy, "--scores.batch_size", size)
        for column in ("alignment_loss_f", "alignment_loss_g", "score"):
            assert np.abs(table[column] - whole[column]).max() < 1e-6


def test_an_image_of_one_colour_alone_in_its_batch_is_scored(run_copy, monkeypatch):
    """All its views are alike under some recipes, which says nothing of the encoder."""
    path, run = run_copy
    images = open_images(DataSettings(name="fake", size=16))
    images.train.pixels[33] = 128  # S_C begins at 32
    monkeypatch.setattr(Run, "images", images)
    recipe = "[{size: 16, crop_scale: [0.3, 1.0]}]"
    tables = []
    for size in ("1", "256"):
        options = ["--scores.augmentation", recipe, "--scores.batch_size", size, "--seeds", "0"]
        score(path, "--run", str(run), *options)
        (folder,) = (run / "scores").glob("augmentation_*")
        tables.append(read_table(folder)[1])
    assert tables[0]["alignment_loss_f"][33] < 1e-3 < tables[0]["alignment_loss_f"].max()
    assert np.abs(tables[0]["score"] - tables[1]["score"]).max() < 1e-6


def test_the_number_of_threads_does_not_change_a_score(scored_run, run_copy):
    one = read_table(scored_run[1] / "scores")[1]
    before = torch.get_num_threads()
    try:
        several = table_with(run_copy, "--threads", "3")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for column in ("alignment_loss_f", "alignment_loss_g", "score"):
        assert np.abs(several[column] - one[column]).max() < 1e-6


# channels, size of the source, size of the view
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 48, 16), (3, 20, 33), (1, 8, 5)]


def views_of(images, indices, size):
    """Views with everything switched on, (B, C, size, size)."""
    recipe = ViewRecipe(size=size, **EVERY_OPERATION)
    return augment(
        images,
        indices,
        recipe,
        NORMALIZATION[images.pixels.shape[1]],
        Draw(0, "training", epoch=1),
    ).pixels


@pytest.mark.parametrize("channels, source, size", SHAPES)
def test_views_are_exactly_the_same_in_every_order_of_the_batch(channels, source, size):
    images = made_up_split(131, channels, source)
    order = torch.randperm(131, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        views_of(images, order, size), views_of(images, torch.arange(131), size)[order]
    )


@pytest.mark.parametrize("channels, source, size", SHAPES)
def test_views_are_exactly_the_same_in_batches_of_every_size(channels, source, size):
    images, indices = made_up_split(131, channels, source), torch.arange(131)
    whole = views_of(images, indices, size)
    for batch_size in (1, 2, 3, 5, 31, 63, 64, 65, 130):
        parts = [views_of(images, part, size) for part in indices.split(batch_size)]
        assert torch.equal(torch.cat(parts), whole), batch_size


@pytest.mark.parametrize("channels, source, size", SHAPES)
def test_views_are_exactly_the_same_when_other_samples_are_left_out_repeated_or_changed(
    channels, source, size
):
    images = made_up_split(131, channels, source)
    whole = views_of(images, torch.arange(131), size)
    for kept in (torch.arange(0, 131, 3), torch.arange(5, 6), torch.tensor([130, 5, 5, 0])):
        others_lost = torch.zeros_like(images.pixels)
        others_lost[kept] = images.pixels[kept]
        assert torch.equal(views_of(images, kept, size), whole[kept])
        assert torch.equal(
            views_of(replace(images, pixels=others_lost), torch.arange(131), size)[kept],
            whole[kept],
        )


def test_masks_are_exactly_the_same_in_another_order_and_in_batches_of_seven():
    images, recipe = made_up_split(131, 1, 28), ViewRecipe(size=28, mask_ratio=0.75)

    def masks(indices):
        step = Draw(0, "training", epoch=1, patch=4)
        return augment(images, indices, recipe, NORMALIZATION[1], step).visible

    whole = masks(torch.arange(131))
    assert torch.equal(masks(torch.arange(131).flip(0)), whole.flip(0))
    assert torch.equal(torch.cat([masks(part) for part in torch.arange(131).split(7)]), whole)


def test_numbers_do_not_depend_on_the_samples_and_slots_asked_for_beside_them():
    numbers = uniform(keys_of(50, 0, "scoring"), torch.arange(40))
    some, few = torch.tensor([49, 5, 5, 30]), torch.tensor([39, 0, 7])
    assert torch.equal(uniform(sample_keys(stream(0, "scoring"), some), few), numbers[some][:, few])


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_gives_neighbours_with_hue_at_one_place_or_at_many_what_each_image_alone_gets(
    channels,
):
    x = made_up_split(60, channels, 9).pixels / 255
    recipe = ViewRecipe(size=9, jitter=0.8, jitter_strength=[0.6, 0.6, 0.6, 0.4])
    p = draw_parameters(recipe, keys_of(60), 32)

    def jitter(rows):
        operation, tensors = jitter_step(p[rows], channels)
        return operation(x[rows], *tensors)  # of a copy

    alone = torch.cat([jitter([i]) for i in range(60)])
    place = torch.where(p.jitter, (p.order == 3).int().argmax(1), -1)
    assert set(place.tolist()) == {-1, 0, 1, 2, 3}
    for order in (torch.arange(60), place.argsort(), place.argsort(descending=True)):
        assert torch.equal(jitter(order), alone[order])
    assert torch.equal(alone[~p.jitter], x[~p.jitter])


@pytest.mark.parametrize("count, channels, source, size", [(40, 3, 32, 32), (6, 1, 24, 200)])
def test_views_are_exactly_the_same_on_one_thread_and_on_two_alone_and_in_a_batch(
    count, channels, source, size
):
    """From 182 x 182 pixels on, torch shares a sum over one image among threads, but not a sum over
    each image of a batch.
    """
    images, indices = made_up_split(count, channels, source), torch.arange(count)
    on_one_thread = views_of(images, indices, size)
    torch.set_num_threads(2)
    alone = torch.cat([views_of(images, index, size) for index in indices[:4].split(1)])
    assert torch.equal(views_of(images, indices, size), on_one_thread)
    assert torch.equal(alone, on_one_thread[:4])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_large_batch_is_shared_among_as_many_threads_as_torch_has_each_of_them_on_its_own(
    threads, monkeypatch
):
    images, seen = made_up_split(20, 3, 8), []

    def watched(pixels, parameters, recipe, *last):
        seen.append((threading.get_ident(), torch.get_num_threads(), len(pixels)))
        return transform(pixels, parameters, recipe, *last)

    monkeypatch.setattr(augmentations, "transform", watched)
    torch.set_num_threads(threads)
    views_of(images, torch.arange(20), 8)
    assert [count for _, _, count in seen] == [20]  # too small to be shared
    seen.clear()
    monkeypatch.setattr(augmentations, "CHUNK_BYTES", 7 * images.pixels[0].numel() * 4)
    views_of(images, torch.arange(20), 8)
    assert torch.get_num_threads() == threads
    assert (
        sorted(count for _, _, count in seen)
        == {1: [6, 7, 7], 2: [5, 5, 5, 5], 3: [6, 7, 7]}[threads]
    )
    assert {alone for _, alone, _ in seen} == {1}
    assert (threading.get_ident() in {thread for thread, _, _ in seen}) == (threads == 1)


@pytest.mark.parametrize("threads, chunk, together, shared", [
    (2, 1.0, [1, 1, 1, 1], True), (2, 1.1, [1, 1, 1, 1], False), (5, 1.0, [1, 1, 1, 1], False),
    (2, 2.0, [1, 1, 2], False), (2, 9.0, [1, 3], False),
])  # fmt: skip
def test_views_come_out_the_same_one_by_one_together_and_shared_among_threads(
    threads, chunk, together, shared, monkeypatch
):
    images, indices = made_up_split(20, 3, 8), torch.arange(20)
    one, other = (
        ViewRecipe(size=8, **EVERY_OPERATION, mask_ratio=0.5),
        ViewRecipe(size=6, **EVERY_OPERATION),
    )
    recipes, once = [one, other, one, one], Draw(0, "training", epoch=1, patch=2)
    alone = [
        augment(images, indices, recipe, NORMALIZATION[3], once, view)
        for view, recipe in enumerate(recipes)
    ]
    entered, made = [], augmentations._make_views
    monkeypatch.setattr(
        augmentations,
        "_make_views",
        lambda *given: entered.append((len(given[5]), threading.get_ident())) or made(*given),
    )
    monkeypatch.setattr(augmentations, "CHUNK_BYTES", int(chunk * alone[0].pixels.nbytes))
    torch.set_num_threads(threads)
    views = augment_all(images, indices, recipes, NORMALIZATION[3], once)
    assert all(
        torch.equal(view.pixels, wanted.pixels) for view, wanted in zip(views, alone, strict=True)
    )
    assert [None if view.visible is None else view.visible.tolist() for view in views] == [
        None if wanted.visible is None else wanted.visible.tolist() for wanted in alone
    ]
    assert sorted(count for count, _ in entered) == together
    assert (threading.get_ident() in {thread for _, thread in entered}) != shared


MANY, FEW = ViewRecipe(size=8, **EVERY_OPERATION), ViewRecipe(size=8, flip=1.0, noise=0.05)
MANY_TURNED = ViewRecipe(**MANY.model_dump() | {"rotate": [90], "blur_sigma": [1.0, 3.0]})


@pytest.mark.parametrize("change, together", [
    ({}, [[0, 2, 4, 1, 3]]), ({"solarize_threshold": 0.4}, [[0, 2, 4, 3], [1]]),
    ({"noise": 0.1}, [[0, 2, 4, 3], [1]]), ({"size": 6}, [[0, 2, 4, 3], [1]]),
    ({"mask_ratio": 0.5}, [[0, 2, 4, 3], [1]]),
])  # fmt: skip
def test_views_of_one_size_are_made_together_whatever_else_their_recipes_draw(
    change, together, monkeypatch
):
    images, indices = made_up_split(20, 3, 8), torch.arange(20)
    recipes = [MANY, FEW.model_copy(update=change), MANY, MANY_TURNED, MANY]
    once, entered, made = Draw(0, "training", patch=2), [], augmentations._make_views
    alone = [
        augment(images, indices, recipe, NORMALIZATION[3], once, view)
        for view, recipe in enumerate(recipes)
    ]
    monkeypatch.setattr(
        augmentations, "_make_views", lambda *given: entered.append(given[5]) or made(*given)
    )
    views = augment_all(images, indices, recipes, NORMALIZATION[3], once)
    assert entered == together
    for view, expected in zip(views, alone, strict=True):
        assert torch.equal(view.pixels, expected.pixels)


def test_threads_divide_a_batch_wherever_its_views_change_their_recipe(monkeypatch):
    images, indices = made_up_split(20, 3, 8), torch.arange(20)
    given = (images, indices, [MANY, MANY, FEW], NORMALIZATION[3], Draw(0, "training"), [2, 0, 1])
    whole = augmentations._make_views(*given)
    for threads, images_of_a_part in ((2, 30), (3, 20), (3, 1)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(augmentations, "CHUNK_BYTES", images_of_a_part * 4 * 3 * 8 * 8)
        parts = augmentations._make_views(*given)
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(parts, whole, strict=True))


def test_small_views_of_large_images_are_not_made_together(monkeypatch):
    images, entered, made = made_up_split(20, 3, 32), [], augmentations._make_views
    monkeypatch.setattr(
        augmentations,
        "_make_views",
        lambda *given: entered.append(len(given[5])) or made(*given),
    )
    # as many bytes as the images have, in float32
    monkeypatch.setattr(augmentations, "CHUNK_BYTES", 4 * 20 * 3 * 32 * 32)
    augment_all(
        images, torch.arange(20), 3 * [ViewRecipe(size=8)], NORMALIZATION[3], Draw(0, "training")
    )
    assert entered == [1, 1, 1]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_views_are_made_in_inference_mode_too_of_fewer_images_than_threads(count, monkeypatch):
    monkeypatch.setattr(augmentations, "CHUNK_BYTES", 1)
    images, indices = made_up_split(8, 3, 8), torch.arange(count)
    expected = views_of(images, indices, 8)
    torch.set_num_threads(3)
    with torch.inference_mode():
        views = views_of(images, indices, 8)
    assert views.shape == (count, 3, 8, 8) and torch.equal(views, expected)


def test_large_images_are_worked_on_a_few_at_a_time_and_come_out_the_same(monkeypatch):
    images, indices = made_up_split(40, 3, 8), torch.arange(40).flip(0)
    whole = views_of(images, indices, 8)
    monkeypatch.setattr(augmentations, "CHUNK_BYTES", 7 * 3 * 8 * 8 * 4 + 1)  # seven images
    assert torch.equal(views_of(images, indices, 8), whole)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_makes_views_with_threads_of_its_own():
    images, indices = made_up_split(6, 3, 8), torch.arange(6)
    torch.set_num_threads(2)
    # starts threads, of which the fork knows but which it does not have
    views_of(images, indices, 8)
    process = multiprocessing.get_context("fork").Process(
        target=views_of, args=(images, indices, 8)
    )
    process.start()
    process.join(30)
    process.kill()
    assert process.exitcode == 0


@pytest.mark.gpu
@pytest.mark.parametrize("channels, source, size", SHAPES)
def test_views_on_a_gpu_equal_those_on_the_cpu(channels, source, size):
    images = made_up_split(131, channels, source)
    on_gpu = views_of(images.to(torch.device("cuda")), torch.arange(131), size)
    assert on_gpu.device.type == "cuda"
    assert (on_gpu.cpu() - views_of(images, torch.arange(131), size)).abs().max() <= 1e-4
