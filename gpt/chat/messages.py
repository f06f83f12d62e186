"""What a conversation is made of."""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM_ROLES = ("system", "developer")  # two names of one


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. learned: whether the loss counts it."""

    role: str  # system, user or assistant
    content: str
    learned: bool = False
