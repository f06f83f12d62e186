"""Functions and their calls in a record, in the shapes that people have them in.

They are objects, or JSON in a text, as tables need it. What a chat format makes of them:
gpt/chat/tools.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from gpt.chat import Call, Function, Message
from gpt.errors import UserError
from gpt.finetuning.fields import Fields, kind_of, shown


def functions_of(record: Fields) -> tuple[Function, ...]:
    """What may be called, as `tools` or in the older form `functions` say; nothing if none do."""
    return tuple(_function(one) for name in ("tools", "functions") if record.holds(name)
                 for one in _objects(record, name))


def calls_of(turn: Fields) -> tuple[Call, ...]:
    """What an assistant's message calls, by `tool_calls` or in the older form `function_call`."""
    return tuple(call for name in ("tool_calls", "function_call") if turn.holds(name)
                 for call in calls_in(turn, name))


def calls_in(record: Fields, name: str) -> tuple[Call, ...]:
    """The calls that a field holds."""
    calls = tuple(_call(one) for one in _objects(record, name))
    if not calls:
        raise record.wrong(name, "calls nothing; write a call there, or take the record out")
    return calls


def with_functions(record: Fields, turns: Sequence[Message]) -> list[Message]:
    """The turns with what the record says may be called, in the system message.

    Where that message describes the functions already, as in conversations that were written for
    one model, it stays as it is.
    """
    functions = functions_of(record)
    has_system = turns[0].role == "system"
    if functions and turns[0].functions:
        raise record.wrong("tools" if record.holds("tools") else "functions",
                           "are given, and so are those of the system message; keep one of them")
    _refuse_unknown({each.name for each in functions or turns[0].functions}, turns)
    if not functions or (has_system and _describes(turns[0].content, functions)):
        return list(turns)
    system = turns[0] if has_system else Message("system", "")
    return [replace(system, functions=functions, source=record.where), *turns[has_system:]]


def _describes(text: str, functions: Sequence[Function]) -> bool:
    return all(re.search(rf"""["']name["']:\s*["']{re.escape(each.name)}["']""", text)
               for each in functions)


def _refuse_unknown(names: set[str], turns: Sequence[Message]) -> None:
    for turn in turns:
        for call in turn.calls:
            if names and call.name not in names:
                raise Fields({}, turn.source).wrong(
                    f"the call of {shown(call.name)}", "is of no function that the record defines "
                    f"({', '.join(map(shown, sorted(names)[:8]))}); rename one of them, or take "
                    "the record out")


def _function(one: Fields) -> Function:
    """A definition in OpenAI's words; one that is bare, as in `functions`, is put into them."""
    named, definition = _unwrapped(one), one.values
    if named is one:
        bare = {name: value for name, value in definition.items() if name != "type"}
        definition = {"type": "function", "function": bare}
    return Function(named.full_text("name"), _json(definition, one.where))


def _call(one: Fields) -> Call:
    named = _unwrapped(one)
    name, arguments = named.full_text("name"), named.get("arguments")
    if "arguments" not in named.values:
        raise named.missing("arguments")
    is_text, called = isinstance(arguments, str), one.get("id")
    if is_text:  # as it is written: other tools render it so, too
        said = _parsed(named, "arguments")
    else:
        said, arguments = arguments, _json(arguments, named.where)
    if not isinstance(said, dict):
        raise named.wrong("arguments", f"is {kind_of(said)}; it must be an object, {{}} if empty, "
                                       "or one as JSON in a text")
    return Call(name, arguments, is_text, called if isinstance(called, str) else "")


def _unwrapped(one: Fields) -> Fields:
    """What stands under `function`, or all of it."""
    kind = one.get("type")
    if kind not in (None, "function") and "function" not in one.values and "name" not in one.values:
        raise one.wrong("type", f"is {shown(str(kind))}; only functions can be learned")
    if one.get("function") is None or isinstance(one.get("name"), str):
        return one
    return Fields(one.get("function"), f"{one.where}: function")


def _objects(record: Fields, name: str) -> Iterator[Fields]:
    """The objects of a list, or the only one; each may be JSON in a text, and so may the list."""
    found, where = _parsed(record, name), f"{record.where}: {name}"
    if not isinstance(found, list):
        yield Fields(found, where)
        return
    for i, one in enumerate(found):
        inner = Fields({f"{name}[{i}]": one}, record.where)
        yield Fields(_parsed(inner, f"{name}[{i}]"), f"{where}[{i}]")


def _json(value: Any, where: str) -> str:
    """A value as JSON, without what is null in its objects.

    Tables give each object the fields of all, and null where it had none.
    """
    try:
        return json.dumps(_without_null(value), ensure_ascii=False)
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply; a function needs a few levels") from error


def _without_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_null(one) for one in value]
    if isinstance(value, dict):
        return {name: _without_null(one) for name, one in value.items() if one is not None}
    return value


def _parsed(record: Fields, name: str) -> Any:
    """A field, or what it says where it is JSON in a text."""
    value = record.get(name)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise record.wrong(name, "is nested too deeply; a function needs a few levels") from error
    except ValueError as error:
        raise record.wrong(name, f"is no JSON ({error}); write an object, or JSON in a text, or "
                                 "take the record out") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is none")
