from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import CPU, clouds, fake_images, flat_pixels

from memorization.checkpoint import checksum
from memorization.data.augmentations import whole_images
from memorization.data.images import Split
from memorization.data.randomness import permutation
from memorization.measuring import fine_tuning
from memorization.measuring.fine_tuning import fine_tune
from memorization.measuring.linear_classifier import (
    Standardization,
    accuracies,
    confusion_matrix,
    fit_probe,
    train_layers,
)
from memorization.measuring.probing import ProbeSettings, probe, probed_rows
from memorization.measuring.representations import in_channels, raw_pixels, stored_examples
from memorization.optimizers import make_optimizer, schedule
from memorization.settings import TrainingSettings
from memorization.significance import mean_and_spread

QUICK = ProbeSettings(epochs=5, warmup_epochs=1, seeds=[0])


def standardized_clouds(count):
    train = clouds(count)
    return replace(train, values=Standardization(train.values)(train.values))


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


def train_alone(train, settings, seed):
    """What `train_layers` trains for one pair of a grid. settings: TrainingSettings."""
    layer, N = nn.Linear(8, 4), len(train.labels)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    optimizer, steps_per_epoch = make_optimizer(layer, settings), N // settings.batch_size
    steps, warmup = settings.epochs * steps_per_epoch, settings.warmup_epochs * steps_per_epoch
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: schedule(k, steps, warmup))
    for epoch in range(settings.epochs):
        order = permutation(N, seed, "probing", epoch=1 + epoch)
        for rows in order.split(settings.batch_size)[:steps_per_epoch]:
            optimizer.zero_grad()
            F.cross_entropy(layer(train.values[rows]), train.labels[rows]).backward()
            optimizer.step()
            rates.step()
    return layer


@pytest.mark.parametrize("changes", [
    {"optimizer": "lars", "lars_eta": 0.1},
    {"optimizer": "lars", "lars_eta": 0.1, "lars_clip": True},
    {"optimizer": "sgd", "momentum": 0.7},
    {"optimizer": "adamw", "betas": [0.8, 0.95]},
])  # fmt: skip
@pytest.mark.parametrize("batch_size", [128, 4096])
def test_a_grid_trained_at_once_equals_layers_trained_one_by_one(changes, batch_size, one_thread):
    train, changes = standardized_clouds(600), changes | {"epochs": 6, "warmup_epochs": 2}
    grid = [(rate, decay) for rate in (0.01, 0.1, 0.4) for decay in (0.0, 0.03, 0.3)]
    settings = ProbeSettings(batch_size=batch_size, **changes)
    layers = train_layers(train, 4, settings, grid, seed=3)
    changes |= {"base_batch_size": batch_size, "batch_size": min(batch_size, 600 // 4)}
    for layer, (rate, decay) in zip(layers, grid):
        alone = TrainingSettings(learning_rate=rate, weight_decay=decay, **changes)
        expected = train_alone(train, alone, seed=3)
        assert (layer.weight - expected.weight).abs().max() <= 1e-6 * expected.weight.abs().max()
        assert (layer.bias - expected.bias).abs().max() <= 1e-6 * expected.weight.abs().max()
        assert not layer.weight.requires_grad and layer.weight.abs().max() > 1e-4
    assert len({layer.weight.norm().item() for layer in layers}) == len(grid)


def test_a_layer_that_diverges_takes_no_other_of_its_grid_with_it():
    train, settings = standardized_clouds(300), QUICK.model_copy(update={"optimizer": "sgd"})
    diverged, one = train_layers(train, 4, settings, [(1e4, 1e30), (0.4, 0.0)], seed=0)
    (alone,) = train_layers(train, 4, settings, [(0.4, 0.0)], seed=0)
    assert not diverged.weight.isfinite().all()
    assert torch.allclose(one.weight, alone.weight, atol=1e-6)


def test_learning_rate_and_weight_decay_are_chosen_on_images_held_out():
    grid = {"learning_rates": [1e-9, 0.4, 1e-8], "weight_decays": [100.0, 0.0]}
    settings = ProbeSettings(optimizer="sgd", epochs=20, warmup_epochs=2, **grid)
    _, choice = fit_probe(clouds(1000), 4, settings, seed=0)
    assert (choice["learning_rate"], choice["weight_decay"]) == (0.4, 0.0)


def test_a_probe_depends_on_its_seed_alone():
    layers = [fit_probe(clouds(500), 4, QUICK, seed)[0][1] for seed in (0, 0, 1)]
    one, again, other = (layer.weight for layer in layers)
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_dimensions_that_change_by_rounding_alone_do_no_harm():
    train = clouds(500)
    rounding = 3.0 + 2e-7 * (torch.arange(500) % 2)[:, None]
    values = torch.cat([train.values, torch.full((500, 1), 3.0), rounding], dim=1)
    layer, _ = fit_probe(replace(train, values=values), 4, QUICK, seed=0)
    others = values.clone()
    others[:, -2:] += 0.01
    assert (layer(others) - layer(values)).abs().max() < 0.1


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_probe_does_not_depend_on_the_size_of_representations(size):
    train, values = clouds(300), F.normalize(clouds(300).values, dim=1)
    factors = torch.tensor([size] + 7 * [size if size < 1 else 1.0])  # large in one dimension alone
    layer, _ = fit_probe(replace(train, values=values), 4, QUICK, seed=0)
    other, _ = fit_probe(replace(train, values=factors * values), 4, QUICK, seed=0)
    assert (other(factors * values) - layer(values)).abs().max() < 0.01


def test_accuracies_and_confusion_counted_by_hand():
    first = [9.0, 8, 7, 6, 5, 0]
    logits = torch.tensor([first, first, [0, 1, 2, 3, 4, 5], [0, 9, 2, 3, 4, 5]])
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
    result = probe(flat_pixels(), images, QUICK, None, CPU).plain()
    assert result["train_images"] == 60 and "knn_200" not in result and 0 < result["knn_20"] <= 1
    images.train.labels[10:] = -1
    result = probe(flat_pixels(), images, QUICK, None, CPU).plain()
    assert np.isfinite(result["seeds"][0]["validation_loss"]) and "knn_20" not in result
    flat = replace(flat_pixels(), network=nn.Flatten())
    assert fine_tune(flat, images, QUICK, CPU).top_1.mean < 1


def test_gray_is_repeated_and_colours_turn_gray():
    def one_image(channels):
        return Split("train", torch.tensor([channels], dtype=torch.uint8), torch.tensor([0]))

    gray, colored = one_image([[[7, 200]]]), one_image([[[255, 10]], [[0, 100]], [[0, 200]]])
    assert in_channels(gray, 3).pixels.tolist() == [[[[7, 200]]] * 3]
    luminance = [round(0.2989 * 255), round(0.2989 * 10 + 0.587 * 100 + 0.114 * 200)]
    assert in_channels(colored, 1).pixels.tolist() == [[[luminance]]]
    assert in_channels(gray, 1) is gray and in_channels(colored, 3) is colored


def test_representations_are_those_of_whole_images_normalized_as_the_encoder_was_trained(tmp_path):
    images, normalization = fake_images(), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    encoder, rows = flat_pixels(normalization=normalization), torch.tensor([5, 900, 3])
    examples = stored_examples(encoder, images.train, rows, tmp_path, CPU)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalization)
    assert torch.equal(examples.values, ((images.train.pixels[rows] / 255 - mean) / std).flatten(1))
    assert torch.equal(examples.labels, images.train.labels[rows])


def test_raw_pixels_are_shrunk_to_32():
    assert raw_pixels(flat_pixels(size=224)).size == 32
    assert raw_pixels(flat_pixels(size=28)).size == 28


def test_a_class_without_test_images_has_no_accuracy():
    images = fake_images()
    images.test.labels[images.test.labels == 3] = 4
    result = probe(flat_pixels(), images, QUICK, None, CPU)
    assert result.per_class[3] is None and None not in result.per_class[4:]


def test_fine_tuning_trains_all_weights_of_a_copy(watch_adamw):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU())
    network.eval().requires_grad_(False)
    before, trained = checksum(network.state_dict()), []
    watch_adamw(lambda weights: trained.append([weight.clone() for weight in weights]))
    settings = ProbeSettings(fine_tune_epochs=20, seeds=[0, 1])
    result = fine_tune(replace(flat_pixels(), network=network), fake_images(), settings, CPU)
    assert len(result.seeds) == 2 and result.top_1.mean > 0.5
    assert len(trained[0]) == 4  # encoder and layer
    assert all(not torch.equal(first, last) for first, last in zip(trained[0], trained[-1]))
    assert checksum(network.state_dict()) == before and not network.training


def test_fine_tuning_meets_every_image_once_an_epoch_in_an_order_of_its_own(monkeypatch):
    batches = []

    def watched(images, indices, *rest):
        batches.append((images.name, indices))
        return whole_images(images, indices, *rest)

    monkeypatch.setattr(fine_tuning, "whole_images", watched)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    settings = ProbeSettings(fine_tune_epochs=3, fine_tune_batch_size=16, seeds=[0])
    fine_tune(replace(flat_pixels(), network=network), fake_images(), settings, CPU)
    # after the two images that show the number of dimensions
    met = torch.cat([rows for name, rows in batches[1:] if name == "train"])
    epochs = [tuple(rows.tolist()) for rows in met.chunk(3)]
    assert len(set(epochs)) == len(epochs) == 3
    assert all(len(set(rows)) == len(rows) > 1024 - 16 for rows in epochs)
