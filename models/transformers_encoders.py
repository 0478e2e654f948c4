"""Encoders of the package transformers (github.com/huggingface/transformers), from a folder that it
saved.
"""

import inspect
import json
from pathlib import Path
from typing import Literal

import pydantic
import torch
from pydantic import Field, JsonValue

from models.foreign import INSTALL, ForeignSettings, Reading, read_file, refuse_images

# {model_type: number of tokens in front of those of the patches, the class token first}; for the
# types with registers they are added.
TYPES = {
    "vit": 1, "vit_mae": 1, "vit_msn": 1, "deit": 2, "beit": 1, "data2vec-vision": 1, "dinov2": 1,
    "dinov2_with_registers": 1, "dinov3_vit": 1, "clip_vision_model": 1, "ijepa": 0,
    "siglip_vision_model": 0, "swin": 0, "swinv2": 0, "convnext": 0, "convnextv2": 0, "resnet": 0,
    "regnet": 0,
}  # fmt: skip
# The encoder of MAE, whose own class hides patches by chance in each forward pass.
SAME_NETWORK = {"vit_mae": "vit"}
NO_POOLING = ("vit_mae", "vit_msn", "data2vec-vision", "ijepa")
# These interpolate the positions of config.json's image size themselves.
INTERPOLATING = ("dinov2", "dinov2_with_registers")
CHANCE = ("pos_embed_jitter", "pos_embed_rescale", "pos_embed_shift")  # beside what has "drop"
MOST_KEYS = 200
OTHERS = "take class, mean or tokens"


class TransformersSettings(ForeignSettings):
    name: Literal["transformers"] = Field(description="the encoder")
    folder: str | None = Field(
        None,
        exclude=True,  # the architecture is recorded instead
        description="a folder that the library saved; of it, config.json alone is read",
    )
    architecture: dict[str, JsonValue] | None = Field(
        None, description="the content of config.json, taken from the folder and recorded"
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_folder(cls, values):
        if type(values) is not dict or type(values.get("folder")) is not str:
            return values
        architecture = _read_architecture(values["folder"], values.get("architecture"))
        return values | {"architecture": architecture}

    @pydantic.model_validator(mode="after")
    def _check_type(self):
        if self.architecture is None:
            raise ValueError("folder is missing: a folder with a config.json")
        kind = self.architecture.get("model_type")
        if not isinstance(kind, str) or kind not in TYPES:
            known = f"it is none of {', '.join(TYPES)}"
            raise ValueError(f"model_type of config.json is {str(kind)[:80]!r}, but {known}")
        return self

    @property
    def title(self):
        return f"encoder.folder: {self.architecture['model_type']}"

    def check(self):
        _import_transformers()

    def build(self, channels, size):
        kind = self.architecture["model_type"]
        if self.output == "pooled" and kind in NO_POOLING:
            raise ValueError(f"encoder.output: pooled: {kind} has no pooling; {OTHERS}")
        with refuse_images(self.title, channels, size):
            network = _create(self.architecture, channels, size)
        pooler = getattr(network, "pooler", None)
        if pooler is not None and list(pooler.parameters()):
            if self.output == "pooled":
                why = "has a pooler with weights of its own, which files often lack"
                raise ValueError(f"encoder.output: pooled: {kind} {why}; {OTHERS}")
            network.pooler = None
        before = TYPES[kind] + getattr(network.config, "num_register_tokens", 0)
        return network, Reading(_pool, _tokens, before, TYPES[kind] > 0, _names_in_files)


def _import_transformers():
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        missing = f"the package transformers is missing; {INSTALL}"
        raise ValueError(f"encoder.name: transformers: {missing}") from None
    return transformers


def _read_architecture(folder, recorded):
    """What config.json says of an architecture, or what was recorded of it if it is gone.

    Raises ValueError if there is no such file, or if it differs from what was recorded.
    """
    path = Path(folder).expanduser() / "config.json"
    if recorded is not None and not path.exists():
        return recorded
    try:
        values = json.loads(read_file(path), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"folder is {folder!r}: config.json: {error}") from None
    if type(values) is not dict:
        raise ValueError(f"folder is {folder!r}: config.json holds no mapping")
    # labels of classes, the code of a folder, versions and precision say nothing of the network
    left_out = ("id2label", "label2id", "auto_map", "dtype", "torch_dtype", "transformers_version")
    values = {key: value for key, value in values.items() if key not in left_out}
    if len(values) > MOST_KEYS:
        raise ValueError(f"folder is {folder!r}: config.json has more than {MOST_KEYS} keys")
    if recorded is not None and values != recorded:
        other = "config.json is not of the architecture that was recorded"
        raise ValueError(f"folder is {folder!r}: {other}")
    return values


def _refuse_constant(text):
    raise ValueError(f"{text} is no number")


def _create(architecture, channels, size):
    """The library's network with random weights. Nothing is downloaded, and no code of the folder
    is run: only settings of the type's own class are taken from the architecture.
    """
    transformers = _import_transformers()
    kind = architecture["model_type"]
    kind = SAME_NETWORK.get(kind, kind)
    try:
        settings_class = transformers.CONFIG_MAPPING[kind]
    except KeyError:
        raise ValueError(f"transformers {transformers.__version__} has no such type") from None
    own = _parameters(settings_class) - _parameters(transformers.PretrainedConfig)
    values = {key: value for key, value in architecture.items() if key in own}
    for key, value in values.items():
        if "drop" in key and isinstance(value, float):
            values[key] = 0.0
        if key in CHANCE:
            values[key] = None
    values["num_channels"] = channels
    if "image_size" in own and kind not in INTERPOLATING:
        values["image_size"] = size
    return transformers.AutoModel.from_config(settings_class(**values), trust_remote_code=False)


def _parameters(settings_class):
    return set(inspect.signature(settings_class.__init__).parameters)


def _pool(network, pixels):
    # of convolutional networks (B, D, 1, 1)
    return network(pixel_values=pixels).pooler_output.flatten(1)


def _tokens(network, pixels):
    tokens = network(pixel_values=pixels).last_hidden_state
    return tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens


def _names_in_files(network):
    """{name of a weight in the library's files: its name in the network}. Newer versions of the
    library have renamed weights, but not in files.
    """
    from transformers.core_model_loading import revert_weight_conversion

    names = list(network.state_dict())
    # numbers stand for the weights; what the library computes from several weights is left out
    numbers = {name: torch.tensor([float(i)]) for i, name in enumerate(names)}
    in_files = revert_weight_conversion(network, numbers)
    return {name: names[int(number)] for name, number in in_files.items() if number.numel() == 1}
