"""What the settings of all methods have in common."""

from pydantic import BaseModel, ConfigDict


class MethodSettings(BaseModel):
    """A config's `method:` section: its fields beside `name` are the arguments of the method.
    Unknown keys and wrong types are refused.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    def arguments(self):
        """The arguments of the method beside its encoder."""
        return self.model_dump(exclude={"name"})
