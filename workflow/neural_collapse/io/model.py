"""The base of every part of the config and of a recipe: strict, frozen, documented by field."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)


def each_once(values: tuple) -> tuple:
    """A validator of a list none of whose items may come twice."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value!r} is given twice")
    return values


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

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Keys that came after results existed. At its default such a key is not written, so that
    recipes and what is compared with them stay as they were, and nothing is computed again."""

    def unread(self) -> Collection[str]:
        """Keys that nothing reads, as the other keys are chosen: they have their defaults, so that
        changing them computes nothing again."""
        return ()

    @model_validator(mode="after")
    def _unread_at_default(self) -> Self:
        fields = type(self).model_fields
        self.__dict__.update({key: fields[key].default for key in self.unread()})  # it is frozen
        return self

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        usual = {key for key in self.LATER if getattr(self, key) == fields[key].default}
        return {key: value for key, value in write(self).items() if key not in usual}
