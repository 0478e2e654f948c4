import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import CPU, fake_images, flat_pixels

from memorization.checkpoint import checksum
from memorization.data.augmentations import whole_images
from memorization.data.images import Split
from memorization.data.randomness import permutation
from memorization.errors import WrongUse
from memorization.machine.files import json_text
from memorization.measuring import fine_tuning
from memorization.measuring.fine_tuning import fine_tune
from memorization.measuring.linear_classifier import (
    Standardization,
    accuracies,
    confusion_matrix,
    fit_probe,
    train_layers,
)
from memorization.measuring.probing import ProbeSettings, ProbeSummary, probe, probed_rows
from memorization.measuring.representations import (
    Examples,
    in_channels,
    raw_pixels,
    state_adaptation,
    stored_examples,
)
from memorization.optimizers import optimizer_of, schedule, set_learning_rate
from memorization.significance import mean_and_spread
from models.encoders import encoder_settings, make_encoder


def clouds(count, seed=0, noise=2.0):
    """Examples of four classes, a cloud each in 8 dimensions, far from the origin and of very
    unequal scales.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(4, (count,), generator=generator)
    values = centres[labels] + noise * torch.randn(count, 8, generator=generator)
    return Examples(values * torch.logspace(-3, 3, 8) + 50, labels)


def exact_logistic_regression(train):
    """The layer that minimizes the cross entropy, found by L-BFGS."""
    mean, std = train.values.mean(0), train.values.std(0)
    layer = nn.Linear(8, 4)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(layer((train.values - mean) / std), train.labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return lambda values: layer((values - mean) / std)


@pytest.mark.parametrize("changes", [
    {},
    {"optimizer": "sgd", "learning_rates": [0.4]},
    {"optimizer": "adamw", "learning_rates": [0.2]},
])  # fmt: skip
def test_a_probe_is_as_good_as_exact_logistic_regression(changes):
    train, test = clouds(4000), clouds(4000, seed=1)
    layer, choice = fit_probe(train, 4, ProbeSettings(**changes), seed=0)
    logits = exact_logistic_regression(train)(test.values)
    ours, exact = (accuracies(x, test.labels)["top_1"] for x in (layer(test.values), logits))
    assert 0.5 < exact < 0.95 and abs(ours - exact) < 0.01
    loss = F.cross_entropy(logits, test.labels).item()
    assert choice["validation_loss"] == pytest.approx(loss, abs=0.1)


def train_one_by_one(train, classes, settings, grid, seed):
    """What `train_layers` trains, each layer by itself, with an optimizer of its own."""
    layers, (N, D) = [], train.values.shape
    batch_size = min(settings.batch_size, N // 4)
    steps_per_epoch = N // batch_size
    for rate, decay in grid:
        layer = nn.Linear(D, classes)
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
        plain = {"params": [layer.bias], "weight_decay": 0.0}
        if settings.optimizer == "lars":
            plain["adapt"] = False
        decayed = {"params": [layer.weight], "weight_decay": decay}
        optimizer = optimizer_of([decayed, plain], 1.0, settings)
        steps, warmup = settings.epochs * steps_per_epoch, settings.warmup_epochs * steps_per_epoch
        for step in range(steps):
            order = permutation(N, seed, "probing", epoch=1 + step // steps_per_epoch)
            rows = order.split(batch_size)[step % steps_per_epoch]
            share = schedule(step, steps, warmup)
            set_learning_rate(optimizer, rate * batch_size / settings.batch_size * share, 0.0)
            optimizer.zero_grad()
            F.cross_entropy(layer(train.values[rows]), train.labels[rows]).backward()
            optimizer.step()
        layers.append(layer)
    return layers


@pytest.mark.parametrize("changes", [
    {"optimizer": "lars", "lars_eta": 0.1},
    {"optimizer": "lars", "lars_eta": 0.1, "lars_clip": True},
    {"optimizer": "sgd", "momentum": 0.7},
    {"optimizer": "adamw", "betas": [0.8, 0.95]},
])  # fmt: skip
@pytest.mark.parametrize("batch_size", [128, 4096])
def test_a_grid_trained_at_once_equals_layers_trained_one_by_one(changes, batch_size, one_thread):
    train = clouds(600)
    train = Examples(Standardization(train.values)(train.values), train.labels)
    settings = ProbeSettings(epochs=6, warmup_epochs=2, batch_size=batch_size, **changes)
    grid = [(rate, decay) for rate in (0.01, 0.1, 0.4) for decay in (0.0, 0.03, 0.3)]
    layers = train_layers(train, 4, settings, grid, seed=3)
    for layer, expected in zip(layers, train_one_by_one(train, 4, settings, grid, seed=3)):
        assert (layer.weight - expected.weight).abs().max() <= 1e-6 * expected.weight.abs().max()
        assert (layer.bias - expected.bias).abs().max() <= 1e-6 * expected.weight.abs().max()
        assert not layer.weight.requires_grad and layer.weight.abs().max() > 1e-4
    assert len({layer.weight.norm().item() for layer in layers}) == len(grid)


def test_a_layer_that_diverges_takes_no_other_of_its_grid_with_it():
    train = clouds(300)
    train = Examples(Standardization(train.values)(train.values), train.labels)
    settings = ProbeSettings(epochs=5, warmup_epochs=1, optimizer="sgd")
    diverged, one = train_layers(train, 4, settings, [(1e4, 1e30), (0.4, 0.0)], seed=0)
    (alone,) = train_layers(train, 4, settings, [(0.4, 0.0)], seed=0)
    assert not diverged.weight.isfinite().all()
    assert torch.allclose(one.weight, alone.weight, atol=1e-6)


def test_learning_rate_and_weight_decay_are_chosen_on_images_held_out():
    settings = ProbeSettings(
        optimizer="sgd",
        learning_rates=[1e-9, 0.4, 1e-8],
        weight_decays=[100.0, 0.0],
        epochs=20,
        warmup_epochs=2,
    )
    _, choice = fit_probe(clouds(1000), 4, settings, seed=0)
    assert (choice["learning_rate"], choice["weight_decay"]) == (0.4, 0.0)


def test_a_probe_depends_on_its_seed_alone():
    settings = ProbeSettings(epochs=5, warmup_epochs=1)
    one, again, other = (
        fit_probe(clouds(500), 4, settings, seed)[0][1].weight for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_dimensions_that_change_by_rounding_alone_do_no_harm():
    train = clouds(500)
    rounding = 3.0 + 2e-7 * (torch.arange(500) % 2)[:, None]
    values = torch.cat([train.values, torch.full((500, 1), 3.0), rounding], dim=1)
    train = Examples(values, train.labels)
    layer, _ = fit_probe(train, 4, ProbeSettings(epochs=5, warmup_epochs=1), seed=0)
    others = train.values.clone()
    others[:, -2:] += 0.01
    assert (layer(others) - layer(train.values)).abs().max() < 0.1


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_probe_does_not_depend_on_the_size_of_representations(size):
    train, settings = clouds(300), ProbeSettings(epochs=5, warmup_epochs=1)
    train = Examples(F.normalize(train.values, dim=1), train.labels)
    factors = torch.tensor([size] + 7 * [size if size < 1 else 1.0])  # large in one dimension alone
    layer, _ = fit_probe(train, 4, settings, seed=0)
    other, _ = fit_probe(Examples(factors * train.values, train.labels), 4, settings, seed=0)
    assert (other(factors * train.values) - layer(train.values)).abs().max() < 0.01


def test_a_collapsed_encoder_and_a_diverged_layer_are_refused():
    train = clouds(500)
    with pytest.raises(WrongUse, match="represented alike"):
        fit_probe(Examples(torch.ones(500, 8), train.labels), 4, ProbeSettings(), seed=0)
    diverging = ProbeSettings(
        optimizer="sgd", learning_rates=[1e4], weight_decays=[1e30], epochs=5, warmup_epochs=1
    )
    with pytest.raises(WrongUse, match="diverged at 10000.0"):
        fit_probe(train, 4, diverging, seed=0)


def test_accuracies_and_confusion_counted_by_hand():
    logits = torch.tensor(
        [[9.0, 8, 7, 6, 5, 0], [9, 8, 7, 6, 5, 0], [0, 1, 2, 3, 4, 5], [0, 9, 2, 3, 4, 5]]
    )
    labels = torch.tensor([0, 5, 5, 2])
    assert accuracies(logits, labels) == {"top_1": 0.5, "top_5": 0.75}
    assert accuracies(logits[:, :5], torch.tensor([0, 1, 4, 1])) == {"top_1": 0.75}
    confusion = confusion_matrix(logits.argmax(1), labels, 6)
    assert confusion.sum() == 4
    assert confusion[0, 0] == confusion[5, 0] == confusion[5, 5] == confusion[2, 1] == 1


def test_mean_and_spread_by_hand():
    assert mean_and_spread([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "n": 2}
    assert mean_and_spread([1.0]) == {"mean": 1.0, "std": None, "n": 1}


# --- images and their representations -------------------------------------------------------------


def test_only_labelled_images_are_probed_and_a_cap_takes_the_first_by_hash():
    images = fake_images()
    images.train.labels[::2] = -1
    (_, train), (_, test) = probed_rows(images, ProbeSettings())
    assert torch.equal(train, torch.arange(1, 1024, 2)) and torch.equal(test, torch.arange(256))
    (_, few), (_, all_test) = probed_rows(images, ProbeSettings(train_images=300))
    assert len(few) == 300 and set(few.tolist()) < set(train.tolist())
    assert few.tolist() != train[:300].tolist() and len(all_test) == 256


def test_with_fewer_images_than_neighbours_these_are_left_out():
    images = fake_images()
    images.train.labels[60:] = -1
    settings = ProbeSettings(epochs=3, warmup_epochs=1, seeds=[0])
    result = probe(flat_pixels(), images, settings, None, CPU).plain()
    assert result["train_images"] == 60 and "knn_200" not in result and 0 < result["knn_20"] <= 1
    images.train.labels[10:] = -1
    result = probe(flat_pixels(), images, settings, None, CPU).plain()
    assert np.isfinite(result["seeds"][0]["validation_loss"]) and "knn_20" not in result
    flat = replace(flat_pixels(), network=nn.Flatten())
    assert fine_tune(flat, images, settings, CPU).top_1.mean < 1
    images.train.labels[9] = -1
    with pytest.raises(WrongUse, match="fake has 9 labelled training images; a probe needs 10"):
        probed_rows(images, ProbeSettings())


def test_gray_is_repeated_and_colours_turn_gray():
    def one_image(channels):
        return Split("train", torch.tensor([channels], dtype=torch.uint8), torch.tensor([0]))

    gray, colored = one_image([[[7, 200]]]), one_image([[[255, 10]], [[0, 100]], [[0, 200]]])
    assert in_channels(gray, 3).pixels.tolist() == [[[[7, 200]]] * 3]
    luminance = [round(0.2989 * 255), round(0.2989 * 10 + 0.587 * 100 + 0.114 * 200)]
    assert in_channels(colored, 1).pixels.tolist() == [[[luminance]]]
    assert in_channels(gray, 1) is gray and in_channels(colored, 3) is colored


def test_images_on_a_gpu_turn_gray_there():
    meta = torch.device("meta")
    pixels = torch.zeros(5, 3, 4, 4, dtype=torch.uint8, device=meta)
    gray = in_channels(Split("train", pixels, torch.zeros(5), device=meta), 1).pixels
    assert gray.device == meta and gray.shape == (5, 1, 4, 4)


def test_what_was_done_to_the_images_is_stated():
    images = fake_images()
    assert state_adaptation(flat_pixels(), images) == "as they are"
    adapted = state_adaptation(flat_pixels(channels=1, size=28), images)
    assert adapted == "colours turned gray, resized from 8 to 28 pixels"


def test_representations_are_those_of_whole_images_normalized_as_the_encoder_was_trained(tmp_path):
    images, normalization = fake_images(), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    rows = torch.tensor([5, 900, 3])
    encoder = flat_pixels(normalization=normalization)
    examples = stored_examples(encoder, images.train, rows, tmp_path, CPU)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalization)
    assert torch.equal(examples.values, ((images.train.pixels[rows] / 255 - mean) / std).flatten(1))
    assert torch.equal(examples.labels, images.train.labels[rows])


class MovedInto(nn.Module):
    """Makes weights anew when it is moved to a device, as an encoder does that comes to a GPU."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 4)

    def to(self, device):
        self.layer = nn.Linear(192, 4)
        return self

    def forward(self, pixels):
        return self.layer(pixels.flatten(1))


@pytest.mark.parametrize("count", [5, 600])
def test_what_was_encoded_can_be_trained_afterwards(count):
    images, encoder = fake_images(), replace(flat_pixels(), network=MovedInto().eval())
    values = stored_examples(encoder, images.train, torch.arange(count), None, CPU).values
    assert not values.is_inference()
    assert not any(weight.is_inference() for weight in encoder.network.parameters())
    encoder.network.requires_grad_(True)
    F.mse_loss(encoder.network(images.train.pixels[:2] / 255), values[:2] + 1).backward()
    fine_tune(encoder, images, ProbeSettings(fine_tune_epochs=1, seeds=[0]), CPU)


def test_raw_pixels_are_shrunk_to_32():
    assert raw_pixels(flat_pixels(size=224)).size == 32
    assert raw_pixels(flat_pixels(size=28)).size == 28


def test_probing_changes_nothing_of_an_encoder(tmp_path):
    torch.manual_seed(0)
    network = make_encoder(encoder_settings(name="resnet_small", width=8), 3, 8)
    network.eval().requires_grad_(False)
    before = checksum(network.state_dict())
    settings = ProbeSettings(epochs=2, warmup_epochs=1, seeds=[0])
    probe(replace(flat_pixels(), network=network), fake_images(), settings, tmp_path, CPU)
    assert checksum(network.state_dict()) == before and not network.training


def test_a_class_without_test_images_has_no_accuracy():
    images = fake_images()
    images.test.labels[images.test.labels == 3] = 4
    settings = ProbeSettings(epochs=2, warmup_epochs=1, seeds=[0])
    result = probe(flat_pixels(), images, settings, None, CPU)
    assert result.per_class[3] is None and None not in result.per_class[4:]


def test_a_probe_reports_what_was_asked_for(tmp_path):
    images = fake_images()
    settings = ProbeSettings(epochs=20, warmup_epochs=2, seeds=[0, 1])
    result = probe(flat_pixels(), images, settings, tmp_path, CPU)
    shares = [run["top_1"] for run in result.seeds]
    assert [run["seed"] for run in result.seeds] == [0, 1]
    assert result.top_1.model_dump() == mean_and_spread(shares)
    assert np.mean(shares) > 0.5 and result.top_5.mean >= result.top_1.mean
    confusion = np.array(result.confusion)
    assert confusion.sum() == 2 * 256
    assert np.trace(confusion) / confusion.sum() == pytest.approx(np.mean(shares))
    assert result.per_class == pytest.approx(np.diag(confusion) / confusion.sum(1))
    assert confusion.sum(1).tolist() == (2 * torch.bincount(images.test.labels)).tolist()
    assert 0.2 < result.knn_200 <= 1 and 0.2 < result.knn_20 <= 1
    assert (result.train_images, result.test_images) == (1024, 256)


def test_fine_tuning_trains_all_weights_of_a_copy(monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU())
    network.eval().requires_grad_(False)
    before = checksum(network.state_dict())
    settings = ProbeSettings(fine_tune_epochs=20, seeds=[0, 1])
    trained = []
    step = torch.optim.AdamW.step

    def watched_step(optimizer):
        (group,) = optimizer.param_groups
        trained.append([parameter.clone() for parameter in group["params"]])
        return step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched_step)
    result = fine_tune(replace(flat_pixels(), network=network), fake_images(), settings, CPU)
    assert len(result.seeds) == 2 and result.top_1.mean > 0.5
    # encoder and layer
    assert all(not torch.equal(first, last) for first, last in zip(trained[0], trained[-1]))
    assert checksum(network.state_dict()) == before and not network.training


def test_fine_tuning_meets_every_image_once_an_epoch_in_an_order_of_its_own(monkeypatch):
    batches = []

    def watched(images, indices, *rest):
        batches.append((images.name, tuple(indices.tolist())))
        return whole_images(images, indices, *rest)

    monkeypatch.setattr(fine_tuning, "whole_images", watched)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    settings = ProbeSettings(fine_tune_epochs=3, fine_tune_batch_size=16, seeds=[0])
    images = fake_images()
    fine_tune(replace(flat_pixels(), network=network), images, settings, CPU)
    # after the two images that show the number of dimensions
    met = [rows for name, rows in batches[1:] if name == "train"]
    epochs = [sum(met[i : i + len(met) // 3], ()) for i in range(0, len(met), len(met) // 3)]
    assert len(set(epochs)) == len(epochs) == 3
    assert all(len(set(rows)) == len(rows) > len(images.train) - 16 for rows in epochs)


# --- the script -----------------------------------------------------------------------------------


def test_f_g_a_random_encoder_and_raw_pixels_stand_in_one_table(probed_run):
    _, run = probed_run
    summary = json.loads((run / "probe/summary.json").read_text())
    pairs = [f"{role} seed {seed}" for seed in (0, 1) for role in ("candidate", "independent")]
    names = [*pairs, "random encoder", "raw pixels"]
    assert [row["encoder"] for row in summary["results"]] == names
    for row in summary["results"]:
        assert (row["dataset"], row["train_images"]) == ("fake", 300)
        assert row["adapted"] == "as they are"
        assert 0 <= row["top_1"]["mean"] <= row["top_5"]["mean"] <= 1 and row["top_1"]["n"] == 2
    of = {row["encoder"]: row["top_1"]["mean"] for row in summary["results"]}
    over_pairs = summary["over_pairs"]["fake"]
    mean = (of[names[0]] + of[names[2]]) / 2
    assert over_pairs["candidate"]["mean"] == pytest.approx(mean)
    assert over_pairs["paired"]["f > g"]["n"] == 2
    # they are not all the same encoder
    assert len({row["top_1"]["mean"] for row in summary["results"]}) > 3
    fingerprints = summary["fingerprints"]
    assert set(fingerprints["encoders"]) == set(names)
    assert fingerprints["data"]["fake"]["train"]["count"] == 1024
    assert summary["trained"]["training"]["epochs"] == 3
    assert (run / "probe/probe.png").stat().st_size > 5000
    text = (run / "probe/summary.json").read_text()
    read = ProbeSummary.parse(text)
    assert json_text(read.plain() | {"files": read.files}) == text
