"""Private training of masked autoencoders (DP-SGD), which needs the package Opacus."""

import copy
import json
import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import METHODS, make_mae, masked_view, read_table, score, train, trained_bytes

from memorization.checkpoint import read_checkpoint
from memorization.data.augmentations import View
from memorization.data.subsets import ROLES, load_subsets
from memorization.settings import PrivacySettings
from memorization.training import loop
from memorization.training.privacy import draw_positions, noise_seed, privacy_spent
from models import private_loss
from models.alignment_penalty import penalize_alignment
from models.private_loss import PrivateLoss

accountants = pytest.importorskip("opacus").accountants

CLIP, BATCH_SIZE = 0.7, 8
PRIVACY = {"noise_multiplier": 1.0, "clip": 0.1, "delta": 0.001}
PRIVATE = METHODS["mae"].changes | {"training.privacy": PRIVACY}


def make_loss(method, noise=0.0, clip=CLIP, seed=0):
    """A PrivateLoss of a method, with noise if that is not 0."""
    settings = SimpleNamespace(noise_multiplier=noise, clip=clip)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    return PrivateLoss(method, optimizer, settings, BATCH_SIZE, noise_seed=lambda: seed)


def gradient_of(loss, *views):
    """The private gradient of all weights as one vector. loss: a PrivateLoss."""
    loss.method.zero_grad()
    loss(*views).backward()
    return torch.cat([weight.grad.flatten() for weight in loss.method.parameters()])


def slow_gradients(method, views):
    """The gradient of each image's loss, (B, number of weights), image by image."""
    gradients = []
    for image in range(len(views[0].pixels)):
        alone = [View(view.pixels[[image]], view.visible[[image]]) for view in views]
        method.zero_grad()
        method(*alone).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in method.parameters()]))
    return torch.stack(gradients)


def in_double(views):
    return [View(view.pixels.double(), view.visible) for view in views]


@pytest.mark.parametrize("penalty", [0.0, 0.3])
@pytest.mark.parametrize("most_bytes", [1, 2**28])
def test_the_gradient_is_the_sum_of_clipped_gradients_written_out(penalty, most_bytes, monkeypatch):
    monkeypatch.setattr(private_loss, "MOST_BYTES", most_bytes)
    method = penalize_alignment(make_mae().double(), penalty)
    views = in_double([masked_view(6, 1, seed=seed) for seed in (0, 1)])
    gradients = slow_gradients(copy.deepcopy(method), views)
    norms = gradients.norm(dim=1)
    clip = norms.median().item()
    assert norms.min() < clip < 0.99 * norms.max()
    # Opacus adds 1e-6 to norms
    expected = (gradients * (clip / (norms + 1e-6)).clamp(max=1)[:, None]).sum(0) / BATCH_SIZE
    gradient = gradient_of(make_loss(method, clip=clip), *views)
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-9)


def test_the_loss_is_the_sum_of_the_losses_of_images_over_the_expected_size():
    mae, view = make_mae(), masked_view(6, 1)
    assert make_loss(mae)(view).item() == pytest.approx(6 / BATCH_SIZE * mae(view).item())


def test_without_clipping_and_noise_the_gradient_is_that_of_the_method():
    mae, view = make_mae().double(), in_double([masked_view(BATCH_SIZE, 1)])[0]
    expected = slow_gradients(copy.deepcopy(mae), [view]).mean(0)
    assert torch.allclose(gradient_of(make_loss(mae, clip=1e9), view), expected, rtol=1e-6)


def test_no_image_changes_the_gradient_by_more_than_the_bound_also_in_half_precision():
    mae = make_mae()
    loss = make_loss(mae, clip=0.01)
    pixels, visible = masked_view(6, 1)
    pixels[3] *= 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradients = [
            gradient_of(loss, View(pixels[[image]], visible[[image]])) for image in range(6)
        ]
    norms = BATCH_SIZE * torch.stack(gradients).norm(dim=1)
    assert torch.allclose(norms, torch.full((6,), 0.01), rtol=1e-3)
    assert norms.max() < 0.01 * (1 + 1e-5)


def test_clipped_gradients_are_added_in_full_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradient = gradient_of(make_loss(make_mae(), clip=0.01), masked_view(6, 1))
    assert (gradient.bfloat16().float() == gradient).float().mean() < 0.1


def test_noise_has_the_deviation_of_the_settings_and_is_decided_by_its_seed():
    mae, view = make_mae(), masked_view(0, 1)
    noise = gradient_of(make_loss(mae, noise=3.0), view)
    assert noise.std().item() == pytest.approx(3.0 * CLIP / BATCH_SIZE, rel=0.05)
    assert abs(noise.mean().item()) < 4 * noise.std().item() / len(noise) ** 0.5
    assert torch.equal(noise, gradient_of(make_loss(mae, noise=3.0), view))
    other = gradient_of(make_loss(mae, noise=3.0, seed=1), view)
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.1


@pytest.mark.parametrize("most_bytes", [1, 2**28])
def test_noise_is_added_once_for_all_images(most_bytes, monkeypatch):
    monkeypatch.setattr(private_loss, "MOST_BYTES", most_bytes)
    mae, view = make_mae().double(), in_double([masked_view(6, 1)])[0]
    noise = gradient_of(make_loss(mae, noise=2.0), View(view.pixels[:0], view.visible[:0]))
    gradient = gradient_of(make_loss(mae, noise=2.0), view)
    expected = gradient_of(make_loss(mae), view) + noise
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-12)


def test_an_empty_batch_has_loss_0():
    assert make_loss(make_mae(), noise=1.0)(masked_view(0, 1)).item() == 0


def test_nothing_of_a_step_is_left_for_the_next():
    mae, view = make_mae(), masked_view(6, 1)
    loss = make_loss(mae, noise=1.0)
    assert torch.equal(gradient_of(loss, view), gradient_of(loss, view))
    for weight in mae.parameters():
        assert weight.grad_sample is None and weight.summed_grad is None


def test_each_position_is_in_a_batch_with_the_same_chance_whatever_the_others_do():
    steps = [draw_positions(40, 10, seed=3, epoch=2, step=step) for step in range(4000)]
    is_in = torch.zeros(4000, 40)
    for row, positions in zip(is_in, steps, strict=True):
        row[positions] = 1
    sizes = is_in.sum(1)
    assert torch.allclose(is_in.mean(0), torch.tensor(0.25), atol=0.03)  # 4 deviations: .027
    assert sizes.var().item() == pytest.approx(40 * 0.25 * 0.75, rel=0.1)
    correlations = torch.corrcoef(is_in.T) - torch.eye(40)
    assert correlations.abs().max() < 0.08
    assert all(torch.equal(positions, positions.sort().values) for positions in steps)


def test_seeds_epochs_and_steps_have_batches_and_noise_of_their_own():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({tuple(draw_positions(100, 50, *key).tolist()) for key in keys}) == 4
    assert len({noise_seed(*key) for key in keys}) == 4


def test_a_batch_of_all_images_is_all_of_them():
    assert draw_positions(7, 7, 0, 0, 0).tolist() == list(range(7))


def slow_epsilon(noise, share, steps, delta):
    """The least over whole orders of the bound, written out (Mironov et al. 2019, section 3.3, and
    Balle et al. 2020, theorem 21).
    """
    bounds = []
    for order in range(2, 64):
        moment = sum(
            math.comb(order, k)
            * (1 - share) ** (order - k)
            * share**k
            * math.exp((k * k - k) / (2 * noise**2))
            for k in range(order + 1)
        )
        divergence = steps * math.log(moment) / (order - 1)
        last = (math.log(delta) + math.log(order)) / (order - 1)
        bounds.append(divergence - last + math.log((order - 1) / order))
    return min(bounds)


@pytest.mark.parametrize("noise, share, steps", [(2.0, 0.05, 200), (4.0, 0.25, 100), (3.0, 1, 10)])
def test_epsilon_is_the_least_bound_over_orders_written_out(noise, share, steps):
    settings = PrivacySettings(noise_multiplier=noise, clip=1.0, delta=1e-5)
    epsilon = privacy_spent(settings, share, steps)
    expected = slow_epsilon(noise, share, steps, 1e-5)
    assert 0.97 * expected < epsilon <= expected * (1 + 1e-9)  # orders between whole ones, too


def test_epsilon_is_that_of_the_accountant_of_opacus_step_by_step():
    settings = PrivacySettings(noise_multiplier=1.1, clip=1.0, delta=1e-5)
    accountant = accountants.RDPAccountant()
    for _ in range(30):
        accountant.step(noise_multiplier=1.1, sample_rate=0.1)
    assert privacy_spent(settings, 0.1, 30) == pytest.approx(accountant.get_epsilon(1e-5))
    assert privacy_spent(settings, 0.1, 0) == 0
    assert privacy_spent(settings, 0.1, 10**5) > privacy_spent(settings, 0.1, 30) > 0


def watch_indices(monkeypatch):
    """A list to which every step of training adds the indices of its images."""
    indices, draw = [], loop.training_views

    def watched_views(images, batch, *rest):
        indices.append(batch.tolist())
        return draw(images, batch, *rest)

    monkeypatch.setattr(loop, "training_views", watched_views)
    return indices


def test_f_and_g_meet_shared_images_and_the_others_by_their_positions_in_the_same_steps(
    write_config, tmp_path, monkeypatch
):
    batches = watch_indices(monkeypatch)
    train(write_config(PRIVATE), method="mae")
    subsets = load_subsets(tmp_path / "run/subsets.npz").of_seed(0)
    f, g = (list(map(int, subsets.training_set(role))) for role in ROLES)
    half = len(batches) // 2
    assert half == 3 * (3 + 1) and len({len(batch) for batch in batches}) > 3
    for one, other in zip(batches[:half], batches[half:], strict=True):
        assert [f.index(i) for i in one] == [g.index(i) for i in other]


def test_a_private_run_goes_on_and_ends_bit_identical_also_with_empty_batches(
    write_config, tmp_path, at_step, monkeypatch
):
    small = {"training.batch_size": 2, "training.epochs": 1}
    path = write_config(PRIVATE | small)
    batches = watch_indices(monkeypatch)
    train(path, "--run", str(tmp_path / "whole"), method="mae")
    assert [] in batches
    at_step((6, 14), lambda: signal.raise_signal(signal.SIGINT))  # saves after the step
    for _ in range(2):
        with pytest.raises(SystemExit, match="130"):
            train(path, method="mae")
    train(path, method="mae")
    assert trained_bytes(tmp_path / "run") == trained_bytes(tmp_path / "whole")


def test_a_private_run_says_and_keeps_its_epsilon_and_is_scored(write_config, tmp_path, capsys):
    path = write_config(PRIVATE | {"training.checkpoint_epochs": [1]})
    train(path, method="mae")
    settings = PrivacySettings(**PRIVACY)
    after = [privacy_spent(settings, 16 / 56, steps) for steps in (3, 6, 9)]
    printed = capsys.readouterr().out
    assert f"privacy of one encoder: epsilon {after[-1]:.4g} at delta 0.001 after 9" in printed
    assert f"independent seed 0: epsilon {after[-1]:.4g} at delta 0.001 after 9 steps" in printed
    folder = tmp_path / "run/seed_0/candidate"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["epsilon"] for line in lines] == after
    assert read_checkpoint(folder / "encoder.pt")["epsilon"] == after[-1]
    assert read_checkpoint(folder / "encoder_epoch_0001.pt")["epsilon"] == after[0]
    score(path)
    assert len(read_table(tmp_path / "run/scores")[1]["score"]) == 32 + 24 + 24 + 40


def test_another_bound_than_that_of_the_run_is_refused(write_config, tmp_path, refusal):
    path = write_config(PRIVATE)
    train(path, method="mae")
    before = trained_bytes(tmp_path / "run")
    other = ["--config", path, "--training.privacy.clip", "0.2"]
    line = refusal(METHODS["mae"].script.main, other)
    assert "training.privacy.clip" in line and "0.2" in line and "0.1" in line
    assert trained_bytes(tmp_path / "run") == before


def test_a_delta_that_allows_to_publish_an_image_is_warned_of(write_config):
    path = write_config(PRIVATE | {"training.privacy": PRIVACY | {"delta": 0.1}})
    with pytest.warns(match="training.privacy.delta: 0.1 is not below 1 / 56"):
        train(path, method="mae")


def test_records_without_privacy_do_not_name_it(write_config, tmp_path):
    train(write_config(METHODS["mae"].changes), method="mae")
    assert "privacy:" not in (tmp_path / "run/config.yaml").read_text()
    record = read_checkpoint(tmp_path / "run/seed_0/candidate/encoder.pt")
    assert "privacy" not in record["config"]["training"] and "epsilon" not in record
