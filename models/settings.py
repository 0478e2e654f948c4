"""What all settings have in common."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A section of a config: unknown keys, wrong types and infinities are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class MethodSettings(Settings):
    """A config's `method:` section: its fields beside `name` are the arguments of the method."""

    def arguments(self):
        """The arguments of the method beside its encoder."""
        return self.model_dump(exclude={"name"})
