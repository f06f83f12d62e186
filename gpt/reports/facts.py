"""What is said of a run besides its curves: what was trained on what, how to do so again."""

from __future__ import annotations

import contextlib
import re
import shlex
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from gpt.runs.history import History, logged, number, parameters_told
from gpt.runs.manifest import steps_in, weight_hash
from gpt.shards import Manifest, dataset_folder, is_dataset, read_manifest

SCRIPTS = ("train.py", "finetune.py")
MOST_TOLD = 30  # lines
_SHA256 = re.compile("[0-9a-f]{64}")


def manifest_of(run: History) -> tuple[Path, Manifest] | str:
    """The dataset of a run: (its folder, what it says of itself), or why that is not known."""
    name = _section(run.places, "data").get("dataset")
    if not isinstance(name, str):
        return "it was not pretrained from a dataset"
    home = str(run.environment.get("working_directory", "."))
    with contextlib.suppress(UserError, OSError):
        folder = dataset_folder(name)
        for place in (folder, Path(home) / folder):
            if is_dataset(place):
                return place, read_manifest(place)
    return f"the dataset {name} is not here, or is damaged"


def bytes_per_token(run: History) -> float | None:
    """Of its training text, where its dataset is here and was read as it is."""
    found = manifest_of(run)
    if isinstance(found, str) or any(source.weight is not None for source in found[1].sources):
        return None
    train = found[1].splits["train"]
    return train.bytes / train.tokens if train.tokens else None


def summary(run: History) -> dict[str, Any]:
    """The figures that a run is known by; those that are not known are left out."""
    best, last = run.best or {}, run.evaluations[-1] if run.evaluations else {}
    seconds = _latest(run, "elapsed_seconds")
    found = {
        "state": run.state, "step": _whole(_latest(run, "step")),
        "validation loss": number(last.get("val_loss")),
        "bits per byte": number(last.get("val_bits_per_byte")),
        "best validation loss": number(best.get("val_loss")),
        "best at step": _whole(number(best.get("step"))),
        "training loss": run.last("loss"), "tokens": _whole(_latest(run, "tokens")),
        "parameters": parameters_told(run.path),
        "FLOPs": float(run.flops[-1]) if len(run.flops) else None,
        "hours": None if seconds is None else seconds / 3600,
        "tokens per second": _whole(run.last("tokens_per_second")),
        "GiB of memory": _share(run.last("peak_memory_bytes"), 2**30),
    }
    return {name: value for name, value in found.items() if value is not None}


def _latest(run: History, name: str) -> float | None:
    """A counter, from training or what came after it."""
    counted = [run.last(name), *(number(line.get(name)) for line in (*run.evaluations, *run.ends))]
    return max((value for value in counted if value is not None), default=None)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _share(value: float | None, of: float) -> float | None:
    return None if value is None else value / of


def trained(run: History) -> list[tuple[str, Any]]:
    """(what, its value) of the model, what it learned from, and how."""
    model = {name.removeprefix("model."): value for name, value in run.settings.items()
             if name.startswith("model.") and value is not None}
    rows: list[tuple[str, Any]] = [("model", ", ".join(
        f"{name} {model[name]}" for name in ("n_layer", "n_head", "n_kv_head", "n_embd",
                                             "block_size", "vocab_size", "position", "mlp", "norm")
        if name in model) or "not known")]
    finetuned = _section(run.config, "finetune")
    if finetuned:
        rows += [(name, finetuned[name]) for name in ("from", "data", "val_data", "method",
                                                      "pretrain_data") if finetuned.get(name)]
        return rows
    found = manifest_of(run)
    if isinstance(found, str):
        return [*rows, ("data", found)]
    folder, manifest = found
    changed = run.identity.get("data") not in (None, manifest.fingerprint)
    rows.append(("dataset", f"{folder}{' (changed since)' * changed}"))
    rows.append(("tokenizer", f"{manifest.tokenizer.spec}, {manifest.tokenizer.vocab_size:,} "
                              "tokens"))
    rows += [(f"{name} split", f"{split.documents:,} documents, {split.tokens:,} tokens, "
                               f"{split.bytes:,} bytes")
             for name, split in manifest.splits.items()]
    rows += [(f"source {source.path}", f"{source.train.tokens:,} tokens to training, "
              f"{source.val.tokens:,} to validation"
              + (f"; weight {source.weight:g}" if source.weight is not None else ""))
             for source in manifest.sources[:50]]
    return rows


def hashes(run: History) -> dict[str, str]:
    """SHA-256 of what the run learned from, and of the weights of each checkpoint that is kept, as
    they are recorded: `evaluate` tells the same of the weights."""
    found = {name: value for name, value in run.identity.items()
             if isinstance(value, str) and _SHA256.fullmatch(value)}
    for step, path in sorted(steps_in(run.path / "checkpoints").items()):
        with contextlib.suppress(UserError, OSError):
            found[f"weights of step {step:,}"] = weight_hash(path)
    return found


def told(run: History) -> str:
    """What a run said when it began: parameters, steps, rates, memory, examples."""
    first = takewhile(lambda line: not line.startswith(("step ", "sample ")), logged(run.path))
    return "\n".join(islice(first, MOST_TOLD))


def environment(run: History) -> dict[str, Any]:
    """What the run ran on, by name."""
    packages = _section(run.environment, "packages")
    there = {name: run.environment[name]
             for name in ("hardware", "processes", "host", "platform", "python", "commit",
                          "working_directory")
             if run.environment.get(name)}
    return there | {name: version for name, version in packages.items() if version}


def commands(run: History) -> list[str]:
    """What repeats the run: as it was given, and from the folder alone."""
    given = run.environment.get("command")
    if not isinstance(given, list) or not given:
        return []
    script = next((name for name in SCRIPTS if str(given[0]).endswith(name)), str(given[0]))
    ranks, home = run.environment.get("processes"), str(run.environment.get("working_directory"))
    many = ["torchrun", f"--nproc-per-node={ranks}"]
    start = many if isinstance(ranks, int) and ranks > 1 else ["python"]
    config = run.path.resolve() / "config.yaml"
    with contextlib.suppress(ValueError):
        config = config.relative_to(home)
    lines = [["cd", home] if "working_directory" in run.environment else [],
             ["git", "checkout", str(run.environment.get("commit"))]
             if run.environment.get("commit") else [],
             [*start, script, *map(str, given[1:])],
             [*start, script, str(config), f"run.name={config.parent.name}-again"]]
    first, second, as_given, again = map(shlex.join, lines)
    return [*filter(None, [first, second]), as_given,
            "# or, with every setting as it was in the end:", again]


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a mapping; empty if it is none."""
    part = values.get(name)
    return part if isinstance(part, dict) else {}
