"""A GPU gives what a CPU gives, and what runs on GPUs alone runs.

`DEVICE=cpu` tries most of these tests on a CPU, beside itself. Each prints its figures (`-rP`).
"""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from conftest import METHODS, WHERE, log_without_times, score, train
from torch._dynamo.utils import counters

import train_simclr
from memorization.config import read_config
from memorization.data.augmentations import Draw, training_views
from memorization.data.images import Split
from memorization.data.prefetching import prefetch
from memorization.data.recipes import ViewRecipe
from memorization.encoder import Encoder
from memorization.machine.device import use_exact_arithmetic
from memorization.machine.shared_norms import SharedBatchNorm
from memorization.measuring.linear_classifier import fit_probe
from memorization.measuring.probing import ProbeSettings
from memorization.measuring.representations import Examples
from memorization.measuring.scores import Scoring, score_images
from memorization.neighbors import knn_accuracy, nearest_neighbors
from memorization.optimizers import make_optimizer
from memorization.training import train_step
from models.encoders import encoder_settings, make_encoder

CPU, GPU = torch.device("cpu"), torch.device(WHERE)
NORMALIZATION = (0.5, 0.4, 0.3), (0.25, 0.3, 0.2)
RECIPE = ViewRecipe(
    size=32, crop_scale=[0.2, 1.0], flip=0.5, jitter=0.8, grayscale=0.2, blur=0.5, solarize=0.2
)
STEPS = 4
OPTIMIZERS = "sgd", "adamw", "lars"
RATES = {"sgd": 0.05, "adamw": 0.001, "lars": 0.5}
OF_ADAMW = {"training.optimizer": "adamw", "training.learning_rate": RATES["adamw"]}

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact_arithmetic")]


@pytest.fixture
def exact_arithmetic():
    use_exact_arithmetic()


def random_split(count=192, size=32):
    chance = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=chance)
    return Split("train", pixels, torch.arange(count) % 10)


def random_vectors(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))


def gap(a, b):
    """The largest difference of two tensors, as a share of the largest value."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).abs().max() / b.abs().max())


class Trial:
    """A method in training on a device.

    name: of a method; config: of `read_config`; split: its images, on the device.
    """

    def __init__(self, name, config, split, device):
        self.config, self.split = config, split
        torch.manual_seed(0)
        encoder = make_encoder(config.encoder, 3, config.augmentation.size)
        self.method = METHODS[name].module(encoder, **config.method.arguments(config.training))
        self.method.to(device, memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.method, config.training)

    def views(self, i):
        batch = torch.arange(64) + 64 * (i % 3)
        draw = Draw(0, "training", epoch=i, patch=self.config.encoder.patch_size)
        recipes = self.config.augmentation.views
        return training_views(self.split, batch, recipes, NORMALIZATION, draw)

    def losses(self, steps=STEPS, forward=None):
        """The losses of so many steps, (steps,)."""
        return torch.stack([
            train_step(
                self.method, self.optimizer, self.views(i), self.config.training, 0.5, forward
            )
            for i in range(steps)
        ])  # fmt: skip


@pytest.fixture
def make_trial(write_config):
    """make_trial(method, device, changes) -> a Trial on random images."""

    def make(name, device, changes=()):
        changes = METHODS[name].changes | {"training.precision": "fp32"} | dict(changes)
        config = read_config("", ["--config", write_config(changes)], method=METHODS[name].schema)
        return Trial(name, config, random_split(size=16).to(device), device)

    return make


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", METHODS)
def test_losses_are_those_of_a_cpu(name, optimizer, make_trial):
    changes = {"training.optimizer": optimizer, "training.learning_rate": RATES[optimizer]}
    on_gpu, on_cpu = (make_trial(name, device, changes).losses().cpu() for device in (GPU, CPU))
    first, all_steps = gap(on_gpu[:1], on_cpu[:1]), gap(on_gpu, on_cpu)
    print(f"off by {first:.1e} in the first step, by {all_steps:.1e} in {STEPS}")
    assert first <= 1e-5 and all_steps <= 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_losses_in_bf16_are_close_to_those_in_float32(name, make_trial):
    changes = [OF_ADAMW | {"training.precision": precision} for precision in ("bf16", "fp32")]
    in_bf16, exact = (make_trial(name, GPU, each).losses(steps=2).cpu() for each in changes)
    print(f"off by {gap(in_bf16, exact):.1e}")
    assert 0 < gap(in_bf16, exact) <= 0.05


@pytest.mark.parametrize("name", METHODS)
def test_losses_of_a_compiled_method_are_those_without(name, make_trial):
    if GPU.type == "cpu":
        pytest.skip("compiling for a CPU takes minutes")
    counters.clear()
    compiled, plain = (make_trial(name, GPU, OF_ADAMW) for _ in range(2))
    off = gap(compiled.losses(forward=torch.compile(compiled.method)), plain.losses())
    breaks = sum(counters["graph_break"].values())
    print(f"off by {off:.1e}, {counters['stats']['unique_graphs']} graphs, {breaks} breaks")
    assert off <= 1e-3


def test_gradients_and_momenta_lie_in_memory_as_their_parameters_do(make_trial):
    """Without which a GPU's optimizer takes the parameters one by one."""

    def layout(tensor):
        return [stride for size, stride in zip(tensor.shape, tensor.stride()) if size > 1]

    trial = make_trial("simclr", GPU)
    trial.losses(steps=2)
    for name, parameter in trial.method.named_parameters():
        for value in (parameter.grad, *trial.optimizer.state[parameter].values()):
            if value is not None and value.shape == parameter.shape:
                assert layout(value) == layout(parameter), name


@pytest.fixture
def group_of_one():
    """The processes of a job of which this is the only one."""
    backend = "nccl" if GPU.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_norm_that_processes_share_is_that_of_a_cpu(dtype, layout, group_of_one):
    shared, plain = SharedBatchNorm(48).to(GPU), nn.BatchNorm2d(48).double()
    x = (3 + random_vectors(64, 48, 8, 8)).to(dtype).to(memory_format=layout)
    factors = random_vectors(65, 48, 8, 8)[1:].to(dtype).to(memory_format=layout)
    results = []
    for norm, pixels in (shared, x.to(GPU)), (plain, x.double()):
        pixels.requires_grad_()
        output = norm(pixels)
        output.backward(factors.to(output))
        gradients = [pixels.grad, norm.weight.grad, norm.bias.grad]
        results.append([output.detach(), *gradients, norm.running_mean, norm.running_var])
    off = [gap(*pair) for pair in zip(*results, strict=True)]
    print(", ".join(f"{each:.1e}" for each in off))
    assert results[0][0].is_contiguous(memory_format=layout) and results[0][0].dtype == dtype
    assert max(off) <= (1e-5 if dtype == torch.float32 else 0.01)


def test_a_norm_that_processes_share_does_not_wait_for_the_gpu(group_of_one):
    if GPU.type == "cpu":
        pytest.skip("a host waits for GPUs alone")
    norm = SharedBatchNorm(8, momentum=None).to(GPU)
    x = torch.randn(4, 8, 2, 2, device=GPU, requires_grad=True)
    norm(x).square().sum().backward()  # prepares libraries, which waits
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        norm(x).square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_images_in_the_hosts_memory_become_the_views_of_those_on_the_gpu():
    near, far = (random_split().to(GPU, place) for place in ("cuda", "cpu"))
    batches = list(torch.arange(192).split(64))
    draw, seen = Draw(0, "training"), 0
    for indices, fetched in prefetch(far, batches):
        a, b = (training_views(s, indices, [RECIPE], NORMALIZATION, draw) for s in (near, fetched))
        assert torch.equal(a[0].pixels, b[0].pixels)
        seen += len(indices)
    assert seen == 192


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_interrupted_training_ends_with_the_loss_of_an_undisturbed_one(
    optimizer, write_config, tmp_path, at_step
):
    """In bf16, stopped in the middle of an epoch, of f and then of g."""

    def interrupt():
        raise KeyboardInterrupt

    path = write_config({
        "device": WHERE,
        "training.optimizer": optimizer,
        "training.learning_rate": RATES[optimizer],
        "training.checkpoint_minutes": 1e-9,
        "training.precision": "bf16",
    })  # fmt: skip
    train(path, "--run", str(tmp_path / "whole"))
    at_step((6, 14), interrupt)
    for _ in range(2):
        with pytest.raises(SystemExit, match="130"):
            train(path)
    train(path)
    for role in ("candidate", "independent"):
        logs = [log_without_times(tmp_path / run, role) for run in ("run", "whole")]
        losses = [torch.tensor([line["loss"] for line in log]) for log in logs]
        print(f"{role}: off by {gap(*losses):.1e}")
        assert len(losses[0]) == len(losses[1]) == 3 and gap(*losses) <= 1e-3


def test_a_full_gpu_names_the_batch_size(write_config, refusal):
    if GPU.type == "cpu":
        pytest.skip("needs a GPU whose memory can be filled")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.002)
    changes = {
        "device": "cuda",
        "encoder": {"name": "resnet50"},
        "data.size": 64,
        "augmentation.views": [{"count": 2, "size": 64}],
        "training.batch_size": 48,
    }
    try:
        line = refusal(train_simclr.main, ["--config", write_config(changes)])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (
        line
        == "error: training.batch_size: 48 needs more than the GPU's memory has left; lower it\n"
    )


# --- measuring ------------------------------------------------------------------------------------

RESNET = encoder_settings(name="resnet_small", width=32)
VIT = encoder_settings(name="vit_mini", width=64, depth=2, patch=4)
WAYS = [
    (RESNET, "pooled", 0.0),
    (RESNET, "tokens", 0.0),
    (VIT, "pooled", 0.0),
    (VIT, "tokens", 0.75),
]


def random_encoder(settings, seed):
    torch.manual_seed(seed)
    network = make_encoder(settings, 3, 32).eval()
    return Encoder(f"encoder {seed}", network, 3, 32, NORMALIZATION, settings.patch_size)


def scores_on(device, settings, representation, mask_ratio, precision="fp32"):
    """ImageScores of 48 random images under two random encoders."""
    f, g = (random_encoder(settings, seed) for seed in range(2))
    recipes = [RECIPE.model_copy(update={"mask_ratio": mask_ratio})]
    scoring = Scoring(views=5, representation=representation, precision=precision)
    return score_images(f, g, random_split().to(device), range(48), recipes, scoring)


@pytest.mark.parametrize("settings, representation, mask_ratio", WAYS)
def test_scores_are_those_of_a_cpu(settings, representation, mask_ratio):
    on_gpu, on_cpu = (scores_on(d, settings, representation, mask_ratio) for d in (GPU, CPU))
    off = {
        name: np.abs(getattr(on_gpu, name) - getattr(on_cpu, name)).max()
        for name in ("loss_f", "loss_g", "error")
    }
    print(f"off by {off}, of losses about {on_cpu.loss_f.mean():.3f}")
    assert max(off.values()) <= 1e-5


def test_scores_in_bf16_are_off_by_a_tenth_of_their_standard_error_at_most():
    in_bf16, exact = (scores_on(GPU, RESNET, "pooled", 0.0, p) for p in ("bf16", "fp32"))
    off = np.sqrt(np.mean((in_bf16.score - exact.score) ** 2))
    print(f"off by {off:.1e}, of a standard error of {exact.error.mean():.1e}")
    assert 0 < off <= 0.1 * exact.error.mean()


def test_neighbors_are_those_of_a_cpu():
    bank, queries = random_vectors(5000, 64), random_vectors(700, 64)
    bank[100:200] = bank[:100]  # equal distances, whose order is that of the index
    queries[:50] = bank[:50]
    found = [nearest_neighbors(queries.to(d), bank.to(d), 100, memory_gb=0.002) for d in (GPU, CPU)]
    (on_gpu, distances), (on_cpu, distances_on_cpu) = found
    print(f"distances off by {gap(distances, distances_on_cpu):.1e}")
    assert torch.equal(on_gpu.cpu(), on_cpu) and gap(distances, distances_on_cpu) <= 1e-9


def test_knn_accuracies_are_those_of_a_cpu():
    bank, queries = random_vectors(3000, 64), random_vectors(700, 64)
    labels = torch.arange(3000) % 10
    queries[:300] = bank[:300] + 0.5 * queries[:300]  # some are found
    data = queries, labels[:700], bank, labels
    on_gpu, on_cpu = (knn_accuracy(*(x.to(d) for x in data), 20, 0.1) for d in (GPU, CPU))
    print(on_gpu, on_cpu)
    assert abs(on_gpu - on_cpu) <= 1 / 700 and on_cpu > 0.2


def test_probes_are_those_of_a_cpu():
    values, labels = random_vectors(2000, 64), torch.arange(2000) % 10
    values += 0.5 * torch.nn.functional.one_hot(labels, 64)
    settings = ProbeSettings(epochs=20, warmup_epochs=2)
    logits = []
    for device in (GPU, CPU):
        examples = Examples(values.to(device), labels.to(device))
        layer, _ = fit_probe(examples, 10, settings, seed=0)
        logits.append(layer(examples.values).detach().cpu())
    on_gpu, on_cpu = ((each.argmax(1) == labels).float().mean() for each in logits)
    print(f"logits off by {gap(*logits):.1e}, accuracies {on_gpu:.4f} and {on_cpu:.4f}")
    assert gap(*logits) <= 1e-3 and abs(on_gpu - on_cpu) <= 0.002 and on_cpu > 0.2


def test_a_whole_run_is_scored_on_the_gpu_as_on_the_cpu(write_config, tmp_path):
    path = write_config({"device": WHERE, "training.precision": "fp32"})
    train(path)
    score(path)
    on_gpu = (tmp_path / "run/scores/scores.npz").read_bytes()
    score(path, "--device", "cpu")
    on_cpu = np.load(tmp_path / "run/scores/scores.npz")
    (tmp_path / "gpu.npz").write_bytes(on_gpu)
    on_gpu = np.load(tmp_path / "gpu.npz")
    losses = [key for key in on_cpu if key.startswith("L_")]
    off = max(np.abs(on_gpu[key] - on_cpu[key]).max() for key in losses)
    print(f"off by {off:.1e}")
    assert len(losses) == 2 and off <= 1e-5
