"""Row 2: the n-th call of a kind fails, for every n of a save, and for some of a whole run."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.faults.failing_calls import KINDS, WRITING, failing, preloaded
from tests.faults.rows import runs
from tests.faults.rows.saves import (
    ERRORS,
    SCENARIOS,
    Files,
    Scenario,
    goes_on,
    is_old_or_new,
    scratch,
    undisturbed,
)
from tests.faults.tally import Tally
from tests.faults.warm import Done, Started, forked, obey
from tests.tiny import command_line, script_environment

WAYS = ((errno.EIO, False), (errno.ENOSPC, False), (errno.EIO, True))  # (error, from then on)


def run(short: bool, folder: Path) -> Tally:
    """All scenarios; short: every seventh call of two of them."""
    tally = Tally()
    for number, scenario in enumerate(SCENARIOS[1:3] if short else SCENARIOS):
        known = undisturbed(scenario)
        with scratch() as root:
            for kind in KINDS:
                total = _count(scenario, root, kind)
                for at in range(number, total, 7 if short else 1):
                    for code, lasts in WAYS[:1] if short else WAYS:
                        tally.expect(_try(scenario, known, root, kind, at, code, lasts))
    tally.add(_commands(folder, 3 if short else 40))
    return tally


def _count(scenario: Scenario, root: Path, kind: str) -> int:
    def counted() -> int:
        with failing(root, (kind,)) as seen:
            scenario.save(folder)
        return seen.calls

    folder = _fresh(scenario, root)
    calls: int = forked(counted)
    assert calls or kind in ("truncate", "unlink"), f"no {kind} is seen in {scenario.name}"
    return calls


def _fresh(scenario: Scenario, root: Path) -> Path:
    shutil.rmtree(root / "run", ignore_errors=True)
    model = root / "model"
    if not model.exists():
        scenario.start(model)
    if (model / "run").exists():
        shutil.copytree(model / "run", root / "run")
    return root / "run" / "checkpoints"


def _try(scenario: Scenario, known: dict[int, Files], root: Path, kind: str, at: int, code: int,
         lasts: bool) -> str | None:
    """What did not hold when the call failed."""
    def disturbed() -> dict[str, Any]:
        with failing(root, (kind,), at, code, lasts) as seen:
            said = outcome(lambda: scenario.save(folder))
        return {"where": seen.where, **said}

    folder = _fresh(scenario, root)
    said = forked(disturbed)
    problem = (_unnamed(said, root) or is_old_or_new(scenario, folder, known, not said["error"])
               or goes_on(scenario, folder, known))
    call = f"{kind} {at} fails{' from then on' * lasts} with {errno.errorcode[code]}"
    return problem and (f"{scenario.name}: {call} at {said['where']}: {problem} "
                        f"({said['error']})")


def outcome(work) -> dict[str, Any]:
    """What some work raised; nothing, if it came to its end."""
    try:
        work()
    except ERRORS as error:
        return {"error": f"{type(error).__name__}: {error}",
                "file": str(getattr(error, "filename", None) or "")}
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}", "file": "", "alien": True}
    return {"error": "", "file": ""}


def _unnamed(said: dict[str, Any], root: Path) -> str | None:
    """Whether an error does not say which file it is about."""
    if not said["error"]:
        return None
    if said.get("alien"):
        return "an error that no user is to see"
    return None if str(root) in said["file"] + said["error"] else "no path is named"


def _commands(folder: Path, count: int) -> Tally:
    """train.py, of whose run one call fails; every twentieth time as a process of its own."""
    tally, draw = Tally(), random.Random(0)
    runs.dataset(folder)
    whole = _train(folder, "whole", -1, 0)
    assert whole.code == 0, whole.err
    expected, total = runs.outcome(folder / "runs" / "whole"), int(whole.out.split()[-1])
    for number in range(count):
        at, code = draw.randrange(total), draw.choice((errno.EIO, errno.ENOSPC))
        name = f"run-{number}"
        train = _train_apart if number % 20 == 19 else _train
        done = train(folder, name, at, code)
        problem = _badly_ended(done, name)
        again = runs.train(folder, name, 6)
        if again.code:
            problem = problem or f"then {again.code}: {again.err[-300:]}"
        else:
            problem = problem or runs.different(runs.outcome(folder / "runs" / name), expected)
        tally.expect(problem and f"train.py, call {at} fails with {errno.errorcode[code]} "
                     f"({done.out.split()[-1:]}): {problem}")
    return tally


def _badly_ended(done: Done, name: str) -> str | None:
    """Whether it neither came to its end nor said, in a line, which file failed."""
    if done.code == 0 or (done.is_one_line and f"runs/{name}" in done.last):
        return None
    return f"code {done.code}: {done.err[-300:]!r}"


def _train(folder: Path, name: str, at: int, code: int) -> Done:
    """A run of which a call fails; the last word is how many there were, or where it was."""
    def work() -> int:
        try:
            with failing(folder / "runs" / name, WRITING, at, code) as seen:
                return obey("train.py", list(runs.words(name, 6)))
        finally:
            print(seen.where or seen.calls)

    return Started(work, folder).wait()


def _train_apart(folder: Path, name: str, at: int, code: int) -> Done:
    words = command_line("train.py", *runs.words(name, 6))
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True,
                          env=script_environment(**preloaded(
                              FOLDER=folder / "runs" / name, KINDS=WRITING, AT=at, ERROR=code)))
    return Done(done.returncode, done.stdout, done.stderr, 0.0, 0.0)
