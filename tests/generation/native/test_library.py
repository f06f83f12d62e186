"""model.c is compiled once, for this processor, and done without where that is not possible."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from gpt.configuration import SamplingConfig
from gpt.generation.native import NativeModel, fastest, library
from gpt.generation.native.library import SOURCES
from tests.tiny import CPU, ROOT, generate_tokens, tiny_gpt

pytestmark = pytest.mark.skipif(library.library() is None, reason="there is no C compiler")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A machine that has compiled nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "library", library.library.__wrapped__)
    return tmp_path / "cache" / "gpt-toolkit"


def test_it_is_compiled_once_and_found_afterwards(fresh, monkeypatch, capsys):
    assert library.library() is not None
    made = list(fresh.iterdir())
    assert len(made) == 1 and made[0].suffix == ".so"
    monkeypatch.setattr(subprocess, "run", None)
    assert library.library() is not None and list(fresh.iterdir()) == made
    assert capsys.readouterr() == ("", "")


def test_another_processor_compiler_or_source_is_compiled_for_anew(fresh, monkeypatch, tmp_path):
    library.library()
    monkeypatch.setattr(library, "_processor", lambda: "another")
    library.library()
    monkeypatch.setenv("CC", "gcc -g0")
    library.library()
    (tmp_path / "products.h").write_text(SOURCES[1].read_text(encoding="utf-8"))
    (tmp_path / "model.c").write_text(SOURCES[0].read_text(encoding="utf-8") + "\n")
    monkeypatch.setattr(library, "SOURCES", (tmp_path / "model.c", tmp_path / "products.h"))
    library.library()
    assert len(list(fresh.iterdir())) == 4


def forget_compilers(patch):
    patch.delenv("CC", raising=False)
    patch.setenv("PATH", "")


BROKEN = {"no compiler": (forget_compilers, "there is no gcc; install gcc"),
          "missing": (lambda patch: patch.setenv("CC", "gcc-that-is-not-there"),
                      "there is no gcc-that-is-not-there"),
          "unreadable": (lambda patch: patch.setenv("CC", 'gcc "'), "No closing quotation"),
          "silent": (lambda patch: patch.setenv("CC", "false"), "returned non-zero exit status 1"),
          "failing": (lambda patch: patch.setenv("CC", "gcc -no-such-option"), "no-such-option")}


@pytest.mark.parametrize("problem", BROKEN)
def test_without_it_a_line_says_so_and_the_same_tokens_come(problem, fresh, monkeypatch, capsys):
    model, config = tiny_gpt(), SamplingConfig(max_new_tokens=20, seed=3)
    expected = [new.token for new in generate_tokens(model, [1, 2], config)]
    assert isinstance(fastest(model, torch.float32), NativeModel)
    breaks, told = BROKEN[problem]
    breaks(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh))
    monkeypatch.setattr("gpt.generation.native.model.library", library.library)
    assert fastest(model, torch.float32) is model
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert told in said.err and said.err.startswith("note: generation is two to five times as fast")
    assert [new.token for new in generate_tokens(model, [1, 2], config)] == expected
    assert not list(fresh.rglob("gpt-toolkit/*"))


def test_a_damaged_library_is_made_anew(fresh, capsys):
    made = library._compiled()
    sound = made.read_bytes()
    made.write_bytes(b"")
    assert library.library() is not None and made.read_bytes() == sound
    assert capsys.readouterr().err == ""


def test_other_systems_do_without_a_word(monkeypatch, capsys, fresh):
    monkeypatch.setattr(library.sys, "platform", "darwin")
    assert library.library() is None and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("problem", ["open to others", "no home"])
def test_a_folder_that_others_can_write_to_is_not_trusted(problem, fresh, monkeypatch, tmp_path):
    fresh.mkdir(parents=True)
    if problem == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        fresh.chmod(0o777)
    assert library.library() is not None and not list(fresh.iterdir())
    fresh.chmod(0o700)


def test_what_is_compiled_is_installed_with_the_package():
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    line = settings.split('"gpt.generation.native" = ')[1].splitlines()[0]
    patterns = re.findall(r'"(\*\.\w+)"', line)
    assert all(any(file.match(pattern) for pattern in patterns) for file in SOURCES)


def test_where_nothing_can_be_kept_it_is_compiled_for_this_process(fresh, monkeypatch, tmp_path):
    fresh.parent.write_text("a file where the folder should be")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    last = []
    monkeypatch.setattr(library.atexit, "register", lambda *call, **more: last.append((call, more)))
    assert library.library() is not None
    (delete, folder), more = last[0]
    delete(folder, **more)
    assert [each.name for each in tmp_path.iterdir()] == ["cache"]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux tells so much")
def test_a_processor_is_told_by_what_it_can_do():
    told = library._processor()
    assert told.count("\n") >= 4 and "MHz" not in told
    assert "fma" in told.split() or "asimd" in told.split()


def test_threads_are_those_of_torch():
    """Two OpenMP libraries in one process would wait for each other's cores."""
    assert library.library() is not None
    with open("/proc/self/maps", encoding="utf-8") as file:  # noqa: PTH123
        loaded = {line.split()[-1] for line in file if "gomp" in line or "iomp" in line}
    assert len(loaded) == 1 and CPU.device.type == "cpu"
