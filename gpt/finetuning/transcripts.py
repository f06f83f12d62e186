"""Conversations written in one text, with a name before each turn, as preferences often are.

Bai et al. 2022 (arXiv:2204.05862) published theirs so: "\\n\\nHuman: … \\n\\nAssistant: …".
"""

from __future__ import annotations

import re

from gpt.chat import Message
from gpt.finetuning.fields import Fields

_NAMES = (("Human", "Assistant"), ("HUMAN", "ASSISTANT"), ("User", "Assistant"),
          ("USER", "ASSISTANT"))


def transcript(record: Fields, name: str) -> list[Message]:
    """The turns of a text that begins with a name and has both; nothing if it is no transcript.

    A name counts at the beginning of a line, after an empty one where both names stand so:
    elsewhere it is something that somebody says. Raises UserError if somebody says nothing.
    """
    turns = []
    for number, (role, said) in enumerate(_turns(record.full_text(name)), 1):
        if not said:
            raise record.wrong(name, f"is a transcript whose turn {number}, the {role}'s, is "
                                     "empty; write something there, or take the record out")
        turns.append(Message(role, said, learned=role == "assistant",
                             source=f"{record.where}: {name}, turn {number},"))
    return turns


def _turns(text: str) -> list[tuple[str, str]]:
    """(role, what is said) of each turn, without the blanks around it."""
    for between in ("\n\n", "\n"):
        for user, assistant in _NAMES:
            before, *parts = re.split(rf"(?:\A\s*|{between})({user}|{assistant}):", text)
            names, said = parts[::2], parts[1::2]
            if not before and {user, assistant} <= set(names):
                return [("user" if name == user else "assistant", words.strip())
                        for name, words in zip(names, said, strict=True)]
    return []
