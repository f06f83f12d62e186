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


@dataclass(frozen=True)
class Call:
    """A function that an assistant calls.

    arguments: a JSON object; is_text: the data has it as a text, which some templates tell from an
    object. id: what a result refers to.
    """

    name: str
    arguments: str
    is_text: bool = field(default=False, compare=False)
    id: str = field(default="", compare=False)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. learned: whether the loss counts it.

    functions: what may be called, in a system message. calls: what an assistant calls, after what
    it says. reasoning: what it thinks before. name: who speaks, or which function gave a result;
    call_id: to which call. source: where the message was read, for errors.
    """

    role: str  # system, user, assistant, or tool: what a call gave back
    content: str
    learned: bool = False
    functions: tuple[Function, ...] = ()
    calls: tuple[Call, ...] = ()
    source: str = field(default="", compare=False)
    reasoning: str = ""
    name: str = field(default="", compare=False)
    call_id: str = field(default="", compare=False)
