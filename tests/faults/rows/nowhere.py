"""Row 14: folders that nobody may write to, no HOME, no place for temporary files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tests.faults.rows import runs
from tests.faults.rows.full_disk import small_disk
from tests.faults.tally import Tally
from tests.faults.warm import Started, obey, start

Words = tuple[object, ...]
NOBODY = 65534


def run(short: bool, folder: Path) -> Tally:
    """What cannot be written is said before training begins; what is not needed is not missed.

    short: only where all of that is missing at once.
    """
    tally = Tally()
    runs.dataset(folder)
    assert runs.train(folder, "run", 3).code == 0
    closed = folder / "closed"
    closed.mkdir()
    with small_disk(closed, 1 << 20, "ro") as disk:
        if disk is None:
            closed.chmod(0o555)
        if disk is not None or os.geteuid():
            for words in _into(closed):
                done = start(*words, folder=folder).wait()
                began = "step" in done.out
                good = done.is_one_line and str(closed) in done.last and not began
                tally.expect(None if good else f"{words}: {done.code}: {done.err[-300:]!r}")
        else:
            tally.notes.append("root may write anywhere, and mount nothing: without closed folders")
    tally.add(_without(folder, closed, short))
    return tally


def _into(closed: Path) -> Iterator[Words]:
    """Commands that write into a closed folder."""
    yield ("train.py", *runs.words("new", 3, f"run.out_dir={closed}"))
    yield ("train.py", *runs.words("new", 3, f"run.out_dir={closed}/deeper"))
    yield ("data/prepare.py", "text.txt", "tokenizer=char", f"out={closed}/data")
    yield ("gpt", "export", "runs/run", closed / "hf", "--format", "hf")
    yield ("gpt", "export", "runs/run", closed / "model.gguf", "--format", "gguf")
    yield ("finetune.py", "finetune.from=runs/run", "finetune.data=text.txt",
           "finetune.format=text", "train.steps=2", f"run.out_dir={closed}", "run.device=cpu")


def _without(folder: Path, closed: Path, short: bool) -> Tally:
    """The same run without a home, without a place for temporary files, and as nobody."""
    tally = Tally()
    expected = runs.outcome(folder / "runs" / "run")
    nowhere = str(closed / "nowhere")
    lacking: tuple[dict[str, str | None], ...] = (
        {"HOME": None}, {"HOME": nowhere}, {"TMPDIR": None}, {"TMPDIR": nowhere},
        {"HOME": None, "TMPDIR": None, "USER": None, "LOGNAME": None, "XDG_CACHE_HOME": None},
        {"HOME": nowhere, "TMPDIR": nowhere, "XDG_CACHE_HOME": nowhere})
    for number, environment in enumerate(lacking[-2:] if short else lacking):
        for as_nobody in (False, True) if os.geteuid() == 0 else (False,):
            name = f"run-{number}-{as_nobody}"
            out = folder / "open" / name
            out.mkdir(parents=True)
            out.chmod(0o777)
            words = runs.words(name, 3, f"run.out_dir={out}")
            done = _started(words, folder, as_nobody, environment).wait()
            problem = None if done.code == 0 else f"{done.code}: {done.err[-300:]!r}"
            tally.expect((problem or runs.different(runs.outcome(out / name), expected)) and
                         f"{environment}, as nobody: {as_nobody}: {problem}")
            sampled = start("sample.py", out / name, "--max-new-tokens", 2, folder=folder,
                            **environment).wait()
            tally.expect(None if sampled.code == 0 else f"sample.py: {sampled.err[-300:]!r}")
    return tally


def _started(words: tuple[str, ...], folder: Path, as_nobody: bool,
             environment: dict[str, str | None]) -> Started:
    def work() -> int:
        if as_nobody:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return obey("train.py", list(words))

    for path in (folder, *folder.parents):
        if as_nobody and path.stat().st_mode & 0o005 != 0o005 and path.stat().st_uid == 0:
            path.chmod(path.stat().st_mode | 0o005)
    return Started(work, folder, **environment)
