"""The architectures of llama.cpp: what a GGUF file says of a model, what its tensors are called.

Tables as in gpt/interop/architectures, of the same kinds of lines. What a file says by having a
tensor stands here as an option whose name begins with an underscore: gguf/model_file.py makes them
of the tensors, and they are never written.
Source: llama.cpp's converter (conversion/) and its loaders (src/models/).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt.configuration import BIASES, ModelConfig
from gpt.errors import UserError
from gpt.interop.architectures.rows import (
    Always,
    Choice,
    Fields,
    Given,
    Row,
    Scaled,
    Unused,
    cap,
    real,
    sizes,
)
from gpt.interop.architectures.table import Architecture
from gpt.interop.equivalent import Target
from gpt.interop.options import Options
from gpt.interop.tensors import Names, Parts
from gpt.model.rope import attention_factor

RMS_EPS, LAYER_EPS = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
MATRICES, QKV, NORM = ("qkv_proj", "out_proj", "up_proj", "down_proj"), "qkv_proj", "norm"
FREQUENCIES, LONG, SHORT = ("rope_freqs.weight", "rope_factors_long.weight",
                            "rope_factors_short.weight")  # what rotations are divided by
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
    a head can turn.
    """

    stored: tuple[str, ...] = ()
    local: bool = False
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
            if scaling["kind"] == "longrope":  # as of Hugging Face's folders: rope.py there
                found["block_size"] = min(fields["block_size"], scaling["original_block_size"])
        if self.local and fields.get("window") is not None:
            found["local_rope_base"] = options.number("rope.freq_base_swa", 10_000.0)
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
        if self.local and config.local_rope_base is not None:
            options["rope.freq_base_swa"] = config.local_rope_base
        scaling = config.rope_scaling
        if scaling is None:
            return options
        if scaling.kind in self.stored:
            options["_rope_scaling"] = scaling.model_dump(include={"kind", *scaling.meant})
        if scaling.kind == "longrope":
            longest = round(scaling.original_block_size * scaling.factor)
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
    """A window in the layers that llama.cpp has fixed: letters, over and over.

    computed: whether llama.cpp minds it; a file may say it all the same.
    """

    pattern: str
    absent: int | None = None
    computed: bool = True

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields."""
        window = options.number("attention.sliding_window", self.absent)
        options.take("attention.sliding_window_pattern", None)
        if window is not None and not 0 <= window < 2**24:
            raise UserError(f"{options.where}: attention.sliding_window is {window}")
        return {"window": int(window), "window_pattern": self.pattern} if window else {}

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


def _rows(*more: Row, heads: Row = Heads(), rope: Row = Rope(), eps: str = RMS_EPS,
          biases: Row = StoredBiases(possible=MATRICES), tied: tuple[bool, ...] = (False, True),
          **given: Any) -> tuple[Row, ...]:
    """What all have; tied: whether the table of tokens can, or must, be the output layer."""
    fixed = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": False, **given}
    return (*sizes(("vocab_size", "vocab_size"), ("context_length", "block_size"),
                   ("block_count", "n_layer"), ("embedding_length", "n_embd"),
                   ("feed_forward_length", "n_inner")),
            heads, Given(fixed), real(eps, "norm_eps"), biases,
            Tied(tied), *more, rope)


OUTSIDE = {"embedding.token_embedding": "token_embd", "final_norm": "output_norm",
           "embedding.position_embedding": "position_embd", "lm_head": "output"}
_SEPARATE: dict[str, str | Parts] = {
    "attention_norm": "attn_norm", "attention.qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "attention.out_proj": "attn_output", "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm", "attention_post_norm": "post_attention_norm",
    "feedforward_norm": "ffn_norm", "feedforward.up_proj": ("ffn_gate", "ffn_up"),
    "feedforward.down_proj": "ffn_down", "feedforward_post_norm": "post_ffw_norm"}
_UNGATED = {"feedforward.up_proj": "ffn_up"}
_FUSED = {"attention.qkv_proj": "attn_qkv", "feedforward.up_proj": "ffn_up"}


def _names(inside: Mapping[str, str | Parts] | None = None, **layout: Any) -> Names:
    return Names(OUTSIDE, "blk.{}.", {**_SEPARATE, **(inside or {})}, **layout)


# ----- RMSNorm. Of those that came of Llama's converter, neighbours turn together.

LLAMA = Architecture("llama", "", _rows(rope=Rope(("llama3", "longrope"))),
                     _names(interleaved=True))
QWEN2 = Architecture("qwen2", "", _rows(biases=StoredBiases((QKV,)),
                                        heads=PlainHeads(grouped=True)), _names())
QWEN3 = Architecture("qwen3", "", _rows(biases=StoredBiases(), qk_norm=True), _names())
SMOLLM3 = Architecture("smollm3", "", _rows(rope_pattern="RRRN", biases=StoredBiases()),
                       _names(interleaved=True))
GRANITE = Architecture("granite", "", _rows(
    real("embedding_scale", "embedding_scale", 1.0), real("residual_scale", "residual_scale", 1.0),
    Scaled("attention.scale", "attention_scale", 0.0,
           lambda scale, fields: scale or fields["head_dim"] ** -0.5,
           lambda config: config.attention_scale),
    Scaled("logit_scale", "logit_scale", None, lambda divisor, _: 1 / divisor,
           lambda config: 1 / config.logit_scale), rope=Rope(("llama3",))),
    _names(interleaved=True))
PHI3 = Architecture("phi3", "", _rows(
    Sliding("S", computed=False), heads=PlainHeads(grouped=True), biases=StoredBiases(),
    rope=Rope(("longrope",), partial=True)), _names(_FUSED))
GLM4 = Architecture("glm4", "", _rows(norm_placement="both", rope=Rope(partial=True),
                                      biases=StoredBiases(possible=(QKV,))),
                    _names({"feedforward.up_proj": "ffn_up"}, interleaved=True))
_OLMO: dict[str, Any] = {"norm_placement": "after", "qk_norm": "across_heads"}
OLMO2 = Architecture("olmo2", "", _rows(Always("attention.sliding_window", 0),
                                        heads=PlainHeads(grouped=True), biases=StoredBiases(),
                                        tied=(False,), **_OLMO), _names())


def _of_gemma(large: int) -> Row:
    """The scale of scores: of the model with so many layers by its width, else by its heads'."""
    def scale(_: float, fields: Fields) -> float:
        if fields["n_layer"] == large:
            return float((fields["n_embd"] // fields["n_head"]) ** -0.5)
        return float(fields["head_dim"] ** -0.5)

    return Scaled("embedding_length", "attention_scale", None, scale, lambda config: config.n_embd)


_GEMMA_ROWS = (Scaled("embedding_length", "embedding_scale", None,
                      lambda width, _: math.sqrt(width), lambda config: config.n_embd),)
_GEMMA: dict[str, Any] = {"norm": "rmsnorm_1p", "norm_placement": "both", "mlp": "geglu",
                          "biases": StoredBiases()}
GEMMA2 = Architecture("gemma2", "", _rows(
    *_GEMMA_ROWS, _of_gemma(46), Sliding("SF", 4096),
    cap("final_logit_softcapping", "logit_softcap", 30.0),
    cap("attn_logit_softcapping", "attention_softcap", 50.0), tied=(True,), **_GEMMA),
    _names(shifted_norms=True))
GEMMA3 = Architecture("gemma3", "", _rows(
    *_GEMMA_ROWS, _of_gemma(62), Sliding("SSSSSF"), cap("final_logit_softcapping",
                                                        "logit_softcap", None),
    rope=Rope(local=True), qk_norm=True, **_GEMMA), _names(shifted_norms=True))

# ----- LayerNorm


def _layernorm(*more: Row, **given: Any) -> tuple[Row, ...]:
    return _rows(*more, **{"eps": LAYER_EPS, "norm": "layernorm", "heads": PlainHeads(),
                           "biases": StoredBiases((*MATRICES, NORM)), **given})


_UNTURNED: Row = Given({})
GPT2 = Architecture("gpt2", "", _layernorm(position="learned", mlp="gelu_tanh", rope=_UNTURNED),
                    _names(_FUSED))
GPT_NEOX = Architecture("gptneox", "", _layernorm(
    Choice("use_parallel_residual", "residual", {True: "parallel", False: "sequential"}, True),
    mlp="gelu", tied=(False,), rope=Rope(partial=True)), _names(_FUSED))
FALCON = Architecture("falcon", "", _layernorm(
    StoredNorms(("parallel", "parallel_one_norm")), mlp="gelu", heads=PlainHeads(grouped=True),
    biases=StoredBiases((NORM,))),
    lambda config: _names(_FUSED if config.residual != "parallel" else _FUSED | {
        "attention_norm": "attn_norm_2", "feedforward_norm": "attn_norm"}))
STARCODER2 = Architecture("starcoder2", "", _layernorm(
    mlp="gelu_tanh", heads=PlainHeads(grouped=True)), _names(_UNGATED))
STABLELM = Architecture("stablelm", "", _layernorm(
    Unused(("use_parallel_residual",)),  # norms tell
    StoredNorms(("sequential", "parallel_one_norm")), heads=PlainHeads(grouped=True), mlp="swiglu",
    tied=(False,), rope=Rope(partial=True),
    biases=StoredBiases((NORM,), (QKV,))), _names())

LLAMA_CPP = Target("llama.cpp", {
    "gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3, "qwen2": QWEN2, "smollm3": SMOLLM3,
    "olmo2": OLMO2, "gemma2": GEMMA2, "gemma3_text": GEMMA3, "phi3": PHI3, "granite": GRANITE,
    "glm4": GLM4, "gpt_neox": GPT_NEOX, "falcon": FALCON, "starcoder2": STARCODER2,
    "stablelm": STABLELM})
