"""A run's folder: what it was started with, on what, and whether a command may continue it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpt.configuration import PLACES, RunConfig, RunSections, fields, strict_yaml
from gpt.errors import UserError
from gpt.files import locked, make_folder, read_json, write_atomically, write_json
from gpt.machine.device import Machine
from gpt.machine.hardware import PACKAGES, package_version
from gpt.runs import checkpoint


@dataclass(frozen=True)
class RunFolder:
    """runs/NAME, and the checkpoint from which training goes on (None: from the start)."""

    path: Path
    resume_from: Path | None

    @property
    def state(self) -> checkpoint.TrainState:
        """How far the run has come."""
        if self.resume_from is None:
            return checkpoint.TrainState()
        return checkpoint.read_state(self.resume_from)

    @property
    def is_complete(self) -> bool:
        """Whether training reached its end, was evaluated and logged, at the newest checkpoint."""
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            last = json.loads(lines[-1])
        except (OSError, ValueError, IndexError, RecursionError):
            return False
        return (isinstance(last, dict) and last.get("event") == "end" and "stopped_by" not in last
                and last.get("step") == self.state.step)

    def recorded(self) -> dict[str, Any]:
        """The configuration that training went on with the last time; empty if it never did."""
        return recorded(self.path)

    def record(self, config: RunSections, machine: Machine) -> None:
        """Write down with what, and on what, training goes on from here."""
        write_atomically(self.path / "config.yaml",
                         yaml.safe_dump(_resolved(config), sort_keys=False, allow_unicode=True))
        write_json(self.path / "environment.json", environment(machine))


def changes(before: dict[str, Any], config: RunSections) -> list[str]:
    """The fields that are not what they were the last time, with both values; what the run is, is
    the same anyway, and where things lie does not matter."""
    was, now = fields(before), fields(_resolved(config))
    return [f"{name}: {_text(was[name])} before, {_text(value)} now" for name, value in now.items()
            if name in was and was[name] != value
            and name not in ("run.name", "run.out_dir", *PLACES)]


def _resolved(config: RunSections) -> dict[str, Any]:
    run = config.run.model_copy(update={"resume": "auto"})
    return config.model_copy(update={"run": run}).model_dump(by_alias=True)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def recorded(path: Path) -> dict[str, Any]:
    """The configuration that a run was last at work with; empty if there is none."""
    with contextlib.suppress(OSError, UserError):
        values = strict_yaml.load_file(path / "config.yaml").values
        return values if isinstance(values, dict) else {}
    return {}


def started_with(run: RunConfig, name: str) -> Any:
    """A value of the identity of the run that is in the folder; None if there is no run."""
    path = Path(run.out_dir) / run.name / "identity.json"
    with contextlib.suppress(UserError, OSError):  # damage is told by open_run
        there = read_json(path)
        return there.get(name) if isinstance(there, dict) else None
    return None


@contextlib.contextmanager
def open_run(config: RunSections, identity: dict[str, Any]) -> Iterator[RunFolder]:
    """Create the run's folder, or find where to continue; no other process may use it meanwhile.

    identity: what the run's result rests on (model, data, tokenizer, seed, batch size). A folder
    that holds a run with another identity is refused, with the differences, and left as it is.
    """
    path = Path(config.run.out_dir) / config.run.name
    _refuse_what_is_no_run(path)
    _refuse_another_run(path, identity)
    if not path.exists():
        _where_to_resume(path, config.run)  # what is wrong is said before anything is created
        make_folder(path)
    with locked(path, "choose another run.name"):
        checkpoint.remove_leftovers(path)
        _refuse_another_run(path, identity)  # again: another process may just have made it
        resume_from = _where_to_resume(path, config.run)
        write_json(path / "identity.json", identity)
        checkpoint.remove_leftovers(path / "checkpoints")
        yield RunFolder(path, resume_from)


def _refuse_what_is_no_run(path: Path) -> None:
    foreign = [path.name] if path.is_file() else []
    if path.is_dir() and not (path / "identity.json").is_file():
        foreign = [p.name for p in path.iterdir() if p.name != "lock" and ".tmp-" not in p.name]
    if foreign:
        raise UserError(f"{path} exists and holds no run; choose another run.name")


def _refuse_another_run(path: Path, identity: dict[str, Any]) -> None:
    if not (path / "identity.json").is_file():
        return
    there = read_json(path / "identity.json")
    if not isinstance(there, dict):
        raise UserError(f"{path / 'identity.json'} is damaged: it does not say what the run is; "
                        "choose another run.name")
    different = [f"{key}: {_said(key, there.get(key))} there, {_said(key, identity.get(key))} asked"
                 for key in sorted(there.keys() | identity.keys())
                 if there.get(key) != identity.get(key)]
    if different:
        raise UserError(f"{path} holds a different run ({'; '.join(different)}); choose another "
                        "run.name, or the values that run was started with")


_HASHED = {"data": "a dataset whose files have", "tokenizer": "one that has",
           "finetune.from": "weights that have", "finetune.pretrain_data": "a dataset that has"}


def _said(key: str, value: Any) -> str:
    """A value of the identity; of a hash, what it is of."""
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16,}", value):
        return f"{_HASHED.get(key, 'a file that has')} SHA-256 {value[:12]}…"
    return str(value)


def _where_to_resume(path: Path, run: RunConfig) -> Path | None:
    newest = checkpoint.newest_sound(path / "checkpoints")
    if run.resume == "auto":
        return newest
    if run.resume == "never":
        if newest is not None:
            raise UserError(f"run.resume=never, but {path} holds a run at {newest.name}; choose "
                            "another run.name, or remove that folder first")
        return None
    chosen = checkpoint.find(run.resume)
    step = checkpoint.read_state(chosen).step
    if newest is not None and checkpoint.read_state(newest).step > step:
        raise UserError(f"run.resume={run.resume} lies before {path}'s newest checkpoint "
                        f"({newest.name}), which would be lost; choose another run.name to branch "
                        "off")
    return chosen


def environment(machine: Machine) -> dict[str, Any]:
    """What the run ran on: versions, hardware, commit, command."""
    return {"command": sys.argv, "working_directory": str(Path.cwd()),
            "python": platform.python_version(),
            "platform": platform.platform(), "hardware": machine.describe(),
            "processes": machine.ranks.size,
            "host": socket.gethostname(), "commit": _commit(),
            "packages": {name: package_version(name) for name in PACKAGES}}


def code_hash() -> str:
    """SHA-256 of the toolkit's own code."""
    folder, digest = Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _commit() -> str | None:
    """The toolkit's own commit, where it runs from a git checkout."""
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True,
                              text=True, timeout=10, check=True)
        return done.stdout.strip()
    return None
