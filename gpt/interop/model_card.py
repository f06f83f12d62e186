"""The README.md of an exported model: what it learned from, how well, under which licence."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpt.configuration.strict_yaml import load_file
from gpt.files import read_json
from gpt.model import GPT, parameter_count
from gpt.shards import MANIFEST, dataset_folder, is_dataset
from gpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class About:
    """What the card tells beyond the model itself.

    licence: an SPDX identifier, or None if nobody has said. data: lines about the text. metrics:
    of the last evaluation. step: updates done.
    """

    name: str
    licence: str | None = None
    data: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    step: int | None = None


def about_checkpoint(path: Path, licence: str | None) -> About:
    """What the run around a checkpoint tells about it; little if the checkpoint stands alone."""
    path = path.absolute()
    if path.parent.name == "snapshots":  # of the Hub's cache: models--OWNER--NAME/snapshots/COMMIT
        return About(path.parent.parent.name.rpartition("--")[2], licence)
    match = re.fullmatch(r"step-(\d+)", path.name)
    if match is None or path.parent.name != "checkpoints":
        return About(path.name, licence)
    run, step = path.parent.parent, int(match[1])
    values = load_file(run / "config.yaml").values if (run / "config.yaml").is_file() else {}
    return About(run.name, licence, _data(values), _metrics(run / "metrics.jsonl", step), step)


def _data(values: dict[str, Any]) -> list[str]:
    if "finetune" in values:
        section = values["finetune"]
        return [f"fine-tuned from `{section.get('from')}` on `{section.get('data')}`"]
    dataset = str(values.get("data", {}).get("dataset", "unknown"))
    lines = [f"pretrained on `{dataset}`"]
    folder = dataset_folder(dataset)
    if is_dataset(folder):
        manifest = read_json(folder / MANIFEST)
        lines += [f"{split}: {part['documents']:,} documents, {part['tokens']:,} tokens, "
                  f"{part['bytes']:,} bytes" for split, part in manifest["splits"].items()]
        lines += [f"source: `{source['path']}`" for source in manifest["sources"]]
    return lines


def _metrics(path: Path, step: int) -> dict[str, float]:
    """The evaluation at a step, or the last one before it."""
    found: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            event = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        if event.get("event") == "eval" and event.get("step", 0) <= step:
            found = {name: event[name] for name in ("val_loss", "val_bits_per_byte")}
    return found


def model_card(about: About, model: GPT, tokenizer: Tokenizer) -> str:
    """Markdown, with the fields that the Hugging Face Hub reads at its head."""
    config = model.config
    head: dict[str, Any] = {"license": about.licence or "unknown", "library_name": "transformers",
                            "pipeline_tag": "text-generation"}
    if about.metrics:
        head["model-index"] = [{"name": about.name, "results": [{
            "task": {"type": "text-generation"},
            "dataset": {"name": "its own validation split", "type": "text"},
            "metrics": [{"type": name, "value": value} for name, value in about.metrics.items()]}]}]
    facts = [f"{parameter_count(model):,} parameters: {config.n_layer} layers, {config.n_head} "
             f"heads ({config.n_kv_head} for keys and values), width {config.n_embd}",
             f"context of {config.block_size:,} tokens",
             f"tokenizer `{tokenizer.spec}` with {tokenizer.vocab_size:,} ids"]
    if about.step is not None:
        facts.append(f"{about.step:,} training steps")
    scores = [f"{name.removeprefix('val_').replace('_', ' ')} on its validation split: {value:.4f}"
              for name, value in about.metrics.items()] or ["no evaluation was recorded"]
    licence = about.licence or "not stated by the authors"
    sections = {"Model": facts, "Data": about.data or ["not recorded"], "Metrics": scores,
                "Licence": [licence]}
    lines = ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(), "---", "",
             f"# {about.name}", ""]
    for title, points in sections.items():
        lines += [f"## {title}", "", *(f"- {point}" for point in points), ""]
    return "\n".join(lines)
