"""python -m gpt report: what is written, printed and refused, as a user sees it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import gpt
import train
from gpt import __main__ as verbs
from gpt.reports import figures, finite, page, report_at_end
from gpt.reports import reporting as module
from tests.reports.conftest import HOSTILE, SMALL, folder_said
from tests.tiny import ROOT, call_main, run_script, script_environment
from tests.written_runs import END, as_lines, evaluation, lock, step, write_run


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def called(*words):
        return call_main(verbs, *words, monkeypatch=monkeypatch, capsys=capsys)
    called.monkeypatch, called.capsys = monkeypatch, capsys
    return called


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', Path(page).read_text("utf-8"))[1])


def test_every_run_ends_by_naming_its_report_unless_it_is_not_wanted(workplace):
    for name in ("base", "tuned"):
        said = folder_said[workplace][name].splitlines()
        assert f"report: runs/{name}/report.html" in said
        assert f"report: runs/{name}/report.html" in (
            workplace / "runs" / name / "train.log").read_text().splitlines()
        page = (workplace / "runs" / name / "report.html").read_text()
        assert f"runs/{name}, done" in page and "http-equiv=\"refresh\"" not in page
    assert "report" not in folder_said[workplace]["quiet"]
    assert not (workplace / "runs/quiet/report.html").exists()


def test_a_report_that_cannot_be_written_does_not_fail_the_run(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "a")
    assert report_at_end(folder) == f"report: {folder}/report.html"

    def failing(paths):
        raise RuntimeError("of a kind that nobody thought of")

    monkeypatch.setattr(module, "report", failing)
    assert report_at_end(folder) == (
        "no report was written (RuntimeError: of a kind that nobody thought of); python -m gpt "
        f"report {folder} tries again")


def test_one_run_has_its_report_in_its_folder_and_several_have_it_here(call, tmp_path):
    write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)
    assert call("report", "a") == (0, "report: a/report.html\n", "")
    assert call("report", "a", "b") == (0, "report: report.html\n", "")
    assert call("report", "a", "-o", "new.html") == (0, "report: new.html\n", "")
    assert (tmp_path / "new.html").read_text() == (tmp_path / "a/report.html").read_text()
    assert len(data_of("report.html")["charts"]) > len(data_of("new.html")["charts"])


def test_json_prints_the_figures_behind_the_page(call, tmp_path):
    write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)
    code, out, _ = call("report", "a", "b", "--json")
    found = json.loads(out)
    assert code == 0 and not (tmp_path / "report.html").exists()
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    assert found["runs"][0]["step"] == 200 and found["runs"][0]["validation loss"] == 2.8
    assert found["runs"][0]["parameters"] == 12345 and found["runs"][0]["tokens"] == 200 * 512
    assert found["differences"][0]["run"] == "b" and found["differences"][0]["steps"] == 20
    call("report", "a", "b")
    assert found["charts"] == data_of("report.html")["charts"]
    loss = found["charts"][0]["series"][0]
    assert loss["y"] == [pytest.approx(step(n)["loss"], rel=1e-5) for n in range(1, 201)]
    assert loss["x"]["tokens"] == [n * 512 for n in range(1, 201)]


def test_core_is_drawn_and_told_task_by_task(call, tmp_path):
    lines = [step(n) for n in range(1, 201)]
    for at, core in ((100, 0.01), (200, 0.03)):
        lines.append({"event": "core", "step": at, "tokens": at * 512, "elapsed_seconds": at / 4,
                      "core": core, "core_low": core - 0.005, "core_high": core + 0.005,
                      "core_piqa": 2 * core, "core_lambada": core / 2, "dtype": "float32"})
    write_run(tmp_path / "a", [*lines, END | {"step": 200}])
    call("report", "a")
    [chart] = [chart for chart in data_of("a/report.html")["charts"] if chart["title"] == "CORE"]
    [series] = chart["series"]
    assert series["y"] == [0.01, 0.03] and series["x"]["steps"] == [100, 200]
    shown = re.sub(r"<[^>]+>", " ", (tmp_path / "a/report.html").read_text())
    assert "0.0250 to 0.0350" in shown and re.search(r"piqa\s*lambada", shown)
    found = json.loads(call("report", "a", "--json")[1])["runs"][0]
    assert found["core"][1]["core_piqa"] == 0.06 and found["hashes"] == {}


def test_the_hashes_of_data_and_weights_are_those_of_evaluate_and_verify(call, workplace):
    call.monkeypatch.chdir(workplace)
    hashes = json.loads(call("report", "runs/base", "--json")[1])["runs"][0]["hashes"]
    told = json.loads(call("evaluate", "runs/base", "--samples", "0", "--json")[1])
    assert list(hashes.values())[-1] == told["subject"]["weights"]
    manifest = json.loads((workplace / "runs/base/identity.json").read_text())
    assert hashes["data"] == manifest["data"] and len(hashes["data"]) == 64
    page = (workplace / "runs/base/report.html").read_text()
    assert all(digest in page for digest in hashes.values())
    tuned = json.loads(call("report", "runs/tuned", "--json")[1])["runs"][0]["hashes"]
    assert {"finetune.from", "finetune.data"} < tuned.keys()
    assert any(name.startswith("weights of step") for name in tuned)


def test_png_writes_a_picture_of_each_chart(call, tmp_path):
    write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)
    code, out, _ = call("report", "a", "b", "--png", "deep/pictures")
    assert code == 0 and not (tmp_path / "report.html").exists()
    paths = [tmp_path / line for line in out.splitlines()]
    assert {path.stem for path in paths} >= {"loss", "learning-rate", "gradient-norm", "memory",
                                            "difference-of-training-loss", "waiting-for-data"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert len({path.read_bytes() for path in paths}) == len(paths)


def test_without_matplotlib_pictures_say_what_to_install(call, tmp_path, monkeypatch):
    write_run(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert call("report", "a", "--png", "x")[::2] == (
        2, "error: --png draws with matplotlib: pip install 'gpt-toolkit[report]'\n")
    assert call("report", "a")[0] == 0


@pytest.mark.parametrize(("words", "said"), [
    (["none"], "none holds no run and no dataset; give run folders such as runs/quickstart"),
    (["a", "data"], "give one dataset, or runs alone"),
    (["a", "./a"], "the same run is given twice"),
    (["data", "--watch"], "--watch is for runs that go on"),
    (["a", "-o", "no/folder/x.html"], "--output no/folder/x.html: there is no folder no/folder"),
    (["a", "-o", "a"], "--output a is a folder; give a file, such as a/report.html"),
    (["a", "-o", "/dev/null"], "--output /dev/null is a device or a pipe; give a file"),
    (["a", "--png", "a/train.log"], "--png a/train.log is a file; give a folder"),
    (["a", "--watch", "--json"], "--watch writes a page; give it without --png and --json"),
    ([], "the following arguments are required: RUN"),
])
def test_mistakes_are_one_line(call, tmp_path, workplace, words, said):
    write_run(tmp_path / "a")
    (tmp_path / "data").symlink_to(workplace / "data" / "c")
    code, out, err = call("report", *words)
    assert code == 2 and out == "" and err.count("\n") == 1 and f"error: {said}" in err


def test_watch_writes_a_page_that_follows_until_the_run_ends(tmp_path, monkeypatch):
    folder, pages, said = write_run(tmp_path / "a", [step(1)]), [], []
    lock(folder)

    def sleep(seconds):
        pages.append((seconds, (tmp_path / "x.html").read_text()))
        lines = [step(n) for n in range(1, len(pages) + 2)]
        if len(pages) == 3:
            lines.append(END | {"step": 4})
        (folder / "metrics.jsonl").write_text(as_lines(*lines))

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    module.watch([folder], tmp_path / "x.html", said.append)
    assert len(pages) == 3 and len(said) == 1
    assert all(seconds == 2 and '<meta http-equiv="refresh" content="2">' in page
               for seconds, page in pages)
    assert len(data_of(tmp_path / "x.html")["charts"][0]["series"][0]["y"]) == 4
    assert "http-equiv=\"refresh\"" not in (tmp_path / "x.html").read_text()


def test_a_page_that_is_watched_no_more_is_not_read_again(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "a", [step(1)])
    lock(folder)

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=interrupted,
                                                        monotonic=time.monotonic))
    module.watch([folder], tmp_path / "x.html", str)
    assert "http-equiv=\"refresh\"" not in (tmp_path / "x.html").read_text()


def test_a_run_that_fails_has_a_report_that_says_why(call, tmp_path, workplace):
    (tmp_path / "data").symlink_to(workplace / "data")
    code, out, err = call_main(train, "data.dataset=data/c", "run.name=a", "train.steps=5",
                               "optim.lr=1e30", "train.grad_clip=0", *SMALL,
                               monkeypatch=call.monkeypatch, capsys=call.capsys)
    assert code == 1 and "the loss is" in err and "report: runs/a/report.html" in out
    assert "the loss is" in (tmp_path / "runs/a/report.html").read_text().split("Incidents")[1]


@pytest.mark.parametrize("value", [[1], {"a": 1}, "x", None, True, 1e400, -1, 2.5, 10**400])
def test_lines_of_other_kinds_are_no_harm(tmp_path, value):
    odd = json.dumps(value)
    lines = [step(1), evaluation(1), step(2), f'{{"event": "train", "step": {odd}, "loss": {odd}, '
             f'"tokens": {odd}, "elapsed_seconds": {odd}}}\n',
             f'{{"event": "eval", "step": {odd}, "tokens": {odd}, "val_loss": 0.1}}\n',
             f'{{"event": "warning", "step": {odd}, "message": {odd}}}\n',
             f'{{"event": "end", "step": {odd}, "stopped_by": {odd}}}\n', f'{{"event": {odd}}}\n']
    sample = f'{{"step": {odd}, "prompt": {odd}, "text": {odd}}}\n'
    folder = write_run(tmp_path / "a", lines, [sample])
    for name in ("environment.json", "identity.json"):
        (folder / name).write_text(json.dumps({"command": value, "packages": value, "commit": value,
                                               "working_directory": value, "processes": value,
                                               "model.n_layer": value, "data": value}))
    (folder / "config.yaml").write_text(json.dumps({"data": {"dataset": value}, "run": value,
                                                    "finetune": value}))
    other = write_run(tmp_path / "b")
    assert gpt.report([folder, other]).html() and gpt.report(folder).html()
    json.dumps(finite(figures([folder, other])), allow_nan=False, default=str)


def test_watching_a_real_process_ends_with_it(tmp_path):
    folder = write_run(tmp_path / "a", [step(1)])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as trains:
        lock(folder, process=trains.pid)
        watching = subprocess.Popen(
            [sys.executable, "-m", "gpt", "report", "a", "--watch"], cwd=tmp_path,
            stdout=subprocess.PIPE, text=True, env=script_environment(PYTHONPATH=str(ROOT)))
        assert "until the run ends" in watching.stdout.readline()
        trains.communicate(b"\n")
    assert watching.wait(60) == 0
    assert watching.stdout.read() == "report: a/report.html\n"
    watching.stdout.close()


def test_a_notebook_shows_it_in_a_frame_of_its_own(tmp_path):
    shown = gpt.report([write_run(tmp_path / "a")])
    frame = shown._repr_html_()
    assert frame.startswith("<iframe srcdoc=") and 'sandbox="allow-scripts"' in frame
    assert "<script" not in frame and "&lt;script" in frame
    shown.write(tmp_path / "x.html")
    assert gpt.report(str(tmp_path / "a")).html() == (tmp_path / "x.html").read_text()
    assert callable(gpt.report) and page.Page  # the room does not stand in the function's place


def test_what_a_run_holds_is_shown_as_text(tmp_path):
    lines = [step(1), *(evaluation(n, **{f"val_{HOSTILE}": 1.0}) for n in (0, 1)),
             {"event": "warning", "step": 1, "message": HOSTILE},
             END | {"step": 1, "stopped_by": HOSTILE}]
    folder = write_run(tmp_path / "<i>a", [*lines], [{"step": HOSTILE, "prompt": HOSTILE,
                                                    "text": HOSTILE + "\udcff\x00"}],
                       {"run": {"name": HOSTILE}, HOSTILE: HOSTILE})
    folder.joinpath("environment.json").write_text(json.dumps({HOSTILE: 1, "hardware": HOSTILE,
                                                               "command": [HOSTILE]}))
    text = gpt.report([folder]).html()
    assert HOSTILE not in text and "<img" not in text and "<i>" not in text
    assert text.count("<script") == 3  # the data, uPlot, ours
    assert text.count("&lt;img src=x") >= 6


def test_no_report_imports_torch(tmp_path):
    write_run(tmp_path / "a")
    program = ("import sys; from gpt.__main__ import main; main(['report', 'a']); "
               "main(['runs', '.']); main(['curves', 'a']); assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True,
                          text=True, env=script_environment(PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stderr


def test_the_command_to_repeat_a_run_repeats_it(workplace):
    page = (workplace / "runs/base/report.html").read_text()
    again = re.search(r"\n(python train.py runs/base/config.yaml run.name=base-again)", page)[1]
    assert f"cd {workplace}\n" in page
    done = run_script(*again.split()[1:], cwd=workplace)
    assert done.returncode == 0, done.stderr
    losses = [[line["loss"] for line in map(json.loads, (
        workplace / "runs" / name / "metrics.jsonl").read_text().splitlines())
        if line["event"] == "train"] for name in ("base", "base-again")]
    assert len(losses[0]) == 60 and losses[0] == losses[1]


def test_runs_and_curves_from_the_command_line(call, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    code, out, _ = call("runs")
    assert code == 0 and {line.split()[0] for line in out.splitlines()[1:]} >= {"base", "tuned"}
    assert all(" done " in line for line in out.splitlines()[1:])
    code, out, _ = call("curves", "runs/base", "runs/tuned")
    assert code == 0 and "1. base, done: training loss" in out and "\033" not in out
    assert call("runs", "nowhere")[::2] == (
        2, "error: there is no folder nowhere: give the one that runs lie in, such as runs\n")
    assert call("curves", "nowhere")[0] == 2
