"""Settings and command lines that cannot be: one line that names key, value and what is allowed,
exit code 2, and nothing is written.
"""

import shutil

import pytest
from conftest import METHODS, write_experiment
from started import run_script

import dejavu
import linear_probing_train
import memorization_scores
import remove_samples

SCRIPTS = {
    **{name: method.script for name, method in METHODS.items()},
    "scores": memorization_scores,
    "dejavu": dejavu,
    "probe": linear_probing_train,
    "remove": remove_samples,
}
ALL_TRAINING = ", ".join(f"train_{name}.py" for name in METHODS)
MASKED = {"size": 16, "mask_ratio": 0.5}
BIG = str(10**18)


def views(**changes):
    """The option of a recipe for two views of 16 pixels with changes."""
    return ["--augmentation.views", str([{"size": 16, "count": 2, **changes}])]


COMMAND_LINES = [  # script, options, and what the line names
    # --- no such option, or no value
    ("simclr", ["--training.epohs", "2"], ["--training.epohs", "did you mean --training.epochs?"]),
    ("simclr", ["--training", "5"], ["--training", "no such option"]),
    ("simclr", ["--training.epochs"], ["--training.epochs", "expected"]),
    ("simclr", ["--seeds"], ["--seeds", "expected at least one"]),
    ("simclr", ["--checkpoint", "all"], ["--checkpoint", "no such option"]),
    ("simclr", ["--method.momentum", "0.9"], ["--method.momentum", "no such option"]),
    ("simclr", ["fast"], ["fast", "no such option"]),
    ("remove", ["--retrain", "yes"], ["yes", "no such option"]),
    ("scores", ["--role", "candidate"], ["--role", "no such option"]),
    # --- actions
    ("simclr", ["--role", "both"], ["--role: 'both'", "candidate or independent"]),
    ("byol", ["--role", ""], ["--role: ''", "candidate or independent"]),
    ("mae", ["--role", "f"], ["--role: 'f'", "candidate or independent"]),
    ("scores", ["--checkpoint", "epoch_9999"], ["--checkpoint: 'epoch_9999'", "has epoch_0002"]),
    ("scores", ["--checkpoint", "5"], ["--checkpoint: '5'", "has epoch_0002"]),
    ("scores", ["--checkpoint", ""], ["--checkpoint: ''", "has epoch_0002"]),
    ("dejavu", ["--checkpoint", "epoch_2"], ["--checkpoint: 'epoch_2'", "has epoch_0002"]),
    ("dejavu", ["--checkpoint", "../candidate/encoder"],
     ["--checkpoint: '../candidate/encoder'", "has epoch_0002"]),
    ("probe", ["--encoder", "absent.pt"], ["--encoder: absent.pt", "no such file"]),
    ("probe", ["--encoder", ""], ["--encoder: ", "no such file"]),
    ("probe", ["--encoder", "tiny.yaml"], ["--encoder: tiny.yaml", "not a whole checkpoint"]),
    ("probe", ["--encoder", "."], ["--encoder: .", "cannot be read", "directory"]),
    ("remove", ["--jobs", "0/2"], ["--jobs", "add --retrain"]),
    ("remove", ["--retrain", "--jobs", "4/4"], ["--jobs: '4/4'", "I from 0 to N - 1"]),
    ("remove", ["--retrain", "--jobs", "half"], ["--jobs: 'half'", "I/N"]),
    ("remove", ["--retrain", "--jobs", "0/" + "9" * 5000], ["--jobs: '0/99", "I/N"]),
    ("remove", ["--retrain", "--scores.representation", "tokens"],
     ["scores/tokens: no scores here", "run memorization_scores.py",
      "there are scores by other settings, such as "]),
    ("remove", ["--retrain", "--probe.fine_tune", "true"], ["probe.fine_tune: True"]),
    # --- kinds of values
    ("simclr", ["--training.epochs", "many"], ["training.epochs", "'many'", "valid integer"]),
    ("simclr", ["--training.epochs", "2.5"], ["training.epochs", "2.5", "integer"]),
    ("simclr", ["--training.epochs", "3.0"], ["training.epochs", "3.0", "integer"]),
    ("simclr", ["--training.epochs", "true"], ["training.epochs", "True", "integer"]),
    ("simclr", ["--training.epochs", "null"], ["training.epochs", "None", "integer"]),
    ("simclr", ["--training.learning_rate", "1e-3"],
     ["training.learning_rate", "'1e-3'", "such as 0.001"]),
    ("simclr", ["--training.learning_rate", ".nan"], ["training.learning_rate: nan", "finite"]),
    ("simclr", ["--training.learning_rate", ".inf"], ["training.learning_rate: inf", "finite"]),
    ("simclr", ["--training.learning_rate", "1.0e+308"],
     ["training.learning_rate: 1e+308", "less than or equal to 10000"]),
    ("simclr", ["--training.data_device", "gpu"],
     ["training.data_device: 'gpu'", "'auto', 'cuda' or 'cpu'"]),
    ("simclr", ["--training.data_device", "cuda"],
     ["training.data_device: 'cuda'", "training is on the cpu"]),
    ("probe", ["--probe.learning_rates", "1.0e+308"],
     ["probe.learning_rates", "less than or equal to 10000"]),
    ("simclr", ["--training.learning_rate", "0,01"],
     ["training.learning_rate: '0,01'", "valid number"]),
    ("simclr", ["--training.alignment_penalty", "1"],
     ["training.alignment_penalty: 1", "less than 1"]),
    ("simclr", ["--training.alignment_penalty", "-0.1"],
     ["training.alignment_penalty: -0.1", "greater than or equal to 0"]),
    ("simclr", ["--training.alignment_penalty", "null"],
     ["training.alignment_penalty: None", "number"]),
    ("simclr", ["--training.optimizer", "adam"],
     ["training.optimizer", "'adam'", "'sgd', 'adamw' or 'lars'"]),
    ("simclr", ["--training.betas", "0.9"], ["training.betas: [0.9]", "at least 2"]),
    ("simclr", ["--training.checkpoint_epochs", "all"],
     ["training.checkpoint_epochs", "'all'", "integer"]),
    ("simclr", ["--method.one_pass", "1"], ["method.one_pass: 1", "boolean"]),
    ("simclr", ["--data.name", "imagenet"], ["data.name: 'imagenet'", "'cifar10'"]),
    ("simclr", ["--data.name", "CIFAR10"], ["data.name: 'CIFAR10'", "'cifar10'"]),
    ("simclr", ["--seeds", "a"], ["seeds.0: 'a'", "integer"]),
    ("simclr", ["--seeds", "0,1"], ["seeds.0: '0,1'", "integer"]),
    ("simclr", ["--augmentation.views", "training"],
     ["augmentation.views.0: 'training'", "dictionary"]),
    ("simclr", ["--augmentation.views", "{size: 16}"],
     ["augmentation.views: 1 views are drawn", "first, second"]),
    ("simclr", ["--augmentation.views", "[16, 16]"], ["augmentation.views.0: 16", "dictionary"]),
    ("simclr", ["--augmentation.views", "["], ["--augmentation.views: '['", "not YAML"]),
    ("simclr", ["--augmentation.views", "[*a]"],
     ["--augmentation.views: '[*a]'", "line 1: aliases (*a) are not supported"]),
    ("simclr", ["--augmentation.views", "[{size: 16, size: 8, count: 2}]"],
     ["--augmentation.views", "key 'size' stands twice"]),
    ("simclr", ["--seeds", "2024-13-45"], ["seeds.0: '2024-13-45'", "integer"]),
    ("simclr", ["--seeds", "1:30"], ["seeds.0: '1:30'", "integer", "decimal digits"]),
    ("simclr", ["--seeds", "0x10"], ["seeds.0: '0x10'", "integer", "decimal digits"]),
    ("simclr", ["--seeds", "0b1"], ["seeds.0: '0b1'", "integer", "decimal digits"]),
    ("simclr", ["--seeds", "0o10"], ["seeds.0: '0o10'", "integer", "decimal digits"]),
    ("simclr", ["--seeds", "1_000"], ["seeds.0: '1_000'", "integer", "decimal digits"]),
    ("simclr", ["--seeds", "!!int 0x10"], ["--seeds: '!!int 0x10'", "'0x10' in line 1 is no int"]),
    ("simclr", ["--seeds", "9" * 5000], ["--seeds: '999", "an integer of 5000 digits"]),
    ("simclr", ["--training.learning_rate", "1:30.5"],
     ["training.learning_rate: '1:30.5'", "number", "decimal digits"]),
    ("simclr", ["--training.learning_rate", "1_0.5"],
     ["training.learning_rate: '1_0.5'", "number", "decimal digits"]),
    ("simclr", ["--training.learning_rate", "!!float 1:30"],
     ["--training.learning_rate", "'1:30' in line 1 is no float"]),
    ("simclr", ["--training.compile", "yes"],
     ["training.compile: 'yes'", "boolean", "write true or false"]),
    ("simclr", ["--training.compile", "off"],
     ["training.compile: 'off'", "boolean", "write true or false"]),
    ("simclr", ["--augmentation.views", "[{<<: {size: 16}, count: 2}]"],
     ["merge keys (<<) are not supported; write the keys out"]),
    ("probe", ["--probe.fine_tune", "maybe"], ["probe.fine_tune: 'maybe'", "boolean"]),
    ("dejavu", ["--dejavu.k", "true"], ["dejavu.k: True", "integer"]),
    # --- bounds
    ("simclr", ["--training.epochs", "0"], ["training.epochs", "0", "greater than or equal to 1"]),
    ("simclr", ["--training.epochs", BIG],
     ["training.epochs", BIG, "less than or equal to 1000000"]),
    ("simclr", ["--training.batch_size", "57"], ["training.batch_size", "57", "56 images"]),
    ("simclr", ["--training.batch_size", str(10**12)],
     ["training.batch_size", str(10**12), "56 images"]),
    ("mae", ["--training.batch_size", "1"],
     ["training.batch_size", "1", "greater than or equal to 2"]),
    ("simclr", ["--training.warmup_epochs", "3"],
     ["command line: --training.warmup_epochs 3: training: warmup_epochs is 3",
      "less than epochs (3)"]),
    ("simclr", ["--training.checkpoint_epochs", "9"],
     ["command line: --training.checkpoint_epochs 9", "9", "3 epochs"]),
    ("simclr", ["--training.checkpoint_epochs", "2", "--training.epochs", "1"],
     ["command line: --training.epochs 1 --training.checkpoint_epochs 2: "
      "training: checkpoint_epochs has 2",
      "1 epochs"]),
    ("simclr", ["--training.momentum", "1"], ["training.momentum: 1", "less than 1"]),
    ("simclr", ["--training.weight_decay", "-1"],
     ["training.weight_decay: -1", "greater than or equal to 0"]),
    ("simclr", ["--training.clip_gradient", "0"], ["training.clip_gradient: 0", "greater than 0"]),
    ("simclr", ["--training.pictures_every", "1"],
     ["training.pictures_every: 1, but simclr draws none"]),
    ("simclr", ["--seeds", "0", "0"], ["seeds", "once"]),
    ("simclr", ["--seeds", "[]"], ["seeds: []", "at least 1"]),
    ("simclr", ["--seeds", "-1"], ["command line: seeds", "-1", "greater than or equal to 0"]),
    ("simclr", ["--seeds", str(2**63)], ["seeds", str(2**63), "less than 9223372036854775808"]),
    ("scores", ["--seeds", "9"], ["seeds: 9", "[0, 1]"]),
    ("simclr", ["--threads", "0"], ["threads: 0", "greater than or equal to 1"]),
    ("simclr", ["--threads", "100000"], ["threads: 100000", "less than or equal to 1024"]),
    ("simclr", ["--device", "gpu"], ["device", "'gpu'", "cuda"]),
    ("scores", ["--device", "cuda:99"], ["device", "'cuda:99'", "CUDA devices"]),
    ("simclr", ["--device", "cuda:99999999999999999999"],
     ["device: 'cuda:99999999999999999999'", "pattern"]),
    ("simclr", ["--subsets.candidate", "25"],
     ["command line: --subsets.candidate 25", "independent is 24", "equal candidate (25)"]),
    ("simclr", ["--subsets.shared", "2000"], ["subsets", "2048", "1024"]),
    ("simclr", ["--subsets.shared", "-1"], ["subsets.shared: -1", "greater than or equal to 0"]),
    ("simclr", ["--subsets.external", "257"], ["subsets", "257", "256"]),
    ("simclr", ["--subsets.external", "0"], ["subsets.external: 0", "greater than or equal to 2"]),
    ("simclr", ["--subsets.file", "absent.npz"], ["subsets.file: absent.npz", "no such file"]),
    ("simclr", ["--subsets.file", "tiny.yaml"],
     ["subsets.file: tiny.yaml", "not a whole file of subsets"]),
    ("simclr", ["--subsets.file", ""], ["subsets.file: ''", "the name of no file"]),
    ("simclr", ["--data.name", "cifar10"], ["data", "size is 16", "cifar10"]),
    ("simclr", ["--data.size", "null"], ["data: size is missing", "fake"]),
    ("simclr", ["--data.size", "1000000000"],
     ["data.size: 1000000000", "less than or equal to 1024"]),
    ("simclr", ["--data.root", ""], ["data.root: ''", "the name of no file"]),
    ("simclr", ["--data.name", "image_folder", "--data.root", "absent"],
     ["image_folder: absent/train is no folder"]),
    ("simclr", ["--method.temperature", "0"], ["method.temperature", "0", "greater than 0"]),
    ("simclr", ["--method.name", "byol"], ["command line: method.name is byol: run train_byol.py"]),
    ("mae", ["--method.name", "../simclr"],
     ["command line: method.name: '../simclr'", ALL_TRAINING]),
    ("simclr", ["--method.hidden_dim", BIG],
     ["method.hidden_dim", BIG, "less than or equal to 16384"]),
    ("byol", ["--method.projection_dim", BIG],
     ["method.projection_dim", BIG, "less than or equal to 16384"]),
    ("byol", ["--method.momentum", "1.5"], ["method.momentum: 1.5", "less than or equal to 1"]),
    ("mae", ["--method.decoder_heads", "3"], ["method.decoder_heads: 3", "does not divide"]),
    ("mae", ["--method.decoder_depth", BIG],
     ["method.decoder_depth", BIG, "less than or equal to 64"]),
    ("mae", ["--method.decoder_dim", str(4 * 10**9)],
     ["method.decoder_dim: 4000000000", "less than or equal to 4096"]),
    # --- views and encoders
    ("simclr", views(count=3), ["augmentation.views", "3 views", "first, second"]),
    ("simclr", views(count=10**9),
     ["augmentation.views.0.count: 1000000000", "less than or equal to 64"]),
    ("simclr", views(size=0), ["augmentation.views.0.size: 0", "greater than or equal to 1"]),
    ("simclr", views(size=1), ["augmentation.views: size is 1", "at least 4 pixels"]),
    ("simclr", views(size=10**6),
     ["augmentation.views.0.size: 1000000", "less than or equal to 1024"]),
    ("simclr", views(size="16"), ["augmentation.views.0.size: '16'", "without quotes"]),
    ("simclr", views(crop_scal=[0.1, 1]),
     ["augmentation.views.0.crop_scal", "did you mean crop_scale?"]),
    ("simclr", views(crop_scale=[0.9, 0.1]), ["crop_scale is [0.9, 0.1]", "lower bound"]),
    ("simclr", views(crop_scale=0), ["crop_scale: 0", "list"]),
    ("simclr", views(crop_scale=[0, 1]), ["crop_scale.0: 0", "greater than 0"]),
    ("simclr", views(crop_scale=[0.5, 1.5]), ["crop_scale is [0.5, 1.5]", "at most 1"]),
    ("simclr", views(jitter_strength=[0.4, 0.4, 0.4]),
     ["jitter_strength: [0.4, 0.4, 0.4]", "at least 4"]),
    ("simclr", views(jitter_strength=[0.4, 0.4, 0.4, 0.6]),
     ["jitter_strength is [0.4, 0.4, 0.4, 0.6]", "hue is at most 0.5"]),
    ("simclr", views(flip=1.5), ["augmentation.views.0.flip", "1.5", "less than or equal to 1"]),
    ("simclr", views(flip=True), ["augmentation.views.0.flip: True", "number"]),
    ("simclr", views(rotate=[45]), ["augmentation.views.0.rotate.0: 45", "0, 90, 180 or 270"]),
    ("simclr", views(mask_ratio=0.5), ["only a vit_... takes a mask"]),
    ("simclr", ["--augmentation.views", "[]"], ["augmentation.views: []", "at least 1"]),
    ("simclr", ["--encoder.name", "resnet19"], ["encoder.name", "'resnet19'", "'resnet18'"]),
    ("simclr", ["--encoder.width", "4"], ["encoder.width: 4", "greater than or equal to 8"]),
    ("simclr", ["--encoder.width", BIG], ["encoder.width", BIG, "less than or equal to 1024"]),
    ("simclr", ["--encoder.patch", "5"],
     ["encoder: patch is 5, but resnet_small takes no patch, only width"]),
    ("simclr", ["--encoder.name", "convnext_tiny", "--encoder.patch", "4"], [
        "command line: encoder.patch: no such setting; known here: name, stem",
    ]),
    ("simclr", ["--encoder.name", "convnext_tiny", "--encoder.stem", "standard"],
     ["encoder.stem: standard takes images of at least 32 pixels"]),
    ("mae", ["--encoder.patch", "5"],
     ["command line: encoder.patch: 5 does not divide the 16 pixels"]),
    ("mae", ["--encoder.width", "40"], ["encoder.width: 40"]),
    ("mae", ["--encoder.depth", BIG], ["encoder.depth", BIG, "less than or equal to 64"]),
    ("mae", ["--encoder.name", "resnet18"],
     ["command line: --encoder.name resnet18: augmentation.views: mask_ratio is 0.75"]),
    ("mae", ["--encoder.name", "resnet18", "--encoder.depth", "2"],
     ["command line: --encoder.name resnet18 --encoder.depth 2: "
      "encoder: depth is 2, but resnet18 takes no depth, only stem"]),
    # --- measuring
    ("simclr", ["--scores.views", "2"], ["scores.views", "2", "greater than or equal to 3"]),
    ("scores", ["--scores.views", str(10**9)],
     ["scores.views: 1000000000", "less than or equal to 1000"]),
    ("scores", ["--scores.batch_size", str(10**20)],
     ["scores.batch_size", "less than or equal to 1000000"]),
    ("scores", ["--scores.augmentation", "test"], ["scores.augmentation", "'test'", "'training'"]),
    ("scores", ["--scores.augmentation", "null"], ["scores.augmentation: None", "'training'"]),
    ("scores", ["--scores.augmentation", "[{size: 0}]"], ["scores.augmentation.0.size", "0"]),
    ("scores", ["--scores.augmentation", "[{size: 16, noise: 1.0e+300}]"],
     ["scores.augmentation.0.noise: 1e+300", "equal to 10"]),
    ("simclr", ["--scores.augmentation", "[{size: 16, mask_ratio: 0.5}]"],
     ["scores.augmentation: mask_ratio is 0.5"]),
    ("mae", ["--scores.augmentation", "[{size: 17}]"],
     ["encoder.patch: 4 does not divide", "scores.augmentation"]),
    ("dejavu", ["--dejavu.k", "0"], ["dejavu.k: 0", "greater than or equal to 1"]),
    ("dejavu", ["--dejavu.k", "256"], ["dejavu.k: 256", "256 images"]),
    ("dejavu", ["--dejavu.k", "3", "--dejavu.public_images", "4"],
     ["dejavu.public_split", "is of class"]),
    ("dejavu", ["--dejavu.views", str(10**9)],
     ["dejavu.views: 1000000000", "less than or equal to 1000"]),
    ("dejavu", ["--dejavu.memory_gb", "1.0e+300"],
     ["dejavu.memory_gb: 1e+300", "less than or equal to 1000000"]),
    ("dejavu", ["--dejavu.query", "edge"], ["dejavu.query", "'edge'", "'corner'"]),
    ("dejavu", ["--dejavu.query", "boxes"], ["dejavu", "boxes is None"]),
    ("dejavu", ["--dejavu.boxes", "x.csv"], ["dejavu", "boxes is 'x.csv'", "query is training"]),
    ("dejavu", ["--dejavu.query", "boxes", "--dejavu.boxes", "absent.csv", "--dejavu.k", "20"],
     ["dejavu.boxes", "absent.csv"]),
    ("dejavu", ["--dejavu.corner_fraction", "1.5"],
     ["dejavu.corner_fraction: 1.5", "less than or equal to 1"]),
    ("dejavu", ["--dejavu.masked_fraction", "1"], ["dejavu.masked_fraction: 1", "less than 1"]),
    ("dejavu", ["--dejavu.reference_epochs", BIG],
     ["dejavu.reference_epochs", "less than or equal to 1000000"]),
    ("probe", ["--probe.datasets", "imagenet"], ["probe.datasets.0", "'imagenet'", "'cifar10'"]),
    ("probe", ["--probe.epochs", "5"],
     ["command line: --probe.epochs 5: probe: warmup_epochs is 10", "(5)"]),
    ("probe", ["--probe.epochs", BIG], ["probe.epochs", BIG, "less than or equal to 1000000"]),
    ("probe", ["--probe.train_images", "100"], ["probe.train_images", "100", "200"]),
    ("probe", ["--probe.learning_rates", "[]"], ["probe.learning_rates: []", "at least 1"]),
    ("probe", ["--probe.learning_rates", *map(str, range(1, 102))],
     ["probe.learning_rates", "at most 100"]),
    ("probe", ["--probe.weight_decays", "-0.1"],
     ["probe.weight_decays.0: -0.1", "greater than or equal to 0"]),
    ("probe", ["--probe.seeds", "0", "0"], ["probe.seeds", "once"]),
    ("remove", ["--removal.counts", "24"], ["removal.counts: 24", "of 24 ranked samples"]),
    ("remove", ["--removal.counts", "100"], ["removal.counts: 100", "of 24 ranked samples"]),
    ("remove", ["--removal.counts", "-4"], ["removal.counts.0: -4", "greater than or equal to 1"]),
    ("remove", ["--removal.counts", "[]"], ["removal.counts", "nothing to remove"]),
    ("remove", ["--removal.counts", "4", "4"], ["removal.counts", "once"]),
    ("remove", ["--removal.counts", "0.5"], ["removal.counts.0: 0.5", "integer"]),
    ("remove", ["--removal.percentages", "1"], ["removal.percentages: 1.0", "that is 0"]),
    ("remove", ["--removal.percentages", "100"], ["removal.percentages.0: 100", "less than 100"]),
    ("remove", ["--removal.policies", "best"], ["removal.policies.0: 'best'", "'memorized'"]),
    ("remove", ["--removal.policies", "[]"], ["removal.policies: []", "at least 1"]),
    ("remove", ["--removal.draws", str(10**12)], ["removal.draws", "less than or equal to 1000"]),
    ("remove", ["--removal.policies", "typical", "--removal.clusters", "24"],
     ["removal.clusters: 24", "24 ranked samples"]),
    ("remove", ["--removal.duplicate_similarity", "1.5"],
     ["removal.duplicate_similarity: 1.5", "less than or equal to 1"]),
    # --- the run folder and the config
    ("simclr", ["--run", ""], ["run: ''", "the name of no file"]),
    ("simclr", ["--run", "tiny.yaml"], ["run: 'tiny.yaml'", "is a file"]),
    ("simclr", ["--run", "tiny.yaml/run"], ["run: 'tiny.yaml/run'", "is a file"]),
    ("simclr", ["--run", "x" * 300], ["run: 'xxx", "longer than 255 bytes"]),
    ("simclr", ["--run", "a/" * 3000], ["run: 'a/a/", "more than 3500 bytes"]),
    ("simclr", ["--run", "a/" * 1000], ["run: 'a/a/", "more than 200 parts"]),
    ("scores", ["--run", "a/" * 3000], ["run: 'a/a/", "more than 3500 bytes"]),
    ("simclr", ["--data.root", "a/" * 3000], ["data.root: 'a/a/", "more than 3500 bytes"]),
    ("simclr", ["--config", "a/" * 3000], ["a/a/", "cannot be read", "too long"]),
    ("probe", ["--encoder", "a/" * 3000], ["a/a/"]),
    ("simclr", ["--run", "~no_such_user/run"],
     ["run: '~no_such_user/run'", "nobody has this home folder"]),
    ("scores", ["--run", ""], ["command line: run: ''", "the name of no file"]),
    ("scores", ["--run", "absent"], ["absent: no trained run here"]),
    ("dejavu", ["--run", "tiny.yaml"], ["tiny.yaml: no trained run here"]),
    ("probe", ["--run", "x" * 300], ["run: 'xxx", "longer than 255 bytes"]),
    ("remove", ["--run", "~no_such_user/run"],
     ["run: '~no_such_user/run'", "nobody has this home folder"]),
    ("simclr", ["--config", "absent.yaml"], ["absent.yaml: no such file"]),
    ("simclr", ["--config", "."], [".: cannot be read", "directory"]),
    ("scores", ["--config", "/dev/null"], ["/dev/null: cannot be read", "device"]),
]  # fmt: skip

CONFIGS = [  # script, what is changed in the file, and what the line names beside the file
    ("simclr", {"training.epohs": 3}, ["training.epohs", "did you mean epochs?"]),
    ("simclr", {"training.epochs": None}, ["training.epochs", "missing"]),
    ("simclr", {"method": None}, ["method", "missing"]),
    ("simclr", {"run": None}, ["run", "missing"]),
    ("scores", {"run": None}, ["run", "missing"]),
    ("scores", {"run": 5}, ["run: 5", "string"]),
    ("simclr", {"run": "a\0b"}, ["run: 'a\\x00b'", "the name of no file"]),
    ("simclr", {"subset": {}}, ["subset", "did you mean subsets?"]),
    ("simclr", {"subsets": 5}, ["subsets: 5", "dictionary"]),
    ("simclr", {"data": ["fake"]}, ["data: ['fake']", "dictionary"]),
    ("simclr", {"training": 5}, ["training: 5", "dictionary"]),
    ("byol", {"training": []}, ["training: []", "dictionary"]),
    ("mae", {"encoder": ["vit_mini"]}, ["encoder: ['vit_mini']", "a dictionary of settings"]),
    ("scores", {"scores": [10]}, ["scores: [10]", "dictionary"]),
    ("dejavu", {"dejavu": "corner"}, ["dejavu: 'corner'", "dictionary"]),
    ("dejavu", {"dejavu": {"neighbours": 5}}, ["dejavu.neighbours", "no such setting"]),
    ("probe", {"probe": {"datasets": "cifar10"}}, ["probe.datasets: 'cifar10'", "list"]),
    ("remove", {"removal": {"counts": "500"}}, ["removal.counts: '500'", "list"]),
    ("simclr", {"method": {"name": "byol", "momentum": 0.9}},
     ["method.name is byol: run train_byol.py"]),
    ("simclr", {"method.name": "swav"},
     ["method.name: 'swav'", "this one trains 'simclr'", ALL_TRAINING]),
    ("simclr", {"training.warmup_epochs": 5},
     ["training: warmup_epochs is 5, but must be less than epochs (3)"]),
    ("simclr", {"training.checkpoint_epochs": [5]}, ["training: checkpoint_epochs has 5"]),
    ("mae", {"encoder.name": "vit_tiny"},
     ["encoder: depth is 1, but vit_tiny takes no depth, only patch, pooling, positions"]),
    ("simclr", {"method.tau": 1}, ["method.tau", "no such setting"]),
    ("simclr", {"seeds": 0}, ["seeds: 0", "list"]),
    ("simclr", {"seeds": "0"}, ["seeds: '0'", "list"]),
    ("simclr", {"training.learning_rate": "1e-3"},
     ["training.learning_rate", "'1e-3'", "such as 0.001"]),
    ("simclr", {"training.learning_rate": True}, ["training.learning_rate: True", "number"]),
    ("simclr", {"data.size": True}, ["data.size", "True", "integer"]),
    ("simclr", {"data.root": 2024}, ["data.root: 2024", "string"]),
    ("simclr", {"augmentation.views": {"size": 16}}, ["augmentation.views: {'size': 16}", "list"]),
    ("mae", {"augmentation.views": [{"size": 16, "mask_ratio": 1.0}]},
     ["augmentation.views.0.mask_ratio", "1.0", "less than 1"]),
    ("mae", {"augmentation.views": [{"size": 16, "mask_ratio": -0.5}]},
     ["augmentation.views.0.mask_ratio", "-0.5", "or equal to 0"]),
]  # fmt: skip

# What fits no other setting or the method: the line names no file.
UNFIT = [
    ("mae", {"augmentation.views": [{"size": 16}]},
     ["augmentation.views", "MAE needs a mask_ratio above 0"]),
    ("mae", {"augmentation.views": [{"size": 16, "mask_ratio": 0.01}]},
     ["augmentation.views", "hides none of the 16 patches"]),
    ("mae", {"augmentation.views": [{"size": 18, "mask_ratio": 0.5}]},
     ["encoder.patch: 4 does not divide the 18 pixels"]),
    ("mae", {"training.alignment_penalty": 0.1, "augmentation.views": [MASKED]},
     ["training.alignment_penalty: 0.1 needs two large views or more, but 1 of the largest size"]),
    ("simclr", {"training.alignment_penalty": 0.1,
                "augmentation.views": [{"size": 16}, {"size": 8}]},
     ["training.alignment_penalty: 0.1 needs two large views or more, but 1 of the largest size"]),
    ("simclr", {"training.alignment_penalty": 0.1,
                "augmentation.views": [{"size": 16, "count": 3}]},
     ["augmentation.views: 3 views are drawn, but simclr takes (first, second)"]),
    ("mae", {"encoder": {"name": "resnet18"}, "augmentation.views": [{"size": 18}]},
     ["encoder.name: MAE hides patches"]),
    ("mae", {"encoder": {"name": "resnet18"}, "augmentation.views": [MASKED]},
     ["mask_ratio is 0.5, but resnet18 sees whole images"]),
    ("simclr", {"method.one_pass": True, "augmentation.views": [{"size": 16}, {"size": 8}]},
     ["method.one_pass: True needs two views"]),
]  # fmt: skip

FILES = [  # the bytes of a file that is no config, and what the line names
    (b"a: [", ["not YAML"]),
    (b"- 1", ["holds list", "mapping"]),
    (b"", ["mapping"]),
    (b"\x00", ["not YAML"]),
    (b"\x89PNG\r\n\x1a\n\xff\xfe", ["cannot be read", "utf-8"]),
    (b"\xff\xfer\x00u\x00n\x00", ["cannot be read", "utf-8"]),
    (b"run: a\nrun: b", ["'run' stands twice"]),
    (b"run: x\nseeds: *all\n", ["line 2: aliases (*all) are not supported; write the value out"]),
    (b"run: x\nall: &all [0, 1]\nseeds: *all\n", ["line 3: aliases (*all) are not supported"]),
    (b"run: x\nall: &all [*all]\n", ["line 2: aliases (*all) are not supported"]),
    (b"run: 10\n", ["run: 10 is not allowed", "string"]),
    (b"run: a\nseeds: [0x10, 2024-01-01]\n", ["seeds.0: '0x10'", "integer"]),
    (b"a: &a {b: 1}\nrun: {<<: *a}\n",
     ["line 2: merge keys (<<) are not supported; write the keys out"]),
    (b"<<: {run: a}\n", ["line 1: merge keys (<<) are not supported"]),
    (b"5: 1\n", ["not YAML", "key 5 in line 1 is no text"]),
    (b"run: " + b"9" * 5000, ["line 1: an integer of 5000 digits, but 1000 are the most"]),
    (b"run: " + b"[" * 10**5, ["not YAML"]),
    (b"{" + b", ".join(b"k%d: 1" % i for i in range(10**4)) + b", k0: 2}",
     ["key 'k0' stands twice"]),
    (b"{" + b", ".join(b"k%d: 1" % i for i in range(2 * 10**4)) + b"}", ["k0: no such setting"]),
    (b"run: !!bool maybe\n", ["not YAML"]),
    (b"run: !!timestamp soon\n", ["not YAML"]),
    (b"run: !!python/object/apply:os.system [ls]\n", ["not YAML", "constructor"]),
    (b"run: a\n---\nrun: b\n", ["not YAML", "another document"]),
    (b"\trun: a", ["not YAML", "'\\t'"]),
    (b"? [a, b]\n: 1\n", ["not YAML", "unhashable key"]),
    (b"[" * 500, ["not YAML"]),
    ("größe: 1\n".encode(), ["größe: no such setting"]),
]  # fmt: skip


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """The test's folder as the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_for(name, folder, scored_run, changes=()):
    """A config for a script in a folder, of a run to be trained there, or of the scored run."""
    if name in METHODS:
        return write_experiment(folder, METHODS[name].changes | dict(changes))
    return write_experiment(folder, {"run": str(scored_run[1]), "seeds": [0, 1], **dict(changes)})


def files(*folders):
    return {file: file.stat().st_mtime_ns for folder in folders for file in folder.rglob("*")}


def check(name, argv, words, folders, refusal):
    """A script refuses with a line that holds the words, and writes nothing."""
    before = files(*folders)
    line = refusal(SCRIPTS[name].main, argv)
    assert all(word in line for word in words), line
    assert files(*folders) == before


def named(value):
    """The name of a case."""
    if isinstance(value, str):
        return value
    return " ".join(value)[:60] if isinstance(value, list) else str(value)[:60]


@pytest.mark.parametrize("name, options, words", COMMAND_LINES, ids=named)
def test_a_wrong_command_line_is_one_line_and_nothing_is_written(
    name, options, words, in_folder, scored_run, refusal
):
    path = config_for(name, in_folder, scored_run)
    if name == "remove":
        options = ["--removal.candidates_only", "true", "--removal.counts", "4", *options]
    check(name, ["--config", path, *options], words, (in_folder, scored_run[1]), refusal)


@pytest.mark.parametrize("name, changes, words", CONFIGS, ids=named)
def test_a_wrong_config_is_one_line_that_names_the_file(
    name, changes, words, in_folder, scored_run, refusal
):
    path = config_for(name, in_folder, scored_run, changes)
    check(name, ["--config", path], [path, *words], (in_folder, scored_run[1]), refusal)


@pytest.mark.parametrize("name, changes, words", UNFIT, ids=named)
def test_settings_that_do_not_fit_each_other_are_one_line_and_nothing_is_written(
    name, changes, words, in_folder, scored_run, refusal
):
    path = config_for(name, in_folder, scored_run, changes)
    check(name, ["--config", path], words, (in_folder,), refusal)


@pytest.mark.parametrize("content, words", FILES, ids=lambda value: str(value)[:40])
def test_a_file_that_is_no_config_is_one_line(content, words, in_folder, refusal):
    (in_folder / "broken.yaml").write_bytes(content)
    check("simclr", ["--config", "broken.yaml"], ["broken.yaml", *words], (in_folder,), refusal)


def test_a_folder_that_may_not_be_written_to_is_refused(
    in_folder, scored_run, refusal, monkeypatch
):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    path = config_for("simclr", in_folder, scored_run)
    words = ["run: ", "may not be written to"]
    check("simclr", ["--config", path], words, (in_folder,), refusal)


def test_scores_that_are_missing_are_asked_for_before_anything_is_retrained(
    in_folder, scored_run, refusal
):
    shutil.copytree(scored_run[1], in_folder / "run", ignore=shutil.ignore_patterns("scores"))
    removal = {"counts": [4], "candidates_only": True}
    path = write_experiment(in_folder, {"seeds": [0, 1], "removal": removal})
    words = ["no scores here; run memorization_scores.py"]
    check("remove", ["--config", path, "--retrain"], words, (in_folder,), refusal)


PROCESSES = [
    ("mae", ["--training.epochs", BIG], ["training.epochs", BIG, "less than or equal to 1000000"]),
    ("scores", ["--checkpoint", "epoch_9999"], ["--checkpoint: 'epoch_9999'", "has epoch_0002"]),
    ("remove", ["--removal.counts", "0"], ["removal.counts.0: 0", "greater than or equal to 1"]),
]


@pytest.mark.parametrize("name, options, words", PROCESSES, ids=named)
def test_a_process_ends_with_one_line_and_exit_code_2(name, options, words, in_folder, scored_run):
    path = config_for(name, in_folder, scored_run)
    before = files(in_folder, scored_run[1])
    ended = run_script(SCRIPTS[name].__file__, "--config", path, *options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1, ended.stderr
    assert all(word in ended.stderr for word in words), ended.stderr
    assert files(in_folder, scored_run[1]) == before
