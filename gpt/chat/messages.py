"""What a conversation is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

SYSTEM_ROLES = ("system", "developer")  # two names of one
TOOL_ROLES = ("tool", "function")


class Function(NamedTuple):
    """A function that may be called. definition: a JSON object."""

    name: str
    definition: str


class Call(NamedTuple):
    """A function that an assistant calls. arguments: a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. learned: whether the loss counts it.

    functions: what may be called, in a system message. calls: what an assistant calls, after what
    it says. source: where the message was read, for errors.
    """

    role: str  # system, user, assistant, or tool: what a call gave back
    content: str
    learned: bool = False
    functions: tuple[Function, ...] = ()
    calls: tuple[Call, ...] = ()
    source: str = field(default="", compare=False)
