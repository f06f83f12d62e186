"""benchmarks/corpora.py, scaling_law.py and plan.py: what texts consist of, what is compared."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from types import SimpleNamespace

import pytest

from benchmarks import corpora, plan, scaling_law
from benchmarks.runs import Outcome
from gpt.errors import UserError, WorkFailed
from gpt.planning.law import Run, Text, known_texts
from tests.tiny import ROOT

AIML = """<category><pattern>HELLO *</pattern><template>Hi &amp; welcome, <bot name="x"/>.
</template></category><category><pattern>BYE</pattern><template><random><li>See you.</li><li> </li>
<li>So  long.</li></random></template></category>
<category><pattern>HI</pattern><template><srai>HELLO</srai></template></category>"""


def test_a_chat_robots_sayings_become_conversations():
    assert list(corpora.conversations(AIML)) == [
        "User: Hello\nBot: Hi & welcome, .", "User: Bye\nBot: See you.", "User: Bye\nBot: So long."]


def test_the_files_of_packages_are_read_in_order(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as packed:
        packed.writestr("b.py", "2"), packed.writestr("a.py", "1")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as packed:
        for name, data in (("p/b.txt", b"2"), ("p/a.txt", b"1")):
            member = tarfile.TarInfo(name)
            member.size = 1
            packed.addfile(member, io.BytesIO(data))
    assert list(corpora.members(tmp_path / "a.whl")) == [("a.py", b"1"), ("b.py", b"2")]
    assert list(corpora.members(tmp_path / "a.tgz")) == [("p/a.txt", b"1"), ("p/b.txt", b"2")]


def test_manuals_are_docstrings_without_lines_that_stood_before(monkeypatch):
    line = "a line that says something which is worth being kept, once"
    texts = [f"{line}\n{line} and on\n\n" + "x" * 300, f"{line}\n{line} and on\n\n" + "y" * 300]
    monkeypatch.setattr(corpora, "docstrings", lambda: iter(texts))
    first, second = corpora.manuals()
    assert line in first and line not in second and second.strip() == "y" * 300


def test_what_cannot_be_fetched_or_is_not_installed_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(corpora, "FOLDER", tmp_path)
    monkeypatch.setattr(corpora.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1))
    with pytest.raises(UserError, match="django==5 could not be fetched with pip"):
        corpora.fetched("pip", "django==5")
    with pytest.raises(UserError, match="the package no_such_thing is missing"):
        corpora.package("no_such_thing")


def test_the_law_that_is_committed_has_the_runs_of_the_benchmark():
    texts = known_texts()
    assert tuple(texts) == scaling_law.FITTED
    for name, text in texts.items():
        sizes = sorted({run.parameters for run in text.runs})
        grid = scaling_law.GRID + scaling_law.OTHER_SIZES.get(name, [])
        wanted = sorted((size.n_layer, tokens) for size, tokens in grid)
        layers = (2, 4, 5) if len(sizes) > 1 else (4,)
        there = sorted((layers[sizes.index(run.parameters)], run.tokens) for run in text.runs)
        for (depth, tokens), (other, read) in zip(there, wanted, strict=True):
            assert depth == other and tokens == pytest.approx(read, rel=0.02)


def test_each_text_is_foretold_from_the_others_and_its_own_short_runs(capsys):
    rows = scaling_law.told(known_texts())
    assert [row["tried"] for row in rows] == [0, 2] * len(scaling_law.FITTED)
    widths = {tried: sum(row["forecast"]["high"] - row["forecast"]["low"] for row in rows
                         if row["tried"] == tried) for tried in (0, 2)}
    assert widths[2] < 0.7 * widths[0]
    assert "nats off (median)" in capsys.readouterr().out
    runs = [Run(1, tokens, 1, 1.0) for tokens in (800, 200, 410, 101)]
    runs.append(Run(2, 400, 1, 1.0))
    assert [run.tokens for run in runs if scaling_law.is_pilot(run, runs[0])] == [410, 101]
    assert isinstance(known_texts()["library"], Text)


def test_what_came_is_compared_with_what_was_foretold(monkeypatch, tmp_path, capsys):
    told = {"val_loss": {"loss": 2.0, "low": 1.5, "high": 2.5}, "seconds": 299.0}
    monkeypatch.setattr(plan, "planned", lambda dataset, file: told)
    monkeypatch.setattr(plan, "prepared", lambda name: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(plan, "train", lambda folder, config, name: Outcome(
        309.0, 2.6, 1.0, 10, 5, 1e9))
    monkeypatch.setattr(plan, "RESULTS", tmp_path / "plan.json")
    plan.main(["--arms=chat"])
    assert not (tmp_path / "plan.json").exists()
    plan.main([])
    rows = json.loads((tmp_path / "plan.json").read_text())["texts"]
    assert list(rows) == ["code", "prose", "chat"]
    assert rows["chat"]["loss_off"] == pytest.approx(0.6) and not rows["chat"]["within_interval"]
    assert rows["chat"]["time_off"] == pytest.approx(0.03)
    assert "loss 2.600, foretold 2.000 (1.500 to 2.500): +0.600; 309 s: +3.0%" in (
        capsys.readouterr().out)


def test_a_plan_that_fails_says_why(tmp_path):
    with pytest.raises(WorkFailed, match="is no prepared dataset"):
        plan.planned(tmp_path, tmp_path / "a.yaml")


def test_the_tables_of_the_page_are_what_was_measured():
    page = (ROOT / "docs/planning.md").read_text()
    for name, row in json.loads(plan.RESULTS.read_text())["texts"].items():
        told = row["plan"]["val_loss"]
        assert (f"| {told['loss']:.3f} ({told['low']:.3f} to {told['high']:.3f}) | "
                f"{row['loss']:.3f} | {row['loss_off']:+.3f} | {row['seconds']:.0f} s, "
                f"{row['time_off']:+.1%} |") in page, name
    for row in json.loads(scaling_law.RESULTS.read_text())["left_out"]:
        told = row["forecast"]
        line = (f"| {row['text']} | {told['loss']:.3f} ({told['low']:.3f} to "
                f"{told['high']:.3f}) | {row['loss']:.3f} |")
        assert not row["tried"] or line in page, row["text"]
