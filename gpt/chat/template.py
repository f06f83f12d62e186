"""The Jinja template that came with a model. A process of its own renders it (sandbox.py)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from gpt.errors import UserError

SANDBOX = Path(__file__).with_name("sandbox.py")
SECONDS = 10  # for what is rendered at once; a conversation takes a thousandth
START_SECONDS = 60  # beside others, on a machine that is busy


@dataclass(frozen=True)
class ChatTemplate:
    """A template, in jinja2's language.

    names: what it calls some control tokens, such as bos_token. source: where it stands. now: the
    time that it may write, in ISO format; "": that of each rendering.
    """

    text: str
    names: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    now: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of its text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def tells_the_time(self) -> bool:
        """Whether what it writes depends on the day."""
        return self.knows("strftime_now")

    def knows(self, *names: str) -> bool:
        """Whether one of these stands in it anywhere: what it does not name, it cannot write."""
        return any(re.search(rf"\b{re.escape(name)}\b", self.text) for name in names)


class Wanted(NamedTuple):
    """A rendering of some turns, by their places; asks: with what stands before the next answer."""

    turns: Sequence[int]
    asks: bool = False


class Renderer:
    """Renders a template. Raises UserError for what the template refuses, and for a template that
    takes too long or too much memory."""

    def __init__(self, template: ChatTemplate):
        self.template = template
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = os.getpid()

    def render(self, turns: Sequence[Any], wanted: Sequence[Wanted],
               variables: Mapping[str, Any] | None = None) -> list[str]:
        """A text for each of those that are wanted. variables: what the template is told besides.
        """
        if self._owner != os.getpid():  # we were forked: the process and the lock are not ours
            self._process, self._lock, self._owner = None, threading.Lock(), os.getpid()
        asked = {"now": self.template.now or datetime.now().isoformat(), "turns": turns,
                 "wanted": [{"turns": [*one.turns], "asks": one.asks} for one in wanted],
                 "variables": {**self.template.names, **(variables or {})}}
        with self._lock:
            if self._process is None:
                self._process = self._started()
            try:
                answers = self._ask(self._process, asked, len(wanted))
            except BaseException:  # what it still says belongs to nothing that comes later
                _end(self._process, self._owner)
                self._process = None
                raise
        if "error" in answers[-1]:
            raise UserError(f"the chat template{self._where} refuses this conversation: "
                            f"{answers[-1]['error']}")
        return [answer["text"] for answer in answers]

    @property
    def _where(self) -> str:
        return f" ({self.template.source})" if self.template.source else ""

    def _started(self) -> subprocess.Popen[str]:
        # In a session of its own: a Ctrl-C is for us, and it ends when its input does.
        process = subprocess.Popen([sys.executable, str(SANDBOX)], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                   encoding="ascii", start_new_session=True)
        weakref.finalize(self, _end, process, os.getpid())
        with _limited(process, START_SECONDS):
            ready = _line(process)
        if not ready:
            raise UserError(f"the chat template{self._where} cannot be rendered: the process that "
                            f"would do it does not start ({sys.executable} {SANDBOX}); is jinja2 "
                            "installed?")
        _write(process, self.template.text)
        return process

    def _ask(self, process: subprocess.Popen[str], asked: dict[str, Any], count: int
             ) -> list[dict[str, str]]:
        """So many answers, or as many as there are up to one that is an error."""
        answers: list[dict[str, str]] = []
        with _limited(process, SECONDS):
            _write(process, asked)
            while len(answers) < count and not (answers and "error" in answers[-1]):
                if not (line := _line(process)):
                    raise UserError(
                        f"the chat template{self._where} takes more than {SECONDS} seconds or too "
                        "much memory; it is no sound one: give finetune.chat, or a "
                        "chat_format.json beside the model")
                answers.append(json.loads(line))
        return answers


@contextlib.contextmanager
def _limited(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    late = threading.Timer(seconds, process.kill)
    late.start()
    try:
        yield
    finally:
        late.cancel()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _write(process: subprocess.Popen[str], value: Any) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it was ended: no answer comes
        process.stdin.write(json.dumps(value) + "\n")
        process.stdin.flush()


def _end(process: subprocess.Popen[str], owner: int) -> None:
    """Let a process end, if it is ours and not that of the process we were forked from."""
    if os.getpid() != owner:
        return
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.kill()
    process.wait()
