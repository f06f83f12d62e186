"""What a row of task data is, whatever file it came from: a conversation, or a preference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpt.chat import Message


@dataclass(frozen=True)
class Example:
    """A conversation whose assistant turns are learned.

    A prompt and its completion are a user's turn and an assistant's; a plain text is an
    assistant's alone. label: the class that the completion names, in classification. where: file
    and line, for errors. options: what the record says to the model's chat template, such as
    enable_thinking.
    """

    messages: tuple[Message, ...]
    where: str = ""
    label: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What stands before the last answer."""
        return self.messages[:-1]

    @property
    def completion(self) -> str:
        """The last answer."""
        return self.messages[-1].content


@dataclass(frozen=True)
class Preference:
    """A prompt and two answers, of which people prefer the first; the rest as in Example."""

    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    where: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
