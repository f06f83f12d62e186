"""What a row of task data is, whatever file it came from: a conversation, or a preference."""

from __future__ import annotations

from dataclasses import dataclass

from gpt.chat import Call, Message


@dataclass(frozen=True)
class Example:
    """A conversation whose assistant turns are learned.

    A prompt and its completion are a user's turn and an assistant's; a plain text is an
    assistant's alone. label: the class that the completion names, in classification. where: file
    and line, for errors.
    """

    messages: tuple[Message, ...]
    where: str = ""
    label: str | None = None

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
    """A prompt and two answers, of which people prefer the first; what each answer calls."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    where: str = ""
    chosen_calls: tuple[Call, ...] = ()
    rejected_calls: tuple[Call, ...] = ()
