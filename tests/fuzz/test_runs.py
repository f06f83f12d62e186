"""What a run leaves besides checkpoints: its configuration, what it logged, and reports of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.configuration import RunSections
from gpt.interop.model_card import about_checkpoint
from gpt.reports.reporting import figures, finite
from gpt.reports.training import training_page
from gpt.runs.folder import RunFolder, changes, open_run, recorded, started_with
from gpt.runs.history import read_histories
from gpt.terminal import runs as terminal
from tests.fuzz.inputs import as_json, damaged, fuzzed, is_read, json_files, mutated
from tests.fuzz.test_configuration import RUN, yaml_files
from tests.written_runs import END, evaluation, step, write_run

SAMPLE = {"step": 100, "prompt": "Once", "text": "upon a time"}
LINES = [*(step(n) for n in range(1, 13)), evaluation(12, val_accuracy=0.5),
         {"event": "warning", "step": 7, "text": "slow"}, END | {"step": 12}]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "run", LINES, [SAMPLE], RUN | {"run": {"name": "run"}})


def look(run):
    """All that is read of a run without its checkpoints."""
    config = RunSections()
    json.dumps(finite(figures([run])), allow_nan=False)
    training_page(read_histories([run])).write(run / "report.html")
    assert terminal.table_of(terminal.runs_in(run.parent))
    changes(recorded(run), config)
    assert RunFolder(run, None).is_complete in (True, False)
    started_with(config.run.model_copy(update={"out_dir": str(run.parent), "name": run.name}), "x")


FILES = {"identity.json": {"model.n_layer": 2, "data": "0" * 64, "seed": 3},
         "environment.json": {"command": ["train.py", "a=b"], "working_directory": "/x", "python":
                              "3.11", "hardware": "a", "commit": "c0ffee", "host": "h",
                              "processes": 1, "packages": {"torch": "2"}},
         "config.yaml": RUN}


@pytest.mark.parametrize("name", FILES)
def test_any_description_of_a_run_is_read_or_passed_over(name, run):
    look(run)
    contents = yaml_files(FILES[name]) if name.endswith(".yaml") else json_files(FILES[name])

    @fuzzed(20)
    @given(contents)
    def tried(data):
        (run / name).write_bytes(data)
        assert is_read(lambda: look(run))
        is_read(lambda: opened(run))
        is_read(lambda: card(run))

    tried()


def opened(run):
    config = RunSections(run={"name": run.name, "out_dir": str(run.parent)})
    with open_run(config, FILES["identity.json"]):
        pass


def card(run):
    about_checkpoint(run / "checkpoints/step-00000012", None)


def lines_of(value):
    """Files of JSON lines, one of which is another."""
    def among(line):
        return b"".join(json.dumps(one).encode() + b"\n" for one in LINES[:3]) + line + b"\n"
    return st.one_of(mutated(value).map(as_json).map(among), mutated(value).map(as_json),
                     damaged(b"".join(json.dumps(one).encode() + b"\n" for one in LINES)))


@pytest.mark.parametrize("name, line", [
    ("metrics.jsonl", LINES[0]), ("metrics.jsonl", LINES[-3]), ("metrics.jsonl", LINES[-2]),
    ("metrics.jsonl", LINES[-1]), ("samples.jsonl", SAMPLE)],
    ids=["step", "evaluation", "warning", "end", "sample"])
def test_any_log_of_a_run_is_read_as_far_as_it_goes(name, line, run):
    sound = (run / name).read_bytes()

    @fuzzed(20)
    @given(lines_of(line))
    def tried(data):
        (run / name).write_bytes(data if name == "samples.jsonl" else sound + data)
        assert is_read(lambda: look(run))
        assert is_read(lambda: card(run))
        (run / name).write_bytes(sound)

    tried()


@pytest.mark.parametrize("name", ["train.log", "lock"])
def test_any_words_of_a_run_are_read(name, run):
    sound = {"train.log": b"run: 12,345 parameters, 1,000 FLOPs per token\n"
                          b"continuing from run/checkpoints/step-00000003\n",
             "lock": b"process 12 on host"}[name]

    @fuzzed(20)
    @given(damaged(sound, [b"999999999", b"\n", b"step-000000000000000000000001"]))
    def tried(data):
        (run / name).write_bytes(data)
        assert is_read(lambda: look(run))

    tried()
