"""How views are drawn: the settings of each kind of view."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from memorization.fields import MOST_PIXELS, Interval, Share
from models.settings import Settings


class ViewRecipe(Settings):
    """How one kind of view is drawn. The operations are applied in the order of these settings."""

    count: int = Field(1, ge=1, le=64, description="views drawn by this recipe")
    size: int = Field(ge=1, le=MOST_PIXELS, description="height and width of the view")
    crop_scale: Interval | None = Field(
        None,
        description="random resized crop: bounds of its share of the area; null: the whole image",
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
    def _check_bounds(self):
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
