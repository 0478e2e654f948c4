from dataclasses import replace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import with_hidden_pixels

from memorization.data.augmentations import Draw, augment, measuring_recipe
from memorization.data.images import Split
from memorization.data.recipes import ViewRecipe
from memorization.encoder import Encoder
from memorization.measuring.deja_vu import DejaVuSettings
from memorization.measuring.queries import corner_rectangle, make_queries, without_middle

CROPS = ViewRecipe(size=8, crop_scale=[0.3, 1.0], jitter=0.5)
MASKED = ViewRecipe(size=8, crop_scale=[0.3, 1.0], mask_ratio=0.75)
ENCODER = Encoder("f", nn.Identity(), 1, 8, ([0.0], [1.0]), patch=2)
PIXELS = torch.randint(256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0))
SPLIT = Split("train", PIXELS.to(torch.uint8), torch.zeros(6).long())
ROWS = torch.tensor([4, 1])
WHOLE = PIXELS[ROWS] / 255


def queries(encoder=ENCODER, rows=ROWS, **settings):
    return make_queries(SPLIT, rows, encoder, DejaVuSettings(**settings), [CROPS, MASKED], seed=3)


def query_pixels(encoder=ENCODER, **settings):
    return queries(encoder, **settings).make_view(ROWS, 0).pixels


def test_training_queries_are_the_training_recipes_in_turn_but_never_views_that_were_trained_on():
    made = queries(views=4)
    assert made.views == 4 and made.dropped == {}
    for view in range(4):
        recipe = measuring_recipe([CROPS, MASKED], view)
        same, trained = (
            augment(SPLIT, ROWS, recipe, ([0.0], [1.0]), Draw(3, purpose, patch=2), view)
            for purpose in ("query", "training")
        )
        query = made.make_view(ROWS, view)
        assert torch.equal(query.pixels, same.pixels)
        assert not torch.equal(query.pixels, trained.pixels)
        assert (query.visible is None) == (view % 2 == 0)
    assert torch.equal(query.visible, same.visible)


def test_what_a_mask_hides_is_blank_in_the_pixels_of_a_query():
    made = queries(views=2)
    assert torch.equal(made.pixels(ROWS, 0), made.make_view(ROWS, 0).pixels)
    blanked = with_hidden_pixels(made.make_view(ROWS, 1), 0.0, patch=2)
    assert torch.equal(made.pixels(ROWS, 1), blanked.pixels)


@pytest.mark.parametrize("corner", ["lower_left", "lower_right", "upper_left", "upper_right"])
def test_a_corner_is_that_corner(corner):
    rows = slice(0, 4) if "upper" in corner else slice(4, 8)
    columns = slice(0, 4) if "left" in corner else slice(4, 8)
    settings = {"query": "corner", "corner": corner, "corner_fraction": 0.5}
    encoder = replace(ENCODER, size=4)
    assert queries(encoder, **settings).views == 1
    found = query_pixels(encoder, **settings)
    assert torch.allclose(found, WHOLE[:, :, rows, columns], atol=1e-6)


def test_a_corner_is_resized_to_the_input_and_has_at_least_a_pixel():
    found = query_pixels(query="corner", corner_fraction=0.01)
    lower_left = WHOLE[:, :, 7:, :1].expand(2, 1, 8, 8)
    assert found.shape == (2, 1, 8, 8) and torch.allclose(found, lower_left, atol=1e-6)
    assert corner_rectangle("lower_left", 0.3, 10) == (7, 0, 3, 3)
    assert corner_rectangle("upper_right", 0.3, 9) == (0, 6, 3, 3)


def test_center_masked_blanks_the_middle_and_whole_nothing():
    whole = query_pixels(query="whole")
    assert torch.allclose(whole, WHOLE, atol=1e-6)
    middle = F.pad(torch.ones(4, 4), (2, 2, 2, 2)).bool()
    masked = query_pixels(query="center_masked", masked_fraction=0.5)
    assert torch.equal(masked, whole.masked_fill(middle, 0))
    assert torch.equal(without_middle(whole, 0.01), whole)  # less than half a pixel


def test_boxes_show_the_largest_part_between_them_and_drop_images_with_too_little(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("index,xmin,ymin,xmax,ymax\n4,0,0,4,8\n1,0,0,8,6.1\n3,0,0,8,6\n")
    made = queries(rows=torch.tensor([4, 1, 2, 3]), query="boxes", boxes=str(path))
    assert made.rows.tolist() == [4, 3]
    assert made.dropped == {"without boxes": 1, "too little between boxes": 1}
    found = made.make_view(made.rows, 0).pixels[0]
    assert found.shape == (1, 8, 8)
    # 4 columns stretched to 8
    assert torch.allclose(found[:, :, [0, 7]], WHOLE[0, :, :, [4, 7]], atol=1e-6)
