"""What a line of an architecture's table can be: an option of config.json, and what it is to us.

Each line is read both ways. What an architecture cannot express is found by writing a
configuration and reading it again; so no line says what it refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpt.configuration import BIASES, USUAL_BIASES, ModelConfig
from gpt.interop.options import MISSING, Options

Fields = dict[str, Any]


class Row(Protocol):
    """Options of config.json, both ways."""

    def read(self, options: Options, fields: Fields) -> Fields:
        """Fields of a ModelConfig, once those of the lines before are known."""
        ...

    def write(self, config: ModelConfig) -> Fields:
        """Options with which it would be read so."""
        ...


@dataclass(frozen=True)
class Number:
    """A number that both have. default: where it is absent, if that may be; a function: of the
    fields that are known. may_be_null: null is no number, and not the default."""

    theirs: str
    ours: str
    default: Any = MISSING
    is_count: bool = True
    may_be_null: bool = False

    def read(self, options: Options, fields: Fields) -> Fields:
        """The field."""
        default = self.default(fields) if callable(self.default) else self.default
        if self.may_be_null and self.theirs in options:
            default = None
        read = options.count if self.is_count else options.number
        return {self.ours: read(self.theirs, default)}

    def write(self, config: ModelConfig) -> Fields:
        """The option."""
        return {self.theirs: getattr(config, self.ours)}


def sizes(*pairs: tuple[str, str] | tuple[str, str, Any]) -> tuple[Row, ...]:
    """Lines of numbers: theirs, ours, and a default."""
    return tuple(Number(*pair) for pair in pairs)


def real(theirs: str, ours: str, default: Any = MISSING) -> Row:
    """A number that need not be whole."""
    return Number(theirs, ours, default, is_count=False)


def cap(theirs: str, ours: str, default: float | None) -> Row:
    """A number that null switches off."""
    return Number(theirs, ours, default, is_count=False, may_be_null=True)


@dataclass(frozen=True)
class Choice:
    """One of several values, {theirs: ours}; of two that are one to us, the default is written, or
    the first."""

    theirs: str
    ours: str
    values: dict[Any, Any]
    default: Any

    def read(self, options: Options, fields: Fields) -> Fields:
        """The field. Raises UserError for a value that is not among them."""
        return {self.ours: self.values[options.require(self.theirs, *self.values,
                                                       default=self.default)]}

    def write(self, config: ModelConfig) -> Fields:
        """The option, if it has such a value."""
        value = getattr(config, self.ours)
        names = (self.default, *self.values)
        return next(({self.theirs: name} for name in names if self.values[name] == value), {})


def flag(theirs: str, ours: str, default: bool) -> Row:
    """Yes or no, to both."""
    return Choice(theirs, ours, {True: True, False: False}, default)


@dataclass(frozen=True)
class Always:
    """An option that has to have one value, or one that means the same."""

    theirs: str
    value: Any
    also: tuple[Any, ...] = ()

    def read(self, options: Options, fields: Fields) -> Fields:
        """Nothing. Raises UserError for another value."""
        options.require(self.theirs, self.value, *self.also, default=self.value)
        return {}

    def write(self, config: ModelConfig) -> Fields:
        """The option."""
        return {self.theirs: self.value}


@dataclass(frozen=True)
class Unused:
    """Options that change nothing of what is computed here. written: with these values."""

    theirs: tuple[str, ...]
    written: Fields = field(default_factory=dict)

    def read(self, options: Options, fields: Fields) -> Fields:
        """Nothing."""
        for name in (*self.theirs, *self.written):
            options.take(name, None)
        return {}

    def write(self, config: ModelConfig) -> Fields:
        """What is to be written."""
        return self.written


@dataclass(frozen=True)
class Given:
    """Fields of ours that the architecture has always."""

    fields: Fields

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields."""
        return dict(self.fields)

    def write(self, config: ModelConfig) -> Fields:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class Biases:
    """Which biases there are: always, and by options. {option: (biases, default)}"""

    always: tuple[str, ...] = ()
    options: tuple[tuple[str, tuple[str, ...], bool], ...] = ()

    def read(self, options: Options, fields: Fields) -> Fields:
        """The field."""
        found = set(self.always)
        for theirs, ours, default in self.options:
            if options.require(theirs, True, False, default=default):
                found |= set(ours)
        usual = {one for one in USUAL_BIASES if one != "norm" or fields["norm"] == "layernorm"}
        if not found or found == usual:
            return {"bias": bool(found)}
        return {"bias": [one for one in BIASES if one in found]}

    def write(self, config: ModelConfig) -> Fields:
        """The options: true where all that they stand for is there."""
        return {theirs: set(ours) <= config.biases for theirs, ours, _ in self.options}


@dataclass(frozen=True)
class Heads:
    """How many heads read and are read, and how wide they are.

    n_kv_head, head_dim: where config.json does not say it; None: as many as n_head, and its share
    of n_embd. explicit: whether the architecture has an option head_dim.
    """

    n_kv_head: int | None = None
    head_dim: int | None = None
    explicit: bool = True

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields."""
        n_head = options.count("num_attention_heads")
        absent = n_head if "num_key_value_heads" in options else self.n_kv_head or n_head
        width = self.head_dim or max(1, fields["n_embd"] // n_head)
        return {"n_head": n_head, "n_kv_head": options.count("num_key_value_heads", absent),
                "head_dim": options.count("head_dim", width) if self.explicit else width}

    def write(self, config: ModelConfig) -> Fields:
        """The options."""
        width = {"head_dim": config.head_dim} if self.explicit else {}
        return {"num_attention_heads": config.n_head, "num_key_value_heads": config.n_kv_head,
                **width}


@dataclass(frozen=True)
class Scaled:
    """A number of theirs that is another one to us, by a function each way."""

    theirs: str
    ours: str
    default: Any
    to_ours: Callable[[float, Fields], float | None]
    to_theirs: Callable[[ModelConfig], Any]

    def read(self, options: Options, fields: Fields) -> Fields:
        """The field."""
        number = options.number(self.theirs, self.default)
        return {self.ours: None if number is None else self.to_ours(number, fields)}

    def write(self, config: ModelConfig) -> Fields:
        """The option."""
        return {self.theirs: self.to_theirs(config)}
