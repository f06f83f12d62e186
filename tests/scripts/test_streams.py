"""Standard streams that are absent, broken or full never decide what a command does."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sample
import train
from data import prepare
from gpt import __main__ as verbs
from gpt.errors import run_command
from gpt.streams import Output
from tests.tiny import ROOT, as_in_a_terminal, command_line, script_environment

SMALL = ["model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.block_size=48",
         "train.batch_size=8", "train.steps=4", "run.dtype=float32", "data.dataset=data"]
COMMANDS = {"train": (train.main, SMALL), "prepare": (prepare.main, ["text.txt", "out=made"]),
            "sample": (sample.main, ["runs/base", "--prompt", "a", "--max-new-tokens", "9"]),
            "evaluate": (verbs.main, ["evaluate", "runs/base"]),
            "verify": (verbs.main, ["verify", "runs/base"])}
SHOWS = {"sample", "evaluate", "verify"}  # what these print is all that they do


@pytest.fixture
def workplace(tmp_path, monkeypatch, trained):
    """A folder with a text, a dataset and a run."""
    for name in ("text.txt", "data", "runs"):
        (tmp_path / name).symlink_to(trained / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("To be, or not to be, that is the question.\n" * 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare.main(["text.txt", "tokenizer=byte", "out=data"])
        train.main([*SMALL, "run.name=base"])
    return folder


def full():
    """A stream whose disk is full."""
    return Path("/dev/full").open("w", encoding="utf-8")


def broken():
    """A stream whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


def left_with(command: str, monkeypatch, stdout=None, stderr=None, name="run") -> int:
    """The exit code of a command whose streams are these."""
    main, words = COMMANDS[command]
    words = [*words, f"run.name={name}"] if command == "train" else words
    monkeypatch.setattr(sys, "argv", [command, *words])
    for stream, given in (("stdout", stdout), ("stderr", stderr)):
        if given is not None:
            monkeypatch.setattr(sys, stream, given)
    try:
        run_command(main)
    except SystemExit as left:
        return left.code
    return 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_output_is_a_failure_only_of_what_shows_something(command, workplace, monkeypatch,
                                                                 capsys):
    code = left_with(command, monkeypatch, stdout=full(), name="full")
    assert code == (0 if command == "train" else 1)
    told = capsys.readouterr().err
    assert ("failed: standard output: No space left on device" in told) == (command != "train")
    if command == "train":
        assert (workplace / "runs/full/checkpoints/step-00000004").is_dir()
        assert "done" in (workplace / "runs/full/train.log").read_text()
    if command == "prepare":
        assert (workplace / "made/dataset.json").is_file()


@pytest.mark.parametrize("make", [full, broken])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_depends_on_standard_error(command, make, workplace, monkeypatch, capsys):
    assert left_with(command, monkeypatch, stderr=make(), name=f"deaf-{make.__name__}") == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_leaves_ends_nothing_but_what_it_read(command, workplace, monkeypatch):
    assert left_with(command, monkeypatch, stdout=broken(), name="unread") == 0
    if command == "train":
        assert (workplace / "runs/unread/checkpoints/step-00000004").is_dir()
    if command == "prepare":
        assert (workplace / "made/dataset.json").is_file()


def test_text_without_end_ends_when_nobody_reads_it(workplace, monkeypatch):
    monkeypatch.setitem(COMMANDS, "sample", (sample.main, [
        "runs/base", "--prompt", "a", "--max-new-tokens", "10000000", "--slide",
        "--min-new-tokens", "10000000"]))
    assert left_with("sample", monkeypatch, stdout=broken()) == 0


@pytest.mark.parametrize("redirection", ["2>&1 | head -1", ">&- 2>&- <&-"])
def test_training_is_not_ended_by_a_shells_redirection(redirection, workplace):
    name = "head" if "head" in redirection else "absent"
    words = " ".join(command_line("train.py", *SMALL, f"run.name={name}"))
    subprocess.run(["bash", "-c", f"{words} {redirection}"], env=script_environment(), check=True,
                   stdout=subprocess.DEVNULL)
    run = workplace / "runs" / name
    assert (run / "checkpoints/step-00000004").is_dir()
    assert "done; sample from it" in (run / "train.log").read_text()


@pytest.mark.parametrize(("words", "code"), [
    ("data/prepare.py text.txt out=absent >&- 2>&- <&-", 0), ("sample.py >&-", 2),
    ("train.py --help <&- 2>&-", 0), ("train.py no.yaml <&-", 2), ("train.py no.yaml 2>&-", 2)])
def test_absent_streams_are_no_failure(words, code, workplace):
    done = subprocess.run(["bash", "-c", f"{sys.executable} {ROOT}/{words}"], text=True,
                          env=script_environment(), capture_output=True, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr + done.stdout
    if "no.yaml" in words:  # what is said on standard error never lands on standard output
        assert done.stdout == "" and ("error: " in done.stderr) == ("2>&-" not in words)


def test_no_file_takes_the_number_of_an_absent_stream(workplace):
    program = ("import sys; sys.path.insert(0, sys.argv[1]); from gpt.errors import run_command\n"
               "run_command(lambda argv: sys.exit(open('x', 'w').fileno() < 3))")
    for absent in (">&-", "<&-", "2>&-", ">&- 2>&- <&-"):
        command = f"{sys.executable} -c \"$0\" {ROOT} {absent}"
        assert subprocess.run(["bash", "-c", command, program], check=False).returncode == 0, absent


def test_a_terminal_that_is_closed_saves_and_one_that_nohup_left_goes_on(workplace):
    for nohup, code in ((False, 75), (True, -signal.SIGKILL)):
        name = f"hangup-{nohup}"
        process = subprocess.Popen(
            command_line("train.py", *SMALL, "train.steps=100000", f"run.name={name}",
                         "checkpoint.every_steps=null", "eval.every_steps=null"),
            env=script_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=(lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) if nohup
            else as_in_a_terminal)
        metrics = workplace / "runs" / name / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < 3:
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        if nohup:
            before = metrics.stat().st_size
            while metrics.stat().st_size < before + 1000:
                time.sleep(0.05)
                assert process.poll() is None
            process.kill()
        assert process.wait(timeout=60) == code
        assert any((workplace / "runs" / name / "checkpoints").glob("step-*")) == (not nohup)


@pytest.mark.parametrize("module", ["torch", "pydantic"])
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_ctrl_c_while_something_is_imported_is_one_line(module, swallowed, workplace):
    """swallowed: a library makes another error of it, as numpy and torch do."""
    (workplace / f"{module}.py").write_text(
        "import os, signal, time\ntry:\n  os.kill(os.getpid(), signal.SIGINT); time.sleep(5)\n"
        "except KeyboardInterrupt:\n  " + ("raise ImportError('no core')" if swallowed
                                           else "raise") + "\n")
    for words in (["train.py", *SMALL], ["sample.py", "runs/base"], ["-m", "gpt", "verify", "data"],
                  ["data/prepare.py", "text.txt"]):
        if module == "torch" and words[0] not in ("train.py", "sample.py"):
            continue
        script = words[:1] if words[0] == "-m" else [str(ROOT / words[0])]
        done = subprocess.run([sys.executable, *script, *words[1:]], text=True, check=False,
                              env=script_environment(PYTHONPATH=f"{workplace}:{ROOT}"),
                              capture_output=True, preexec_fn=as_in_a_terminal)
        expected = 130, "interrupted\n"
        if words[0] in ("train.py", "data/prepare.py"):  # which go on, whenever they are stopped
            expected = 75, "stopped by SIGINT; the same command goes on\n"
        assert (done.returncode, done.stderr) == expected, words


def test_an_output_keeps_what_it_is_besides_writing():
    stream = io.StringIO()
    output = Output(stream)
    assert output.write("abc") == 3 and stream.getvalue() == "abc"
    assert not output.isatty() and output.error is None
