"""A run as typed, validated sections.

Each section belongs to one part of the toolkit and holds what that part needs. Values come from the
defaults here, then the YAML file, then `section.field=value` on the command line (command_line.py).
Derived defaults are computed from the fields above them and stand in the resolved configuration.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gpt.configuration.adapter import LoraConfig
from gpt.configuration.finetune import FinetuneSection, PreferenceConfig
from gpt.configuration.model import ModelConfig
from gpt.configuration.parallel import ParallelConfig
from gpt.configuration.presets import MAX_DEPTH, is_count, shape_of, training_of_depth
from gpt.configuration.section import Count, Fraction, Place, Section


class RunConfig(Section):
    """Which run this is and what it runs on."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
                      description="the run's folder inside out_dir; default: the YAML file's name")
    out_dir: Place = Field("runs", description="folder that holds the runs")
    seed: int = Field(1337, ge=0, lt=2**63, description="decides weights, data order and dropout")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: CUDA, else Apple's mps, else the CPU")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float8"] = Field(
        "auto", description="of matrix products; auto: bfloat16 where the hardware computes in it; "
                            "float8: in the layers, through torchao, on GPUs that have it, the "
                            "rest in bfloat16")
    compile: Literal["auto", True, False] = Field(
        "auto", description="torch.compile for training steps; auto: where a run is long enough to "
                            "win back the minute that it takes")
    deterministic: bool = Field(
        True, description="training steps give the same bits every time, so that a run that was "
                          "stopped ends as one that was not; false: on a GPU faster kernels may "
                          "add in any order")
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


class OptimConfig(Section):
    """AdamW and Muon, and their learning rates over a run."""

    name: Literal["auto", "adamw", "muon"] = Field(
        "auto", description="adamw: for every weight; muon: for the matrices of the layers, adamw "
                            "for the rest; auto: muon from 6 n_embd tokens a step on, and adamw "
                            "in fine-tuning")
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="adamw's peak learning rate; auto: 1 / n_embd, at most 0.004; beside "
                            "muon 0.02 at width 128, and less by the root of the width; in "
                            "fine-tuning 0.1 / n_embd, with adapters 0.5 / n_embd, and a tenth of "
                            "that for preferences")
    muon_lr: Annotated[float, Field(gt=0)] = Field(
        0.02, description="muon's peak learning rate: how far a step moves a matrix, in spectral "
                          "norm; one value for all widths")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.1, description="on weight matrices; never on norms, biases and embeddings")
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="adamw's memory of gradients")
    beta2: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = Field(
        "auto", description="adamw's memory of squared gradients; auto: from beta2_half_life")
    beta2_half_life: Count = Field(
        80_000, description="tokens after which a squared gradient counts half, whatever the batch "
                            "size; beta2 stays within 0.9 and 0.999")
    muon_momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="muon's memory of gradients")
    ema_half_life: Count | None = Field(
        None, description="tokens after which weights count half in a running average of them, "
                          "which is then what is evaluated, sampled from and saved; null: none")
    schedule: Literal["wsd", "cosine", "linear", "constant"] = Field(
        "wsd", description="wsd: warm-up, constant, then a linear cooldown")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        50, description="steps from zero to lr; in fine-tuning by default at most a tenth of all")
    cooldown_fraction: Fraction = Field(0.5, description="share of the run that cools down (wsd)")
    min_lr_fraction: Fraction = Field(0.0, description="the final learning rate, as a share of lr")


BUDGETS = ("steps", "tokens", "epochs", "max_minutes")


class TrainConfig(Section):
    """How long, and in what portions. At most one of steps, tokens, epochs and max_minutes."""

    steps: Count | None = Field(None, description="optimizer updates")
    tokens: Count | None = Field(None, description="training tokens, never exceeded")
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="passes over the training data; when no other budget is given 1, and "
                          "in fine-tuning up to 10, so that 3,000 examples are seen")
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="wall time of training; the schedule is fitted to the clock")
    batch_size: Count | Literal["auto"] = Field(
        "auto", description="sequences per step, over all devices; auto: twice the root of the "
                            "run's tokens, in tokens, as a power of two of sequences; 32 in "
                            "fine-tuning, and down to 4 where epochs of few examples would make "
                            "less than 100 steps")
    micro_batch_size: Count | Literal["auto"] = Field(
        "auto", description="sequences per backward pass; without dropout it changes memory and "
                            "speed, not the result")
    recompute_activations: bool = Field(
        False, description="compute each layer again in the backward pass rather than keep what it "
                           "needs: less memory, about a third more arithmetic, the same result")
    grad_clip: Annotated[float, Field(ge=0)] = Field(
        1.0, description="largest gradient norm; 0 leaves gradients alone")

    on_nonfinite: Literal["stop", "skip", "rollback"] = Field(
        "stop", description="after a loss or gradient that is not finite, which is written to the "
                            "run's incidents; skip: that step changes nothing; rollback: from the "
                            "newest checkpoint with what comes after that step's data")
    on_spike: Literal["warn", "stop", "skip", "rollback"] = Field(
        "warn", description="after a loss far above those before; warn: a line, and on; the others "
                            "as above")
    spike_z_score: Annotated[float, Field(gt=0)] = Field(
        10.0, description="how far: in standard deviations of the last 64 losses, as their median "
                          "deviation tells them")
    max_incidents: Count = Field(10, description="stop at more than so many in a run")

    @property
    def sequences_per_step(self) -> int:
        """batch_size, once it is a number: train.py and finetune.py see to that."""
        assert self.batch_size != "auto"
        return self.batch_size

    @model_validator(mode="after")
    def _one_budget(self) -> TrainConfig:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"set one of steps, tokens, epochs and max_minutes, not {given}")
        return self


class EvalConfig(Section):
    """When the validation split is scored."""

    every_steps: Count | None = Field(
        250, description="null: only at the end; where fine-tuning chooses the epochs: each")
    max_tokens: Count | None = Field(
        None, description="score about this many tokens, at least one sequence; null: all")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of matrix products; float32 gives the same figures on every "
                               "processor; others are faster where the hardware computes in them")
    core_bundle: Place | None = Field(
        None, description="folder of the CORE metric's published bundle: docs/evaluation.md")
    core_every_steps: Count | None = Field(
        None, description="when CORE is measured; null: only at the end, if there is a bundle")
    core_questions: Count | None = Field(
        500, description="of each of CORE's tasks, while training; null: all")
    patience: Count | None = Field(
        None, description="stop when so many evaluations in a row found no lower loss; the best "
                          "checkpoint is kept; null: never, and where fine-tuning chooses the "
                          "epochs 3")

    @model_validator(mode="after")
    def _core_has_its_bundle(self) -> EvalConfig:
        if self.core_every_steps is not None and self.core_bundle is None:
            raise ValueError("core_every_steps needs core_bundle, the folder of the bundle")
        return self


class CheckpointConfig(Section):
    """When the run is saved, and what is kept. The best checkpoint so far is always kept."""

    every_steps: Count | None = Field(250, description="null: only at the end")
    keep: Count = Field(2, description="newest checkpoints to keep")
    keep_every_steps: Count | None = Field(
        None, description="those of every so many steps are kept for good; null: none is")
    background: bool = Field(
        True, description="written while training goes on, from a copy of weights and optimizer "
                          "state in memory; false, or where memory does not suffice for the copy: "
                          "training waits")
    shard_size: Count = Field(
        5_000_000_000, description="bytes of a file of weights, from which on there are several, "
                                   "with an index, and each process of a run writes its own")
    keep_before_cooldown: bool = Field(
        False, description="also keep the one at which the learning rate begins to fall (wsd): a "
                           "longer run that begins there, by run.resume, ends where one long run "
                           "would")


class LogConfig(Section):
    """What is told while training, and to whom."""

    wandb: Literal["disabled", "offline", "online"] = "disabled"
    wandb_project: str = "gpt"
    every_steps: Count = Field(1, description="steps between lines of metrics.jsonl")
    report: bool = Field(True, description="write report.html, a page to look at, at the end")
    samples_every_steps: Count | None = Field(
        None, description="steps between generated samples; null: none")
    sample_prompts: list[str] = Field([""], description="what the samples continue")


# Fields that name a place, which may be a relative one.
PLACES = ("data.dataset", "eval.core_bundle", "finetune.from", "finetune.data", "finetune.val_data",
          "finetune.pretrain_data")


def _auto_instead(schema: dict[str, Any]) -> None:
    """For editors: a section may be the word auto."""
    schema["anyOf"] = [{"$ref": schema.pop("$ref")}, {"const": "auto"}]


class RunSections(Section):
    """What every training run has, whatever it learns from."""

    run: RunConfig = Field(default_factory=RunConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig,
                                     json_schema_extra=_auto_instead)

    @field_validator("parallel", mode="before")
    @classmethod
    def _auto_leaves_all_open(cls, value: Any) -> Any:
        return {} if value == "auto" else value

    @model_validator(mode="after")
    def _cooldowns_are_of_wsd(self) -> RunSections:
        if self.checkpoint.keep_before_cooldown and self.optim.schedule != "wsd":
            raise ValueError("checkpoint.keep_before_cooldown is for optim.schedule=wsd: with "
                             "others the learning rate depends on the run's length all along")
        return self


class PretrainConfig(RunSections):
    """A pretraining run."""

    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)

    @model_validator(mode="before")
    @classmethod
    def _depth_sets_training(cls, values: Any) -> Any:
        """The budget follows from model.depth, where none is given."""
        implied = _training_of(values) if isinstance(values, dict) else {}
        return values | {"train": implied | values.get("train", {})} if implied else values

    @classmethod
    def implied(cls, values: dict[str, Any]) -> dict[str, str]:
        """What model.preset and model.depth set."""
        model = values.get("model", {})
        dial = f"{model['preset']}" if model.get("preset") else f"model.depth={model.get('depth')}"
        return ({f"model.{name}": dial for name in shape_of(model)}
                | {f"train.{name}": dial for name in _training_of(values)})


class FinetuneConfig(RunSections):
    """A fine-tuning run; architecture and tokenizer come from the run it starts from."""

    finetune: FinetuneSection
    lora: LoraConfig = Field(default_factory=LoraConfig)
    preference: PreferenceConfig = Field(default_factory=PreferenceConfig)

    @model_validator(mode="after")
    def _options_have_a_use(self) -> FinetuneConfig:
        section = self.finetune
        if section.val_fraction == 0 and self.eval.patience is not None:
            raise ValueError("eval.patience needs validation data, and finetune.val_fraction=0 "
                             "leaves none")
        if section.method == "full" and self.lora != LoraConfig():
            raise ValueError("lora.* is for finetune.method=lora and dora")
        if section.method != "full" and section.freeze:
            raise ValueError("finetune.freeze is for finetune.method=full: adapters freeze all")
        default = FinetuneSection.model_fields["pretrain_share"].default
        if section.pretrain_data is None and section.pretrain_share != default:
            raise ValueError("finetune.pretrain_share needs finetune.pretrain_data")
        return self


def _training_of(values: dict[str, Any]) -> dict[str, int]:
    """What model.depth says about training and the configuration does not."""
    model, train = values.get("model"), values.get("train", {})
    if not isinstance(model, dict) or not isinstance(train, dict):
        return {}
    depth = model.get("depth")
    if not is_count(depth, MAX_DEPTH) or train.keys() & BUDGETS:
        return {}
    return training_of_depth(depth)


def json_schema() -> dict[str, Any]:
    """configs/schema.json: lets editors complete and check the YAML files."""
    schemas = [config.model_json_schema() for config in (PretrainConfig, FinetuneConfig)]
    definitions = {k: v for schema in schemas for k, v in schema.pop("$defs").items()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": schemas,
            "$defs": definitions}
