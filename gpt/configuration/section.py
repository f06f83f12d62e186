"""The base of all configuration sections."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

Count = Annotated[int, Field(ge=1, le=2**40)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _without_nul(place: str) -> str:
    if "\0" in place:
        raise ValueError("no file or folder has a NUL character in its name")
    return place


Place = Annotated[str, AfterValidator(_without_nul)]  # a file or folder


class Section(BaseModel):
    """The base of all sections: unknown keys, NaN and infinity are errors; values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False,
                              validate_default=True, protected_namespaces=())

    @classmethod
    def implied(cls, values: dict[str, Any]) -> dict[str, str]:
        """Fields that others of these raw values set: {dotted path: what sets it}."""
        return {}

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_not_booleans(cls, value: Any, info: Any) -> Any:
        """Pydantic would read `true` as 1, and 1 as true."""
        accepted = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and not _accepts_bool(accepted):
            raise ValueError("true and false are no value for this field")
        return value


def _accepts_bool(annotation: Any) -> bool:
    arguments = getattr(annotation, "__args__", ())
    return annotation is bool or any(a is True or _accepts_bool(a) for a in arguments)


def fields(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration's values by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= (fields(value, f"{prefix}{name}.") if isinstance(value, dict)
                  else {f"{prefix}{name}": value})
    return found
