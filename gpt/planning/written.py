"""A plan for people, for train.py, and for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gpt.configuration import BUDGETS
from gpt.optim import Rates
from gpt.planning.plan import Plan
from gpt.planning.sizes import Size, configuration


def told(plan: Plan) -> list[str]:
    """What is planned, and what it is to give."""
    cost, train = plan.cost, plan.cost.config.train
    size = Size(cost.config.model.n_layer, cost.config.model.n_embd)
    about = "about " if train.max_minutes is not None else ""
    return [
        f"plan       {size}, {cost.counts.parameters:,} parameters; {about}{cost.tokens:,} tokens "
        f"in {cost.steps:,} steps of {train.batch_size} x {cost.config.model.block_size}, "
        f"{cost.tokens / plan.epoch:.2g} times the text; {rates_of(plan)}",
        f"takes      {span(cost.seconds)} at {cost.tokens_per_second:,.0f} tokens/s; "
        f"{cost.memory / 2**20:,.0f} MiB at most, besides those of Python and torch",
        f"to expect  {plan.forecast} nats per token, {plan.bits_per_byte} bits per byte: in "
        "brackets where 95 of 100 lie",
        *(f"doubtful   {doubt}" for doubt in plan.doubts)]


def as_yaml(plan: Plan, command: str, file: Path) -> str:
    """A configuration for train.py, with what it is to give at its head."""
    head = ["yaml-language-server: $schema=schema.json"] if file.parent.name == "configs" else []
    head += [f"Planned by {command}", f"on         {plan.device}", *told(plan), "",
             f"  {train_command(plan, file)}"]
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + yaml.safe_dump(
        values_of(plan), sort_keys=False, allow_unicode=True)


def values_of(plan: Plan) -> dict[str, Any]:
    """What the configuration says, by section."""
    cost, rates = plan.cost, rates_of(plan)
    made = configuration(cost.config.data.dataset, cost.size, cost.tokens, plan.given)
    values = made.model_dump(exclude_unset=True, by_alias=True)
    train = cost.config.train
    del values["train"]["steps"]  # there may be minutes instead
    values["train"] |= {name: value for name in (*BUDGETS, "batch_size")
                        if (value := getattr(train, name)) is not None}
    if train.micro_batch_size != "auto":
        values["train"]["micro_batch_size"] = train.micro_batch_size
    values["optim"] |= {"name": rates.name, "lr": float(f"{rates.lr:.6g}")}
    if rates.name == "muon":
        values["optim"]["muon_lr"] = rates.muon_lr
    return values


def as_json(plan: Plan, file: Path) -> dict[str, Any]:
    """Every figure by name."""
    cost = plan.cost
    return {
        "file": str(file), "device": str(plan.device), "n_layer": cost.config.model.n_layer,
        "n_embd": cost.config.model.n_embd, "parameters": cost.counts.parameters,
        "layer_parameters": cost.counts.layer_parameters, "tokens": cost.tokens,
        "steps": cost.steps, "batch_size": cost.config.train.batch_size,
        "flops": float(cost.tokens) * cost.counts.flops_per_token, "seconds": cost.seconds,
        "tokens_per_second": cost.tokens_per_second, "memory_bytes": cost.memory,
        "val_loss": plan.forecast._asdict(), "val_bits_per_byte": plan.bits_per_byte._asdict(),
        "pilots": [{"layer_parameters": run.parameters, "tokens": run.tokens, "epoch": run.epoch,
                    "loss": run.loss, "loss_beside_copier": run.beside, "seconds": seconds}
                   for run, seconds in ((pilot.run, pilot.seconds) for pilot in plan.pilots)],
        "doubts": list(plan.doubts)}


def train_command(plan: Plan, file: Path) -> str:
    """How it is trained."""
    count = plan.device.count
    return (f"python train.py {file}" if count == 1 else
            f"torchrun --nproc-per-node={count} train.py {file}")


def rates_of(plan: Plan) -> Rates:
    """Learning rates, as training will choose them."""
    config = plan.cost.config
    return Rates.of(config.optim, config.model, plan.cost.tokens_per_step)


def span(seconds: float) -> str:
    """A time that people can read."""
    return f"{seconds / 60:,.1f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
