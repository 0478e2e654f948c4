"""Every setting, its type, bounds and meaning; and how a YAML file and a command line become a
Config.
"""

import argparse
import copy
import difflib
import inspect
import os
import re
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from memorization.errors import WrongUse, shorten
from memorization.machine.files import exists, read_text, write_atomically
from memorization.machine.strict_yaml import MOST_YAML, dump_yaml, parse_yaml

# The part of a config that says what was trained; the rest says how it is measured.
TRAINED = ("data", "subsets", "augmentation", "encoder", "method", "training")
NOT_COMPARED = {"compared": False}  # settings that may differ between training and measuring

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=10**4)]
Interval = Annotated[list[Positive], Field(min_length=2, max_length=2)]
# Upper bounds are far beyond use: they refuse what would fill the memory, never end, or crash
# torch.
MOST_EPOCHS = 10**6
MOST_VIEWS = 1000
LEAST_PIXELS, MOST_PIXELS = 4, 1024  # height and width
MOST_PATH = 3500  # bytes of a path; systems take 4,096, with the names of our files in it
MOST_FOLDERS = 200  # in each other; Python makes each from within the making of the next


class Settings(BaseModel):
    """A section: unknown keys, wrong types and infinities are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def each_once(values):
    """The values of a list in which none may stand twice. Raises ValueError where one does."""
    if len(set(values)) < len(values):
        raise ValueError(f"{shortened(values)} is not allowed: each value may stand once")
    return values


def possible_path(text):
    """A path as it was given. Raises ValueError where no file can have that name."""
    if text is None:
        return text
    if not text or "\0" in text:
        raise ValueError(f"{shortened(text)} is not allowed: it is the name of no file")
    if any(len(os.fsencode(part)) > 255 for part in Path(text).parts):
        raise ValueError(f"{shortened(text)} is not allowed: a name in it is longer than 255 bytes")
    try:
        expanded = Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{shortened(text)} is not allowed: nobody has this home folder") from None
    if len(os.fsencode(expanded)) > MOST_PATH:
        raise ValueError(f"{shortened(text)} is not allowed: it has more than {MOST_PATH} bytes")
    if len(expanded.parts) > MOST_FOLDERS:
        raise ValueError(f"{shortened(text)} is not allowed: it has more than {MOST_FOLDERS} parts")
    return text


class DataSettings(Settings):
    name: Literal[
        "fashion_mnist", "cifar10", "cifar100", "svhn", "stl10", "image_folder", "fake"
    ] = Field(description="the dataset")
    root: str = Field("data", description="folder of the dataset", json_schema_extra=NOT_COMPARED)
    prepared: str = Field(
        "data/prepared",
        description="folder for the decoded maps of image_folder",
        json_schema_extra=NOT_COMPARED,
    )
    size: int | None = Field(
        None,
        ge=LEAST_PIXELS,
        le=MOST_PIXELS,
        description="image_folder and fake: height and width of the prepared images",
    )
    skip_broken: bool = Field(
        False,
        json_schema_extra=NOT_COMPARED,
        description="image_folder: leave images out that cannot be decoded, and take others instead",
    )
    verify: bool = Field(
        True,
        json_schema_extra=NOT_COMPARED,
        description="published datasets: refuse a file whose checksum is not the published one",
    )

    @pydantic.field_validator("root", "prepared")
    @classmethod
    def _possible_paths(cls, path):
        return possible_path(path)

    @pydantic.model_validator(mode="after")
    def _size_where_needed(self):
        needs_size = self.name in ("image_folder", "fake")
        if needs_size and self.size is None:
            raise ValueError(f"size is missing: {self.name} needs one, such as 224")
        if not needs_size and self.size is not None:
            raise ValueError(
                f"size is {self.size}, but the images of {self.name} have a size of their own; leave it out"
            )
        return self


class SubsetSettings(Settings):
    shared: int = Field(
        ge=0, description="size of S_S, in both encoders' training sets; 0 gives disjoint halves"
    )
    candidate: int = Field(ge=2, description="size of S_C, in f's training set only")
    independent: int = Field(
        ge=2, description="size of S_I, in g's training set only; equal to candidate"
    )
    external: int = Field(
        ge=2, description="size of S_E, from the test set, in neither training set"
    )
    order: Literal["file", "shuffled"] = Field(
        "file",
        description="take the images in file order, as the papers do, or shuffled; image_folder is shuffled if nothing is given",
    )
    seed: Seed = Field(0, description="order: shuffled: which shuffle")
    file: str | None = Field(
        None,
        json_schema_extra=NOT_COMPARED,
        description="a file of remove_samples.py, in place of the counts",
    )

    @pydantic.field_validator("file")
    @classmethod
    def _possible_path(cls, path):
        return possible_path(path)

    @pydantic.model_validator(mode="after")
    def _candidates_are_replaced(self):
        if self.candidate != self.independent:
            raise ValueError(
                f"independent is {self.independent}, but must equal candidate ({self.candidate}): candidates are replaced, not left out"
            )
        return self


class ViewRecipe(Settings):
    """How one kind of view is drawn. The operations are applied in the order of these settings."""

    count: int = Field(1, ge=1, le=64, description="views drawn by this recipe")
    size: int = Field(ge=1, le=MOST_PIXELS, description="height and width of the view")
    crop_scale: Interval | None = Field(
        None,
        description="random resized crop: bounds of its share of the area; null takes the whole image",
    )
    crop_ratio: Interval = Field(
        [3 / 4, 4 / 3], description="random resized crop: bounds of width / height"
    )
    flip: Share = Field(0.0, description="probability of a horizontal flip")
    rotate: list[Literal[0, 90, 180, 270]] = Field(
        [0], min_length=1, description="angles, counter-clockwise, drawn with equal chance"
    )
    jitter: Share = Field(0.0, description="probability of colour jitter")
    jitter_strength: Annotated[
        list[Annotated[float, Field(ge=0, le=10)]], Field(min_length=4, max_length=4)
    ] = Field([0.4, 0.4, 0.4, 0.1], description="brightness, contrast, saturation, hue")
    grayscale: Share = Field(0.0, description="probability of turning gray")
    blur: Share = Field(
        0.0, description="probability of a Gaussian blur, its kernel a tenth of the view"
    )
    blur_sigma: Interval = Field(
        [0.1, 2.0], description="bounds of the blur's standard deviation, pixels"
    )
    solarize: Share = Field(
        0.0, description="probability of inverting the pixels at or above solarize_threshold"
    )
    solarize_threshold: Share = Field(0.5, description="see solarize; pixels are in [0, 1]")
    noise: float = Field(
        0.0, ge=0, le=10, description="standard deviation of Gaussian noise on pixels in [0, 1]"
    )
    mask_ratio: float = Field(
        0.0, ge=0, lt=1, description="share of the patches that a vision transformer does not see"
    )

    @pydantic.model_validator(mode="after")
    def _bounds_in_order(self):
        for key in ("crop_scale", "crop_ratio", "blur_sigma"):
            bounds = getattr(self, key)
            if bounds and bounds[0] > bounds[1]:
                raise ValueError(f"{key} is {bounds}, but its lower bound comes first")
        if self.crop_scale and self.crop_scale[1] > 1:
            raise ValueError(
                f"crop_scale is {self.crop_scale}, but a crop covers at most 1 of the area"
            )
        if self.jitter_strength[3] > 0.5:
            raise ValueError(f"jitter_strength is {self.jitter_strength}, but hue is at most 0.5")
        return self


Recipes = Annotated[list[ViewRecipe], Field(min_length=1)]


class AugmentationSettings(Settings):
    views: Recipes = Field(description="the recipes of the views, a list of mappings")

    @property
    def size(self):
        """Height and width of the full-size views, the encoder's input."""
        return max(recipe.size for recipe in self.views)


def settings_of_encoder(name):
    """The settings, beside its name, that an encoder takes."""
    takes = {"patch", "positions", "pooling"} if name.startswith("vit_") else {"stem"}
    return {"resnet_small": {"width"}, "vit_mini": {"width", "depth", *takes}}.get(name, takes)


class EncoderSettings(Settings):
    name: Literal[
        "resnet_small",
        "resnet18",
        "resnet34",
        "resnet50",
        "vit_mini",
        "vit_tiny",
        "vit_small",
        "vit_base",
    ] = Field(description="the encoder")
    stem: Literal["small", "standard"] = Field(
        "small", description="ResNet-18, -34, -50: 3x3 without max-pool, or 7x7 with it (ImageNet)"
    )
    # Convolutions with fewer channels than 8 write beyond their memory in oneDNN, torch's library
    # for CPUs, where there is no AVX-512.
    width: int = Field(
        32,
        ge=8,
        le=1024,
        description="resnet_small: channels of its first stage; vit_mini: of its tokens, a multiple of 32",
    )
    depth: int = Field(4, ge=1, le=64, description="vit_mini: its blocks")
    patch: int = Field(
        4,
        ge=1,
        description="vit_...: height and width of a patch, a divisor of the size of every view",
    )
    positions: Literal["sincos", "learned"] = Field(
        "sincos", description="vit_...: fixed sines and cosines, or learned (and decayed)"
    )
    pooling: Literal["mean", "class"] = Field(
        "mean", description="vit_...: the mean of the visible patches' tokens, or the class token"
    )

    @pydantic.model_validator(mode="after")
    def _takes_its_settings(self):
        takes = settings_of_encoder(self.name)
        for name, field in type(self).model_fields.items():
            if name not in {"name", *takes} and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but {self.name} takes no {name}, only {', '.join(sorted(takes))}"
                )
        return self

    @property
    def sees_patches(self):
        """Whether patches can be hidden from it."""
        return self.name.startswith("vit_")


class OptimizerSettings(Settings):
    """What an optimizer needs beside its kind, learning rate and weight decay."""

    momentum: float = Field(0.9, ge=0, lt=1, description="sgd and lars: momentum")
    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ] = Field([0.9, 0.999], description="adamw: decay of the two moments")
    lars_eta: float = Field(0.001, gt=0, description="lars: trust coefficient")
    lars_clip: bool = Field(False, description="lars: never step further than the plain rate would")


class TrainingSettings(OptimizerSettings):
    epochs: int = Field(ge=1, le=MOST_EPOCHS, description="passes over the training set")
    batch_size: int = Field(
        ge=2, description="source images a step; the last partial batch of an epoch is dropped"
    )
    optimizer: Literal["sgd", "adamw", "lars"] = Field(description="the optimizer")
    learning_rate: Rate = Field(description="learning rate for a batch of base_batch_size")
    base_batch_size: int | None = Field(
        256,
        ge=1,
        description="the rate used is learning_rate x batch_size / base_batch_size; null leaves it as it is",
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay; biases and norms have none")
    warmup_epochs: int = Field(0, ge=0, description="epochs of linear warm-up, before the cosine")
    clip_gradient: float | None = Field(
        None, gt=0, description="bound on the norm of the whole gradient; null for none"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto is bf16 autocast on GPUs made for it (from Ampere on), else fp32; fp32 is never TF32",
    )
    compile: bool = Field(
        False,
        description="compile the method with torch.compile, which takes a C++ compiler or a GPU, and minutes at the start",
    )
    data_device: Literal["auto", "cuda", "cpu"] = Field(
        "auto",
        json_schema_extra=NOT_COMPARED,
        description="where images are kept: cpu is memory or disk, and auto the GPU if a fifth of its memory holds them",
    )
    knn_every: int = Field(
        0,
        ge=0,
        json_schema_extra=NOT_COMPARED,
        description="epochs between kNN accuracies, which need labels; 0 for none",
    )
    checkpoint_minutes: float = Field(
        10.0,
        gt=0,
        json_schema_extra=NOT_COMPARED,
        description="minutes between two saves of last.pt",
    )
    pictures_every: int = Field(
        0,
        ge=0,
        json_schema_extra=NOT_COMPARED,
        description="epochs between pictures, of methods that draw some; 0 for none",
    )
    checkpoint_epochs: list[Annotated[int, Field(ge=1)]] = Field(
        [],
        json_schema_extra=NOT_COMPARED,
        description="epochs after which encoder_epoch_NNNN.pt is kept",
    )

    @pydantic.model_validator(mode="after")
    def _within_the_epochs(self):
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, but must be less than epochs ({self.epochs})"
            )
        for epoch in self.checkpoint_epochs:
            if epoch > self.epochs:
                raise ValueError(
                    f"checkpoint_epochs has {epoch}, but training ends after {self.epochs} epochs"
                )
        return self


class ScoreSettings(Settings):
    views: int = Field(
        10, ge=3, le=MOST_VIEWS, description="views of each image, compared pair by pair"
    )
    representation: Literal["pooled", "tokens"] = Field(
        "pooled", description="the encoder's output, or all its positions before pooling"
    )
    augmentation: Literal["training"] | Recipes = Field(
        "training", description="the views: those of training, or a list of other recipes"
    )
    per_subset: int | None = Field(
        None,
        ge=2,
        description="score only so many images of each subset, the first by hash; null for all",
    )
    batch_size: int = Field(
        256,
        ge=1,
        le=10**6,
        description="images worked on together; scores do not depend on it, but for rounding",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16 lets the encoders multiply in bfloat16; how far its scores are from those of fp32 is measured as well",
    )


class ProbeSettings(OptimizerSettings):
    datasets: list[Literal["fashion_mnist", "cifar10", "cifar100", "svhn", "stl10"]] = Field(
        [], description="the probed datasets, looked for in data.root; [] for the one of training"
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        [0, 1, 2], description="each seed trains one probe"
    )
    train_images: int | None = Field(
        None,
        ge=200,
        description="probe with so many training images only, the first by hash; null for all",
    )
    epochs: int = Field(90, ge=1, le=MOST_EPOCHS, description="passes over the training images")
    batch_size: int = Field(
        4096, ge=1, description="images a step; a quarter of the training images where that is less"
    )
    optimizer: Literal["sgd", "adamw", "lars"] = Field("lars", description="the optimizer")
    learning_rates: Annotated[list[Rate], Field(min_length=1, max_length=100)] = Field(
        [1.6, 6.4, 25.6],
        description="learning rates to choose from, for batch_size; less where the batch is less",
    )
    weight_decays: Annotated[
        list[Annotated[float, Field(ge=0)]], Field(min_length=1, max_length=100)
    ] = Field([0.0, 0.001, 0.003, 0.01, 0.03], description="weight decays to choose from")
    warmup_epochs: int = Field(10, ge=0, description="epochs of linear warm-up, before the cosine")
    fine_tune: bool = Field(False, description="train all weights, not the linear layer alone")
    fine_tune_epochs: int = Field(
        30, ge=1, le=MOST_EPOCHS, description="fine_tune: passes over the training images"
    )
    fine_tune_batch_size: int = Field(
        256,
        ge=1,
        description="fine_tune: images a step; a quarter of the training images where that is less",
    )
    fine_tune_learning_rate: Rate = Field(0.001, description="fine_tune: learning rate of AdamW")

    @pydantic.field_validator("datasets", "seeds", "learning_rates", "weight_decays")
    @classmethod
    def _each_once(cls, values):
        return each_once(values)

    @pydantic.model_validator(mode="after")
    def _warmup_within_the_epochs(self):
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, but must be less than epochs ({self.epochs})"
            )
        return self


class RemovalSettings(Settings):
    counts: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="how many samples to remove from f's training set"
    )
    percentages: list[Annotated[float, Field(gt=0, lt=100)]] = Field(
        [], description="the same as shares of the ranked samples, in per cent"
    )
    policies: Annotated[
        list[Literal["memorized", "least", "random", "random_matched", "typical"]],
        Field(min_length=1),
    ] = Field(
        ["memorized", "random"],
        description="most or least memorized first, by chance, by chance with the classes of the most memorized, or closest to the "
        "centres of clusters of g's representations",
    )
    draws: int = Field(2, ge=1, le=1000, description="draws of each policy with chance in it")
    candidates_only: bool = Field(
        False, description="with shared samples, which have no score: rank the candidates alone"
    )
    fixed_steps: bool = Field(
        True,
        description="train a smaller set for more epochs, as many steps as the whole one takes",
    )
    clusters: int | None = Field(
        None, ge=1, description="typical: clusters of k-means; null for the number of classes"
    )
    group_duplicates: bool = Field(
        False, description="remove near duplicates together, by every policy alike"
    )
    duplicates_in: Literal["pixels", "g"] = Field(
        "pixels", description="near duplicates are found in pixels or in g's representations"
    )
    duplicate_similarity: float = Field(
        0.95,
        gt=0,
        le=1,
        description="cosine similarity, the mean taken away, from which two are duplicates",
    )

    @pydantic.field_validator("counts", "percentages", "policies")
    @classmethod
    def _each_once(cls, values):
        return each_once(values)


class DejaVuSettings(Settings):
    query: Literal["training", "corner", "center_masked", "boxes", "whole"] = Field(
        "training",
        description="what is asked with: views of training, a corner, all but the middle, the largest part between bounding boxes, or the "
        "whole image (a control)",
    )
    k: int = Field(100, ge=1, description="neighbours that vote for a label")
    views: int = Field(
        10,
        ge=1,
        le=MOST_VIEWS,
        description="query training: views of an image, whose votes are summed",
    )
    corner: Literal["lower_left", "lower_right", "upper_left", "upper_right"] = Field(
        "lower_left", description="query corner: which"
    )
    corner_fraction: float = Field(
        0.3, gt=0, le=1, description="query corner: its share of each side"
    )
    masked_fraction: float = Field(
        0.5, gt=0, lt=1, description="query center_masked: what is blanked, as a share of each side"
    )
    boxes: str | None = Field(
        None,
        description="query boxes: a CSV file (index,xmin,ymin,xmax,ymax, in original pixels) or a folder of ImageNet's XML files",
    )
    public: Literal["whole", "training"] = Field(
        "whole", description="how the public set is embedded: whole images, or a training view"
    )
    public_split: Literal["test", "train"] = Field(
        "test",
        description="the public set: the labelled test images, or those of the training set that neither encoder saw",
    )
    public_images: int | None = Field(
        None, ge=2, description="take so many public images only, the first by hash; null for all"
    )
    normalize: bool = Field(
        False, description="l2-normalize representations before neighbours are searched"
    )
    reference: Literal["independent", "crops"] = Field(
        "independent",
        description="what f is compared with: g, or a classifier of the queries alone, for people with one encoder",
    )
    reference_epochs: int = Field(
        100,
        ge=1,
        le=MOST_EPOCHS,
        description="reference crops: epochs of the classifier at most; it stops early",
    )
    memory_gb: float = Field(
        0.25, gt=0, le=10**6, description="memory for the search, beside representations"
    )

    @pydantic.field_validator("boxes")
    @classmethod
    def _possible_path(cls, path):
        return possible_path(path)

    @pydantic.model_validator(mode="after")
    def _boxes_where_needed(self):
        if (self.query == "boxes") != (self.boxes is not None):
            raise ValueError(
                f"boxes is {self.boxes!r}, but query is {self.query}; query boxes needs a file or folder, the others take none"
            )
        return self


class RunFolder(Settings):
    """Where a run lies: all that a measuring script must know before it reads what was trained
    there.
    """

    run: str = Field(description="the run folder")

    @pydantic.field_validator("run")
    @classmethod
    def _possible_path(cls, path):
        return possible_path(path)


class Config(RunFolder):
    """One whole experiment. Outside the sections of `TRAINED` it says how the pair is measured."""

    seeds: list[Seed] = Field([0], min_length=1, description="each seed trains one pair")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$", description="auto, cpu, cuda or cuda:N"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; null leaves the choice to torch"
    )
    data: DataSettings
    subsets: SubsetSettings
    augmentation: AugmentationSettings
    encoder: EncoderSettings
    method: Any = None
    training: TrainingSettings
    scores: ScoreSettings = ScoreSettings()
    dejavu: DejaVuSettings = DejaVuSettings()
    probe: ProbeSettings = ProbeSettings()
    removal: RemovalSettings = RemovalSettings()

    _actions: dict = pydantic.PrivateAttr(default_factory=dict)
    _recorded: Any = pydantic.PrivateAttr(default=None)

    @pydantic.field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds):
        return each_once(seeds)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _shuffle_folders(cls, values):
        """In file order the images of a folder come class by class: subsets would be of other
        classes.
        """
        sections = (
            [values.get(name) for name in ("data", "subsets")]
            if isinstance(values, dict)
            else [None]
        )
        if not all(isinstance(section, dict) for section in sections):
            return values
        data, subsets = sections
        if data.get("name") != "image_folder" or "order" in subsets:
            return values
        return {**values, "subsets": {**subsets, "order": "shuffled"}}

    @pydantic.model_validator(mode="after")
    def _views_fit_the_encoder(self):
        given = [("augmentation.views", recipe) for recipe in self.augmentation.views]
        if self.scores.augmentation != "training":
            given += [("scores.augmentation", recipe) for recipe in self.scores.augmentation]
        for key, recipe in given:
            if recipe.size < LEAST_PIXELS:
                raise ValueError(
                    f"{key}: size is {recipe.size}, but a view has at least {LEAST_PIXELS} pixels a side"
                )
            if self.encoder.sees_patches and recipe.size % self.encoder.patch:
                raise ValueError(
                    f"encoder.patch: {self.encoder.patch} does not divide the {recipe.size} pixels of a view in {key}"
                )
            if recipe.mask_ratio and not self.encoder.sees_patches:
                raise ValueError(
                    f"{key}: mask_ratio is {recipe.mask_ratio}, but {self.encoder.name} sees whole images; only a vit_... takes a mask"
                )
        return self

    @property
    def folder(self):
        """The run folder, a Path."""
        return Path(self.run).expanduser()

    @property
    def recorded(self):
        """The Config that is kept in the run folder, with all seeds that were trained there."""
        return self._recorded or self

    @property
    def actions(self):
        """The command line's actions, such as {"checkpoint": "all"}."""
        return self._actions


def read_config(doc, argv=None, method=None, actions=None, flags=None):
    """The Config of a script, from its YAML file and its command line.

    doc: the script's docstring, shown by --help. method: the schema of the method's settings, for a
    script that trains. Without it the script measures: what was trained is then taken from the run
    folder, and a value of it that was given and differs is refused. actions: {name: help} of the
    options beside the settings, strings that land in config.actions; flags: of those without a
    value, true or false there. Raises WrongUse, one line that names file, key, value and what is
    allowed.
    """
    schema = (
        Config
        if method is None
        else pydantic.create_model("Config", __base__=Config, method=(method, ...))
    )
    options = _options(schema)
    parser = _Parser(
        prog="",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="the experiment, a YAML file"
    )
    for name, meaning in (actions or {}).items():
        parser.add_argument(f"--{name}", help=meaning)
    for name, meaning in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    recipe = [f"  {name}: {_meaning(field)}" for name, field in ViewRecipe.model_fields.items()]
    parser.epilog = "\n".join(
        [
            "keys of a recipe in augmentation.views, such as '[{count: 2, size: 32, flip: 0.5}]':",
            *recipe,
        ]
    )
    settings = parser.add_argument_group("settings (each is a key of the YAML file)")
    for key, field in options.items():
        several = "+" if _is_list(field.annotation) else None
        settings.add_argument(
            f"--{key}", nargs=several, metavar=_type_name(field), help=_meaning(field)
        )
    arguments = vars(parser.parse_args(argv))

    source, values = arguments["config"], read_yaml(arguments["config"])
    words = {key: arguments[key] for key in options if arguments[key] is not None}
    given = {key: _parse_value(key, word, options[key]) for key, word in words.items()}
    if method is not None:
        _check_method(values, given, method, source)
    values, left_out = _without_what_cannot_apply(values, given)
    if method is None:
        config = _with_trained_part(values, given, source)
    else:
        config = _validated(schema, values, source, given)
        is_given = "subsets.order" in given or "order" in values.get("subsets", {})
        config = _with_order_of_run(config, is_given)
        if _is_first_process():
            print("".join(f"command line: {line}\n" for line in left_out), end="", flush=True)
    config._actions.update({name: arguments[name] for name in {**(actions or {}), **(flags or {})}})
    return config


def read_yaml(path):
    """The mapping in a YAML file; a key that stands twice is refused."""
    try:
        text = read_text(path, MOST_YAML)
    except FileNotFoundError:
        raise WrongUse(f"{path}: no such file") from None
    except OSError as error:
        raise WrongUse(
            f"{shorten(str(path))}: cannot be read ({error.strerror or error})"
        ) from None
    except ValueError as error:
        raise WrongUse(f"{path}: cannot be read ({error})") from None
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise WrongUse(
            f"{path}: holds {type(content).__name__}, but a config is a mapping of keys to values"
        )
    return content


def trained_part(config):
    """The settings that say what was trained, a dict of plain types; what may differ in measuring
    is left out.
    """
    return {section: _compared(getattr(config, section)) for section in TRAINED}


def with_defaults(trained, source):
    """What `trained_part` gave in an earlier version, with the settings that came since at their
    defaults.

    Raises WrongUse, which names the source, where it is no such thing.
    """
    sections = {section: (Config.model_fields[section].annotation, ...) for section in TRAINED}
    return trained_part(
        _validated(pydantic.create_model("Trained", __base__=Settings, **sections), trained, source)
    )


def first_difference(given, stored, key=""):
    """The first (key, given value, stored value) in which two nested dicts differ, or None."""
    if isinstance(given, dict) and isinstance(stored, dict):
        pairs = [
            (f"{key}.{name}".lstrip("."), given.get(name), stored.get(name))
            for name in {**given, **stored}
        ]
    elif isinstance(given, list) and isinstance(stored, list) and len(given) == len(stored):
        pairs = [(f"{key}.{i}", *values) for i, values in enumerate(zip(given, stored))]
    else:
        return None if type(given) is type(stored) and given == stored else (key, given, stored)
    for pair_key, one, other in pairs:
        difference = first_difference(one, other, pair_key)
        if difference:
            return difference
    return None


def shortened(value):
    """A value as it is shown: of a SHA-256 the first 12 digits, of a long one its beginning and its
    end.
    """
    return (
        f"{value[:12]}..."
        if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
        else shorten(repr(value))
    )


def read_run_config(run):
    """The Config that a run folder was trained with; its method section is a plain dict. Raises
    WrongUse where there is none.
    """
    path = Path(run).expanduser() / "config.yaml"
    if not exists(path):
        raise WrongUse(
            f"{run}: no trained run here ({path} is missing); train it first, with the same config"
        )
    return _validated(Config, read_yaml(path), path)


def save_config(config):
    """Write config.yaml into the run folder."""
    write_atomically(config.folder / "config.yaml", dump_yaml(config.model_dump()))


def _check_method(values, given, method, source):
    """Raise WrongUse if a file or an option names another method than the script trains."""
    (own,) = typing.get_args(method.model_fields["name"].annotation)
    section, place = values.get("method"), source
    name = section.get("name") if isinstance(section, dict) else None
    if "method.name" in given:
        name, place = given["method.name"], "command line"
    if not isinstance(name, str) or name == own:
        return
    scripts = sorted(path.name for path in Path(__file__).parents[1].glob("train_*.py"))
    if f"train_{name}.py" in scripts:
        raise WrongUse(f"{place}: method.name is {name}: run train_{name}.py")
    refused = f"method.name: {shortened(name)} is not allowed: no script trains it"
    there = ", ".join(scripts)
    raise WrongUse(f"{place}: {refused}; this one trains {own!r}, and there are {there}")


def _without_what_cannot_apply(values, given):
    """The values of a file without those that the options make meaningless, and lines that say so.

    Fewer epochs leave out later checkpoints; another encoder leaves out the settings of the file's
    one. A value that does not fit within the file, or that is an option itself, stays and is
    refused later.
    """
    lines = []
    beyond = _checkpoints_beyond(values.get("training"), given)
    if beyond:
        training, fewer = values["training"], given["training.epochs"]
        kept = [epoch for epoch in training["checkpoint_epochs"] if epoch <= fewer]
        values = values | {"training": training | {"checkpoint_epochs": kept}}
        dropped = shorten(", ".join(map(str, beyond)))
        lines.append(f"--training.epochs {fewer}: no checkpoint at {dropped}")
    others = _settings_of_the_other_encoder(values.get("encoder"), given)
    if others:
        encoder = values["encoder"]
        values = values | {"encoder": {key: encoder[key] for key in encoder if key not in others}}
        before = f"{', '.join(others)} of {encoder['name']}"
        lines.append(f"--encoder.name {given['encoder.name']}: without {before}")
    return values, lines


def _checkpoints_beyond(training, given):
    """The checkpoint epochs of a `training:` section that come after the epochs of the options."""
    fewer = given.get("training.epochs")
    if not isinstance(training, dict) or "training.checkpoint_epochs" in given:
        return []
    epochs, kept = training.get("epochs"), training.get("checkpoint_epochs")
    if type(fewer) is not int or type(epochs) is not int or type(kept) is not list:
        return []
    fits = all(type(epoch) is int and epoch <= epochs for epoch in kept)
    return [epoch for epoch in kept if epoch > fewer] if fits else []


def _settings_of_the_other_encoder(encoder, given):
    """The settings of an `encoder:` section that the encoder of the options does not take."""
    names = typing.get_args(EncoderSettings.model_fields["name"].annotation)
    name = given.get("encoder.name")
    if not isinstance(encoder, dict) or name not in names or encoder.get("name") not in names:
        return []
    of_the_other = settings_of_encoder(encoder["name"]) - settings_of_encoder(name)
    return [key for key in encoder if key in of_the_other and f"encoder.{key}" not in given]


def _is_first_process():
    """Whether this process is the first of a job whose processes have not met yet."""
    return os.environ.get("RANK", "0") == "0"


def _with_trained_part(values, given, source):
    """The config with what was trained taken from its run folder.

    Raises WrongUse if the file or the options say something else of what was trained.
    """
    in_file, on_line = ({k: v for k, v in part.items() if k == "run"} for part in (values, given))
    run = read_run_config(_validated(RunFolder, in_file, source, on_line).run)
    said = _with_options(values, given)
    said_trained = {key: said[key] for key in TRAINED if key in said and key != "method"}
    _check_names(said, run.model_copy(update={"run": said["run"]}))
    merged = _merged(run.model_dump(include=set(TRAINED)), values)
    config = _validated(Config, merged, source, given)
    parts = (_restricted(trained_part(part), said_trained) for part in (config, run))
    difference = first_difference(*parts)
    if difference:
        key, value, trained = difference
        raise WrongUse(
            f"{key}: {shortened(value)} was given, but {config.run} was trained with {shortened(trained)}"
        )
    # may differ where the same is trained, but here it would go unread
    if config.subsets.file != run.subsets.file:
        given_file, trained_file = shortened(config.subsets.file), shortened(run.subsets.file)
        raise WrongUse(
            f"subsets.file: {given_file} was given, but {config.run} was trained with {trained_file}"
        )
    for seed in config.seeds:
        if seed not in run.seeds:
            raise WrongUse(
                f"seeds: {seed} was given, but {config.run} was trained with {run.seeds}"
            )
    data = run.data.model_copy(
        update={name: getattr(config.data, name) for name in _not_compared(config.data)}
    )
    of_run = {section: getattr(run, section) for section in TRAINED} | {"data": data}
    # their order changes no number
    of_run["seeds"] = [seed for seed in run.seeds if seed in config.seeds]
    config = config.model_copy(update=of_run)
    config._recorded = run
    return config


def _with_order_of_run(config, is_given):
    """The config with the order of subsets of its run, unless one is given.

    In an earlier version image_folder had another default.
    """
    if is_given:
        return config
    if not exists(config.folder / "config.yaml"):
        if config.data.name == "image_folder" and not config.subsets.file and _is_first_process():
            print(
                "warning: subsets.order is not given: a folder is shuffled, as its files come class by class",
                flush=True,
            )
        return config
    order = read_run_config(config.run).subsets.order
    return config.model_copy(update={"subsets": config.subsets.model_copy(update={"order": order})})


def _check_names(said, run):
    """Raise WrongUse where a name, or a setting of the method, which no schema knows here, differs
    from that of the run.
    """
    for section, trained in (
        ("data", run.data.model_dump()),
        ("encoder", run.encoder.model_dump()),
        ("method", run.method),
    ):
        values = said.get(section, {})
        for key, value in (values if isinstance(values, dict) else {"name": values}).items():
            if (key == "name" or section == "method") and value != trained.get(key):
                was = shortened(trained.get(key))
                raise WrongUse(
                    f"{section}.{key}: {shortened(value)} was given, but {run.run} was trained with {was}"
                )


def _merged(values, changes):
    """Nested dicts with the values of another put over theirs."""
    if isinstance(values, dict) and isinstance(changes, dict):
        return values | {
            name: _merged(values.get(name), change) for name, change in changes.items()
        }
    return changes


def _restricted(values, keys):
    """The part of a nested dict that has the keys of another."""
    if isinstance(values, dict) and isinstance(keys, dict):
        return {name: _restricted(values[name], keys[name]) for name in keys if name in values}
    return values


def _compared(section):
    """A section as plain types, without the settings that may differ between training and
    measuring.
    """
    if not isinstance(section, BaseModel):
        return section
    return section.model_dump(exclude=_not_compared(section))


def _not_compared(section):
    """The names of a section's settings that may differ between training and measuring."""
    return {
        name
        for name, field in type(section).model_fields.items()
        if field.json_schema_extra == NOT_COMPARED
    }


# --- what is wrong, and where it was given --------------------------------------------------------


def _validated(schema, values, source, options=None):
    """Values with options, {dotted key: value}, put over them, checked by the schema.

    Raises WrongUse, which names the first thing that is wrong, and where it was given: the source
    of the values, or the command line.
    """
    try:
        return schema.model_validate(_with_options(values, options or {}))
    except pydantic.ValidationError as error:
        problem = _problems(error)[0]
    key, message = _key_and_message(problem, schema)
    place = _place(schema, values, source, options or {}, problem, key or message.split(":")[0])
    raise WrongUse(f"{place}: {f'{key}: ' if key else ''}{message}")


def _problems(error):
    """What pydantic found, the first to be told first: a misspelt key explains a missing one."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")

    # what is wrong in a list of recipes is told, not that it is no word
    def is_of_recipes(problem):
        return "literal['training']" in problem["loc"] and not isinstance(problem["input"], str)

    return [problem for problem in problems if not is_of_recipes(problem)]


def _place(schema, values, source, options, problem, key):
    """The source of a problem: options of the command line, or `source`. key: the setting or
    section of its message.
    """
    if any(key == option or key.startswith(f"{option}.") for option in options):
        return "command line"
    causes = _options_to_blame(schema, values, options, problem, key.split(".")[0])
    words = []
    for option, value in causes.items():
        word = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        words.append(f"--{option} {shorten(word)}")
    return f"command line: {' '.join(words)}" if words else source


def _options_to_blame(schema, values, options, problem, section):
    """The options that cause a problem of a section; none if the values alone have it."""

    def problems(options):
        try:
            schema.model_validate(_with_options(values, options))
        except pydantic.ValidationError as error:
            return _problems(error)
        return []

    def has(problems):
        found = (problem["loc"], problem["type"], problem["msg"])
        return any((one["loc"], one["type"], one["msg"]) == found for one in problems)

    # A rule is checked only if nothing is missing; an option that another section lacks in the file
    # lets the rule be checked, but is not why it fails.
    lacking = [one["loc"] for one in problems({}) if one["type"] == "missing"]
    needed = {}
    for option, value in options.items():
        path = tuple(option.split("."))
        if path[0] != section and any(path[: len(key)] == key for key in lacking):
            needed[option] = value
    if has(problems(needed)):
        return {}
    causes = {}
    for option, value in options.items():
        left = problems({other: options[other] for other in options if other != option})
        if not has(left) and (not left or option.split(".")[0] == section):
            causes[option] = value
    return causes or {option: value for option, value in options.items() if option not in needed}


def _key_and_message(problem, schema):
    """Of what pydantic found: the dotted key, and its value and what is allowed."""
    # A union adds the name of the alternative to the path of the key; it is no key.
    path = [
        part
        for part in problem["loc"]
        if not (isinstance(part, str) and ("[" in part or part in ("int", "float")))
    ]
    key = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        known = list(_fields_at(schema, path[:-1]))
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        return key, "no such setting; " + (
            f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        )
    if problem["type"] == "missing":
        return key, "is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return key, message
    hint = (
        _hint(problem["input"])
        if problem["type"] in ("int_type", "float_type", "bool_type")
        else ""
    )
    return (
        key,
        f"{shortened(problem['input'])} is not allowed: {message[0].lower()}{message[1:]}{hint}",
    )


def _hint(value):
    """How to write the number, true or false that a text seems to mean, in words; "" if it seems to
    mean none.
    """
    if not isinstance(value, str):
        return ""
    if value.lower() in ("yes", "no", "on", "off", "y", "n"):
        return " (write true or false)"
    if re.fullmatch(r"[-+]?0[0-9]+(\.[0-9]*)?", value):
        return f" (write it without the zeros before it, as {re.sub('0+(?=[0-9])', '', value, count=1)})"
    if re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", value, re.IGNORECASE):
        return " (YAML reads this as text; write it without quotes or an exponent, such as 0.001)"
    if re.fullmatch(r"[-+]?[0-9][0-9a-z_:.+-]*", value, re.IGNORECASE):
        return " (a number has decimal digits alone, such as 10 or 0.001)"
    return ""


def _fields_at(schema, path):
    """The fields of the section that a path of keys leads to."""
    for part in path:
        if isinstance(part, str):
            schema = _section_in(schema.model_fields[part].annotation)
    return schema.model_fields


def _section_in(annotation):
    """The Settings class in an annotation such as `list[ViewRecipe]`, or None."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next(
        (found for part in typing.get_args(annotation) if (found := _section_in(part))), None
    )


# --- the command line -----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong option is one line."""

    def error(self, message):
        if message.startswith("unrecognized arguments: "):
            unknown = message.removeprefix("unrecognized arguments: ").split()[0]
            near = difflib.get_close_matches(unknown, self._option_string_actions, n=1, cutoff=0.5)
            message = f"{unknown}: no such option" + (
                f"; did you mean {near[0]}?" if near else "; see --help"
            )
        raise WrongUse(f"command line: {message}")


def _options(schema, prefix=""):
    """{dotted key: field} of every setting that holds a value."""
    options = {}
    for name, field in schema.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            options |= _options(field.annotation, f"{prefix}{name}.")
        elif field.annotation is not Any:
            options[prefix + name] = field
    return options


def _parse_value(key, given, field):
    """The value of one option: read as YAML reads it, except where the setting is text. given: a
    word, or a list's words.
    """
    if field.annotation is str or (field.annotation == (str | None) and given != "null"):
        return given
    words = given if isinstance(given, list) else [given]
    values = [parse_yaml(word, f"command line: --{key}: {shorten(word)!r}") for word in words]
    # A list may also be given as one word, `[0, 1]`, and so may what stands in its place: null, or
    # a name.
    in_place = (
        (list, type(None))
        if typing.get_origin(field.annotation) is list
        else (list, type(None), str)
    )
    whole = given is not words or (len(values) == 1 and isinstance(values[0], in_place))
    return values[0] if whole else values


def _is_list(annotation):
    return typing.get_origin(annotation) is list or any(
        _is_list(part) for part in typing.get_args(annotation)
    )


def _with_options(values, options):
    """Nested dicts with options, {dotted key: value}, put over their values."""
    values = copy.deepcopy(values)
    for key, value in options.items():
        _put(values, key, value)
    return values


def _put(values, key, value):
    """Set a dotted key in nested dicts."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise WrongUse(
                f"{section}: {shortened(values)} is not allowed: it is a section with keys of its own"
            )
    values[name] = value


def _type_name(field):
    names = str(
        field.annotation.__name__ if inspect.isclass(field.annotation) else field.annotation
    )
    if typing.get_origin(field.annotation) is Literal:
        return "|".join(str(choice) for choice in typing.get_args(field.annotation))
    return "LIST" if _is_list(field.annotation) else names.split("|")[0].strip().upper()


def _meaning(field):
    default = (
        ""
        if field.is_required()
        else f" (default: {'null' if field.default is None else field.default})"
    )
    return f"{field.description or ''}{default}".replace("%", "%%")
