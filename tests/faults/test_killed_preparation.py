"""Real processes, killed and starved: the same command again comes to the same bytes.

Each prepares a small corpus in small pieces, slowly enough to be hit on its way.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.preparation import prepare
from gpt.errors import UserError
from gpt.shards import Dataset, is_dataset, verify_dataset
from tests.data.corpora import (
    IN_SMALL_PIECES,
    bad_text,
    cleaned,
    folder_bytes,
    in_small_pieces,
    many_files,
    recipe,
)
from tests.tiny import ROOT, as_in_a_terminal, script_environment

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")

SLOWLY = IN_SMALL_PIECES + """
import time
real, seconds = encode._encode, float(sys.argv.pop(1))
def slow(*args):
    time.sleep(seconds)
    return real(*args)
encode._encode = slow
run_command(main)
"""
FULL = IN_SMALL_PIECES + """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
run_command(main)
"""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    in_small_pieces(monkeypatch)


def words(changes: dict, workers: int) -> list[str]:
    """The recipe as a command line says it."""
    sources = changes["sources"]
    return [*sources, *(f"{k}={v}" for k, v in changes.items() if k != "sources"),
            "out=new/out", "name=text", f"workers={workers}"]


def started(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that leads a session of its own."""
    return subprocess.Popen([sys.executable, "-c", script, *arguments], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            start_new_session=True, env=script_environment(),
                            preexec_fn=as_in_a_terminal)


def session(leader: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(own) == leader and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def end_session(leader: subprocess.Popen[str]) -> None:
    """Leave nothing running, whatever a test found."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.communicate()


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    """Poll. What never comes is a failure, and nothing is measured."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def is_on_its_way() -> bool:
    """Whether a journal says that some text is written."""
    try:
        found = re.search(r'"stored": (\d+)', Path("new/out.partial/journal.json").read_text())
    except OSError:
        return False
    return found is not None and int(found[1]) > 1000


@pytest.fixture
def whole(request):
    """(a recipe, the folder that it makes undisturbed)"""
    changes = request.param()
    prepare(recipe(**changes, out="whole", name="text"))
    return changes, folder_bytes("whole")


def finished(changes: dict, whole: dict[str, bytes]) -> None:
    """The same command once more makes the same dataset, and leaves nothing beside it."""
    process = started(SLOWLY, "0", *words(changes, 2))
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert folder_bytes("new/out") == whole and verify_dataset(Path("new/out")) == []
    assert [path.name for path in Path("new").iterdir()] == ["out"]


@pytest.mark.parametrize("whole", [many_files, cleaned, bad_text], indirect=True)
def test_killed_at_any_moment_it_leaves_no_dataset_no_processes_and_goes_on(whole):
    changes, expected = whole
    draw = random.Random(0)
    for workers in (1, 2, 3):
        process = started(SLOWLY, "0.2", *words(changes, workers))
        if workers > 1:
            wait_for(is_on_its_way)
        time.sleep(draw.random() * 0.3)
        process.kill()
        try:
            wait_for(lambda p=process: not session(p.pid), 5)
        finally:
            end_session(process)
        assert process.returncode == -signal.SIGKILL
        assert not Path("new/out").exists() and not is_dataset(Path("new/out.partial"))
        with pytest.raises(UserError, match="there is no dataset in"):
            Dataset(Path("new/out.partial"))
    finished(changes, expected)


@pytest.mark.parametrize("to_all", [False, True])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("whole", [many_files], indirect=True)
def test_asked_to_stop_it_leaves_with_75_and_the_command_that_continues(whole, name, to_all):
    """Schedulers and terminals tell all processes at once, which is to make no difference."""
    changes, expected = whole
    process = started(SLOWLY, "0.02", *words(changes, 2))
    wait_for(is_on_its_way)
    if to_all:
        os.killpg(process.pid, signal.Signals[name])
    else:
        process.send_signal(signal.Signals[name])
    _, told = process.communicate(timeout=20)
    assert process.returncode == 75, told
    last = told.strip().splitlines()[-1]
    assert last.endswith(f"stopped by {name}; what is done is kept in new/out.partial; to continue:"
                         f" python -c {' '.join(words(changes, 2))}")
    assert "Traceback" not in told and not session(process.pid)
    finished(changes, expected)


@pytest.mark.parametrize("whole", [many_files], indirect=True)
def test_when_a_process_that_encodes_is_killed_one_line_says_so(whole):
    changes, expected = whole
    process = started(SLOWLY, "0.02", *words(changes, 2))
    wait_for(is_on_its_way)
    os.kill(max(session(process.pid)), signal.SIGKILL)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 1 and "Traceback" not in told
    assert told.strip().splitlines()[-1].endswith(
        "failed: a process that encodes was killed, perhaps for want of memory; run the same "
        "command again to continue, with fewer workers if it happens again")
    assert not session(process.pid)
    finished(changes, expected)


@pytest.mark.parametrize("limit", [100, 300, 2500, 5000])
@pytest.mark.parametrize("whole", [many_files], indirect=True)
def test_when_no_more_can_be_written_one_line_names_the_file(whole, limit):
    """A limit on the size of files stands for a full disk: the same error at the same place."""
    changes, expected = whole
    process = started(FULL, str(limit), *words(changes, 1))
    _, told = process.communicate(timeout=20)
    assert process.returncode == 1
    assert re.search(r"failed: new/out\.partial/\S+: File too large$", told.strip()), told
    assert "Traceback" not in told and not is_dataset(Path("new/out"))
    finished(changes, expected)


@pytest.mark.parametrize("whole", [many_files], indirect=True)
def test_of_two_at_once_the_second_is_refused_and_a_killed_ones_place_is_free(whole):
    changes, expected = whole
    first = started(SLOWLY, "1", *words(changes, 2))
    wait_for(is_on_its_way)
    second = started(SLOWLY, "0", *words(changes, 2))
    _, told = second.communicate(timeout=20)
    assert second.returncode == 2
    assert re.fullmatch(rf"error: new/out\.partial is in use by process {first.pid} on \S+; wait "
                        r"for it, or choose another out=FOLDER\n", told)
    first.kill()
    first.wait()
    finished(changes, expected)  # at once, whether or not its processes have noticed yet
    end_session(first)


# Smaller pieces than usual, and all else in proportion.
PEAK = """
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
from data.sharding import encode
from data.sharding import making
from data.sources import text
from data.prepare import main
text.PIECE_BYTES = encode.BATCH_CHARACTERS = 1 << 16
making.TRAINING_CHARACTERS, text.MOST_PIECES = 1 << 12, 4
main(sys.argv[1:])
print("peak", max(resource.getrusage(who).ru_maxrss for who in (
    resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""
KINDS: dict[str, tuple[Callable[[int], str], list[str]]] = {
    "text.txt": (lambda i: f"word{i * 7919 % 1000} and\n", ["tokenizer=bpe:300"]),
    "line.txt": (lambda i: f"x{i * 7919 % 1000:05}",  # without a blank
                 ["tokenizer=bpe:300", "tokenizer_max_bytes=500000"]),
    "records.jsonl": (lambda i: f'{{"text": "number {i} {"and so on " * 40}"}}\n',
                      ["tokenizer=char"]),
}


def peak_megabytes(source: Path, megabytes: int, kind: str, *options: str) -> float:
    """The most memory that a process takes which prepares so much of the same kind of text."""
    unit, settings = KINDS[kind]
    size, number = 0, 0
    with source.open("w") as file:
        while size < megabytes << 20:
            size += file.write(unit(number))
            number += 1
    command = [sys.executable, "-c", PEAK, str(ROOT), str(source), *settings, *options,
               f"out={source}.out"]
    # A shell in between: a process inherits the peak of the one that it was forked from.
    done = subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", *command], capture_output=True,
                          text=True, env=script_environment())
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("peak ")[1]) / 1024


@pytest.mark.parametrize(("kind", "workers"), [
    ("text.txt", 1), ("line.txt", 1), ("records.jsonl", 2)])
def test_memory_does_not_grow_with_the_corpus(kind, workers):
    """Ten times the text takes less than what is added, even if each byte were kept but once."""
    small = peak_megabytes(Path(f"1-{kind}"), 1, kind, f"workers={workers}")
    large = peak_megabytes(Path(f"10-{kind}"), 10, kind, f"workers={workers}")
    assert large < small + 9
