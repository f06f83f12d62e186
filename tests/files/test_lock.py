"""One process per folder, however the one before it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpt.errors import UserError
from gpt.files import InUse, lock, locked
from tests.tiny import ROOT

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="this system has no flock")

HOLDER = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from gpt.files import locked
with locked(Path(sys.argv[1]), "wait"):
    if "fork" not in sys.argv or not os.fork():  # a child that outlives its parent
        print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A process that has the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), *words],
                               stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_second_process_is_refused_with_the_firsts_name(tmp_path):
    first = holder(tmp_path)
    try:
        with pytest.raises(InUse) as caught, locked(tmp_path, "choose another out=FOLDER"):
            pass
    finally:
        end(first)
    assert str(caught.value) == (
        f"{tmp_path} is in use by process {first.pid} on {socket.gethostname()}; wait for it, or "
        "choose another out=FOLDER")
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("words", [(), ("fork",)])
def test_a_lock_left_by_a_kill_is_taken_over_even_while_its_children_live(words, tmp_path):
    first = holder(tmp_path, *words)
    try:
        first.kill()
        first.wait()
        with locked(tmp_path, "wait"):
            assert (tmp_path / "lock").read_text() == (
                f"process {os.getpid()} on {socket.gethostname()}")
    finally:
        end(first)


def test_a_lock_is_given_back_when_its_block_ends_well_or_badly(tmp_path):
    for error in (None, ValueError):
        try:
            with locked(tmp_path, "wait"):
                if error:
                    raise error
        except ValueError:
            pass
        assert not lock._held
    with locked(tmp_path, "wait"), pytest.raises(InUse), locked(tmp_path, "wait"):
        pass


def test_of_many_threads_one_at_a_time_is_let_in(tmp_path):
    inside, most, refused = [0], [0], [0]

    def work() -> None:
        for _ in range(50):
            try:
                with locked(tmp_path, "wait"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    inside[0] -= 1
            except InUse:
                refused[0] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and refused[0] < 200


def test_a_folder_that_vanishes_is_in_use_by_whoever_removed_it(tmp_path):
    with pytest.raises(InUse, match="is in use by another process, which has just removed it"), \
            locked(tmp_path / "gone", "wait"):
        pass


def test_a_file_system_without_locks_is_named_and_work_goes_on(tmp_path, monkeypatch, capsys):
    def fail(*args: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", fail)
    with locked(tmp_path, "wait"):
        pass
    assert "has no locks, so a second process" in capsys.readouterr().err
