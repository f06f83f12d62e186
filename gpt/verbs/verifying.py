"""python -m gpt verify: are files what they were when they were written?"""

from __future__ import annotations

import argparse
from pathlib import Path

from gpt.errors import EXIT_FAILED, UserError
from gpt.runs import checkpoint
from gpt.shards import is_dataset, verify_dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FOLDER."""
    parser.add_argument("folder", metavar="FOLDER", help="a dataset, a run or a checkpoint")


def run(options: argparse.Namespace) -> None:
    """Compare every file with its SHA-256; exit code 1 if one differs."""
    verify(Path(options.folder))


def verify(folder: Path) -> None:
    """Say whether all files are what they were; exit code 1 if not."""
    if is_dataset(folder):
        found = {str(folder): verify_dataset(folder)}
    elif (folder / "manifest.json").is_file():
        found = {str(folder): checkpoint.damage(folder)}
    else:
        found = {str(path): checkpoint.damage(path)
                 for path in checkpoint.steps_in(folder / "checkpoints").values()}
    if not found:
        raise UserError(f"{folder} is no dataset, run or checkpoint")
    for name, problems in found.items():
        print(f"{name}: {'sound' if not problems else '; '.join(problems)}")
    if any(found.values()):
        raise SystemExit(EXIT_FAILED)
