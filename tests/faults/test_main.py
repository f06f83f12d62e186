"""python -m tests.faults: which rows it injects, what it keeps, what it prints."""

from __future__ import annotations

import json

import pytest

from tests.faults import __main__ as faults
from tests.faults.all_rows import ROWS
from tests.faults.rows.existing import counted
from tests.faults.tally import Tally


@pytest.fixture
def injected(tmp_path, monkeypatch):
    """The rows that are injected, of which each third is lost."""
    rows: list[tuple[int, bool]] = []

    def inject(row: int, short: bool) -> Tally:
        rows.append((row, short))
        return Tally(5, ["it was lost"] if row % 3 == 0 else [], ["a note"])

    monkeypatch.setattr(faults, "RESULT", tmp_path / "faults.json")
    monkeypatch.setattr(faults, "commit", lambda: "abc")
    monkeypatch.setattr(faults, "injected", inject)
    return rows


def test_all_rows_are_injected_kept_and_not_injected_again(injected, capsys):
    assert faults.main([]) == 1
    assert [row for row, _ in injected] == list(range(1, 21)) == list(ROWS)
    assert "3  the disk is full during a save: 5 tries, 4 survived, 1 lost" in (
        capsys.readouterr().out)
    injected.clear()
    assert faults.main([]) == 0 and injected == []
    assert faults.main(["4", "2"]) == 0 and injected == [(4, False), (2, False)]


def test_another_commit_is_injected_again(injected, monkeypatch):
    faults.main(["1", "2"])
    monkeypatch.setattr(faults, "commit", lambda: "def")
    injected.clear()
    faults.main([])
    assert [row for row, _ in injected] == list(ROWS)


def test_short_injects_all_and_keeps_nothing(injected):
    assert faults.main(["--short"]) == 1
    assert injected == [(row, True) for row in ROWS] and not faults.RESULT.exists()


def test_the_table_shows_what_is_kept(injected, capsys):
    faults.main(["12", "3"])
    capsys.readouterr()
    assert faults.main(["--table"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[2].startswith("| 3 | the disk is full during a save | 5 | 4 | 1 |")
    assert table[3].startswith("| 12 | ranks that are killed or hang | 5 | 4 | 1 |")
    assert len(json.loads(faults.RESULT.read_text())["rows"]) == 2


@pytest.mark.parametrize("word", ["21", "0", "--shrot", "killed"])
def test_a_row_that_there_is_not_is_refused(injected, capsys, word):
    assert faults.main([word]) == 2 and injected == []
    assert f"error: there is no row {word}" in capsys.readouterr().err


def test_of_existing_tests_those_that_pass_survive_and_skipped_ones_are_no_tries(tmp_path):
    (tmp_path / "told.xml").write_text(
        '<testsuites><testsuite><testcase classname="a" name="b"/>'
        '<testcase classname="a" name="c"><failure message="wrong"/></testcase>'
        '<testcase classname="a" name="d"><error message="broken"/></testcase>'
        '<testcase classname="a" name="e"><skipped message="no"/></testcase></testsuite>'
        '</testsuites>')
    tally = counted(tmp_path / "told.xml")
    assert (tally.tries, tally.survived) == (3, 1)
    assert tally.lost == ["a::c: wrong", "a::d: broken"] and tally.notes == ["1 skipped"]
