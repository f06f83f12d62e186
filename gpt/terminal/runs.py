"""Runs in a terminal: a table of them, and their losses drawn with characters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.runs.history import (
    LONGEST_LINE,
    Array,
    History,
    guessed,
    is_run,
    number,
    parameters_told,
    running_mean,
    state_of,
)

BLOCK = 1 << 18  # bytes of metrics.jsonl that are looked through at a time, from its end
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character
BRAILLE = 0x2800
MARGIN = 9  # characters, for the losses
COLOURS = (34, 33, 32, 35, 36, 31)  # of terminals
COLUMNS = ("run", "state", "step", "loss", "val loss", "bits/byte", "best", "tokens/s", "size",
           "last written")


def runs_in(folder: Path) -> list[Path]:
    """The runs in a folder, newest first; itself, if it is one."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the one that runs lie in, such as runs")
    found = [folder] if is_run(folder) else [path for path in folder.iterdir() if is_run(path)]
    if not found:
        raise UserError(f"no run lies in {folder}: train one with `python train.py "
                        "configs/quickstart.yaml`")
    return sorted(found, key=_written, reverse=True)


def table_of(runs: Sequence[Path]) -> str:
    """Their state and newest figures, a line each."""
    return in_columns([COLUMNS, *map(_row, runs)], left=2)


def in_columns(rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """A table, its first row a head. left: how many columns stand to the left, as text does."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(
        cell.ljust(width) if place < left else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows)


def _row(run: Path) -> tuple[str, ...]:
    lines = _newest(run / "metrics.jsonl")
    last, train, scored = (lines.get(event, {}) for event in ("", "train", "eval"))
    best = _json(run / "checkpoints" / "best.json").get("val_loss", scored.get("val_loss"))
    figures = ((last.get("step"), ",.0f"), (train.get("loss"), ".4f"),
               (scored.get("val_loss"), ".4f"), (scored.get("val_bits_per_byte"), ".4f"),
               (best, ".4f"), (train.get("tokens_per_second"), ",.0f"),
               (parameters_told(run), ",.0f"))
    return (visible(run.name), visible(state_of(run, last)),
            *(figure(value, how) for value, how in figures), _when(_written(run)))


def visible(text: str) -> str:
    """A name as one line of a terminal shows it."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def _when(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds).isoformat(" ", "minutes")
    except (ValueError, OverflowError, OSError):  # a year that no calendar has
        return "–"


def _newest(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each event, and under "" the last of all, read from the file's end."""
    found: dict[str, dict[str, Any]] = {}
    for line in _from_behind(path):
        if "train" in found and b'"train"' in line:  # of which there are many
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.setdefault("", value)
            found.setdefault(str(value.get("event") or guessed(value)), value)
        if {"train", "eval"} <= found.keys():
            break
    return found


def _from_behind(path: Path) -> Iterator[bytes]:
    """A file's lines that hold something, last first; none if it cannot be read."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            end, torn = file.seek(0, 2), b""
            while end:
                start = max(0, end - BLOCK)
                file.seek(start)
                lines = (file.read(end - start) + torn).split(b"\n")
                torn = lines[0] if start else b""
                if len(torn) > LONGEST_LINE:  # what no run writes
                    return
                for line in reversed(lines[1:] if start else lines):
                    if line:
                        yield line
                end = start
    except OSError:
        return


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def figure(value: Any, how: str) -> str:
    """A number, or what stands for none."""
    return "–" if number(value) is None else format(value, how)


def _written(run: Path) -> float:
    """When a run was last at work, in seconds since 1970."""
    return max((path.stat().st_mtime for name in ("metrics.jsonl", "config.yaml")
                if (path := run / name).is_file()), default=0.0)


def drawn_curves(runs: Sequence[History], width: int, height: int, colour: bool,
                 encoding: str = "utf-8") -> str:
    """The training losses over tokens, smoothed, in braille dots; a line says whose is which.

    encoding: of the terminal; where it has no such dots, stars stand for them.
    """
    lines = {place: _known(run) for place, run in enumerate(runs)}
    drawable = {place: line for place, line in lines.items() if len(line[1])}
    if not drawable:
        raise UserError(f"{', '.join(str(run.path) for run in runs)}: there is no training loss to "
                        "draw yet")
    low, high = (way(way(y) for _, y in drawable.values()) for way in (min, max))
    end, inner = max(x[-1] for x, _ in drawable.values()), max(10, width - MARGIN)
    dots, owners = np.zeros((2, height, inner), dtype=np.int64)
    for place, (x, y) in drawable.items():
        _draw(dots, owners, place, x / max(end, 1), (high - y) / max(high - low, 1e-9))
    marks = [chr(BRAILLE + dot) for dot in range(256)]
    marks[0] = " "
    if not _can_show(marks[1], encoding):
        marks[1:] = "*" * 255
    rows = []
    for row in range(height):
        value = f"{high - (high - low) * row / max(1, height - 1):8.4g} "
        rows.append(value + "".join(
            _coloured(marks[dot], owner, colour and bool(dot))
            for dot, owner in zip(dots[row].tolist(), owners[row].tolist(), strict=True)))
    rows.append(" " * MARGIN + f"0{f'{end:,.0f} tokens'.rjust(inner - 1)}")
    return "\n".join([*rows, *(_named(run, place, colour) for place, run in enumerate(runs))])


def _known(run: History) -> tuple[Array, Array]:
    """(tokens, smoothed losses)"""
    if not {"tokens", "loss"} <= run.steps.keys():
        return np.empty(0), np.empty(0)
    losses = running_mean(run.steps["loss"])
    known = np.isfinite(losses) & np.isfinite(run.steps["tokens"])
    return run.steps["tokens"][known], losses[known]


def _draw(dots: Array, owners: Array, owner: int, across: Array, down: Array) -> None:
    """Set the dots of a line. across, down: its points, as shares of width and height, (n,) each.
    """
    height, width = dots.shape
    columns = np.arange(width * 2)
    places = np.interp((columns + 0.5) / (width * 2), across, down)
    rows = np.minimum(height * 4 - 1, (places * height * 4).astype(np.int64)).tolist()
    last = rows[0]
    for column, row in zip(columns[columns / (width * 2) <= across[-1]].tolist(), rows,
                           strict=False):
        for each in {row, *range(min(last, row) + 1, max(last, row))}:
            dots[each // 4, column // 2] |= DOTS[each % 4][column % 2]
            owners[each // 4, column // 2] = owner
        last = row


def _can_show(mark: str, encoding: str) -> bool:
    try:
        mark.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _coloured(text: str, owner: int, colour: bool) -> str:
    return f"\033[{COLOURS[owner % len(COLOURS)]}m{text}\033[0m" if colour else text


def _named(run: History, place: int, colour: bool) -> str:
    best = run.best
    said = (f"{visible(run.name)}, {visible(run.state)}: training loss "
            f"{figure(run.last('loss'), '.4f')}")
    return _coloured(f"{place + 1}. ", place, colour) + said + (
        f", best validation loss {best['val_loss']:.4f} at step {best.get('step')}" if best else "")
