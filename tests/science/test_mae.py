import pytest
import torch
from conftest import with_hidden_pixels

from memorization.data.augmentations import View
from models.encoders import encoder_settings, make_encoder
from models.mae import MAE, MAESettings, hidden_patches, patch_statistics, restore_order
from models.vit import patchify


def make_mae(channels=1, encoder=(), **changes):
    torch.manual_seed(0)
    settings = MAESettings(
        name="mae", **{"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2} | changes
    )
    encoder = encoder_settings(
        **{"name": "vit_mini", "width": 32, "depth": 1, "patch": 4} | dict(encoder)
    )
    return MAE(make_encoder(encoder, channels, 16), **settings.arguments())


def masked_view(B=5, channels=1, K=4):
    generator = torch.Generator().manual_seed(1)
    visible = torch.rand(B, 16, generator=generator).argsort(dim=1)[:, :K].sort(dim=1).values
    return View(torch.randn(B, channels, 16, 16, generator=generator), visible)


def test_hidden_patches_are_all_the_others():
    assert hidden_patches(torch.tensor([[1, 4], [0, 2]]), 5).tolist() == [[0, 2, 3], [1, 3, 4]]


def test_every_visible_token_returns_to_its_own_place():
    tokens = torch.tensor([[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]]])  # (2, 2, 2)
    restored = restore_order(tokens, torch.tensor([[3, 1], [0, 2]]), torch.tensor([-1.0, -2.0]), 4)
    assert restored[0].tolist() == [[-1, -2], [2, 20], [-1, -2], [1, 10]]
    assert restored[1].tolist() == [[3, 30], [-1, -2], [4, 40], [-1, -2]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalize_pixels", [True, False])
def test_the_loss_is_the_mean_squared_error_over_hidden_patches_written_out(
    channels, normalize_pixels
):
    mae, view = (
        make_mae(channels, normalize_pixels=normalize_pixels),
        masked_view(channels=channels),
    )
    predicted = mae.reconstruct(view.pixels, view.visible).tolist()
    errors = []
    for image in range(5):
        for patch in range(16):
            if patch in view.visible[image].tolist():
                continue
            top, left = 4 * (patch // 4), 4 * (patch % 4)
            target = view.pixels[image, :, top : top + 4, left : left + 4].flatten().double()
            if normalize_pixels:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors += [(a - b) ** 2 for a, b in zip(predicted[image][patch], target.tolist())]
    assert len(errors) == 5 * 12 * 16 * channels
    assert mae(view).item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_the_encoder_never_sees_a_hidden_patch_and_the_loss_never_asks_for_a_visible_one():
    mae, view = make_mae(normalize_pixels=False), masked_view()
    pixels = view.pixels.clone().requires_grad_()
    mae.encoder.tokens(pixels, view.visible)[:, :, 0].sum().backward()
    of_patches = patchify(pixels.grad, 4).abs().sum(2)  # (B, T)
    seen = torch.zeros(5, 16).scatter_(1, view.visible, 1.0).bool()
    assert (of_patches[~seen] == 0).all() and (of_patches[seen] > 0).all()
    assert torch.equal(mae.reconstruct(*with_hidden_pixels(view, 7.0)), mae.reconstruct(*view))
    mae.predict.weight.data.zero_()  # the prediction is now the bias, whatever is seen
    visible_changed = with_hidden_pixels(
        View(view.pixels, hidden_patches(view.visible, 16)), 9.0
    ).pixels
    assert mae(view).item() == pytest.approx(mae(View(visible_changed, view.visible)).item())


def test_predictions_do_not_depend_on_the_order_in_which_visible_patches_are_listed():
    mae, view = make_mae(), masked_view()
    assert torch.allclose(
        mae.reconstruct(view.pixels, view.visible),
        mae.reconstruct(view.pixels, view.visible.flip(1)),
        atol=1e-5,
    )


def test_the_decoder_uses_the_class_token_and_has_the_depth_of_the_settings():
    mae, view = make_mae(decoder_depth=3), masked_view()
    tokens, before = mae.encoder.tokens(*view).detach(), mae.reconstruct(*view)
    changed = tokens.clone()
    changed[:, 0] += 1
    mae.encoder.tokens = lambda pixels, visible: changed
    assert len(mae.blocks) == 3 and not torch.allclose(mae.reconstruct(*view), before, atol=1e-3)


def test_patches_are_normalized_by_their_own_statistics_and_flat_ones_by_an_epsilon():
    patches = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])
    mean, std = patch_statistics(patches)
    assert mean[0, :, 0].tolist() == [2.0, 5.0] and std[0, :, 0].tolist() == pytest.approx(
        [2**0.5, 1e-3]
    )


def test_every_parameter_is_trained_and_the_decoder_is_not_part_of_the_encoder():
    mae = make_mae()
    mae(masked_view()).backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in mae.parameters()
    )
    assert not any("predict" in name or "mask_token" in name for name in mae.encoder.state_dict())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalize_pixels", [True, False])
def test_pictures_show_the_original_what_was_seen_and_the_reconstruction(
    channels, normalize_pixels
):
    mae, view = (
        make_mae(channels, normalize_pixels=normalize_pixels),
        masked_view(B=12, channels=channels),
    )
    pictures = mae.pictures([view])
    assert list(pictures) == ["original", "masked", "reconstruction"]
    assert torch.equal(pictures["original"], view.pixels[:8])
    original, masked, reconstruction = (patchify(pixels, 4) for pixels in pictures.values())
    seen = torch.zeros(8, 16).scatter_(1, view.visible[:8], 1.0).bool()
    assert torch.equal(masked[seen], original[seen]) and not masked[~seen].any()
    predicted = mae.reconstruct(view.pixels[:8], view.visible[:8])
    if normalize_pixels:
        mean, std = patch_statistics(original)
        predicted = predicted * std + mean
    assert torch.equal(reconstruction[seen], original[seen]) and torch.allclose(
        reconstruction[~seen], predicted[~seen]
    )


def test_mae_learns_to_reconstruct():
    mae = make_mae()
    pixels = torch.nn.functional.interpolate(
        torch.rand(16, 1, 2, 2, generator=torch.Generator().manual_seed(0)), 16, mode="bilinear"
    )
    optimizer = torch.optim.Adam(mae.parameters(), lr=0.003)
    generator, history = torch.Generator().manual_seed(1), []
    for _ in range(80):
        visible = torch.rand(16, 16, generator=generator).argsort(dim=1)[:, :8]
        loss = mae(View(pixels, visible))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-10:]) < 0.5 * sum(history[:10])


@pytest.mark.parametrize(
    "K, words", [(None, "mask_ratio above 0"), (16, "hides none of the 16 patches")]
)
def test_a_view_that_hides_nothing_is_refused(K, words):
    view = masked_view(K=K or 16)
    with pytest.raises(ValueError, match=words):
        make_mae()(view if K else View(view.pixels))


def test_an_encoder_that_cannot_leave_out_patches_is_refused():
    with pytest.raises(ValueError, match="encoder.name: MAE hides patches"):
        MAE(make_encoder(encoder_settings(name="resnet_small"), 1, 16), 16, 1, 2, True)


def test_heads_that_do_not_divide_the_decoders_width_are_refused():
    with pytest.raises(ValueError, match="decoder_heads: 3"):
        make_mae(decoder_heads=3)
