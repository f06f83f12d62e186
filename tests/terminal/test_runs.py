"""Runs as a table, and their losses as text."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from gpt.errors import UserError
from gpt.runs.history import History, read_history
from gpt.terminal import runs as terminal
from tests.written_runs import END, evaluation, lock, step, write_run


def row(folder):
    return re.split(r"  +", terminal.table_of([folder]).splitlines()[1])


def test_each_run_has_a_line_newest_first(tmp_path):
    for name in ("old", "new", "middle"):
        folder = write_run(tmp_path / name)
        for file in folder.iterdir():
            os.utime(file, (1e9, 1e9 + {"old": 0, "middle": 60, "new": 120}[name]))
    (tmp_path / "no run").mkdir()
    found = terminal.runs_in(tmp_path)
    assert [path.name for path in found] == ["new", "middle", "old"]
    lines = terminal.table_of(found).splitlines()
    assert len(lines) == 4 and len({line.index("done") for line in lines[1:]}) == 1
    header = re.split(r"  +", lines[0])
    assert dict(zip(header, re.split(r"  +", lines[1]), strict=True)) | {"last written": ""} == {
        "run": "new", "state": "done", "step": "200", "loss": f"{step(200)['loss']:.4f}",
        "val loss": "2.8000", "bits/byte": "1.3000", "best": "2.8000", "tokens/s": "2,048",
        "size": "12,345", "last written": ""}
    assert terminal.runs_in(tmp_path / "old") == [tmp_path / "old"]


def test_a_run_that_goes_on_and_one_that_was_stopped_are_told_apart(tmp_path):
    folder = write_run(tmp_path / "a", [step(1), step(2)])
    assert row(folder)[:3] == ["a", "interrupted", "2"]
    lock(folder)
    assert row(folder)[1] == "running"
    write_run(folder, [step(1), END | {"step": 1, "stopped_by": "SIGTERM"}])
    assert row(folder)[1] == "running"  # again
    (folder / "lock").unlink()
    assert row(folder)[1] == "stopped by SIGTERM"


def test_names_and_times_of_any_kind_keep_to_their_line(tmp_path):
    folder = write_run(tmp_path / "new\nline \x1b[31m", [step(1)])
    assert row(folder)[0] == "new\\nline \\x1b[31m"
    os.utime(folder / "metrics.jsonl", (1e15, 1e15))
    os.utime(folder / "config.yaml", (0, 0))
    assert len(terminal.table_of([folder]).splitlines()) == 2


def test_lines_that_no_run_writes_cost_no_time(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "metrics.jsonl").write_bytes(bytes(20 << 20))
    assert row(folder)[2] == "–"
    (folder / "metrics.jsonl").unlink()
    os.mkfifo(folder / "metrics.jsonl")
    assert row(folder)[2] == "–"


def test_an_older_format_is_in_the_table_too(tmp_path):
    assert row(write_run(tmp_path / "a", [{"step": 3, "loss": 2.5}]))[2:4] == ["3", "2.5000"]

def test_figures_are_found_however_far_behind_they_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "BLOCK", 1000)
    lines = [evaluation(1, val_loss=7.0), *(step(n) for n in range(1, 50)),
             {"event": "warning", "step": 49, "message": "x" * 5000}, '{"half']
    found = row(write_run(tmp_path / "a", lines))
    assert found[3:5] == [f"{step(49)['loss']:.4f}", "7.0000"]


@pytest.mark.parametrize("block", [1, 7, 100, 10**6])
def test_lines_come_from_behind_whole_whatever_the_block(tmp_path, monkeypatch, block):
    monkeypatch.setattr(terminal, "BLOCK", block)
    (tmp_path / "x").write_text("one\ntwo\n\nthree\nfo")
    assert [*terminal._from_behind(tmp_path / "x")] == [b"fo", b"three", b"two", b"one"]
    assert [*terminal._from_behind(tmp_path / "none")] == []


def test_a_run_without_figures_has_a_line_all_the_same(tmp_path):
    folder = write_run(tmp_path / "a", ["[1]\n", "\x00\n"])
    (folder / "train.log").unlink()
    assert row(folder)[1:9] == ["interrupted", *["–"] * 7]
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.json").write_text('{"step": 3, "val_loss": 2.5}')
    assert row(folder)[6] == "2.5000"


def test_no_folder_and_no_runs_are_said(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        terminal.runs_in(tmp_path / "none")
    with pytest.raises(UserError, match="no run lies in"):
        terminal.runs_in(tmp_path)


def falling(name="a", high=5.0, low=1.0, steps=400):
    ramp = np.concatenate([np.full(steps // 2, high), np.full(steps // 2, low)])
    return History(Path(f"/{name}"), {"tokens": np.arange(1.0, steps + 1), "loss": ramp})


def dots_of(text, width, height):
    """(the dots of a picture, (4 · height, 2 · columns) bool, its labels)"""
    lines = text.splitlines()[:height]
    dots = np.zeros((4 * height, 2 * (width - terminal.MARGIN)), dtype=bool)
    for row, line in enumerate(lines):
        for column, mark in enumerate(line[terminal.MARGIN:]):
            for y in range(4):
                for x in range(2):
                    bit = terminal.DOTS[y][x]
                    dots[4 * row + y, 2 * column + x] = mark != " " and ord(mark) & bit
    return dots, [float(line[:terminal.MARGIN]) for line in lines]


def test_the_line_lies_where_the_losses_are(monkeypatch):
    monkeypatch.setattr(terminal, "running_mean", lambda losses: losses)
    dots, labels = dots_of(terminal.drawn_curves([falling()], 60, 10, False), 60, 10)
    half = dots.shape[1] // 2
    assert labels[0] == 5.0 and labels[-1] == 1.0
    assert dots[0, :half - 1].all() and not dots[1:, :half - 1].any()
    assert dots[-1, half + 1:].all() and not dots[:-1, half + 1:].any()
    assert dots[:, half - 1:half + 1].any(axis=1).all()  # and no gap between


def test_a_shorter_run_ends_where_it_ended_and_the_colours_say_whose_is_whose():
    runs = [falling("a"), falling("b", 6.0, 2.0, 200)]
    dots, _ = dots_of(terminal.drawn_curves(runs[:1], 60, 10, False), 60, 10)
    both, _ = dots_of(terminal.drawn_curves(runs, 60, 10, False), 60, 10)
    assert dots.any(axis=0).all() and both[0].any() and (both[:, 60:].sum(axis=0) == 1).all()
    text = terminal.drawn_curves(runs, 60, 10, True)
    assert "\033[34m" in text and "\033[33m2. \033[0mb, interrupted" in text


def test_terminals_without_braille_get_stars():
    text = terminal.drawn_curves([falling()], 60, 10, False, "ascii")
    assert "*" in text and text.isascii()


def test_nothing_to_draw_is_said(tmp_path):
    run = read_history(write_run(tmp_path / "a", [evaluation(1)]))
    with pytest.raises(UserError, match="no training loss to draw yet"):
        terminal.drawn_curves([run], 60, 10, False)
