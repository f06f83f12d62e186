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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt.errors import UserError

SANDBOX = Path(__file__).with_name("sandbox.py")
SECONDS = 10  # for all that is rendered at once; a conversation takes a thousandth
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


class Renderer:
    """Renders a template. Raises UserError for what the template refuses, and for a template that
    takes too long or too much memory."""

    def __init__(self, template: ChatTemplate):
        self.template = template
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def render(self, wanted: Sequence[dict[str, Any]]) -> list[str]:
        """A text for each of several sets of variables (`messages`, `add_generation_prompt`, …)."""
        named = [{**self.template.names, **one} for one in wanted]
        with self._lock:
            fresh = self._process is None or self._owner != os.getpid()
            answer = self._ask(self._started() if fresh else self._process, named,
                               START_SECONDS if fresh else SECONDS)
        if "error" in answer:
            raise UserError(f"the chat template{self._where} refuses this conversation: "
                            f"{answer['error']}")
        texts: list[str] = answer["texts"]
        return texts

    @property
    def _where(self) -> str:
        return f" ({self.template.source})" if self.template.source else ""

    def _started(self) -> subprocess.Popen[str]:
        # In a session of its own: a Ctrl-C is for us, and it ends when its input does.
        process = subprocess.Popen([sys.executable, str(SANDBOX)], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                   encoding="ascii", start_new_session=True)
        self._process, self._owner = process, os.getpid()
        weakref.finalize(self, _end, process, os.getpid())
        _write(process, {"template": self.template.text,
                         "now": self.template.now or datetime.now().isoformat()})
        return process

    def _ask(self, process: subprocess.Popen[str] | None, wanted: list[dict[str, Any]],
             seconds: float) -> dict[str, Any]:
        assert process is not None and process.stdout is not None
        late = threading.Timer(seconds, process.kill)
        late.start()
        try:
            _write(process, wanted)
            line = process.stdout.readline()
        finally:
            late.cancel()
        if not line:
            self._process = None
            _end(process, os.getpid())
            raise UserError(f"the chat template{self._where} takes more than {SECONDS} seconds or "
                            "too much memory; it is no sound one: give finetune.chat, or a "
                            "chat_format.json beside the model")
        answer: dict[str, Any] = json.loads(line)
        return answer


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
