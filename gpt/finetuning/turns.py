"""The messages of a record's conversation, in the words that people have for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from gpt.chat import SYSTEM_ROLES, TOOL_ROLES, Message
from gpt.errors import UserError
from gpt.finetuning.fields import Fields, kind_of, shown
from gpt.finetuning.tool_calls import calls_in, calls_of, functions_of

# Read in any case. `tool_call` and `tool_response` are ms-swift's words, `function_call` and
# `observation` LLaMA-Factory's.
_CALLS = ("function_call", "tool_call")
_ROLES = {**dict.fromkeys(SYSTEM_ROLES, "system"), "user": "user", "human": "user",
          "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant",
          "bard": "assistant", "bing": "assistant", **dict.fromkeys(_CALLS, "assistant"),
          **dict.fromkeys((*TOOL_ROLES, "observation", "tool_response"), "tool")}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_ROUNDS = (("input", "output"), ("human", "assistant"))  # as Capybara and MOSS have them


def turns_of(record: Fields, name: str) -> list[Message]:
    """The messages in a field, one by one."""
    turns = record.get(name)
    if name not in record.values:
        raise record.missing(name)
    if not isinstance(turns, list | dict):
        raise record.wrong(name, f"is {kind_of(turns)}; it must be a list of messages")
    found: list[Message] = []
    for i, turn in enumerate([turns] if isinstance(turns, dict) else turns):
        for message in _messages(Fields(turn, f"{record.where}: {name}[{i}]")):
            found.append(_joined(found.pop(), message) if _goes_on(found, turn) else message)
    return found


def unlearned(turns: Iterable[Message]) -> list[Message]:
    """The same messages, to be read alone."""
    return [replace(turn, learned=False) for turn in turns]


def _messages(turn: Fields) -> Iterator[Message]:
    """A message in OpenAI's words or in ShareGPT's, or a round that is a question and an answer."""
    turn.refuse_what_is_not_text()
    turn.refuse_near(("weight", "tool_calls", "function_call", "reasoning_content"))
    for asked, answered in _ROUNDS:
        if turn.values.keys() >= {asked, answered} and not turn.values.keys() & {"role", "from"}:
            learned = _has_weight(turn)
            yield Message("user", turn.full_text(asked), source=turn.where)
            yield Message("assistant", turn.full_text(answered), learned, source=turn.where)
            return
    is_sharegpt = turn.get("from") is not None or turn.get("value") is not None
    who, said = ("from", "value") if is_sharegpt else ("role", "content")
    named = turn.text(who).lower()
    role = _ROLES.get(named)
    if role is None:
        raise turn.wrong(who, f"is {shown(turn.text(who))}; it must be system, user, assistant or "
                              "tool (human, gpt, function_call and observation in ShareGPT)")
    learned = role == "assistant" and _has_weight(turn)
    if named in _CALLS:
        yield Message(role, "", learned, calls=calls_in(turn, said), source=turn.where)
        return
    yield _message(turn, role, said, learned)


def _message(turn: Fields, role: str, said: str, learned: bool) -> Message:
    calls, functions = calls_of(turn), functions_of(turn)
    if calls and role != "assistant":
        raise turn.wrong("tool_calls" if turn.holds("tool_calls") else "function_call",
                         f"is the {role}'s; only the assistant calls")
    if functions and role != "system":
        raise turn.wrong("tools" if turn.holds("tools") else "functions",
                         f"is the {role}'s; move it to the record, or to the system message")
    content = "" if calls and turn.get(said) is None else _content(turn, said)
    if role in ("user", "assistant") and not calls and not content.strip():
        raise turn.wrong(said, "is empty; write something there, or take the record out")
    return Message(role, content, learned, functions, calls, turn.where, _reasoning(turn, role),
                   _word(turn, "name"), _word(turn, "tool_call_id"))


def _word(turn: Fields, name: str) -> str:
    """A text that nothing depends on."""
    value = turn.get(name)
    return value if isinstance(value, str) else ""


def _reasoning(turn: Fields, role: str) -> str:
    """What was thought before an answer, as templates and APIs call it."""
    name = next((name for name in _REASONING if turn.holds(name)), None)
    if name is None:
        return ""
    if role != "assistant":
        raise turn.wrong(name, f"is the {role}'s; only the assistant thinks")
    return turn.text(name)


def _goes_on(found: list[Message], turn: Any) -> bool:
    """Whether a turn is a call that belongs to the answer before it: some have a turn for each."""
    named = turn.get("from") or turn.get("role")
    return bool(found) and found[-1].role == "assistant" and str(named).lower() in _CALLS


def _joined(answer: Message, call: Message) -> Message:
    if answer.learned != call.learned:
        raise UserError(f"{call.source}: weight differs from that of the answer before, which this "
                        "call is a part of; give both the same")
    return replace(answer, calls=answer.calls + call.calls)


def _content(turn: Fields, name: str) -> str:
    """Text, or a list of parts that are all text."""
    if not isinstance(turn.get(name), list):
        return turn.text(name)
    parts = [Fields(part, f"{turn.where}: {name}[{i}]") for i, part in enumerate(turn.get(name))]
    for part in parts:
        if part.text("type") != "text":
            raise part.wrong("type", f"is {shown(part.text('type'))}; only text can be learned")
    return "".join(part.text("text") for part in parts)


def _has_weight(turn: Fields) -> bool:
    for name in ("loss", "train", "training"):  # what others call it
        if isinstance(turn.get(name), bool):
            raise turn.wrong(name, "is not read here; rename it to weight, which is 0 or 1")
    if turn.get("weight") not in (None, 0, 1):
        raise turn.wrong("weight", "must be 0 (read, and not learned) or 1")
    return turn.get("weight") != 0


def in_order(turns: list[Message], where: str, last: tuple[str, ...],
             greeted: bool = False) -> list[Message]:
    """The turns, if user and assistant take turns in them, after at most one system message, and
    what tools give back follows what calls them.

    last: whose the last one must be. greeted: what the assistant says before the user does is left
    out; ShareGPT's conversations often were cut there.
    """
    kept: list[Message] = []
    for i, turn in enumerate(turns):
        expected = _next(kept)
        if turn.role == "system" and i > 0:
            raise UserError(f"{turn.source} is a system message, which only the first may be; move "
                            "it there, or take it out")
        if greeted and turn.role == "assistant" and all(one.role == "system" for one in kept):
            continue
        if turn.role not in ("system", *expected):
            raise UserError(f"{turn.source} is the {turn.role}'s and must be the {expected[0]}'s: "
                            "user and assistant take turns, the user first; add what is missing, "
                            "or join two of one role")
        kept.append(turn)
    if all(turn.role == "system" for turn in kept):
        raise UserError(f"{where} has nothing that the user says; add it, or take the record out")
    if kept[-1].role not in last:
        raise UserError(f"{kept[-1].source} is the {kept[-1].role}'s, and the last must be "
                        f"the {last[0]}'s; add that, or take this one out")
    return kept


def _next(turns: list[Message]) -> tuple[str, ...]:
    """Whose turn may come next."""
    if not turns or turns[-1].role == "system":
        return ("user",)
    if turns[-1].role == "assistant":  # calls may be a part of what it says, too
        return ("tool",) if turns[-1].calls else ("user", "tool")
    return ("assistant", "tool") if turns[-1].role == "tool" else ("assistant",)
