"""A run's folder: whether training in it has come to its end."""

from __future__ import annotations

import pytest

from gpt.runs.folder import RunFolder
from tests.written_runs import END, as_lines, step


@pytest.mark.parametrize("line", ["[" * 100_000, "{", "[1]", "\0", '{"event": "end", "step": 7}'])
def test_whatever_its_last_line_holds_a_run_has_ended_only_if_it_says_so(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(as_lines(step(1), END | {"step": 0}))
    assert RunFolder(tmp_path, None).is_complete  # at step 0, of which there is no checkpoint
    (tmp_path / "metrics.jsonl").write_text(as_lines(step(1), line))
    assert not RunFolder(tmp_path, None).is_complete
