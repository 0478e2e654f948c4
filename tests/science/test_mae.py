import pytest
import torch
import torch.nn.functional as F
from conftest import losses_of, make_mae, masked_view, with_hidden_pixels

from memorization.data.augmentations import View
from models.mae import hidden_patches, patch_statistics, restore_order
from models.vit import patchify


def test_hidden_patches_are_all_the_others():
    assert hidden_patches(torch.tensor([[1, 4], [0, 2]]), 5).tolist() == [[0, 2, 3], [1, 3, 4]]


def test_every_visible_token_returns_to_its_own_place():
    tokens = torch.tensor([[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]]])  # (2, 2, 2)
    restored = restore_order(tokens, torch.tensor([[3, 1], [0, 2]]), torch.tensor([-1.0, -2.0]), 4)
    assert restored[0].tolist() == [[-1, -2], [2, 20], [-1, -2], [1, 10]]
    assert restored[1].tolist() == [[3, 30], [-1, -2], [4, 40], [-1, -2]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_the_mean_squared_error_over_hidden_patches_written_out(channels, normalize):
    mae, view = make_mae(channels, normalize_pixels=normalize), masked_view(5, channels, K=4)
    predicted, errors = mae.reconstruct(*view), []
    for image, visible in enumerate(view.visible.tolist()):
        for patch in set(range(16)) - set(visible):
            top, left = 4 * (patch // 4), 4 * (patch % 4)
            target = view.pixels[image, :, top : top + 4, left : left + 4].flatten().double()
            if normalize:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors += (predicted[image, patch] - target).square().tolist()
    assert len(errors) == 5 * 12 * 16 * channels
    assert mae(view).item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_the_loss_of_several_views_is_the_mean_of_theirs():
    mae, views = make_mae(), [masked_view(5, 1, K, seed=K) for K in (3, 4, 7)]
    expected = sum(mae(view).item() for view in views) / 3
    assert mae(*views).item() == pytest.approx(expected, rel=1e-6)


def test_the_encoder_never_sees_a_hidden_patch_and_the_loss_never_asks_for_a_visible_one():
    mae, view = make_mae(normalize_pixels=False), masked_view(channels=1)
    pixels = view.pixels.clone().requires_grad_()
    mae.encoder.tokens(pixels, view.visible)[:, :, 0].sum().backward()
    of_patches = patchify(pixels.grad, 4).abs().sum(2)  # (B, T)
    seen = torch.zeros(6, 16).scatter_(1, view.visible, 1.0).bool()
    assert (of_patches[~seen] == 0).all() and (of_patches[seen] > 0).all()
    assert torch.equal(mae.reconstruct(*with_hidden_pixels(view, 7.0)), mae.reconstruct(*view))
    mae.predict.weight.data.zero_()  # the prediction is now the bias, whatever is seen
    others = View(view.pixels, hidden_patches(view.visible, 16))
    visible_changed = View(with_hidden_pixels(others, 9.0).pixels, view.visible)
    assert mae(view).item() == pytest.approx(mae(visible_changed).item())


def test_predictions_do_not_depend_on_the_order_in_which_visible_patches_are_listed():
    mae, view = make_mae(), masked_view(channels=1)
    flipped = mae.reconstruct(view.pixels, view.visible.flip(1))
    assert torch.allclose(mae.reconstruct(*view), flipped, atol=1e-5)


def test_the_decoder_uses_the_class_token_and_has_the_depth_of_the_settings():
    mae, view = make_mae(decoder_depth=3), masked_view(channels=1)
    tokens, before = mae.encoder.tokens(*view).detach(), mae.reconstruct(*view)
    tokens[:, 0] += 1
    mae.encoder.tokens = lambda pixels, visible: tokens
    assert len(mae.blocks) == 3 and not torch.allclose(mae.reconstruct(*view), before, atol=1e-3)


def test_patches_are_normalized_by_their_own_statistics_and_flat_ones_by_an_epsilon():
    mean, std = patch_statistics(torch.tensor([[[1.0, 3.0], [5.0, 5.0]]]))
    assert mean.flatten().tolist() == [2.0, 5.0]
    assert std.flatten().tolist() == pytest.approx([2**0.5, 1e-3])


def test_every_parameter_is_trained_and_the_decoder_is_not_part_of_the_encoder():
    mae = make_mae()
    mae(masked_view(channels=1)).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in mae.parameters())
    assert not any("predict" in name or "mask_token" in name for name in mae.encoder.state_dict())


def test_mae_learns_to_reconstruct():
    generator = torch.Generator().manual_seed(1)
    pixels = F.interpolate(torch.rand(16, 1, 2, 2, generator=generator), 16, mode="bilinear")

    def draw_views():
        return [View(pixels, torch.rand(16, 16, generator=generator).argsort(dim=1)[:, :8])]

    losses = losses_of(make_mae(), draw_views, steps=80, learning_rate=0.003)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
