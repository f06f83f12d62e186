"""Row 5: files that are cut off, and bits that flip."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt.errors import UserError
from gpt.runs import checkpoint
from gpt.shards import Dataset, verify_dataset
from tests.faults.rows import runs
from tests.faults.rows.saves import scratch, write
from tests.faults.tally import Tally
from tests.faults.warm import command

SMALL = 4096  # bytes, up to which every length and every bit is tried


def run(short: bool, folder: Path) -> Tally:
    """Checkpoints, a dataset, and a few commands; short: fewer places of each."""
    tally, draw = Tally(), random.Random(0)
    with scratch() as root:
        write(root, 1)
        write(root, 2)
        newest, older = root / "step-00000002", root / "step-00000001"
        tally.add(_spoiled(newest, lambda: bool(checkpoint.damage(newest)), draw, short))
        tally.add(_passed_over(root, newest, older, draw, 10 if short else 300))
        runs.dataset(root)
        tally.add(_spoiled(root / "data", lambda: bool(verify_dataset(root / "data")), draw, short))
        tally.add(_shorter_shards(root / "data", draw))
    tally.add(_commands(folder, draw, short))
    return tally


def _spoiled(folder: Path, is_found: Callable[[], bool], draw: random.Random, short: bool
             ) -> Tally:
    """Every file of a folder, spoiled in every way."""
    tally = Tally()
    assert not is_found(), f"{folder} is damaged before anything was done to it"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for what, content in _ways(whole, draw, short):
            path.write_bytes(content)
            tally.expect(None if is_found() else f"{path.name}: {what} is not found")
        path.unlink()
        tally.expect(None if is_found() else f"{path.name}: that it is missing is not found")
        path.write_bytes(whole)
    assert not is_found()
    return tally


def _ways(whole: bytes, draw: random.Random, short: bool) -> Iterator[tuple[str, bytes]]:
    """(what was done, the file) for each length, and for each bit."""
    size = len(whole)
    lengths = {*range(min(size, SMALL)), *(draw.randrange(size) for _ in range(200 if size else 0))}
    bits = (range(8 * size) if size <= SMALL else
            [draw.randrange(8 * size) for _ in range(500)])
    for length in _some(sorted(lengths), draw, short):
        yield f"cut to {length} bytes", whole[:length]
    for bit in _some(bits, draw, short):
        yield f"bit {bit}", _flipped(whole, bit)


def _some(every: range | list[int], draw: random.Random, short: bool) -> list[int]:
    return draw.sample(list(every), min(12, len(every))) if short else list(every)


def _flipped(whole: bytes, bit: int) -> bytes:
    at = bit // 8
    return whole[:at] + bytes([whole[at] ^ 1 << bit % 8]) + whole[at + 1:]


def _passed_over(root: Path, newest: Path, older: Path, draw: random.Random, count: int) -> Tally:
    """The next newest is taken; where none is sound, one error says so."""
    tally = Tally()
    for _ in range(count):
        spoiled = [_spoil(newest, draw)]
        found, said = _newest(root)
        problem = None if found == older else f"{found} is taken"
        if draw.random() < 0.5:
            spoiled.append(_spoil(older, draw))
            found, said = _newest(root)
            problem = problem or (None if "none of the 2 checkpoints" in said else
                                  f"none is sound, and {found} is taken")
        tally.expect(problem)
        for path, whole in spoiled:
            path.write_bytes(whole)
    return tally


def _spoil(folder: Path, draw: random.Random) -> tuple[Path, bytes]:
    """(a file of a folder, what it held)"""
    path = draw.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    whole = path.read_bytes()
    path.write_bytes(draw.choice([content for _, content in _ways(whole, draw, True)]))
    return path, whole


def _newest(root: Path) -> tuple[Path | None, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            return checkpoint.newest_sound(root), said.getvalue()
        except UserError as error:
            return None, str(error)


def _shorter_shards(data: Path, draw: random.Random) -> Tally:
    """A shard of another length is refused when a dataset is opened, without reading it."""
    tally = Tally()
    for path in sorted([*data.glob("*.bin"), *data.glob("*.offsets")]):
        whole = path.read_bytes()
        for length in {0, len(whole) - 1, len(whole) + 1, draw.randrange(len(whole))}:
            path.write_bytes(whole[:length].ljust(length, b"\0"))
            try:
                Dataset(data)
                tally.expect(f"{path.name} of {length} bytes is opened")
            except UserError as error:
                tally.expect(None if path.name in str(error) else f"{path.name} is not named")
        path.write_bytes(whole)
    return tally


def _commands(folder: Path, draw: random.Random, short: bool) -> Tally:
    """What a user sees: a run goes on from the one before; with none it does not begin anew."""
    tally = Tally()
    runs.dataset(folder)
    assert runs.train(folder, "run", 6).code == 0
    expected = runs.outcome(folder / "runs" / "run")
    checkpoints = folder / "runs" / "run" / "checkpoints"
    newest, older = checkpoints / "step-00000006", checkpoints / "step-00000003"
    for _ in range(1 if short else 8):
        _spoil(newest, draw)
        done = runs.train(folder, "run", 6)
        problem = None if done.code == 0 and "is passed over" in done.err else done.err[-300:]
        tally.expect(problem or runs.different(runs.outcome(folder / "runs" / "run"), expected))
    _spoil(newest, draw)
    done = command("sample.py", "runs/run", "--max-new-tokens", 2, folder=folder)
    tally.expect(None if done.code == 0 and "is passed over" in done.err else done.err[-300:])
    _spoil(older, draw)
    before = {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
    for words in (("train.py", *runs.words("run", 9)), ("sample.py", "runs/run"),
                  ("gpt", "evaluate", "runs/run")):
        done = command(*words, folder=folder)
        one = done.is_one_line and done.code == 2 and "none of the 2 checkpoints" in done.last
        same = all(path.read_bytes() == content for path, content in before.items())
        tally.expect(None if one and same else f"{words[0]}: {done.code}: {done.err[-300:]}")
    return tally
