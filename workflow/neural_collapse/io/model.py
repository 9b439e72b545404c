"""The base of every part of the config and of a recipe: strict, frozen, documented by field."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)


class Strict(BaseModel):
    """Frozen, and a key it does not know is an error, as are nan, inf and true for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        # Python takes true for 1.
        items = value if isinstance(value, (list, tuple)) else [value]
        wanted = cls.model_fields[info.field_name].annotation  # type: ignore[index]
        if wanted is not bool and any(isinstance(item, bool) for item in items):
            raise ValueError("must not be true or false")
        return value


class Model(Strict):
    """A part of the config or of a recipe."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    left_out: ClassVar[frozenset[str]] = frozenset()
    """Keys that are written only where they are not at their default. A key that comes after
    results were made with its default belongs here: their recipes, which decide what runs again,
    stay the same."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        for name in self.left_out & values.keys():
            if getattr(self, name) == type(self).model_fields[name].default:
                del values[name]
        return values
