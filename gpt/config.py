"""A run as typed, validated sections.

Each section belongs to one part of the toolkit and holds what that part needs. Values come from the
defaults here, then the YAML file, then `section.field=value` on the command line (gpt/cli.py).
Derived defaults are computed from the fields above them and stand in the resolved configuration.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Count = Annotated[int, Field(ge=1, le=2**40)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """The base of all sections: unknown keys, NaN and infinity are errors; values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False,
                              validate_default=True, protected_namespaces=())

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


class RunConfig(Section):
    """Which run this is and what it runs on."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
                      description="the run's folder inside out_dir; default: the YAML file's name")
    out_dir: str = Field("runs", description="folder that holds the runs")
    seed: int = Field(1337, ge=0, lt=2**63, description="decides weights, data order and dropout")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: CUDA, else Apple's mps, else the CPU")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of matrix products; auto: bfloat16 where the hardware computes in it")
    compile: Literal["auto", True, False] = Field(
        "auto", description="torch.compile; auto: on CUDA only, where it pays within a minute")
    resume: str = Field("auto", description="auto: continue the run in its folder; never: refuse a "
                                            "folder that holds a run; or a checkpoint's path")


class DataConfig(Section):
    """What pretraining reads."""

    dataset: str = Field(description="a prepared folder, or a recipe that is prepared when needed")
    packing: Literal["windows", "documents"] = Field(
        "windows", description="windows: consecutive stretches of block_size tokens, whatever "
                               "documents they cut; documents: rows of whole documents, padded")
    isolate_documents: bool = Field(
        False, description="attention and positions restart at every document, in training and "
                           "in evaluation")
    loader_workers: Annotated[int, Field(ge=0, le=256)] = Field(
        1, description="threads that read batches ahead; 0 reads between steps; changes speed, "
                       "not the result")


class ModelConfig(Section):
    """The architecture: all that rebuilding the weights needs, nothing about training."""

    vocab_size: Annotated[int, Field(ge=1, le=2**24)] | None = Field(
        None, description="distinct token ids; default: the tokenizer's")
    block_size: Annotated[int, Field(ge=1, le=2**24)] = Field(
        1024, description="longest sequence the model reads, in tokens")
    n_layer: Annotated[int, Field(ge=1, le=1024)] = Field(12, description="blocks in the stack")
    n_head: Annotated[int, Field(ge=1, le=1024)] = Field(12, description="query heads per layer")
    n_kv_head: Annotated[int, Field(ge=1, le=1024)] = Field(
        default_factory=lambda data: data["n_head"] // 2 if data["n_head"] % 2 == 0 else
        data["n_head"],
        description="key/value heads; fewer than n_head is grouped-query; default: half of an even "
                    "n_head")
    n_embd: Annotated[int, Field(ge=1, le=2**17)] = Field(
        768, description="width of the residual stream")
    position: Literal["rope", "learned", "sinusoidal", "none"] = Field(
        "rope", description="how the order of tokens is seen")
    rope_base: Annotated[float, Field(gt=1)] = Field(
        10_000.0, description="RoPE's slowest wavelength is 2 pi times this, in tokens")
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    mlp: Literal["swiglu", "gelu", "gelu_tanh", "relu2"] = Field(
        "swiglu", description="the feed-forward's non-linearity; gelu_tanh is GPT-2's")
    n_inner: Annotated[int, Field(ge=1, le=2**19)] = Field(
        default_factory=lambda data: default_n_inner(data["n_embd"], data["mlp"]),
        description="width inside the feed-forward; default: 4 n_embd, for swiglu 8/3 n_embd "
                    "rounded up to a multiple of 32")
    qk_norm: bool = Field(True, description="RMSNorm on each head's queries and keys")
    bias: bool = Field(False, description="biases in linear layers and LayerNorms")
    tie_embeddings: bool = Field(False, description="the output layer is the token embedding")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="on embeddings, attention weights and each layer's output")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.n_embd // self.n_head

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelConfig:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head ({self.n_head}) must be a multiple of n_kv_head "
                             f"({self.n_kv_head})")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"RoPE turns pairs: n_embd / n_head ({self.head_dim}) must be even")
        if self.position == "sinusoidal" and self.n_embd % 2:
            raise ValueError(f"sinusoidal positions need an even n_embd, not {self.n_embd}")
        return self


def default_n_inner(n_embd: int, mlp: str) -> int:
    """SwiGLU has a third matrix: 8/3 n_embd keeps the parameter count of the others' 4."""
    return -(-8 * n_embd // (3 * 32)) * 32 if mlp == "swiglu" else 4 * n_embd


class OptimConfig(Section):
    """AdamW and its learning-rate schedule."""

    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="peak learning rate; auto: 1 / n_embd, at most 0.004")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.1, description="on weight matrices; never on norms, biases and embeddings")
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    schedule: Literal["wsd", "cosine", "linear", "constant"] = Field(
        "wsd", description="wsd: warm-up, constant, then a linear cooldown")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(50, description="steps from zero to lr")
    cooldown_fraction: Fraction = Field(0.5, description="share of the run that cools down (wsd)")
    min_lr_fraction: Fraction = Field(0.0, description="the final learning rate, as a share of lr")


class TrainConfig(Section):
    """How long, and in what portions. At most one of steps, tokens, epochs and max_minutes."""

    steps: Count | None = Field(None, description="optimizer updates")
    tokens: Count | None = Field(None, description="training tokens, never exceeded")
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="passes over the training data; 1 when no other budget is given")
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="wall time of training; the schedule is fitted to the clock")
    batch_size: Count = Field(32, description="sequences per step, over all devices")
    micro_batch_size: Count | Literal["auto"] = Field(
        "auto", description="sequences per backward pass; without dropout it changes memory and "
                            "speed, not the result")
    grad_clip: Annotated[float, Field(ge=0)] = Field(
        1.0, description="largest gradient norm; 0 leaves gradients alone")

    @model_validator(mode="after")
    def _one_budget(self) -> TrainConfig:
        given = [name for name in ("steps", "tokens", "epochs", "max_minutes")
                 if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"set one of steps, tokens, epochs and max_minutes, not {given}")
        return self


class EvalConfig(Section):
    """When the validation split is scored."""

    every_steps: Count | None = Field(250, description="null: only at the end")
    max_tokens: Count | None = Field(
        None, description="score about this many tokens, at least one sequence; null: all")


class CheckpointConfig(Section):
    """When the run is saved, and what is kept. The best checkpoint so far is always kept."""

    every_steps: Count | None = Field(250, description="null: only at the end")
    keep: Count = Field(2, description="newest checkpoints to keep")


class LogConfig(Section):
    """What is told while training, and to whom."""

    wandb: Literal["disabled", "offline", "online"] = "disabled"
    wandb_project: str = "gpt"
    every_steps: Count = Field(1, description="steps between lines of metrics.jsonl")
    samples_every_steps: Count | None = Field(
        None, description="steps between generated samples; null: none")
    sample_prompts: list[str] = Field([""], description="what the samples continue")


class FinetuneSection(Section):
    """What is fine-tuned, on what."""

    base: str = Field(alias="from", description="the run, or one checkpoint of it, to start from")
    data: str = Field(description='JSONL file, one {"prompt": …, "completion": …} per line')
    val_data: str | None = Field(None, description="JSONL file to validate on")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="or the share of data to hold out; 0.1 when val_data is not given")
    method: Literal["full"] = Field("full", description="which weights learn: all of them")

    @model_validator(mode="after")
    def _one_validation_set(self) -> FinetuneSection:
        if self.val_data is not None and self.val_fraction is not None:
            raise ValueError("set val_data or val_fraction, not both")
        return self


class RunSections(Section):
    """What every training run has, whatever it learns from."""

    run: RunConfig = Field(default_factory=RunConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    log: LogConfig = Field(default_factory=LogConfig)


class PretrainConfig(RunSections):
    """A pretraining run."""

    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)


class FinetuneConfig(RunSections):
    """A fine-tuning run; architecture and tokenizer come from the run it starts from."""

    finetune: FinetuneSection


def json_schema() -> dict[str, Any]:
    """configs/schema.json: lets editors complete and check the YAML files."""
    schemas = [config.model_json_schema() for config in (PretrainConfig, FinetuneConfig)]
    definitions = {k: v for schema in schemas for k, v in schema.pop("$defs").items()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": schemas,
            "$defs": definitions}
