"""Preparations of a small dataset that other rows disturb."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path

from data.preparation import prepare
from data.sharding import encode, writing
from data.sources import text
from gpt.shards import is_dataset, verify_dataset
from tests.data.corpora import recipe
from tests.faults.rows.saves import Files, files_of
from tests.faults.warm import forked


def corpus(folder: Path) -> None:
    """Some text files."""
    (folder / "text").mkdir()
    for number in range(6):
        (folder / "text" / f"{number}.txt").write_text(f"file {number}: the quick brown fox\n" * 9)


def prepare_in(folder: Path) -> None:
    """Prepare folder/out/data from folder/text, in many small pieces; for a forked process."""
    os.chdir(folder)
    for path in Path("text").iterdir():
        os.utime(path, (10**9, 10**9))  # which a preparation looks at, to know that it may go on
    text.PIECE_BYTES, encode.BATCH_CHARACTERS, writing.COMMIT_SECONDS = 256, 600, 0.0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare(recipe(sources=["text"], tokenizer="byte", out="out/data", name="text", workers=1))


def whole(folder: Path) -> Files:
    """The files of the dataset that nobody disturbs."""
    forked(lambda: prepare_in(folder))
    found = files_of(folder / "out" / "data")
    shutil.rmtree(folder / "out")
    return found


def problem(folder: Path, whole: Files, done: bool, further: bool) -> str | None:
    """What is wrong with what is there: no dataset, or the whole one, which must be there once the
    preparation has come to its end; and with what the same command makes of it."""
    out = folder / "out" / "data"
    if is_dataset(out) and (damaged := verify_dataset(out)):
        return f"there is a dataset, and {', '.join(damaged)} is damaged"
    if is_dataset(out) and files_of(out) != whole:
        return "the dataset is another"
    if done and not is_dataset(out):
        return "it came to its end, and there is no dataset"
    if further:
        try:
            forked(lambda: prepare_in(folder))
        except AssertionError as error:
            return f"the same command fails: {str(error)[-300:]}"
        if files_of(out) != whole:
            return "the same command makes another dataset"
    return None
