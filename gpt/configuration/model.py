"""The architecture of a model: all that rebuilding the weights needs, nothing about training."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from gpt.configuration.presets import MAX_DEPTH, PresetName, shape_of
from gpt.configuration.rope import RopeScaling
from gpt.configuration.section import Section

DEFAULT_BLOCK_SIZE = 1024
MAX_BLOCK_SIZE = 2**24
GATED = {"swiglu", "geglu"}  # feed-forwards with a third matrix
Rotation = Literal["global", "local"]
Bias = Literal["qkv_proj", "out_proj", "up_proj", "down_proj", "norm", "lm_head"]
BIASES: tuple[Bias, ...] = get_args(Bias)
USUAL_BIASES = BIASES[:-1]  # those of bias: true


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
    rope_dim: Annotated[int, Field(ge=1, le=2**14)] = Field(
        default_factory=lambda data: data["head_dim"],
        description="how many of a head's numbers turn, the first ones; default: head_dim")
    rope_scaling: RopeScaling | None = Field(
        None, description="stretches RoPE to longer contexts, as in Llama 3; null: not at all")
    rope_pattern: Annotated[str, Field(pattern="^[RN]+$", max_length=1024)] = Field(
        "R", description="which layers rotate, a letter each, over and over: R rotates, N sees no "
                         "order but that of causality")
    local_rope_base: Annotated[float, Field(gt=1)] | None = Field(
        None, description="rope_base of layers that slide, which rope_scaling then leaves alone; "
                          "null: as all layers")
    window: Annotated[int, Field(ge=1, le=2**24)] | None = Field(
        None, description="sliding-window attention: the last tokens that a token reads, itself "
                          "included; null: all; GGUF cannot express it")
    window_pattern: Annotated[str, Field(pattern="^[SF]+$", max_length=1024)] = Field(
        "S", description="which layers slide, a letter each, over and over: S slides, F reads "
                         "everything")
    norm: Literal["rmsnorm", "rmsnorm_1p", "layernorm"] = Field(
        "rmsnorm", description="how the residual stream is normalised; rmsnorm_1p multiplies by "
                               "1 + weight, as in Gemma")
    norm_placement: Literal["before", "after", "both"] = Field(
        "before", description="norms before attention and feed-forward, or of what these add to "
                              "the residual stream, or both")
    residual: Literal["sequential", "parallel", "parallel_one_norm"] = Field(
        "sequential", description="parallel: the feed-forward reads the same stream as attention, "
                                  "through a norm of its own or the same one")
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = Field(
        default_factory=lambda data: 1e-5 if data["norm"] == "layernorm" else 1e-6,
        description="added to the variance; default: GPT-2's 1e-5 for layernorm, Qwen3's 1e-6 for "
                    "rmsnorm")
    mlp: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu", "relu2"] = Field(
        "swiglu", description="the feed-forward's non-linearity; gelu_tanh is GPT-2's")
    n_inner: Annotated[int, Field(ge=1, le=2**19)] = Field(
        default_factory=lambda data: default_n_inner(data["n_embd"], data["mlp"]),
        description="width inside the feed-forward; default: 4 n_embd, for swiglu and geglu "
                    "8/3 n_embd rounded up to a multiple of 32")
    qk_norm: bool | Literal["across_heads"] = Field(
        True, description="RMSNorm on queries and keys, of each head or across_heads")
    bias: bool | list[Bias] = Field(
        False, description="biases in the layers' matrices and LayerNorms; a list: of these "
                           "alone, among which lm_head is the output layer")
    tie_embeddings: bool = Field(False, description="the output layer is the token embedding")
    embedding_scale: Annotated[float, Field(gt=0)] = Field(
        1.0, description="multiplies the tokens' vectors")
    attention_scale: Annotated[float, Field(gt=0)] = Field(
        default_factory=lambda data: data["head_dim"] ** -0.5,
        description="multiplies the product of query and key; default: 1 / sqrt(head_dim)")
    attention_softcap: Annotated[float, Field(gt=0)] | None = Field(
        None, description="the same product is bent to stay within this: c tanh(score / c); null: "
                          "not at all")
    residual_scale: Annotated[float, Field(gt=0)] = Field(
        1.0, description="multiplies what each layer adds to the residual stream; exported as part "
                         "of the weights where an architecture has none")
    logit_scale: Annotated[float, Field(gt=0)] = Field(
        1.0, description="multiplies the scores of tokens; for norm=rmsnorm")
    logit_softcap: Annotated[float, Field(gt=0)] | None = Field(
        None, description="scores of tokens are bent to stay within this: c tanh(score / c); null: "
                          "not at all")
    model_type: Annotated[str, Field(pattern="^[a-z0-9_]{1,64}$")] | None = Field(
        None, description="Hugging Face's name of the architecture that it is exported as; null: "
                          "the nearest")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="on embeddings, attention weights and each layer's output")

    @property
    def windows(self) -> list[int | None]:
        """How many tokens a query reaches back, itself included, by layer; None: to the first."""
        letters = [self.window_pattern[i % len(self.window_pattern)] for i in range(self.n_layer)]
        return [self.window if letter == "S" else None for letter in letters]

    @property
    def rotations(self) -> list[Rotation | None]:
        """By which frequencies positions turn queries and keys, by layer; None: by none."""
        if self.position != "rope":
            return [None] * self.n_layer
        letters = [self.rope_pattern[i % len(self.rope_pattern)] for i in range(self.n_layer)]
        apart = self.local_rope_base is not None
        return [None if letter == "N" else "local" if apart and window is not None else "global"
                for letter, window in zip(letters, self.windows, strict=True)]

    @property
    def biases(self) -> frozenset[str]:
        """Which matrices have a bias, and whether LayerNorms have."""
        if isinstance(self.bias, list):
            return frozenset(self.bias)
        return frozenset(USUAL_BIASES if self.bias else ())

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
        if self.position == "rope" and self.rope_dim % 2:
            name = ("rope_dim" if self.rope_dim != self.head_dim else "head_dim"
                    if self.n_embd != self.n_head * self.head_dim else "n_embd / n_head")
            raise ValueError(f"RoPE turns pairs: {name} ({self.rope_dim}) must be even")
        if self.position == "rope" and self.rope_dim > self.head_dim:
            raise ValueError(f"rope_dim ({self.rope_dim}) is more than a head has (head_dim: "
                             f"{self.head_dim})")
        if self.position == "sinusoidal" and self.n_embd % 2:
            raise ValueError(f"sinusoidal positions need an even n_embd, not {self.n_embd}")
        plain: dict[str, Any] = {"rope_scaling": None, "local_rope_base": None, "rope_pattern": "R"}
        for name, value in plain.items():
            if self.position != "rope" and getattr(self, name) != value:
                raise ValueError(f"{name} is for position=rope, not {self.position}")
        if self.local_rope_base is not None and self.window is None:
            raise ValueError("local_rope_base is for layers that slide: set window, too")
        if self.rope_scaling is not None:
            self.rope_scaling.refuse_other_heads(self.rope_dim)
        if self.window is None and self.window_pattern != "S":
            raise ValueError("window_pattern says which layers slide: set window, too")
        return self

    @model_validator(mode="after")
    def _output_fits(self) -> ModelConfig:
        if self.tie_embeddings and "lm_head" in self.biases:
            raise ValueError("the bias lm_head is of an output layer of its own: set "
                             "tie_embeddings=false")
        return self

    @model_validator(mode="after")
    def _norms_fit(self) -> ModelConfig:
        if self.residual != "sequential" and self.norm_placement != "before":
            raise ValueError(f"residual={self.residual} has its norms before, not "
                             f"{self.norm_placement}: set norm_placement=before")
        if self.norm == "rmsnorm_1p" and self.qk_norm == "across_heads":
            raise ValueError("qk_norm=across_heads is for norm=rmsnorm or layernorm, not "
                             "rmsnorm_1p")
        if self.norm != "rmsnorm" and self.logit_scale != 1:
            raise ValueError(f"logit_scale is for norm=rmsnorm, not {self.norm}")
        return self


def default_n_inner(n_embd: int, mlp: str) -> int:
    """A gated feed-forward has a third matrix: 8/3 n_embd keeps the parameter count of 4."""
    return -(-8 * n_embd // (3 * 32)) * 32 if mlp in GATED else 4 * n_embd
