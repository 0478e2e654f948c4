import copy
import math

import pytest
import torch
import torch.nn as nn
from conftest import FlatPixels, losses_of, make_vit, masked_view, two_views, with_hidden_pixels

from memorization.data.augmentations import View
from models.heads import HEAD_NORMS, PLAIN_NORMS
from models.mocov3 import MoCoV3, MoCoV3Settings, contrastive_loss


def make_mocov3(encoder=None, **settings):
    torch.manual_seed(0)
    settings = {"hidden_dim": 6, "projection_dim": 4, **settings}
    settings = MoCoV3Settings(name="mocov3", **settings)
    return MoCoV3(encoder or FlatPixels(), **settings.arguments())


def slow_contrastive_loss(q, k, places, temperature):
    """Equation 1 and algorithm 1 of the paper, written out: 2 T times the mean over the queries of
    - log(exp(q . k+ / T) / sum_j exp(q . k_j / T)).
    """

    def unit(row):
        length = math.sqrt(sum(x * x for x in row))
        return [x / length for x in row]

    queries, keys = ([unit(row) for row in rows.tolist()] for rows in (q, k))
    total = 0.0
    for query, place in zip(queries, places.tolist()):
        exponentials = []
        for key in keys:
            similarity = 0.0
            for d in range(len(query)):
                similarity += query[d] * key[d]
            exponentials.append(math.exp(similarity / temperature))
        total -= math.log(exponentials[place] / sum(exponentials))
    return 2 * temperature * total / len(queries)


def queries_and_keys(B=5, N=5, D=3):
    """(B, D) and (N, D) of float64."""
    rows = torch.randn(B + N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return rows[:B], rows[B:]


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
@pytest.mark.parametrize("first, N", [(0, 5), (5, 15)])
def test_the_loss_equals_the_slow_sum_of_the_paper(temperature, first, N):
    q, k = queries_and_keys(N=N)
    places = torch.arange(first, first + 5)
    expected = slow_contrastive_loss(q, k, places, temperature)
    loss = contrastive_loss(q, k, places, temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_the_loss_of_indistinguishable_images_is_the_log_of_their_number():
    same = torch.ones(4, 3)
    loss = contrastive_loss(same, same, torch.arange(4), 0.2)
    assert loss.item() == pytest.approx(0.4 * math.log(4))


def lightlys_loss(loss, q, k, temperature):
    """MoCo v3's loss by lightly's loss for MoCo: a query at a time, with the keys of all other
    images in its memory bank.

    loss: lightly's class.
    """
    total = 0.0
    for i in range(len(q)):
        others = torch.cat([k[:i], k[i + 1 :]])
        of_query = loss(temperature=temperature, memory_bank_size=tuple(others.shape))
        of_query(torch.ones_like(others).requires_grad_(), others)  # fills the memory bank
        total += of_query(q[i : i + 1].detach(), k[i : i + 1]).item()
    return 2 * temperature * total / len(q)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
@pytest.mark.parametrize("B, D", [(3, 4), (16, 64)])
def test_the_loss_equals_lightlys(temperature, B, D):
    lightly = pytest.importorskip("lightly.loss")
    q, k = (rows.float() for rows in queries_and_keys(B, B, D))
    expected = lightlys_loss(lightly.NTXentLoss, q, k, temperature)
    loss = contrastive_loss(q, k, torch.arange(B), temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_of_half_precision_is_computed_in_full():
    q, k = (rows.bfloat16() for rows in queries_and_keys(8, 8, 16))
    loss = contrastive_loss(q, k, torch.arange(8), 0.1)
    assert loss.dtype == torch.float32
    expected = slow_contrastive_loss(q, k, torch.arange(8), 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert contrastive_loss(q, k, torch.arange(8), 0.1).item() == loss.item()


def test_the_queries_of_each_view_search_the_momentum_networks_keys_of_the_other():
    mocov3, both = make_mocov3(make_vit(), head_norm="layer", temperature=0.5), two_views()
    for parameter in [
        *mocov3.momentum_encoder.parameters(),
        *mocov3.momentum_projector.parameters(),
    ]:
        parameter.data += 0.1 * torch.randn(parameter.shape)  # so that the two networks differ
    q1, q2 = (mocov3.predictor(mocov3.projector(mocov3.online_encoder(v.pixels))) for v in both)
    k1, k2 = (mocov3.momentum_projector(mocov3.momentum_encoder(v.pixels)) for v in both)
    places = torch.arange(len(q1))
    expected = slow_contrastive_loss(q1, k2, places, 0.5)
    expected += slow_contrastive_loss(q2, k1, places, 0.5)
    assert mocov3(*both).item() == pytest.approx(expected, rel=1e-5)
    assert mocov3(*both[::-1]).item() == pytest.approx(expected, rel=1e-5)


def test_both_networks_see_each_view_under_its_own_mask():
    mocov3 = make_mocov3(make_vit(), head_norm="layer")
    masked = masked_view(seed=0), masked_view(seed=1)
    loss = mocov3(*masked)
    assert torch.equal(mocov3(*(with_hidden_pixels(view, 7.0) for view in masked)), loss)
    assert not torch.allclose(mocov3(*(View(view.pixels) for view in masked)), loss, atol=1e-4)


def widths_of(head):
    return [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("layers, widths", [
    (2, [(6, 48), (4, 6)]), (3, [(6, 48), (6, 6), (4, 6)]),
])  # fmt: skip
@pytest.mark.parametrize("head_norm", HEAD_NORMS)
def test_outputs_are_normalized_without_weights(layers, widths, head_norm):
    norm = type(PLAIN_NORMS[head_norm](4))
    for predictor_norm in (False, True):
        settings = {"projector_layers": layers, "predictor_norm": predictor_norm}
        mocov3 = make_mocov3(head_norm=head_norm, **settings)
        assert widths_of(mocov3.projector) == widths
        assert widths_of(mocov3.predictor) == [(6, 4), (4, 6)]
        for head in (mocov3.projector, mocov3.predictor):
            assert type(head[1]) is type(HEAD_NORMS[head_norm](6))
        last = mocov3.projector[-1], mocov3.predictor[-1]
        assert type(last[0]) is norm and not list(last[0].parameters())
        assert type(last[1]) is (norm if predictor_norm else nn.Linear)


def test_the_momentum_network_starts_as_a_copy_has_no_gradient_and_follows():
    mocov3 = make_mocov3(make_vit(), momentum=0.9)
    online = [*mocov3.online_encoder.parameters(), *mocov3.projector.parameters()]
    slow = [*mocov3.momentum_encoder.parameters(), *mocov3.momentum_projector.parameters()]
    assert len(online) == len(slow)
    assert all(torch.equal(a, b) and a is not b for a, b in zip(online, slow))
    trained = {id(parameter) for parameter in mocov3.parameters() if parameter.requires_grad}
    expected = [*online, *mocov3.predictor.parameters()]
    assert trained == set(map(id, expected)) and not trained & set(map(id, slow))
    mocov3(*two_views()).backward()
    assert all(parameter.grad is None for parameter in slow)
    assert all(parameter.grad is not None for parameter in expected)
    before = copy.deepcopy(slow)
    for parameter in online:
        parameter.data += torch.rand(parameter.shape)
    mocov3.after_step(progress=0.5)
    for a, b, c in zip(online, slow, before):
        assert torch.allclose(b, 0.95 * c + 0.05 * a, atol=1e-6) and not torch.equal(b, c)


@pytest.mark.parametrize("kept", ["online", "momentum"])
def test_the_encoder_that_is_kept_is_the_one_named(kept):
    mocov3 = make_mocov3(make_vit(), kept=kept)
    assert mocov3.encoder is getattr(mocov3, f"{kept}_encoder")
    assert mocov3.online_encoder is not mocov3.momentum_encoder


@pytest.mark.parametrize("frozen", [True, False])
def test_the_embedding_of_patches_stays_at_its_random_weights_if_it_is_frozen(frozen):
    mocov3 = make_mocov3(make_vit(), freeze_patch_embedding=frozen, head_norm="layer")
    before = copy.deepcopy(mocov3.state_dict())
    losses_of(mocov3, two_views, steps=3, learning_rate=0.01)
    changed = {
        name for name, value in mocov3.state_dict().items() if not torch.equal(value, before[name])
    }
    embedding = {f"online_encoder.embed.{name}" for name in ("weight", "bias")}
    assert changed >= {"online_encoder.class_token", "online_encoder.norm.weight"}
    assert changed & embedding == (set() if frozen else embedding)


def test_mocov3_learns_to_find_the_key_and_does_not_collapse():
    mocov3, (first, _) = make_mocov3(momentum=0.9), two_views(B=32)
    noise = 0.1 * torch.randn(first.pixels.shape, generator=torch.Generator().manual_seed(2))
    pair = first, View(first.pixels + noise)
    losses = losses_of(mocov3, lambda: pair, steps=60, learning_rate=0.01)
    assert losses[-1] < 0.5 * losses[0]
    q = mocov3.predictor(mocov3.projector(mocov3.encoder(first.pixels)))
    assert nn.functional.normalize(q, dim=1).std(0).mean() > 0.5 / math.sqrt(4)
