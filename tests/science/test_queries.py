from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn as nn

from memorization.data.augmentations import Draw, augment, measuring_recipe
from memorization.data.images import Split
from memorization.data.recipes import ViewRecipe
from memorization.encoder import Encoder
from memorization.errors import WrongUse
from memorization.measuring.deja_vu import DejaVuSettings
from memorization.measuring.queries import corner_rectangle, make_queries, without_middle

RECIPES = [
    ViewRecipe(size=8, crop_scale=[0.3, 1.0], jitter=0.5),
    ViewRecipe(size=8, crop_scale=[0.3, 1.0], mask_ratio=0.75),
]
ENCODER = Encoder("f", nn.Identity(), 1, 8, ([0.0], [1.0]), patch=2)


def random_split(count=6, size=8):
    generator = torch.Generator().manual_seed(0)
    return Split(
        "train",
        torch.randint(256, (count, 1, size, size), generator=generator, dtype=torch.uint8),
        torch.zeros(count).long(),
    )


def queries(encoder=ENCODER, split=None, **settings):
    split = split or random_split()
    return make_queries(
        split, torch.tensor([4, 1]), encoder, DejaVuSettings(**settings), RECIPES, seed=3
    )


def test_training_queries_are_the_training_recipes_in_turn_but_never_views_that_were_trained_on():
    made, split, indices = queries(views=4), random_split(), torch.tensor([4, 1])
    assert made.views == 4 and made.dropped == {}
    for view in range(4):
        recipe = measuring_recipe(RECIPES, view)
        same = augment(split, indices, recipe, ([0.0], [1.0]), Draw(3, "query", patch=2), view)
        trained = augment(
            split, indices, recipe, ([0.0], [1.0]), Draw(3, "training", patch=2), view
        )
        found = made.make_view(indices, view)
        assert torch.equal(found.pixels, same.pixels) and not torch.equal(
            found.pixels, trained.pixels
        )
        assert (found.visible is None) == (view % 2 == 0)
    assert torch.equal(found.visible, same.visible)


def test_what_a_mask_hides_is_blank_in_the_pixels_of_a_query():
    made, indices = queries(views=2), torch.tensor([4, 1])
    assert torch.equal(made.pixels(indices, 0), made.make_view(indices, 0).pixels)
    view, shown = made.make_view(indices, 1), made.pixels(indices, 1)
    for image in range(2):
        for patch in range(16):
            rows, columns = (
                slice(2 * (patch // 4), 2 * (patch // 4) + 2),
                slice(2 * (patch % 4), 2 * (patch % 4) + 2),
            )
            expected = (
                view.pixels[image, :, rows, columns]
                if patch in view.visible[image]
                else torch.zeros(1, 2, 2)
            )
            assert torch.equal(shown[image, :, rows, columns], expected)


@pytest.mark.parametrize("corner, rows, columns", [
    ("lower_left", slice(4, 8), slice(0, 4)), ("lower_right", slice(4, 8), slice(4, 8)),
    ("upper_left", slice(0, 4), slice(0, 4)), ("upper_right", slice(0, 4), slice(4, 8)),
])  # fmt: skip
def test_a_corner_is_that_corner(corner, rows, columns):
    split = random_split()
    made = queries(
        replace(ENCODER, size=4), split, query="corner", corner=corner, corner_fraction=0.5
    )
    found = made.make_view(torch.tensor([4, 1]), 0).pixels
    assert made.views == 1
    assert torch.allclose(found, split.pixels[[4, 1]][:, :, rows, columns] / 255, atol=1e-6)


def test_a_corner_is_resized_to_the_input_and_has_at_least_a_pixel():
    split = random_split()
    found = (
        queries(split=split, query="corner", corner_fraction=0.01)
        .make_view(torch.tensor([4]), 0)
        .pixels
    )
    assert found.shape == (1, 1, 8, 8) and torch.allclose(
        found, split.pixels[4, 0, 7, 0] / 255 * torch.ones(8, 8), atol=1e-6
    )
    assert corner_rectangle("lower_left", 0.3, 10) == (7, 0, 3, 3) and corner_rectangle(
        "upper_right", 0.3, 9
    ) == (0, 6, 3, 3)


def test_center_masked_blanks_the_middle_and_whole_nothing():
    split, indices = random_split(), torch.tensor([4, 1])
    whole = queries(split=split, query="whole").make_view(indices, 0).pixels
    assert torch.allclose(whole, split.pixels[[4, 1]] / 255, atol=1e-6)
    masked = (
        queries(split=split, query="center_masked", masked_fraction=0.5)
        .make_view(indices, 0)
        .pixels
    )
    assert (masked[:, :, 2:6, 2:6] == 0).all() and (masked == 0).sum() >= 32
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:6, 2:6] = False
    assert torch.equal(masked[:, :, outside], whole[:, :, outside])
    assert torch.equal(without_middle(whole, 0.01), whole)  # less than half a pixel


def test_boxes_show_the_largest_part_between_them_and_drop_images_with_too_little(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("index,xmin,ymin,xmax,ymax\n4,0,0,4,8\n1,0,0,8,6.1\n3,0,0,8,6\n")
    split = random_split()
    made = make_queries(
        split,
        torch.tensor([4, 1, 2, 3]),
        ENCODER,
        DejaVuSettings(query="boxes", boxes=str(path)),
        RECIPES,
        seed=0,
    )
    assert made.rows.tolist() == [4, 3] and made.dropped == {
        "without boxes": 1,
        "too little between boxes": 1,
    }
    path.write_text("index,xmin,ymin,xmax,ymax\n4,4,0,0,8\n3,90,0,99,8\n")
    outside = make_queries(
        split,
        torch.tensor([4, 3]),
        ENCODER,
        DejaVuSettings(query="boxes", boxes=str(path)),
        RECIPES,
        seed=0,
    )
    assert outside.rows.tolist() == [4]  # image 3 is not shown whole
    assert (
        outside.dropped["no box that lies in the image"] == 1
        and outside.boxes["boxes lay outside of their image and were dropped"] == 1
    )
    right_half = split.pixels[4, 0, :, 4:].numpy() / 255
    found = made.make_view(made.rows, 0).pixels[0, 0].numpy()
    # 4 columns stretched to 8
    assert found.shape == (8, 8) and np.allclose(found[:, [0, 7]], right_half[:, [0, 3]], atol=1e-6)
    with pytest.raises(WrongUse, match="leaves no part of 1 images"):
        make_queries(
            split,
            torch.tensor([1]),
            ENCODER,
            DejaVuSettings(query="boxes", boxes=str(path)),
            RECIPES,
            seed=0,
        )
