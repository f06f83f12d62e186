"""What is read of a run, whatever state it is in."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gpt.errors import UserError
from gpt.runs import history as module
from gpt.runs.history import MOST_COLUMNS, Columns, read_history
from tests.written_runs import END, as_lines, evaluation, lock, step, write_run


def test_every_figure_of_every_step_is_there(tmp_path):
    run = read_history(write_run(tmp_path / "a"))
    assert run.problems == [] and run.state == "done" and run.name == "a"
    for name in step(1):
        if name != "event":
            expected = [step(n)[name] for n in range(1, 201)]
            exact = name in ("step", "tokens", "elapsed_seconds")
            np.testing.assert_allclose(run.steps[name], expected, rtol=0 if exact else 2**-23)
    assert run.evaluations == [evaluation(100), evaluation(200)]
    assert run.best == evaluation(200)
    assert run.settings == {"run.name": "a", "run.seed": 0, "train.batch_size": 8,
                            "model.n_layer": 2, "model.n_embd": 32}
    np.testing.assert_allclose(run.flops, [n * 512 * 1000 for n in range(1, 201)])


def test_counts_are_exact_however_large(tmp_path):
    large = {"step": 2**31 + 1, "tokens": 2**41 + 1, "elapsed_seconds": 2**25 + 0.5}
    run = read_history(write_run(tmp_path / "a", [step(1), step(2, **large)]))
    assert {name: run.steps[name][1].item() for name in large} == large  # not as float32 has them


def test_steps_logged_now_and_then_count_all_tokens_between_them(tmp_path):
    lines = [step(10), step(20, flops_per_token=3000)]
    run = read_history(write_run(tmp_path / "a", lines))
    np.testing.assert_allclose(run.flops, [5120 * 1000, 5120 * 1000 + 5120 * 3000])


def test_lines_read_together_are_what_each_alone_is():
    lines = [step(n) for n in range(1, 50)]
    lines[7] |= {"loss": None}                     # was not finite
    lines[20]["new"] = 1.5                         # appears
    del lines[30]["mfu"]                           # is gone
    lines[40] = dict(reversed(lines[40].items()))  # in another order
    lines[45]["lr"] = "0.1"
    lines[46] |= {"loss": 10**400, "tokens": True}
    together, alone = Columns(), Columns()
    for start in range(0, len(lines), 6):
        together.add_all(lines[start:start + 6])
    for line in lines:
        alone._add_each([line])
    found, expected = together.arrays(), alone.arrays()
    assert found.keys() == expected.keys() and len(found["new"]) == 49
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
    assert np.isnan(found["loss"][[7, 46]]).all() and np.isnan(found["mfu"][30])
    assert np.isnan(found["new"][:20]).all() and found["new"][20] == 1.5
    assert np.isnan(found["lr"][45]) and found["lr"][40] == np.float32(lines[40]["lr"])


def test_a_damaged_and_a_half_written_line_are_said_and_the_rest_is_read(tmp_path):
    lines = [step(1), "{broken\n", step(2), "\udcff\n", "[1]\n", "[" * 100_000 + "\n", "\n",
             step(3), json.dumps(step(4))[:40]]
    folder = write_run(tmp_path / "a", [step(1)])
    text = as_lines(*lines).encode("utf-8", "surrogateescape")
    (folder / "metrics.jsonl").write_bytes(text)
    run = read_history(folder)
    assert run.steps["step"].tolist() == [1, 2, 3]
    assert run.problems == [
        "4 lines of metrics.jsonl cannot be read, and are left out: 2, 4, 5, 6",
        "the last line of metrics.jsonl is half-written, and is left out"]
    assert run.state == "interrupted"


@pytest.mark.parametrize("cut", range(0, 1300, 13))
def test_a_file_cut_anywhere_gives_all_steps_before(tmp_path, cut):
    whole = as_lines(*(step(n) for n in range(1, 4)))
    folder = write_run(tmp_path / "a", [step(1)])
    (folder / "metrics.jsonl").write_text(whole[:cut])
    lines = whole[:cut].split("\n")
    complete = len(lines) - 1 + (lines[-1] in whole.split("\n")[:3])  # but for its line break
    assert len(read_history(folder).steps.get("step", ())) == complete


def test_numbers_that_are_none_and_figures_without_end_do_no_harm(tmp_path):
    folder = write_run(tmp_path / "a", [step(1)])
    (folder / "metrics.jsonl").write_text(as_lines(
        '{"event": "train", "step": 1, "loss": NaN, "tokens": 1' + "0" * 500 + '}\n',
        {"event": "train", "step": 2, "loss": [1], "lr": {"a": 1}, "tokens": "many"},
        *({"event": "train", "step": n, f"figure {n}": n} for n in range(3, 400)),
        {"event": "eval", "step": {}, "val_loss": "none"}, {"event": ["x"]}, {}))
    run = read_history(folder)
    assert len(run.steps["step"]) == 399 and len(run.steps) == MOST_COLUMNS
    assert np.isnan(run.steps.get("tokens", np.full(1, np.nan))).all() and run.best is None


def test_an_older_format_is_read_and_what_it_lacks_is_said(tmp_path):
    folder = write_run(tmp_path / "a", [
        *({"step": n, "tokens": n * 10, "elapsed_seconds": n, "loss": 5 / n, "lr": 0.1}
          for n in range(1, 9)), {"step": 8, "val_loss": 0.7}])
    run = read_history(folder)
    assert run.steps["loss"].tolist() == [np.float32(5 / n) for n in range(1, 9)]
    assert run.best == {"step": 8, "val_loss": 0.7} and len(run.flops) == 0
    assert run.problems == ["metrics.jsonl has no grad_norm, tokens_per_second, flops_per_token, "
                            "mfu, peak_memory_bytes, data_seconds: an older format, or another "
                            "program wrote it"]


def test_losses_that_are_not_finite_are_counted(tmp_path):
    lines = [step(1), step(2, loss=None), step(3)]
    assert read_history(write_run(tmp_path / "a", lines)).problems == [
        "1 steps have a loss that is not finite"]


def test_a_step_that_was_logged_twice_is_as_it_was_the_last_time(tmp_path):
    lines = [step(1), step(2, loss=9.0), step(3, loss=9.0), step(2, loss=1.0), step(3), step(4)]
    run = read_history(write_run(tmp_path / "a", lines))
    assert run.steps["step"].tolist() == [1, 2, 3, 4]
    assert run.steps["loss"][1] == 1.0 and run.steps["loss"][2] == np.float32(step(3)["loss"])


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "identity.json"])
@pytest.mark.parametrize(("text", "said"), [(None, "is missing"), ("{", "is damaged"),
                                            ("[1]", "is damaged"), ("\x00", "is damaged")])
def test_other_files_that_are_missing_or_damaged_are_said(tmp_path, name, text, said):
    folder = write_run(tmp_path / "a")
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    run = read_history(folder)
    assert len(run.problems) == 1 and run.problems[0].startswith(f"{name} {said}")
    assert len(run.steps["step"]) == 200


def test_a_folder_without_a_run_is_refused_and_one_that_has_just_begun_is_not(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_history(tmp_path)
    folder = write_run(tmp_path / "a")
    (folder / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing: there is nothing to draw yet" in read_history(folder).problems


def test_the_state_is_that_of_the_last_line_and_of_the_process(tmp_path, monkeypatch):
    def state(*lines):
        return read_history(write_run(tmp_path / "a", lines)).state

    assert state(step(1), END | {"step": 1}) == "done"
    assert state(step(1), END | {"step": 1, "stopped_by": "SIGTERM"}) == "stopped by SIGTERM"
    assert state(step(1), END | {"step": 1}, step(2)) == "interrupted"
    lock(tmp_path / "a")
    assert state(step(1)) == "running" and state(END) == "done"
    assert state(step(1), END | {"stopped_by": "SIGTERM"}) == "running"  # again
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lock(tmp_path / "a", process=gone.pid)
    assert state(step(1)) == "interrupted"
    lock(tmp_path / "a", host="elsewhere")
    assert state(step(1)) == "running"  # wrote just now
    os.utime(tmp_path / "a" / "metrics.jsonl", (0, 0))
    assert read_history(tmp_path / "a").state == "interrupted"
    lock(tmp_path / "a", process="x" * 20)
    assert state(step(1)) == "interrupted"


def test_what_is_kept_besides_training_is_bounded_and_is_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_EVENTS", 5)
    monkeypatch.setattr(module, "AT_ONCE", 3)
    lines = [line for n in range(20) for line in (
        {"event": "warning", "step": n, "message": "x"}, evaluation(n, val_loss=abs(n - 2)))]
    samples = [{"step": n, "text": "x" * 10_000} for n in range(20)]
    run = read_history(write_run(tmp_path / "a", [*lines, step(1)], samples))
    for kept in (run.warnings, run.evaluations, run.samples):
        assert [line["step"] for line in kept] == [15, 16, 17, 18, 19]
    assert run.best["step"] == 2 and len(run.samples[0]["text"]) < 5000
    assert run.problems == [f"of {event} lines in metrics.jsonl, only the newest 5 are shown"
                            for event in ("eval", "warning")]


def test_a_line_longer_than_any_is_one_that_cannot_be_read(tmp_path):
    huge = json.dumps({"event": "train", "x": "y" * 3_000_000}) + "\n"
    run = read_history(write_run(tmp_path / "a", [step(1), huge, step(2), huge[:-1]]))
    assert run.steps["step"].tolist() == [1, 2]
    assert run.problems == ["1 lines of metrics.jsonl cannot be read, and are left out: 2",
                            "the last line of metrics.jsonl is half-written, and is left out"]


def test_only_evaluations_are_a_run_without_curves(tmp_path):
    run = read_history(write_run(tmp_path / "a", [evaluation(1)]))
    assert run.problems == ["metrics.jsonl has no training steps: there are no curves"]


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "identity.json", "train.log",
                                  "metrics.jsonl", "samples.jsonl"])
def test_nothing_waits_for_a_pipe(tmp_path, name):
    folder = write_run(tmp_path / "a")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    run = read_history(folder)
    assert run.places == run.config and module.parameters_told(folder) in (12345, None)


@pytest.mark.parametrize("text", [", parameters", "9" * 5000 + " parameters", "\x00"])
def test_a_log_of_other_contents_tells_no_parameters(tmp_path, text):
    folder = write_run(tmp_path / "a")
    (folder / "train.log").write_text(text)
    assert module.parameters_told(folder) in (None, 1) or len(text) > 99


def test_where_it_was_continued_is_known_from_the_log(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "train.log").write_text("runs/a: 1 parameters\n" + "".join(
        f"continuing from runs/a/checkpoints/step-{step:08d}\n" for step in (30, 120)))
    assert read_history(folder).resumed == [30, 120]


def test_runs_whose_folders_are_called_alike_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / name / "run") for name in "ab"]
    names = [run.name for run in module.read_histories([*folders, write_run(tmp_path / "c")])]
    assert names == [str(folders[0]), str(folders[1]), "c"]


@pytest.mark.parametrize("line", [
    '{"event": %s}', '{"event": "end", "stopped_by": %s}', '{"event": "train", "step": %s}'])
def test_a_number_that_has_no_end_is_one_that_cannot_be_read(line, tmp_path):
    run = read_history(write_run(tmp_path / "a", [step(1), line % ("9" * 5000) + "\n", step(2)]))
    assert run.steps["step"].tolist() == [1, 2]
    assert run.problems == ["1 lines of metrics.jsonl cannot be read, and are left out: 2"]
    assert read_history(write_run(tmp_path / "b", [
        step(1), line % "9" + "\n"])).last_line.items() >= json.loads(line % "9").items()
