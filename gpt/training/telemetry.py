"""What a run tells: metrics.jsonl, train.log, samples.jsonl, wandb."""

from __future__ import annotations

import json
import math
import secrets
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt.configuration import LogConfig
from gpt.errors import UserError
from gpt.files import flush_to_disk, naming, write_atomically
from gpt.streams import kept_elsewhere


class Log:
    """What a run tells, to nobody: of several processes that train together one tells."""

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Something happened at a step."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """A text was generated."""

    def say(self, text: str) -> None:
        """A line for people."""

    def warn(self, step: int, text: str) -> None:
        """A line for people that other programs should see, too."""

    def to_disk(self) -> None:
        """What was told so far is to outlive the machine, as the checkpoint does that follows."""

    def rewind(self, step: int) -> None:
        """Training has gone back to a step, and will tell again what came after it."""

    def close(self) -> None:
        """There is no more to tell."""


class RunLog(Log):
    """Everything that a run writes for people and for other programs."""

    def __init__(self, folder: Path, log: LogConfig, config: dict[str, Any], resumed_at: int,
                 again: Collection[str] = ("eval", "core", "sample", "end")):
        """resumed_at: the step of the checkpoint that training goes on from; later lines go, and
        of that step's those of what happens again."""
        self._folder, self._log = folder, log
        _drop_lines_after(folder / "metrics.jsonl", resumed_at, again)
        _drop_lines_after(folder / "samples.jsonl", resumed_at, again)
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._wandb = None if log.wandb == "disabled" else self._start_wandb(config)

    def _start_wandb(self, config: dict[str, Any]) -> Any:
        try:
            import wandb
        except ImportError as error:
            raise UserError("log.wandb is switched on, but the package wandb is not installed: "
                            "pip install wandb, or set log.wandb=disabled") from error
        id_file = self._folder / "wandb_id"  # one wandb run, however often training is resumed
        if not id_file.exists():
            write_atomically(id_file, secrets.token_hex(8))
        run = wandb.init(project=self._log.wandb_project, name=self._folder.name, config=config,
                         dir=str(self._folder), id=id_file.read_text(), resume="allow",
                         mode=self._log.wandb, settings=wandb.Settings(silent=True))
        run.define_metric("*", step_metric="step")
        return run

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Append a line to metrics.jsonl, and the same to wandb; what is not finite is null."""
        values = {key: None if value in (math.inf, -math.inf) or value != value else value
                  for key, value in values.items()}
        line = {"event": kind, "step": step, **values}
        with naming(self._folder / "metrics.jsonl"):
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
        if self._wandb is not None and kind in ("train", "eval", "core"):
            prefix = "train/" if kind == "train" else ""
            self._wandb.log({"step": step} | {prefix + k: v for k, v in values.items()})

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Keep a generated text in samples.jsonl, and show it."""
        line = json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False)
        self._append("samples.jsonl", line)
        self.say(f"sample at step {step}: {prompt}{text}")

    def say(self, text: str) -> None:
        """Show a line above the progress bar, and keep it in train.log."""
        with kept_elsewhere():
            tqdm.write(text, file=sys.stdout)
        self._append("train.log", text)

    def _append(self, name: str, line: str) -> None:
        path = self._folder / name
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def warn(self, step: int, text: str) -> None:
        """Say it, and keep it in metrics.jsonl as well."""
        self.say(text)
        self.event("warning", step, message=text)

    def to_disk(self) -> None:
        """Flush what programs read. (From any thread.)"""
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (self._folder / name).exists():
                flush_to_disk(self._folder / name)

    def rewind(self, step: int) -> None:
        """Drop what was told of later steps, but for warnings, which say why."""
        self._metrics.close()
        for name in ("metrics.jsonl", "samples.jsonl"):
            _drop_lines_after(self._folder / name, step, (), told=("warning",))
        self._metrics = (self._folder / "metrics.jsonl").open("a", encoding="utf-8")

    def close(self) -> None:
        """Finish the files, and wandb's run."""
        self._metrics.close()
        if self._wandb is not None:
            self._wandb.finish()


def _drop_lines_after(path: Path, step: int, again: Collection[str],
                      told: Collection[str] = ()) -> None:
    """Keep what was logged up to a checkpoint: a killed run may have gone beyond it.

    Of the checkpoint's own step, what happens again goes too. A line torn by the kill is dropped.
    told: events that stay, whenever they were.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
            at, event = entry["step"], entry.get("event", "sample")
            stopped = "stopped_by" in entry  # and goes on
            stays = at < step or (at == step and event not in again and not stopped)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if stays or event in told:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept))
