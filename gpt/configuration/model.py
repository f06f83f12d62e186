"""The architecture of a model: all that rebuilding the weights needs, nothing about training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gpt.configuration.presets import MAX_DEPTH, PresetName, shape_of
from gpt.configuration.section import Section

DEFAULT_BLOCK_SIZE = 1024
MAX_BLOCK_SIZE = 2**24


class RopeScaling(Section):
    """Longer contexts for RoPE, as in Llama 3: slow rotations become slower, fast ones stay.

    Source: Grattafiori et al. 2024 (arXiv:2407.21783), section 3.4.1; Meta's published code.
    """

    factor: Annotated[float, Field(ge=1)] = Field(8.0, description="slow rotations are divided by "
                                                                   "this")
    low_freq_factor: Annotated[float, Field(gt=0)] = Field(
        1.0, description="slow: fewer than this many turns in original_block_size tokens")
    high_freq_factor: Annotated[float, Field(gt=0)] = Field(
        4.0, description="fast: more than this many turns; between the two, a mixture")
    original_block_size: Annotated[int, Field(ge=1, le=2**24)] = Field(
        8192, description="block_size before the extension, in tokens")

    @model_validator(mode="after")
    def _slow_is_slower_than_fast(self) -> RopeScaling:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(f"low_freq_factor ({self.low_freq_factor}) must be less than "
                             f"high_freq_factor ({self.high_freq_factor})")
        return self


class ModelConfig(Section):
    """A decoder-only Transformer. The default is Qwen3's layout; presets.py names others."""

    preset: PresetName | None = Field(
        None, exclude=True, description="a known shape, which the other fields then change")
    depth: Annotated[int, Field(ge=1, le=MAX_DEPTH, strict=True)] | None = Field(
        None, exclude=True, description="one dial: this many layers, as many heads of width 64, "
                                        "and a batch size and a token budget that suit them")
    vocab_size: Annotated[int, Field(ge=1, le=2**24)] | None = Field(
        None, description="distinct token ids; default: the tokenizer's")
    block_size: Annotated[int, Field(ge=1, le=MAX_BLOCK_SIZE)] = Field(
        DEFAULT_BLOCK_SIZE, description="longest sequence the model reads, in tokens")
    n_layer: Annotated[int, Field(ge=1, le=1024)] = Field(12, description="blocks in the stack")
    n_head: Annotated[int, Field(ge=1, le=1024)] = Field(12, description="query heads per layer")
    n_kv_head: Annotated[int, Field(ge=1, le=1024)] = Field(
        default_factory=lambda data: data["n_head"] // 2 if data["n_head"] % 2 == 0 else
        data["n_head"],
        description="key/value heads; fewer than n_head is grouped-query, 1 is multi-query; "
                    "default: half of an even n_head")
    n_embd: Annotated[int, Field(ge=1, le=2**17)] = Field(
        768, description="width of the residual stream")
    head_dim: Annotated[int, Field(ge=1, le=2**14)] = Field(
        default_factory=lambda data: max(1, data["n_embd"] // data["n_head"]),
        description="width of one head; default: n_embd / n_head")
    position: Literal["rope", "learned", "sinusoidal", "none"] = Field(
        "rope", description="how the order of tokens is seen; the last three are exported as "
                            "GPT-2's table of positions")
    rope_base: Annotated[float, Field(gt=1)] = Field(
        10_000.0, description="RoPE's slowest wavelength is 2 pi times this, in tokens")
    rope_scaling: RopeScaling | None = Field(
        None, description="stretches RoPE to longer contexts, as in Llama 3; null: not at all")
    window: Annotated[int, Field(ge=1, le=2**24)] | None = Field(
        None, description="sliding-window attention: the last tokens that a token reads, itself "
                          "included; null: all; GGUF cannot express it")
    window_pattern: Annotated[str, Field(pattern="^[SF]+$", max_length=1024)] = Field(
        "S", description="which layers slide, a letter each, over and over: S slides, F reads "
                         "everything")
    norm: Literal["rmsnorm", "layernorm"] = Field(
        "rmsnorm", description="how the residual stream is normalised before each layer; exported "
                               "are rmsnorm with rope and swiglu, and layernorm without both, and "
                               "without grouped heads and qk_norm")
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = Field(
        default_factory=lambda data: 1e-5 if data["norm"] == "layernorm" else 1e-6,
        description="added to the variance; default: GPT-2's 1e-5 for layernorm, Qwen3's 1e-6 for "
                    "rmsnorm")
    mlp: Literal["swiglu", "gelu", "gelu_tanh", "relu2"] = Field(
        "swiglu", description="the feed-forward's non-linearity; gelu_tanh is GPT-2's; GGUF cannot "
                              "express gelu and relu2")
    n_inner: Annotated[int, Field(ge=1, le=2**19)] = Field(
        default_factory=lambda data: default_n_inner(data["n_embd"], data["mlp"]),
        description="width inside the feed-forward; default: 4 n_embd, for swiglu 8/3 n_embd "
                    "rounded up to a multiple of 32")
    qk_norm: bool = Field(True, description="RMSNorm on each head's queries and keys")
    bias: bool = Field(False, description="biases in linear layers and LayerNorms; no architecture "
                                          "it is exported to has them together with qk_norm")
    tie_embeddings: bool = Field(False, description="the output layer is the token embedding")
    residual_scale: Annotated[float, Field(gt=0)] = Field(
        1.0, description="multiplies what each layer adds to the residual stream; exported as part "
                         "of the weights")
    logit_softcap: Annotated[float, Field(gt=0)] | None = Field(
        None, description="scores are bent to stay within this: c tanh(score / c); null: not at "
                          "all; no architecture it is exported to can express it")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="on embeddings, attention weights and each layer's output")

    @property
    def windows(self) -> list[int | None]:
        """How many tokens a query reaches back, itself included, by layer; None: to the first."""
        letters = [self.window_pattern[i % len(self.window_pattern)] for i in range(self.n_layer)]
        return [self.window if letter == "S" else None for letter in letters]

    @model_validator(mode="before")
    @classmethod
    def _fill_in_a_shape(cls, values: Any) -> Any:
        """Replace preset and depth by the fields they stand for; fields that are given win."""
        if not isinstance(values, dict):
            return values
        if values.get("preset") is not None and values.get("depth") is not None:
            raise ValueError("set preset or depth, not both")
        shape = shape_of(values)
        given = {k: v for k, v in values.items() if not (shape and k in ("preset", "depth"))}
        return shape | given

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.n_embd % self.n_head and "head_dim" not in self.model_fields_set:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})"
                             ", or head_dim be given")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head ({self.n_head}) must be a multiple of n_kv_head "
                             f"({self.n_kv_head})")
        return self

    @model_validator(mode="after")
    def _positions_fit(self) -> ModelConfig:
        if self.position == "rope" and self.head_dim % 2:
            name = "head_dim" if self.n_embd != self.n_head * self.head_dim else "n_embd / n_head"
            raise ValueError(f"RoPE turns pairs: {name} ({self.head_dim}) must be even")
        if self.position == "sinusoidal" and self.n_embd % 2:
            raise ValueError(f"sinusoidal positions need an even n_embd, not {self.n_embd}")
        if self.position != "rope" and self.rope_scaling is not None:
            raise ValueError(f"rope_scaling is for position=rope, not {self.position}")
        if self.window is None and self.window_pattern != "S":
            raise ValueError("window_pattern says which layers slide: set window, too")
        return self


def default_n_inner(n_embd: int, mlp: str) -> int:
    """SwiGLU has a third matrix: 8/3 n_embd keeps the parameter count of the others' 4."""
    return -(-8 * n_embd // (3 * 32)) * 32 if mlp == "swiglu" else 4 * n_embd
