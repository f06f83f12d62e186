"""What a line of a GGUF architecture's table can be, beside those of gpt/interop/architectures.

Each is read both ways, as there. What a file says by having a tensor stands among the options under
a name with an underscore before it: model_file.py makes these of the tensors; none is written.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass

from gpt.configuration import BIASES, MAX_DEPTH, ModelConfig
from gpt.errors import UserError
from gpt.interop.architectures.rows import Fields
from gpt.interop.options import Options
from gpt.model.rope import attention_factor

ORIGINAL = "rope.scaling.original_context_length"


@dataclass(frozen=True)
class Heads:
    """How many heads read and are read, how wide they are, and how much of them turns."""

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields."""
        n_head = options.count("attention.head_count")
        width = options.count("attention.key_length", max(1, fields["n_embd"] // n_head))
        options.require("attention.value_length", width, default=width)
        return {"n_head": n_head, "head_dim": width,
                "n_kv_head": options.count("attention.head_count_kv", n_head)}

    def write(self, config: ModelConfig) -> Fields:
        """The options."""
        return {"attention.head_count": config.n_head, "attention.head_count_kv": config.n_kv_head,
                **dict.fromkeys(("attention.key_length", "attention.value_length"),
                                config.head_dim)}


@dataclass(frozen=True)
class PlainHeads:
    """The same where each has its share of the width, and llama.cpp is told no more."""

    grouped: bool = False

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields."""
        n_head = options.count("attention.head_count")
        width, rest = divmod(fields["n_embd"], n_head)
        options.require("attention.key_length", width, default=width)
        options.require("attention.value_length", width, default=width)
        if rest or not width:
            raise UserError(f"{options.where}: embedding_length={fields['n_embd']} is no multiple "
                            f"of attention.head_count={n_head}")
        return {"n_head": n_head, "head_dim": width,
                "n_kv_head": options.count("attention.head_count_kv", n_head)}

    def write(self, config: ModelConfig) -> Fields:
        """The options."""
        return {"attention.head_count": config.n_head,
                "attention.head_count_kv": config.n_kv_head if self.grouped else config.n_head}


@dataclass(frozen=True)
class StoredBiases:
    """Which matrices have a bias, by the tensors: those of `always`, and of `possible` some."""

    always: tuple[str, ...] = ()
    possible: tuple[str, ...] = ()

    def read(self, options: Options, fields: Fields) -> Fields:
        """The field."""
        stored = options.take("_biases", [])
        return {"bias": [one for one in BIASES if (one in stored
                         and one in self.always + self.possible) or one in self.always]}

    def write(self, config: ModelConfig) -> Fields:
        """What tensors say."""
        return {"_biases": sorted(config.biases)}


@dataclass(frozen=True)
class Rope:
    """Base, how much of a head turns, stretching; and the base of layers that slide.

    stored: the kinds of stretching whose factors are read from tensors. partial: whether a part of
    a head can turn. local: whether layers that slide have a base of their own, or are only left
    unstretched; None: neither.
    """

    stored: tuple[str, ...] = ()
    local: str | None = None
    partial: bool = False

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields. Raises UserError for another kind of stretching."""
        base = options.number("rope.freq_base", 10_000.0)
        found: Fields = {"rope_base": base, "rope_dim": options.count(
            "rope.dimension_count", fields["head_dim"])}
        if not self.partial and found["rope_dim"] != fields["head_dim"]:
            raise UserError(f"{options.where}: rope.dimension_count={found['rope_dim']} is not "
                            f"supported for heads of {fields['head_dim']}")
        if (scaling := self._scaling(options, fields)) is not None:
            found["rope_scaling"] = scaling
            if scaling["kind"] == "longrope" and scaling["short_factor"] != scaling["long_factor"]:
                # As of Hugging Face's folders: rope.py there.
                found["block_size"] = min(fields["block_size"], scaling["original_block_size"])
        if self.local is not None and fields.get("window") is not None:
            found["local_rope_base"] = options.number(
                "rope.freq_base_swa", base if self.local == "same" else 10_000.0)
        return found

    def _scaling(self, options: Options, fields: Fields) -> Fields | None:
        stored = options.take("_rope_scaling", None)
        kind = options.require("rope.scaling.type", "none", "linear", "yarn", "longrope",
                               default="none")
        factor, original = options.number("rope.scaling.factor", 1.0), options.count(
            ORIGINAL, fields["block_size"])
        sharper = options.number("rope.scaling.attn_factor", None)
        if stored is not None and stored["kind"] in self.stored:
            more = {} if stored["kind"] != "longrope" or "factor" in stored else {
                "factor": max(1.0, fields["block_size"] / original),
                "original_block_size": original, "attention_factor": sharper}
            return {**stored, **more}
        if kind == "linear":
            return {"kind": "linear", "factor": factor}
        if kind == "yarn":
            return {"kind": "yarn", "factor": factor, "original_block_size": original}
        return None

    def write(self, config: ModelConfig) -> Fields:
        """The options."""
        options: Fields = {"rope.freq_base": config.rope_base,
                           "rope.dimension_count": config.rope_dim}
        if self.local == "own" and config.local_rope_base is not None:
            options["rope.freq_base_swa"] = config.local_rope_base
        scaling = config.rope_scaling
        if scaling is None:
            return options
        if scaling.kind in self.stored:
            options["_rope_scaling"] = scaling.model_dump(include={"kind", *scaling.meant})
        if scaling.kind == "longrope":
            alike = scaling.short_factor == scaling.long_factor
            longest = 0 if alike else scaling.longest
            return options | {ORIGINAL: scaling.original_block_size,
                              "rope.scaling.attn_factor": attention_factor(config),
                              "context_length": max(config.block_size, longest)}
        if scaling.kind == "llama3":
            return options
        options |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
        if scaling.kind == "yarn":
            options[ORIGINAL] = scaling.original_block_size
        return options


@dataclass(frozen=True)
class Sliding:
    """A window in the layers that every llama.cpp has fixed: letters, over and over. Newer ones
    read of other layers, too.

    computed: whether llama.cpp minds it; a file may say it all the same.
    """

    pattern: str
    absent: int | None = None
    computed: bool = True

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields."""
        window = options.number("attention.sliding_window", self.absent)
        if window is not None and not 0 <= window < 2**24:
            raise UserError(f"{options.where}: attention.sliding_window is {window}")
        pattern = self._pattern(options, fields)
        return {"window": int(window), "window_pattern": pattern} if (
            window and "S" in pattern) else {}

    def _pattern(self, options: Options, fields: Fields) -> str:
        """Of one number, it says which layer of so many does not slide; of many, what each does."""
        n_layer = min(fields["n_layer"], MAX_DEPTH)  # more are refused later
        told = options.take("attention.sliding_window_pattern", None)
        if told is None or not self.computed:
            return self.pattern
        if isinstance(told, int) and 0 <= told <= MAX_DEPTH:
            return "S" * (told - 1) + "F" if told else "S"
        if not isinstance(told, list) or len(told) < n_layer or not all(
                isinstance(slides, bool | int) for slides in told):
            raise UserError(f"{options.where}: attention.sliding_window_pattern="
                            f"{reprlib.repr(told)} must say of each of {n_layer} layers whether it "
                            "slides")
        return "".join("S" if slides else "F" for slides in told[:n_layer])

    def write(self, config: ModelConfig) -> Fields:
        """The option."""
        return {"attention.sliding_window": config.window or 0 if self.computed else 0}


@dataclass(frozen=True)
class Tied:
    """Whether the table of tokens is the output layer, by the tensors; possible: to llama.cpp."""

    possible: tuple[bool, ...]

    def read(self, options: Options, fields: Fields) -> Fields:
        """The field."""
        return {"tie_embeddings": options.take("_tied", self.possible[0])}

    def write(self, config: ModelConfig) -> Fields:
        """What tensors say."""
        tied = config.tie_embeddings
        return {"_tied": tied if tied in self.possible else self.possible[0]}


@dataclass(frozen=True)
class StoredNorms:
    """Whether both halves of a layer read the same stream, by the norms that there are."""

    possible: tuple[str, ...]

    def read(self, options: Options, fields: Fields) -> Fields:
        """The field."""
        said = options.take("_residual", "sequential")
        return {"residual": said if said in self.possible else self.possible[0]}

    def write(self, config: ModelConfig) -> Fields:
        """What tensors say."""
        return {"_residual": config.residual}
