"""The README.md of an exported model: what it learned from, how well, under which licence."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpt.configuration.strict_yaml import load_file
from gpt.errors import UserError
from gpt.files import read_json
from gpt.interop import hub
from gpt.model import GPT, parameter_count
from gpt.shards import MANIFEST, dataset_folder, is_dataset
from gpt.tokenizer import Tokenizer

MOST_BEFORE = 100  # runs that a run goes on from, one after the other


@dataclass(frozen=True)
class About:
    """What the card tells beyond the model itself.

    licence: an SPDX identifier, or None if nobody has said. data: lines about the text. metrics:
    of the last evaluation. step: updates done. base_model: the Hub's name of what was fine-tuned.
    """

    name: str
    licence: str | None = None
    data: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    base_model: str | None = None


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
    return About(run.name, licence, _data(values), _metrics(run / "metrics.jsonl", step), step,
                 _base_model(values))


def _base_model(values: Any) -> str | None:
    """The Hub's name of the model that a run started from, perhaps by way of other runs."""
    for _ in range(MOST_BEFORE):
        name = str(_section(values, "finetune").get("from", ""))
        if hub.is_hub_name(name):
            return name
        folder = Path(name.rpartition("@")[0] or name)
        try:
            if (folder / "config.yaml").is_file():
                values = load_file(folder / "config.yaml").values
                continue
            config = read_json(folder / "config.json")
        except (UserError, OSError):
            return None
        theirs = str(config.get("_name_or_path", "")) if isinstance(config, dict) else ""
        return theirs if hub.is_hub_name(theirs) else None
    return None


def _section(values: Any, name: str) -> dict[str, Any]:
    """A section of a run's configuration; empty if it has none that is sound."""
    found = values.get(name) if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}


def public(name: str) -> str:
    """Of a place on the author's machine no more than its last part; a name on the Hub, a URL and a
    tokenizer's specification as they are."""
    if "://" in name or hub.is_hub_name(name):
        return name
    return Path(name).name or name


def _data(values: Any) -> list[str]:
    if section := _section(values, "finetune"):
        return [f"fine-tuned from `{public(str(section.get('from')))}` on "
                f"`{public(str(section.get('data')))}`"]
    dataset = str(_section(values, "data").get("dataset", "unknown"))
    lines = [f"pretrained on `{public(dataset)}`"]
    folder = dataset_folder(dataset)
    if is_dataset(folder):
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # damaged
            manifest = read_json(folder / MANIFEST)
            lines += [f"{split}: {part['documents']:,} documents, {part['tokens']:,} tokens, "
                      f"{part['bytes']:,} bytes" for split, part in manifest["splits"].items()]
            lines += [f"source: `{public(source['path'])}`" for source in manifest["sources"]]
    return lines


def _metrics(path: Path, step: int) -> dict[str, float]:
    """The evaluation at a step, or the last one before it."""
    found: dict[str, float] = {}
    names = ("val_loss", "val_bits_per_byte")
    for line in (path.read_text(encoding="utf-8", errors="replace").splitlines()
                 if path.is_file() else ()):
        try:
            event = json.loads(line)
            measured = event["event"] == "eval" and event["step"] <= step
            figures = {name: float(event[name]) for name in names} if measured else found
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            continue  # the last line of a run that was killed, or another line
        found = figures
    return found


def model_card(about: About, model: GPT, tokenizer: Tokenizer) -> str:
    """Markdown, with the fields that the Hugging Face Hub reads at its head."""
    config = model.config
    head: dict[str, Any] = {"license": about.licence or "unknown", "library_name": "transformers",
                            "pipeline_tag": "text-generation"}
    if about.base_model is not None:
        head["base_model"] = about.base_model
    if about.metrics:
        head["model-index"] = [{"name": about.name, "results": [{
            "task": {"type": "text-generation"},
            "dataset": {"name": "its own validation split", "type": "text"},
            "metrics": [{"type": name, "value": value} for name, value in about.metrics.items()]}]}]
    facts = [f"{parameter_count(model):,} parameters: {config.n_layer} layers, {config.n_head} "
             f"heads ({config.n_kv_head} for keys and values), width {config.n_embd}",
             f"context of {config.block_size:,} tokens",
             f"tokenizer `{public(tokenizer.spec)}` with {tokenizer.vocab_size:,} ids"]
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
