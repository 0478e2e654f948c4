import copy
import math

import pytest
import torch
import torch.nn as nn
from conftest import TINY_TRAINING, make_vit, masked_view, with_hidden_pixels

from memorization.data.augmentations import View
from memorization.optimizers import make_optimizer
from memorization.training import train_step
from models.dino import DINO, DINOHead, DINOSettings, distillation_loss, encode_views
from models.heads import HEAD_NORMS
from models.schedules import half_cosine

TEMPERATURES = (0.04, 0.1)  # of teacher and student
SMALL = {"hidden_dim": 8, "projection_dim": 4, "prototypes": 10}


class Convolution(nn.Sequential):
    """An encoder with a batch norm, which takes images of any size and notes those that it met."""

    dim = 6

    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 2), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1))
        self.met = []

    def forward(self, pixels, visible=None):
        self.met.append((len(pixels), pixels.shape[-1]))
        return super().forward(pixels).flatten(1)


def make_dino(encoder=None, training=None, **settings):
    """A small DINO. training: what differs in TINY_TRAINING, which has three epochs."""
    torch.manual_seed(0)
    training = TINY_TRAINING.model_copy(update=training or {})
    settings = DINOSettings(name="dino", **SMALL | settings)
    return DINO(encoder or Convolution(), **settings.arguments(training))


def noise_views(*sizes, B=5):
    """A view of noise of each size."""
    generator = torch.Generator().manual_seed(1)
    return [View(torch.randn(B, 3, size, size, generator=generator)) for size in sizes]


def draw_outputs(T=2, S=5, B=4, K=7, dtype=torch.float64):
    """Outputs of a teacher for T views and of a student for S, and a centre."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn((T + S) * B * K + K, generator=generator, dtype=torch.float64).tanh()
    teacher, student, centre = outputs.split([T * B * K, S * B * K, K])
    return [x.to(dtype) for x in (teacher.view(T, B, K), student.view(S, B, K), centre)]


def slow_softmax(values):
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def slow_distillation_loss(teacher, student, centre, teacher_temperature, student_temperature):
    """Equation 3 of the paper and its algorithm 1, written out over views, images and
    prototypes.
    """
    teacher, student, centre = (x.tolist() for x in (teacher, student, centre))
    B, K, terms = len(teacher[0]), len(centre), []
    for a in range(len(teacher)):
        for b in range(len(student)):
            if a == b:
                continue
            for i in range(B):
                centred = [teacher[a][i][k] - centre[k] for k in range(K)]
                q = slow_softmax([value / teacher_temperature for value in centred])
                p = slow_softmax([value / student_temperature for value in student[b][i]])
                terms.append(-sum(q[k] * math.log(p[k]) for k in range(K)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("T, S", [(2, 2), (2, 5), (3, 3), (3, 4)])
def test_the_loss_equals_the_slow_sum_of_the_paper(T, S):
    outputs = draw_outputs(T, S)
    expected = slow_distillation_loss(*outputs, *TEMPERATURES)
    loss = distillation_loss(*outputs, *TEMPERATURES)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_a_view_that_has_to_predict_a_sure_teacher_can_be_computed_by_hand():
    teacher = torch.tensor([[[9.0, 0.0]], [[9.0, 0.0]]])  # sure of the first of two prototypes
    student = torch.tensor([[[0.0, 0.0]], [[0.1, 0.0]]])
    loss = distillation_loss(teacher, student, torch.zeros(2), *TEMPERATURES)
    surprise = math.log(2), math.log(1 + math.exp(-1))
    assert loss.item() == pytest.approx(sum(surprise) / 2)


def test_the_loss_of_half_precision_is_computed_in_full_also_under_autocast():
    half = draw_outputs(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation_loss(*half, *TEMPERATURES)
    expected = slow_distillation_loss(*(x.double() for x in half), *TEMPERATURES)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_cosines_of_a_head_are_computed_in_full_under_autocast():
    head, x = DINOHead(6, 8, 4, 10, "none"), torch.randn(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosines, z = head(x), head.layers(x).float()
    prototypes = head.prototypes / head.prototypes.norm(dim=1, keepdim=True)
    assert cosines.dtype == torch.float32
    assert (cosines - z / z.norm(dim=1, keepdim=True) @ prototypes.T).abs().max() < 1e-6


def outputs_of(dino, views):
    """(T, B, K) of the teacher for the first two views, and (S, B, K) of the student for all."""
    teacher = [dino.teacher_head(dino.teacher_encoder(*view)) for view in views[:2]]
    student = [dino.student_head(dino.student_encoder(*view)) for view in views]
    return torch.stack(teacher), torch.stack(student)


def move_apart(dino):
    """Change the teacher and the centre of a method, so that nothing in it is equal by chance."""
    for parameter in [*dino.teacher_encoder.parameters(), *dino.teacher_head.parameters()]:
        parameter.data += 0.1 * torch.rand(parameter.shape)
    dino.centre += torch.rand(dino.centre.shape)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_students_of_all_views_predict_the_teachers_of_full_size(order):
    dino, views = make_dino(make_vit()), noise_views(16, 16, 8, 8)
    move_apart(dino)
    temperatures = dino.teacher_temperature, dino.student_temperature
    expected = slow_distillation_loss(*outputs_of(dino, views), dino.centre, *temperatures)
    assert dino(*(views[i] for i in order)).item() == pytest.approx(expected, rel=1e-4)


def test_views_of_one_size_are_one_batch_and_small_ones_pass_the_student_alone():
    dino = make_dino()
    dino(*noise_views(8, 6, 8, 6, 6))
    assert dino.student_encoder.met == [(10, 8), (15, 6)]
    assert dino.teacher_encoder.met == [(10, 8)]


def test_each_view_is_encoded_under_its_own_mask():
    dino, views = make_dino(make_vit()), [masked_view(seed=0), masked_view(seed=1, K=7)]
    move_apart(dino)
    temperatures = dino.teacher_temperature, dino.student_temperature
    expected = slow_distillation_loss(*outputs_of(dino, views), dino.centre, *temperatures)
    centre = dino.centre.clone()
    for seen in (views, [with_hidden_pixels(view, 7.0) for view in views]):
        dino.centre.copy_(centre)
        assert dino(*seen).item() == pytest.approx(expected, rel=1e-4)


def test_the_centre_follows_the_mean_output_of_the_teacher_over_its_views():
    dino, views = make_dino(make_vit(), centre_momentum=0.8), noise_views(16, 16, 8)
    move_apart(dino)
    before, (teacher, _) = dino.centre.clone(), outputs_of(dino, views)
    dino(*views)
    expected = 0.8 * before + 0.2 * (teacher[0].mean(0) + teacher[1].mean(0)) / 2
    assert torch.allclose(dino.centre, expected, atol=1e-6) and not dino.centre.requires_grad


@pytest.mark.parametrize("head_norm", HEAD_NORMS)
@pytest.mark.parametrize("layers", [2, 3])
def test_the_head_has_the_layers_gelu_and_the_norm_of_the_settings(layers, head_norm):
    head = make_dino(head_norm=head_norm, head_layers=layers).student_head.layers
    linear = [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)]
    assert linear == {2: [(8, 6), (4, 8)], 3: [(8, 6), (8, 8), (4, 8)]}[layers]
    norms = [type(layer) for layer in head[1::3]]
    assert norms == (layers - 1) * [type(HEAD_NORMS[head_norm](8))]
    assert [type(layer) for layer in head[2::3]] == (layers - 1) * [nn.GELU]
    assert len(make_dino().student_head.layers) == 7  # three by default


def test_neither_the_norm_of_a_prototype_nor_that_of_an_image_plays_a_part():
    head, x = DINOHead(6, 8, 4, 10, "none"), torch.randn(3, 6)
    cosines = head(x)
    with torch.no_grad():
        head.prototypes *= torch.rand(10, 1) + 0.5
        head.layers[-1].weight *= 3
        head.layers[-1].bias *= 3
    assert torch.allclose(head(x), cosines, atol=1e-6) and cosines.abs().max() <= 1


def train_a_step(dino, progress, optimizer=None, **settings):
    """Returns the optimizer after one step of training."""
    settings = TINY_TRAINING.model_copy(update=settings)
    optimizer = optimizer or make_optimizer(dino, settings)
    train_step(dino, optimizer, noise_views(8, 8, 6), settings, progress)
    return optimizer


@pytest.mark.parametrize("frozen_epochs, progress, is_frozen", [
    (1, 0.0, True), (1, 0.33, True), (1, 1 / 3, False), (1, 0.9, False), (0, 0.0, False),
    (2, 0.66, True), (2, 2 / 3, False),
])  # fmt: skip
def test_prototypes_stay_as_they_are_in_the_frozen_epochs(frozen_epochs, progress, is_frozen):
    dino = make_dino(frozen_epochs=frozen_epochs)  # of three epochs
    before = copy.deepcopy(dino.student_head)
    train_a_step(dino, progress, weight_decay=0.1)
    assert torch.equal(dino.student_head.prototypes, before.prototypes) == is_frozen
    assert not torch.equal(dino.student_head.layers[0].weight, before.layers[0].weight)


def test_weight_decay_goes_to_its_end_by_half_a_cosine_and_spares_biases_and_norms():
    dino = make_dino(training={"weight_decay": 0.04}, final_weight_decay=0.4)
    optimizer = None
    for progress in (0.0, 0.25, 0.5, 0.75):
        optimizer = train_a_step(dino, progress, optimizer, weight_decay=0.04)
        expected = 0.4 - 0.36 * (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            is_of_weights = all(parameter.ndim > 1 for parameter in group["params"])
            assert group["weight_decay"] == pytest.approx(expected if is_of_weights else 0)
    assert len(optimizer.param_groups) == 2


def test_weight_decay_stays_if_no_end_is_set():
    dino = make_dino(training={"weight_decay": 0.04})
    optimizer = train_a_step(dino, 0.5, weight_decay=0.04)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.04, 0}


def test_the_teachers_temperature_rises_on_a_line_and_then_stays():
    settings = {"warmup_teacher_temperature": 0.02, "warmup_temperature_epochs": 2}
    dino = make_dino(training={"epochs": 8}, teacher_temperature=0.06, **settings)
    temperatures = [dino.teacher_temperature.item()]
    for progress in (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1):
        dino.after_step(progress)
        temperatures.append(dino.teacher_temperature.item())
    assert temperatures == pytest.approx([0.02, 0.02, 0.03, 0.04, 0.06, 0.06, 0.06])
    assert make_dino(teacher_temperature=0.06).teacher_temperature.item() == pytest.approx(0.06)


def test_the_teacher_starts_as_a_copy_has_no_gradient_and_follows():
    dino = make_dino(momentum=0.9)
    student = [*dino.student_encoder.parameters(), *dino.student_head.parameters()]
    teacher = [*dino.teacher_encoder.parameters(), *dino.teacher_head.parameters()]
    assert all(torch.equal(a, b) and a is not b for a, b in zip(student, teacher, strict=True))
    dino(*noise_views(8, 8, 6)).backward()
    assert all(parameter.grad is None for parameter in teacher)
    assert all(parameter.grad is not None for parameter in student)
    before = copy.deepcopy(teacher)
    for parameter in student:
        parameter.data += torch.rand(parameter.shape)
    dino.after_step(progress=0.5)
    for a, b, c in zip(student, teacher, before):
        assert torch.allclose(b, 0.95 * c + 0.05 * a, atol=1e-6) and not torch.equal(b, c)


@pytest.mark.parametrize("kept", ["teacher", "student"])
def test_the_encoder_that_is_kept_is_the_one_named(kept):
    dino = make_dino(kept=kept)
    assert dino.encoder is getattr(dino, f"{kept}_encoder")
    assert DINOSettings(name="dino").kept == "teacher"


def test_half_a_cosine_goes_from_its_start_to_its_end():
    assert [half_cosine(progress, 3.0, 1.0) for progress in (0, 0.5, 1)] == pytest.approx([3, 2, 1])
    assert half_cosine(0.25, 0.0, 1.0) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


# --- beside lightly -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("T, S", [(2, 2), (2, 8)])
def test_loss_gradient_and_centre_equal_those_of_lightly(T, S, dtype):
    DINOLoss = pytest.importorskip("lightly.loss").DINOLoss
    K, B = 512, 16
    theirs, dino = DINOLoss(K).to(dtype), make_dino(prototypes=K)
    theirs.teacher_temp, theirs.student_temp = TEMPERATURES
    dino.to(dtype)
    teacher, student, _ = draw_outputs(T, S, B, K, dtype)
    for step in range(5):
        s, other = (student.roll(step, 2).clone().requires_grad_() for _ in range(2))
        t = teacher.roll(2 * step, 2)
        loss = distillation_loss(t, s, dino.centre, *TEMPERATURES)
        dino._move_centre(t)
        expected = theirs(list(t), list(other), teacher_temp=TEMPERATURES[0])
        loss.backward()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert (s.grad - other.grad).abs().max() < 1e-6
        assert (dino.centre - theirs.center.flatten()).abs().max() < 1e-6


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_head_equals_that_of_lightly_with_the_same_weights(batch_norm):
    heads = pytest.importorskip("lightly.models.modules.heads")
    theirs = heads.DINOProjectionHead(12, 32, 8, 64, batch_norm)
    head = DINOHead(12, 32, 8, 64, "batch" if batch_norm else "none")
    linear = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        own = [parameter for layer in linear for parameter in layer.parameters()]
        others = [
            parameter
            for layer in theirs.layers
            if isinstance(layer, nn.Linear)
            for parameter in layer.parameters()
        ]
        for parameter, other in zip(own, others, strict=True):
            parameter.copy_(torch.randn(parameter.shape) / 3)
            other.copy_(parameter)
        head.prototypes.copy_(theirs.last_layer.weight_v)
    x, weights = torch.randn(16, 12), torch.randn(16, 64)
    assert (head(x) - theirs(x)).abs().max() < 1e-6
    (head(x) * weights).sum().backward()
    (theirs(x) * weights).sum().backward()
    pairs = [*zip(own, others), (head.prototypes, theirs.last_layer.weight_v)]
    for parameter, other in pairs:
        assert (parameter.grad - other.grad).abs().max() < 1e-5 * other.grad.abs().max()


def test_schedules_and_the_teachers_steps_equal_those_of_lightly():
    lightly = pytest.importorskip("lightly.utils.scheduler")
    update = pytest.importorskip("lightly.models.utils").update_momentum
    steps = 40
    for k in range(steps):
        theirs = lightly.cosine_schedule(k, steps + 1, 0.04, 0.4)
        assert half_cosine(k / steps, 0.04, 0.4) == pytest.approx(theirs, abs=1e-12)
    dino, loss = make_dino(momentum=0.9), pytest.importorskip("lightly.loss").DINOLoss
    other, student = copy.deepcopy(dino.teacher_encoder), dino.student_encoder
    for k in range(steps):
        for parameter in student.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
        dino.after_step(k / steps)
        update(student, other, lightly.cosine_schedule(k, steps + 1, 0.9, 1.0))
    for parameter, theirs in zip(dino.teacher_encoder.parameters(), other.parameters()):
        assert (parameter - theirs).abs().max() < 1e-6
    # lightly counts the end of the warm-up as one of its epochs, and knows whole epochs alone
    temperatures = loss(10, 0.02, 0.06, warmup_teacher_temp_epochs=5).teacher_temp_schedule
    dino = make_dino(
        training={"epochs": 10}, teacher_temperature=0.06,
        warmup_teacher_temperature=0.02, warmup_temperature_epochs=4,
    )  # fmt: skip
    for epoch in range(5):
        dino.after_step(epoch / 10)
        assert dino.teacher_temperature.item() == pytest.approx(temperatures[epoch].item())


def test_dino_tells_images_apart_and_does_not_collapse():
    dino = make_dino(momentum=0.9, centre_momentum=0.5, frozen_epochs=0)
    (first,) = noise_views(8, B=32)
    noise = 0.1 * torch.randn(first.pixels.shape, generator=torch.Generator().manual_seed(2))
    views = first, View(first.pixels + noise)
    optimizer = torch.optim.Adam([p for p in dino.parameters() if p.requires_grad], 0.01)
    for _ in range(60):
        train_step(dino, optimizer, views, TINY_TRAINING, 0.5)
    with torch.no_grad():
        outputs = dino.teacher_head(encode_views(dino.teacher_encoder, views)).unflatten(0, (2, -1))
        q = ((outputs - dino.centre) / dino.teacher_temperature).softmax(2)
    used = q.mean((0, 1))
    assert -(used * used.log()).sum() > 0.5 * math.log(10)
    assert -(q * q.log()).sum(2).mean() < 0.8 * -(used * used.log()).sum()
