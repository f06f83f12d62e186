"""`benchmarks/gpu.py` without a GPU: limits, what survives a cut, what is left out, the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import CODE, SAME, TIMED_OUT, Part, in_order, known
from benchmarks.on_gpu import results as results_module
from benchmarks.on_gpu.bench import Bench, fastest, share_between
from benchmarks.on_gpu.checks import Recorder
from benchmarks.on_gpu.results import Results, environment
from benchmarks.on_gpu.table import table
from tests.tiny import ROOT, call_main, run_script

HERE = {"card": "a card", "driver": "1", "torch": "2", "code": "abc"}


def fake(folder, *arms, seconds=60.0, name="fake", same=SAME) -> Part:
    return Part(name, "for tests", seconds, "tests.scripts.fake_gpu_part", (str(folder), *arms),
                same)


def measured(folder) -> list[str]:
    return (folder / "measured").read_text().split()


def content(folder, name="fake"):
    return json.loads((folder / f"gpu-{name}.json").read_text())


def test_a_part_that_is_cut_off_keeps_what_it_knew_and_the_next_call_goes_on(
        tmp_path, capfd, monkeypatch):
    class UntilItHangs(subprocess.Popen):
        """Its time is up when it waits for its own child, however long it took to get there."""

        def wait(self, timeout=None):
            while timeout is not None and not (tmp_path / "child").exists():
                assert self.poll() is None
                time.sleep(0.05)
            return super().wait(timeout and 0.1)

    part = fake(tmp_path, "first", "endless", "last")
    with monkeypatch.context() as patched:
        patched.setattr(gpu.subprocess, "Popen", UntilItHangs)
        assert not in_order([part], tmp_path, "cpu", minutes=2)
    assert "fake: cut off at its limit; what is known is kept" in capfd.readouterr().out
    cut = content(tmp_path)
    assert cut["figures"].keys() == {"first"} and not cut["complete"]
    assert cut["figures"]["first"]["tokens_per_second"] == 1.5
    assert {"card", "driver", "torch", "code"} <= cut.keys()
    child = int((tmp_path / "child").read_text())
    with pytest.raises(ProcessLookupError):  # nothing of it is left, on whatever machine
        for _ in range(100):
            os.kill(child, 0)
            time.sleep(0.1)
    (tmp_path / "hurry").touch()
    assert in_order([part], tmp_path, "cpu", minutes=1)
    assert measured(tmp_path) == ["first", "endless", "last", "endless"]  # that one at last
    assert content(tmp_path)["complete"]
    assert in_order([part], tmp_path, "cpu", minutes=1)  # known: no process at all
    assert "fake: known" in capfd.readouterr().out and len(measured(tmp_path)) == 4


def test_an_arm_that_fails_keeps_its_traceback_stops_no_other_and_is_tried_again(tmp_path, capfd):
    part = fake(tmp_path, "broken", "absent", "last")
    assert not in_order([part], tmp_path, "cpu", minutes=1)
    told, kept = capfd.readouterr().out, content(tmp_path)
    assert "RuntimeError: it does not work" in kept["failed"]["broken"]
    assert "fake: failed: broken" in told
    assert "absent: left out, the package absent is not installed" in told
    assert kept["left_out"] == {"absent": "the package absent is not installed"}
    assert kept["figures"].keys() == {"last"} and not kept["complete"]
    in_order([fake(tmp_path, "broken", "new")], tmp_path, "cpu", minutes=1)
    assert measured(tmp_path) == ["broken", "last", "new", "broken"]  # when all else is known


def test_without_the_basics_nothing_else_is_tried(tmp_path, capfd):
    parts = [fake(tmp_path, "broken", name="basics"), fake(tmp_path, "last")]
    assert not in_order(parts, tmp_path, "cpu", minutes=1)
    assert "the basics do not hold; nothing else was tried" in capfd.readouterr().out
    assert measured(tmp_path) == ["broken"]


def test_what_does_not_fit_into_the_minutes_is_left(tmp_path, capfd, monkeypatch):
    limits = []
    monkeypatch.setattr(gpu, "run_part", lambda part, folder, device, seconds:
                        limits.append(round(seconds)) or 0)
    parts = [fake(tmp_path, seconds=20, name="a"), fake(tmp_path, seconds=600, name="b")]
    in_order(parts, tmp_path, "cpu", minutes=0.5)
    in_order(parts, tmp_path, "cpu", minutes=0.05)
    assert limits == [20, 30]
    assert "a: left for the next call" in capfd.readouterr().out


@pytest.mark.parametrize(("minutes", "sound"), [(1, False), (0.5, True)])
def test_a_part_that_the_call_cuts_off_has_not_failed_but_one_at_its_limit_has(
        minutes, sound, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "run_part", lambda *where: TIMED_OUT)
    assert in_order([fake(tmp_path, seconds=40)], tmp_path, "cpu", minutes) is sound


def test_a_process_that_dies_is_told(tmp_path, capfd):
    part = Part("fake", "for tests", 60, "tests.no_such_module")
    assert not in_order([part], tmp_path, "cpu", minutes=1)
    assert "fake: its process ended with 1" in capfd.readouterr().out


@pytest.mark.parametrize(("changed", "same", "kept"), [
    ({}, SAME, True), ({"card": "another"}, SAME, False), ({"driver": "2"}, SAME, False),
    ({"torch": "3"}, SAME, False), ({"code": "def"}, SAME, True), ({"code": "def"}, CODE, False)])
def test_what_another_machine_or_other_code_had_is_measured_anew(changed, same, kept, tmp_path):
    results = Results(tmp_path / "gpu-fake.json", HERE, same)
    results.measure("arm", lambda: {"figure": 1.0})
    results.finish()
    again = known(fake(tmp_path, same=same), tmp_path, HERE | changed)
    assert again.complete is kept and ("arm" in again.figures) is kept


def test_a_cut_in_the_middle_of_writing_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    results = Results(tmp_path / "gpu-fake.json", HERE)
    results.measure("first", lambda: {"figure": 1.0})
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        results.measure("second", lambda: {"figure": 2.0})
    assert content(tmp_path)["figures"].keys() == {"first"}


def test_the_hash_of_the_code_is_that_of_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(results_module, "ROOT", tmp_path)
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt/a.py").write_text("x = 1")
    first = results_module.code_hash()
    assert first == results_module.code_hash()
    (tmp_path / "gpt/a.py").write_text("x = 2")
    assert results_module.code_hash() != first


def test_a_search_ends_where_memory_or_the_gain_does():
    rates = {1: 10.0, 2: 18.0, 4: 18.1, 8: 50.0}
    found = fastest(rates, lambda size: {"rate": rates[size]}, "rate")
    assert found["batch"] == 4 and found["search_ended"] == "4 is no faster than 2"
    assert found["by_batch"] == {"1": 10.0, "2": 18.0, "4": 18.1}

    def short_of_memory(size):
        if size > 2:
            raise torch.OutOfMemoryError
        return {"rate": rates[size]}

    found = fastest(rates, short_of_memory, "rate")
    assert found["batch"] == 2 and found["search_ended"] == "out of memory at 4"
    with pytest.raises(torch.OutOfMemoryError, match="smallest size does not fit"):
        fastest([4, 8], short_of_memory, "rate")


def test_idle_time_is_what_no_kernel_covers():
    assert share_between([(0, 10), (2, 5), (15, 20)]) == pytest.approx(5 / 20)
    assert share_between([(0, 10), (10, 20)]) == 0
    assert share_between([]) == 1


def test_seconds_are_of_one_call_and_rounds_are_not_of_a_rehearsal():
    bench, calls = Bench(torch.device("cpu")), []
    assert bench.seconds(lambda: calls.append(1), times=3, rounds=2, warm_up=1) > 0
    assert len(calls) == 7
    assert Bench(torch.device("cpu"), tiny=True).choose("real", "tiny") == "tiny"


def test_outcomes_of_tests_are_kept_and_what_passed_is_not_run_again(tmp_path):
    results = Results(tmp_path / "gpu-checks.json", HERE, CODE)
    recorder = Recorder(results)

    def report(name, outcome, when="call", **more):
        recorder.pytest_runtest_logreport(SimpleNamespace(
            nodeid=name, when=when, duration=1.0, passed=outcome == "passed",
            failed=outcome == "failed", skipped=outcome == "skipped", **more))

    report("good", "passed", when="setup")
    assert not results.figures
    report("good", "passed")
    report("bad", "failed", longreprtext="assert 1 == 2")
    report("other", "skipped", when="setup", longrepr=("file", 1, "needs torchao"))
    kept = content(tmp_path, "checks")
    assert kept["figures"].keys() == {"good"}
    assert kept["failed"] == {"bad": "call: assert 1 == 2"}
    assert kept["left_out"] == {"other": "needs torchao"}
    items, left = [SimpleNamespace(nodeid=name) for name in ("good", "bad", "other")], []
    config = SimpleNamespace(hook=SimpleNamespace(
        pytest_deselected=lambda items: left.extend(item.nodeid for item in items)))
    recorder.pytest_collection_modifyitems(config, items)
    assert [item.nodeid for item in items] == ["bad", "other"] and left == ["good"]


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call_main(gpu, monkeypatch=monkeypatch, capsys=capsys) == (
        0, "no GPU here: torch finds no CUDA device; --rehearse runs every part on the processor, "
           "tiny\n", "")


@pytest.mark.parametrize(("arguments", "told"), [
    (["training"], "there is no part training; choose from basics, checks, training-124m"),
    (["--minutes", "0"], "--minutes 0: it takes more than none"),
    (["--minutes", "soon"], "argument --minutes: invalid float value: 'soon'")])
def test_mistakes_are_one_line(arguments, told, monkeypatch, capsys):
    code, out, error = call_main(gpu, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "") and told in error and error.count("\n") == 1


def test_a_rehearsal_of_the_basics_runs_through(tmp_path):
    done = run_script("benchmarks/gpu.py", "--rehearse", "basics", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "basics: done" in done.stdout and "generated tokens: tokens [" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rehearsal_of_everything_runs_through(tmp_path):
    """Two to six minutes on two cores: what is compiled for a GPU is compiled for a processor."""
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/gpu.py"), "--rehearse"],
                          cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": done, ") == len(gpu.PARTS)


def test_the_environment_names_card_driver_and_versions():
    told = environment()
    assert told["torch"] == torch.__version__ and told["card"] and told["driver"]
    assert all(isinstance(value, str) for value in told.values())


def test_the_table_has_a_line_per_figure_that_is_known(tmp_path):
    def write(part, **figures):
        (tmp_path / f"gpu-{part}.json").write_text(json.dumps(HERE | {"figures": figures}))

    assert table(tmp_path) == "no figures yet"
    write("training-124m", formulas={"mfu": "…"}, ours={"tokens_per_second": 5e5, "mfu": 0.451},
          transformers={"tokens_per_second": 2.5e5}, **{"plain loop": {"tokens_per_second": 4e5}})
    write("decode-1.5b", copy={"bytes_per_second": 3e12},
          **{"ours, 16": {"tokens_per_second": 2000.0, "of_bandwidth": 0.61},
             "transformers, 16": {"tokens_per_second": 400.0}})
    write("run", run={"bits_per_byte": 1.2345, "mfu": 0.3, "idle_share": 0.021})
    write("checks", **{"tests/cuda/test_runs.py::test_a": {"outcome": "passed"}})
    assert table(tmp_path).split("\n") == [
        "| a card, torch 2 | ours | best peer | ratio | of the limit |",
        "| --- | --- | --- | --- | --- |",
        "| generating with 1.5B, 16 texts, tokens/s | 2,000 | 400 (transformers) | 5.00 | 61% of a "
        "copy's bandwidth |",
        "| three minutes on the quick start's corpus, bits per byte | 1.234 | | | 30% of the peak, "
        "idle 2.1% |",
        "| training 124M, tokens/s: ours | 500,000 | 400,000 (plain loop) | 1.25 | 45.1% of the "
        "peak |"]
