import math

import pytest
import torch
import torch.nn as nn

from models.momentum import follow, momentum_at, slow_copy


@pytest.mark.parametrize("base", [0.9, 0.996])
def test_the_momentum_rises_from_its_base_to_1_by_half_a_cosine(base):
    assert momentum_at(0, base) == pytest.approx(base) and momentum_at(1, base) == 1
    assert momentum_at(0.5, base) == pytest.approx((1 + base) / 2)
    steps = [momentum_at(k / 100, base) for k in range(101)]
    assert steps == sorted(steps)
    assert steps[25] == pytest.approx(1 - (1 - base) * (math.cos(math.pi * 25 / 100) + 1) / 2)


def test_a_slow_network_moves_by_one_minus_the_momentum_and_keeps_its_statistics():
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    slow = slow_copy(online)
    before = [parameter.clone() for parameter in slow.parameters()]
    for tensor in [*online.parameters(), online[1].running_mean]:
        tensor.data += torch.rand(tensor.shape)
    follow([slow[0], slow[1]], [online[0], online[1]], 0.9)
    for new, old, target in zip(slow.parameters(), before, online.parameters()):
        assert torch.allclose(new, 0.9 * old + 0.1 * target, atol=1e-6)
        assert not new.requires_grad and target.requires_grad
    assert (slow[1].running_mean == 0).all()
