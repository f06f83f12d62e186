"""python -m gpt verify: what is damaged is named, and put aside if that is asked for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import gpt.__main__ as verbs
from gpt.files import locked
from gpt.interop.new_folder import new_folder
from gpt.runs import checkpoint
from tests.runs.test_checkpoint import flip, save
from tests.tiny import call_main


@pytest.fixture
def verify(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        return call_main(verbs, "verify", *words, monkeypatch=monkeypatch, capsys=capsys)

    return run


def a_run(name="runs/a"):
    for step in (3, 6, 9):
        save(Path(name) / "checkpoints", step)
    return Path(name)


def spoil(file):
    data = file.read_bytes()
    file.write_bytes(flip(data, len(data) // 2))


def exported(name):
    with new_folder(Path(name)) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "part").mkdir()
        (folder / "part" / "model.safetensors").write_bytes(bytes(1000))
    return Path(name)


def test_several_paths_of_all_kinds_are_verified_at_once(verify):
    one, other = a_run(), exported("out")
    code, out, _ = verify(one, one / "checkpoints" / "step-00000003", other)
    assert code == 0
    assert out.splitlines() == [
        *(f"runs/a/checkpoints/step-0000000{step}: sound" for step in (9, 6, 3, 3)), "out: sound"]


def test_what_is_damaged_is_named_with_exit_code_1(verify):
    one, other = a_run(), exported("out")
    spoil(one / "checkpoints" / "step-00000006" / "model.safetensors")
    (other / "config.json").unlink()
    spoil(other / "part" / "model.safetensors")
    code, out, _ = verify(one, other)
    assert code == 1
    assert "runs/a/checkpoints/step-00000006: model.safetensors is damaged" in out
    assert "runs/a/checkpoints/step-00000009: sound" in out
    assert "out: config.json is missing; part/model.safetensors is damaged" in out


@pytest.mark.parametrize(("sums", "said"), [
    ("", "SHA256SUMS is empty"), ("abc  ../text\n", "'../text' leads out of the folder"),
    ("abc  /etc/passwd\n", "'/etc/passwd' leads out of the folder"),
    ("\udcff", "SHA256SUMS is damaged"), ("nonsense", " is missing")])
def test_sums_that_are_none_are_damage(verify, sums, said):
    folder = exported("out")
    (folder / "SHA256SUMS").write_bytes(sums.encode("utf-8", "surrogateescape"))
    code, out, _ = verify("out")
    assert code == 1 and said in out


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_sums_of_an_export_are_those_of_sha256sum(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exported_to = exported("out")
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=exported_to,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["OK", "OK", "config.json:", "part/model.safetensors:"]


def test_damaged_checkpoints_are_moved_aside(verify):
    one = a_run()
    for step in (9, 3):
        spoil(one / "checkpoints" / f"step-0000000{step}" / "state.json")
    code, out, _ = verify(one, "--repair")
    assert code == 0
    assert "runs/a/checkpoints/step-00000009 is now runs/a/damaged/step-00000009" in out
    assert [*checkpoint.steps_in(one / "checkpoints")] == [6]
    assert checkpoint.find("runs/a").name == "step-00000006"
    assert verify(one)[0] == 0

    save(one / "checkpoints", 9)
    spoil(one / "checkpoints" / "step-00000009" / "state.json")
    assert verify(one, "--repair")[0] == 0
    assert sorted(path.name for path in (one / "damaged").iterdir()) == [
        "step-00000003", "step-00000009", "step-00000009-2"]


def test_what_cannot_be_moved_aside_is_still_damaged(verify):
    one = a_run()
    save(one / "elsewhere", 1).rename(one / "base")
    for path in (one / "base", one / "checkpoints" / "step-00000009"):
        spoil(path / "state.json")
    code, out, _ = verify(one, "--repair")
    assert code == 1
    assert "runs/a/base: state.json is damaged" in out and "step-00000009 is now" in out
    assert (one / "base").is_dir()


def test_a_run_without_a_sound_checkpoint_cannot_be_repaired(verify):
    one = a_run()
    for path in (one / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
    code, out, _ = verify(one, "--repair")
    assert code == 1 and "no sound checkpoint is left; restore one from a backup" in out
    assert len([*(one / "damaged").iterdir()]) == 3


def test_a_run_in_use_is_left_alone(verify):
    one = a_run()
    spoil(one / "checkpoints" / "step-00000009" / "state.json")
    with locked(one, "wait"):
        code, _, err = verify(one, "--repair")
    assert code == 2 and "runs/a is in use by process" in err
    assert len(checkpoint.steps_in(one / "checkpoints")) == 3


def test_what_cannot_be_verified_or_repaired_is_refused(verify):
    Path("nothing").mkdir()
    assert verify("nothing")[2] == ("error: nothing is no dataset, run or checkpoint, nor an "
                                    "export\n")
    exported("out")
    code, _, err = verify("out", "--repair")
    assert code == 2 and "--repair moves damaged checkpoints of runs aside; out is no run" in err
