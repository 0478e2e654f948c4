"""A config's `import:` section: the weights that others trained, and the pixels that they take."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from memorization.errors import WrongUse, short_form
from memorization.fields import MOST_PIXELS, PathName
from models.settings import Settings

FROM_MODEL = "from_model"
CHANNELS = (1, 3)  # numbers of channels that images have
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Names = list[Annotated[str, Field(min_length=1)]]


class WeightsSettings(Settings):
    weights: Annotated[list[PathName], Field(min_length=1)] = Field(
        description="the file of the weights, one for each of the seeds: .safetensors, .pth, .pt, "
        ".ckpt or .bin; nothing in it is executed"
    )
    at: str | None = Field(
        None,
        description="the key of the weights in the file, such as state_dict or model.encoder; null "
        "if there is only one place where they can be",
    )
    strip: Names = Field([], description="prefixes to take from the keys of weights, in order")
    unused: Names = Field(
        [], description="prefixes of keys that the encoder does not take; others may not be left"
    )
    sha256: Annotated[list[Sha256], Field(min_length=1)] | None = Field(
        None,
        description="SHA-256 of each file, which must fit; the run's config.yaml always has it",
    )

    @pydantic.field_validator("weights", "sha256", mode="before")
    @classmethod
    def _read_one(cls, value):
        return [value] if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _check_hashes(self):
        if self.sha256 is not None and len(self.sha256) != len(self.weights):
            files = f"weights are {len(self.weights)} files"
            raise ValueError(f"sha256 has {len(self.sha256)} values, but {files}")
        return self


class ImportSettings(Settings):
    candidate: WeightsSettings = Field(description="the encoder f, which saw the candidates")
    independent: WeightsSettings | None = Field(
        description="the encoder g, which did not; null if there is none"
    )
    size: int = Field(
        ge=1, le=MOST_PIXELS, description="height and width of the images that they take, pixels"
    )
    # FROM_MODEL until the encoders are imported.
    mean: list[float] | Literal["from_model"] = Field(
        description="mean of each channel that normalizes pixels in [0, 1], or from_model: as the "
        "architecture's library records it"
    )
    std: list[float] | Literal["from_model"] = Field(
        description="standard deviation of each channel, or from_model"
    )

    @pydantic.field_validator("mean", "std", mode="before")
    @classmethod
    def _check_channels(cls, values, info):
        if values == FROM_MODEL:
            return values
        numbers = values if type(values) is list else [None]
        if len(numbers) not in CHANNELS or not all(type(x) in (int, float) for x in numbers):
            lists = f"a list of {' or '.join(map(str, CHANNELS))} numbers, or {FROM_MODEL}"
            raise ValueError(f"{short_form(values)} is not allowed: {lists}")
        bounds = {"mean": (0, "from 0 to 1"), "std": (1e-6, "above 0 and at most 1")}
        least, allowed = bounds[info.field_name]
        if not all(least <= x <= 1 for x in numbers):
            refused = f"{short_form(values)} is not allowed: {allowed}"
            raise ValueError(f"{refused}, as pixels are")
        return [float(x) for x in numbers]

    @pydantic.model_validator(mode="after")
    def _check_normalization(self):
        if (self.mean == FROM_MODEL) != (self.std == FROM_MODEL):
            raise ValueError(f"mean and std are both lists, or both {FROM_MODEL}")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean is of {len(self.mean)} channels, but std of {len(self.std)}")
        return self

    def check_files(self, seeds):
        """Raise WrongUse unless there is one file of weights for each of the seeds."""
        for role, settings in self.weights.items():
            if len(settings.weights) != len(seeds):
                both = f"{len(settings.weights)} given, but seeds is {seeds}"
                raise WrongUse(f"import.{role}.weights: {both}; there is one file for each seed")

    def check_hashes(self, hashes):
        """Raise WrongUse if two seeds have the same weights, or f and g of one seed. hashes: see
        `with_hashes`.
        """
        for role, settings in self.weights.items():
            for number, sha256 in enumerate(hashes[role]):
                if sha256 in hashes[role][:number]:
                    again = f"{settings.weights[number]} holds the weights of another seed"
                    raise WrongUse(f"import.{role}.weights: {again}")
        of_f, of_g = self.candidate, self.independent
        if of_g is None or (of_f.at, of_f.strip) != (of_g.at, of_g.strip):
            return
        for path, one, other in zip(of_g.weights, hashes["candidate"], hashes["independent"]):
            if one == other:
                raise WrongUse(f"import.independent.weights: {path} is import.candidate's, too")

    def with_hashes(self, hashes):
        """The same settings with SHA-256 of all files. hashes: {role: hexadecimal of each}."""
        changes = {
            role: settings.model_copy(update={"sha256": hashes[role]})
            for role, settings in self.weights.items()
        }
        return self.model_copy(update=changes)

    @property
    def weights(self):
        """{role: WeightsSettings} of the encoders that there are."""
        roles = {"candidate": self.candidate, "independent": self.independent}
        return {role: weights for role, weights in roles.items() if weights is not None}
