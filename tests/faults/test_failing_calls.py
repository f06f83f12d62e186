"""The shim that lets calls fail, and the disk on which what it records is replayed: if these saw
nothing, no row of faults would."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.disk import Disk, crashes
from tests.faults.failing_calls import KINDS, WRITING, Call, calls_of, compiler, preloaded
from tests.tiny import ROOT

pytestmark = pytest.mark.skipif(
    compiler() is None or not Path("/proc/self/fd").exists(),
    reason="needs a C compiler and Linux's /proc")

# Every kind of call once, on folder/a and in it; what fails is printed. Without torch.
WORK = """
import json, os, sys, tempfile
from pathlib import Path
folder, outside = map(Path, sys.argv[1:3])
try:
    (outside / "free").write_text("is never touched")
    (folder / "a").mkdir()
    (folder / "a" / "x").write_text("hello")
    descriptor = os.open(folder / "a" / "x", os.O_RDWR)
    os.fsync(descriptor), os.read(descriptor, 2), os.pwrite(descriptor, b"J", 0)
    os.ftruncate(descriptor, 4)
    (folder / "a" / "x").rename(folder / "a" / "y")
    (folder / "a" / "y").unlink()
    print(json.dumps(""))
except OSError as error:
    print(json.dumps(os.strerror(error.errno)))
"""


def failed(tmp_path: Path, **asked: object) -> str:
    """What the work dies of in a process that knows nothing of the shim."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir(exist_ok=True)
    outside.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(inside), str(outside)], capture_output=True, text=True,
        env=os.environ | preloaded(FOLDER=inside, **asked), check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_the_call_that_is_asked_for_fails_and_no_other(tmp_path, kind):
    assert failed(tmp_path, KINDS=(kind,), AT=0, ERROR=5) == "Input/output error"
    assert (tmp_path / "outside" / "free").exists()


def test_without_a_call_that_fails_all_goes_well(tmp_path):
    assert failed(tmp_path, KINDS=KINDS, AT=1000) == ""


def test_a_disk_is_full_once_it_holds_so_many_bytes(tmp_path):
    assert failed(tmp_path, ROOM=3) == "No space left on device"
    assert (tmp_path / "inside" / "a" / "x").read_text() == "hel"


RECORDED = """
import os, sys
from pathlib import Path
from tests.faults.failing_calls import recording
folder = Path(sys.argv[1])
with open(sys.argv[2], "wb") as log, recording(folder, log.fileno()):
    (folder / "x.tmp").write_text("new")
    if "flush" in sys.argv:
        with open(folder / "x.tmp", "rb") as file:
            os.fsync(file.fileno())
    (folder / "x.tmp").rename(folder / "x")
    if "folder" in sys.argv:
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
"""


def found_after_crashes(tmp_path: Path, *how: str) -> tuple[set[str | None], set[str | None]]:
    """What a file that is replaced may hold (after a crash at any time, after one at the end)."""
    folder, log = tmp_path / "folder", tmp_path / "log"
    folder.mkdir()
    (folder / "x").write_text("old")
    disk = Disk(folder)
    subprocess.run([sys.executable, "-c", RECORDED, str(folder), str(log), *how], cwd=ROOT,
                   env=os.environ | preloaded(), check=True)
    calls, ever = calls_of(log.read_bytes()), set[str | None]()
    for number, call in enumerate([None, *calls]):
        if call is not None:
            disk.apply(call)
        found = set[str | None]()
        for tried, (_, keeps, tears) in enumerate(crashes(random.Random(number), 50)):
            target = tmp_path / f"{number}-{tried}"
            disk.crash(target, keeps, tears)
            found.add((target / "x").read_text() if (target / "x").exists() else None)
        ever |= found
    return ever, found


def test_a_file_that_is_flushed_renamed_and_its_folder_flushed_is_old_or_new(tmp_path):
    assert found_after_crashes(tmp_path, "flush", "folder") == ({"old", "new"}, {"new"})


def test_a_file_that_is_not_flushed_before_its_rename_may_be_empty_or_torn(tmp_path):
    ever, at_the_end = found_after_crashes(tmp_path, "folder")
    assert at_the_end > {"new", ""} and "n" in ever


def test_a_name_whose_folder_is_not_flushed_may_be_lost(tmp_path):
    assert found_after_crashes(tmp_path, "flush")[1] == {"old", "new"}


def test_what_is_recorded_is_read_back():
    log = b"write\t3\t5\t/a\t\na\nb\0crename\t0\t0\t/a\t/b\n"
    assert calls_of(log) == [Call("write", 3, "/a", "", b"a\nb\0c"),
                             Call("rename", 0, "/a", "/b", b"")]
    assert set(WRITING) < set(KINDS)
