"""python -m gpt verify: are files what they were when they were written?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from gpt.errors import EXIT_FAILED, UserError
from gpt.files import SUMS, differing, flush_to_disk, locked, make_folder
from gpt.machine.progress import progress_bar
from gpt.runs import checkpoint
from gpt.shards import is_dataset, verify_dataset

ASIDE = "damaged"  # where a run's damaged checkpoints go
Check = Callable[[Callable[[int], object]], list[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PATH …"""
    parser.add_argument("paths", metavar="PATH", nargs="+",
                        help="a dataset, a run, a checkpoint or an export")
    parser.add_argument("--repair", action="store_true",
                        help=f"move a run's damaged checkpoints to RUN/{ASIDE}")


def run(options: argparse.Namespace) -> None:
    """Compare every file with its SHA-256; exit code 1 if one differs and was not put aside."""
    paths = [Path(path) for path in options.paths]
    checks = {path: checks_of(path) for path in paths}
    if options.repair and (other := next((p for p in paths if not _is_run(p)), None)):
        raise UserError(f"--repair moves damaged checkpoints of runs aside; {other} is no run: "
                        "prepare a dataset again, export again, or give the run")
    files = [file for path in paths for file in path.rglob("*") if file.is_file()]
    found: dict[Path, dict[Path, list[str]]] = {}
    with progress_bar("verifying", sum(file.stat().st_size for file in files), "B") as bar:
        for path, parts in checks.items():
            found[path] = {part: check(bar.update) for part, check in parts.items()}
    for parts_found in found.values():
        for part, problems in parts_found.items():
            print(f"{part}: {'sound' if not problems else '; '.join(problems)}")
    wrong = [path for path, parts_found in found.items() if any(parts_found.values())
             and not (options.repair and repaired(path, parts_found))]
    if wrong:
        raise SystemExit(EXIT_FAILED)


def checks_of(path: Path) -> dict[Path, Check]:
    """What of a path is verified, each with what finds its damage."""
    if is_dataset(path):
        return {path: lambda tell: verify_dataset(path, tell)}
    if (path / "manifest.json").is_file():
        return {path: lambda tell: checkpoint.damage(path, tell)}
    if (path / SUMS).is_file():
        return {path: lambda tell: differing(path, tell)}
    parts = [*checkpoint.steps_in(path / "checkpoints").values()]
    parts += [checkpoint.base_folder(path)] * checkpoint.base_folder(path).is_dir()
    if not parts:
        raise UserError(f"{path} is no dataset, run or checkpoint, nor an export")
    return {part: lambda tell, part=part: checkpoint.damage(part, tell)  # type: ignore[misc]
            for part in parts}


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir()


def repaired(run: Path, found: dict[Path, list[str]]) -> bool:
    """Move a run's damaged checkpoints aside; whether all that is left is sound."""
    checkpoints = [part for part in found if part.parent.name == "checkpoints"]
    damaged = [part for part in checkpoints if found[part]]
    with locked(run, "repair it when that has ended"):
        make_folder(run / ASIDE)
        for part in damaged:
            print(f"{part} is now {_moved(part, run / ASIDE)}")
        flush_to_disk(run / ASIDE)
        flush_to_disk(run / "checkpoints")
    if len(damaged) == len(checkpoints):
        print(f"{run}: no sound checkpoint is left; restore one from a backup")
        return False
    return not any(found[part] for part in found if part not in checkpoints)


def _moved(part: Path, folder: Path) -> Path:
    """To a name that is free."""
    names = (part.name, *(f"{part.name}-{number}" for number in range(2, 10_000)))
    target = next(folder / name for name in names if not (folder / name).exists())
    part.rename(target)
    return target
