"""What was trained: the part of a config that training reads."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, Field

from memorization.data.catalogue import IN_FILES, DataSettings
from memorization.data.recipes import AugmentationSettings
from memorization.data.subsets import SubsetSettings
from memorization.errors import WrongUse
from memorization.fields import LEAST_PIXELS, MOST_EPOCHS, NOT_COMPARED, Rate
from memorization.imports.settings import ImportSettings
from memorization.machine.files import exists
from memorization.machine.strict_yaml import read_yaml
from memorization.optimizers import OptimizerSettings
from memorization.validation import validate
from models.encoders import EncoderSettings
from models.settings import Settings


class PrivacySettings(Settings):
    """DP-SGD (Abadi et al. 2016, arXiv 1607.00133) by the package Opacus.

    The guarantee is for one encoder: one image more or less in its training set changes the chance
    of any weights by a factor of at most e^epsilon, up to a chance of delta. It does not cover

    - the two encoders of a pair together. By the rule of the pair they have the same noise, and a
      shared image is in the same batches, so their difference may show what the noise hides. The
      guarantee of one encoder does not depend on the noise of the other.
    - someone who knows the seed, for batches and noise are functions of it.
    - what is measured of the images beside the weights: losses, kNN accuracies and scores.
    """

    noise_multiplier: float = Field(
        ge=0.01,
        le=1000,
        description="training with differential privacy, of mae alone, with batches of batch_size "
        "images on average: standard deviation of the noise, in units of clip",
    )
    clip: float = Field(gt=0, description="bound on the norm of the gradient of one image")
    delta: float = Field(
        gt=0, lt=1, description="chance that the bound of epsilon fails; below 1 / training images"
    )


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
        description="the rate is learning_rate x batch_size / base_batch_size; null leaves it",
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay; biases and norms have none")
    warmup_epochs: int = Field(0, ge=0, description="epochs of linear warm-up, before the cosine")
    clip_gradient: float | None = Field(
        None, gt=0, description="bound on the norm of the whole gradient; null for none"
    )
    alignment_penalty: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="weight of a penalty for placing views of an image close together, against "
        "memorization; the loss has the rest of the weight",
    )
    privacy: PrivacySettings | None = Field(
        None,
        description="training with differential privacy; null for none",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto is bf16 autocast on GPUs made for it (from Ampere on), else fp32; "
        "fp32 is never TF32",
    )
    compile: bool = Field(
        False,
        description="compile the method with torch.compile, which takes a C++ compiler or a GPU, "
        "and minutes at the start",
    )
    data_device: Literal["auto", "cuda", "cpu"] = Field(
        "auto",
        json_schema_extra=NOT_COMPARED,
        description="where images are kept: cpu is memory or disk, and auto the GPU if a fifth of "
        "its memory holds them",
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
    tensorboard: bool = Field(
        False,
        json_schema_extra=NOT_COMPARED,
        description="write the numbers of log.jsonl as event files, too; needs the package "
        "tensorboard",
    )
    checkpoint_epochs: list[Annotated[int, Field(ge=1)]] = Field(
        [],
        json_schema_extra=NOT_COMPARED,
        description="epochs after which encoder_epoch_NNNN.pt is kept",
    )

    @pydantic.model_validator(mode="after")
    def _check_epochs(self):
        if self.warmup_epochs >= self.epochs:
            most = f"but must be less than epochs ({self.epochs})"
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, {most}")
        for epoch in self.checkpoint_epochs:
            if epoch > self.epochs:
                end = f"but training ends after {self.epochs} epochs"
                raise ValueError(f"checkpoint_epochs has {epoch}, {end}")
        return self

    @pydantic.model_validator(mode="after")
    def _check_privacy(self):
        if self.privacy is None:
            return self
        if self.clip_gradient is not None:
            own = "beside privacy, which clips the gradient of every image; set it to null"
            raise ValueError(f"clip_gradient is {self.clip_gradient}, but not allowed {own}")
        if self.compile:
            raise ValueError("compile is True, but not allowed beside privacy; set it to false")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _leave_out_unused_settings(self, dump):
        """Records without a penalty, privacy or TensorBoard keep the form of earlier versions."""
        values = dump(self)
        for key in ("alignment_penalty", "privacy", "tensorboard"):
            if not getattr(self, key):
                values.pop(key, None)
        return values


class _Trained(Settings):
    """What was trained: data, subsets, views, encoder, and where its weights are from: a method and
    its training, or the import of encoders that others trained.

    method: the settings of its schema while it is trained; a plain dict once it is read back.
    """

    data: DataSettings
    subsets: SubsetSettings
    augmentation: AugmentationSettings
    encoder: EncoderSettings
    method: Any = None
    training: TrainingSettings | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _shuffle_folders(cls, values):
        """Take images in files shuffled unless there is an order.

        In file order they come class by class, and the subsets would be of other classes.
        """
        if type(values) is not dict:
            return values
        data, subsets = values.get("data"), values.get("subsets")
        if type(data) is not dict or type(subsets) is not dict:
            return values
        if data.get("name") in IN_FILES and "order" not in subsets:
            return values | {"subsets": subsets | {"order": "shuffled"}}
        return values

    @pydantic.model_validator(mode="after")
    def _check_origin(self):
        if self.import_settings is None:
            if self.training is None:
                raise ValueError("training: is missing")
            return self
        for section in OF_TRAINING:
            if getattr(self, section) is not None:
                others = "encoders that others trained have no such section beside import"
                raise ValueError(f"{section}: is not allowed: {others}")
        size, own = self.import_settings.size, self.size
        if size != own:
            views = f"the largest views of augmentation.views have {own} pixels"
            raise ValueError(f"import.size: {size}, but {views}")
        return self

    @pydantic.model_validator(mode="after")
    def _check_views(self):
        check_views(self.augmentation.views, "augmentation.views", self.encoder)
        return self

    @pydantic.model_serializer(mode="wrap")
    def _leave_out_other_origin(self, dump):
        others = ("import",) if self.import_settings is None else OF_TRAINING
        return {key: value for key, value in dump(self).items() if key not in others}

    @property
    def import_settings(self):
        """The ImportSettings of encoders that others trained; None if they were trained here."""
        return getattr(self, "import")

    @property
    def epochs(self):
        """Epochs of the whole training; None if others trained the encoders."""
        return None if self.training is None else self.training.epochs

    @property
    def size(self):
        """Height and width of the encoder's input, pixels."""
        return self.augmentation.size

    def trained_part(self):
        """The settings that say what was trained, a dict of plain types: encoder.pt records it.

        Settings that may differ between training and measuring are not in it.
        """
        sections = self.model_dump(include=set(TRAINED))
        return {section: _comparable_settings(getattr(self, section)) for section in sections}


# Sections of encoders that were trained here, which others' do not have.
OF_TRAINING = ("method", "training")


# The statement `class` cannot declare a field whose name is a keyword.
Trained = pydantic.create_model(
    "Trained",
    __base__=_Trained,
    __doc__=_Trained.__doc__,
    **{"import": (ImportSettings | None, None)},
)
# The sections of a config that say what was trained; the rest says how it is measured.
TRAINED = tuple(Trained.model_fields)


def check_views(recipes, key, encoder):
    """Raise ValueError if an encoder cannot take the views of recipes.

    key: of the recipes, such as "augmentation.views"; encoder: EncoderSettings.
    """
    for recipe in recipes:
        if recipe.size < LEAST_PIXELS:
            least = f"a view has at least {LEAST_PIXELS} pixels a side"
            raise ValueError(f"{key}: size is {recipe.size}, but {least}")
        if encoder.sees_patches and recipe.size % encoder.patch_size:
            view = f"the {recipe.size} pixels of a view in {key}"
            raise ValueError(f"encoder.patch: {encoder.patch_size} does not divide {view}")
        if recipe.mask_ratio and not encoder.sees_patches:
            whole = f"{encoder.name} sees whole images; only a vit_... takes a mask"
            raise ValueError(f"{key}: mask_ratio is {recipe.mask_ratio}, but {whole}")


def read_trained(run):
    """What was Trained in a run folder, with its method as a plain dict.

    Raises WrongUse if there is none.
    """
    path, values = read_run_file(run)
    return validate(Trained, {key: values[key] for key in TRAINED if key in values}, path)


def read_run_file(run, is_import=False):
    """The path of config.yaml in a run folder, and the mapping in it.

    is_import: whether others trained its encoders, for the message. Raises WrongUse if there is no
    such file.
    """
    path = Path(run).expanduser() / "config.yaml"
    if not exists(path):
        if is_import:
            missing, first = "no imported encoders here", "run import_encoders.py first"
        else:
            missing, first = "no trained run here", "train it first"
        raise WrongUse(f"{run}: {missing} ({path} is missing); {first}, with the same config")
    return path, read_yaml(path)


def with_defaults(trained, path):
    """The trained part of a checkpoint, with settings that its version lacked at their defaults.

    path: of the checkpoint, for messages. Raises WrongUse if it is no such part.
    """
    return validate(Trained, trained, path).trained_part()


def _comparable_settings(section):
    """A section as plain types, without the settings that may differ in measuring."""
    if not isinstance(section, BaseModel):
        return section
    return section.model_dump(exclude=names_not_compared(section))


def names_not_compared(section):
    """The names of a section's settings that may differ between training and measuring."""
    fields = type(section).model_fields.items()
    return {name for name, field in fields if field.json_schema_extra == NOT_COMPARED}
