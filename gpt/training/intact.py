"""Whether what is read is still what was prepared: looked at while training begins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from gpt.errors import UserError
from gpt.machine.neighbours import let_others_go_first

T = TypeVar("T")
PATIENCE = 2.0  # seconds that the first batch waits: enough for a gigabyte or more


class Intact(Generic[T]):
    """What `read` returns for each step, as long as nothing is known to be wrong with it.

    look: what is wrong, in words, or None; a thread asks it once, which reads all files. Then the
    next step raises UserError: the first one, where that is known soon enough.
    """

    def __init__(self, read: Callable[[int], T], look: Callable[[], str | None]):
        self._read, self._look = read, look
        self._wrong: str | None = None
        self._patience = PATIENCE
        self._thread = threading.Thread(target=self._ask, daemon=True, name="intact")
        self._thread.start()

    def _ask(self) -> None:
        let_others_go_first()
        try:
            self._wrong = self._look()
        except (OSError, UserError) as error:
            self._wrong = str(error)

    def step(self, step: int) -> T:
        """What a step reads. Raises UserError once it is known not to be what it was."""
        self._thread.join(self._patience)
        self._patience = 0.0
        if self._wrong is not None:
            raise UserError(self._wrong)
        return self._read(step)
