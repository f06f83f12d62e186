"""What Ollama does with a Modelfile, as far as ours need it: reading it, and rendering a prompt.

Written from Ollama's documentation and its behaviour (parser/parser.go, template/template.go,
server/routes.go) and from Go's text/template. What is not known here raises `Unknown`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Conversation = Sequence[tuple[str, str]]  # (role, content)


class Unknown(Exception):
    """The interpreter does not know this, so that nobody may rely on it."""


# ----- The file

COMMANDS = ("FROM", "TEMPLATE", "SYSTEM", "PARAMETER num_ctx", "PARAMETER stop")


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """(command, value) in order. Quotes are taken off; what cannot be printed is lost."""
    found = []
    while text := text.lstrip(" \t\r\n"):
        command = next((one for one in COMMANDS if text.startswith(one + " ")), None)
        if command is None:
            raise Unknown(text)
        value, text = _value(text[len(command) + 1:])
        found.append((command, value))
    return found


def _value(text: str) -> tuple[str, str]:
    """(the value, what follows it): it ends at the first line break at which its quotes are closed.
    """
    for line_break in re.finditer("[\r\n]|$", text):
        kept = "".join(one for one in text[:line_break.start()]
                       if one.isprintable() or one in "\t\r\n").strip()
        for quotes in ('"""', '"'):
            if kept.startswith(quotes):
                if len(kept) >= 2 * len(quotes) and kept.endswith(quotes):
                    return kept[len(quotes):-len(quotes)], text[line_break.end():]
                break
        else:
            return kept, text[line_break.end():]
    raise Unknown(f"quotes that are not closed: {text}")


def prompt(modelfile: str, messages: Conversation) -> str:
    """What /api/chat hands to the model, before begin-of-text; with one user's message, and
    perhaps a system's, what /api/generate does."""
    commands = dict(read_modelfile(modelfile))
    if commands.get("SYSTEM") and not (messages and messages[0][0] == "system"):
        messages = [("system", commands["SYSTEM"]), *messages]
    return render(commands["TEMPLATE"], collated(messages))


def collated(messages: Conversation) -> list[tuple[str, str]]:
    """Neighbours of one role become one message."""
    found: list[tuple[str, str]] = []
    for role, content in messages:
        if found and found[-1][0] == role:
            found[-1] = (role, found[-1][1] + "\n\n" + content)
        else:
            found.append((role, content))
    return found


# ----- Templates

@dataclass
class Branch:
    """{{ if }}: conditions, what each shows, and what is shown otherwise. {{ range }}: one body."""

    keyword: str
    conditions: list[list[str]] = field(default_factory=list)
    bodies: list[list[Any]] = field(default_factory=list)


TOKEN = re.compile(r'\s+|"(?:[^"\\\n]|\\.)*"|:=|=|[()]|[.$]?[A-Za-z]\w*')
ESCAPE = re.compile(r'\\(?:U([0-9a-f]{8})|(["\\]))')


def _eq(first: Any, *others: Any) -> bool:
    if not others or not all(isinstance(one, str) for one in (first, *others)):
        raise Unknown(f"eq {first} {others}")
    return first in others


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": _eq, "not": lambda one: not one,
    "and": lambda *all_: next((one for one in all_ if not one), all_[-1]),
    "or": lambda *all_: next((one for one in all_ if one), all_[-1])}


def render(template: str, messages: Conversation) -> str:
    """A template over .Messages; one over .Prompt alone is given the last message of the user."""
    tree = _Parser(template).list_until()
    shown = _Rendering([{"Role": role, "Content": content} for role, content in messages])
    return "".join(shown.all(tree, {"Messages": shown.messages} if ".Messages" in template else {
        "Prompt": [content for role, content in messages if role == "user"][-1]}))


class _Parser:
    """Texts as str, actions as lists of tokens, branches."""

    def __init__(self, template: str):
        self.parts = list(self._split(template))

    @staticmethod
    def _split(template: str) -> Iterator[str | list[str]]:
        while True:
            text, opened, template = template.partition("{{")
            if text:
                yield text
            if not opened:
                return
            tokens, at = [], 0
            while not template.startswith("}}", at):
                found = TOKEN.match(template, at)
                if found is None:
                    raise Unknown(template[at:])
                at = found.end()
                tokens += [found.group()] if found.group().strip() else []
            yield tokens
            template = template[at + 2:]

    def list_until(self, *ends: str) -> list[Any]:
        """Up to an action that begins so, which stays; without `ends` up to the end of all."""
        found: list[Any] = []
        while self.parts:
            part = self.parts[0]
            if isinstance(part, list) and part and part[0] in ("end", "else"):
                if part[0] not in ends:
                    raise Unknown(f"{part[0]} of nothing")
                return found
            self.parts.pop(0)
            opens = isinstance(part, list) and part[:1] in (["if"], ["range"])
            found.append(self._branch(part) if opens else part)
        if ends:
            raise Unknown(f"no {' or '.join(ends)}")
        return found

    def _branch(self, opening: list[str]) -> Branch:
        branch = Branch(opening[0])
        ends = ("else", "end") if branch.keyword == "if" else ("end",)
        while True:
            if opening[1:]:
                branch.conditions.append(opening[1:])
            branch.bodies.append(self.list_until(*ends))
            opening = self.parts.pop(0)
            if opening == ["end"]:
                return branch
            opening = opening[1:]
            if opening[:1] == ["if"]:
                continue
            if opening:
                raise Unknown(f"else {opening}")
            ends = ("end",)


class _Rendering:
    """Values of a template's variables, and what it shows."""

    def __init__(self, messages: list[dict[str, str]]):
        self.messages, self.variables = messages, {}

    def all(self, parts: list[Any], dot: dict[str, Any]) -> Iterator[str]:
        for part in parts:
            if isinstance(part, str):
                yield part
            elif isinstance(part, Branch):
                yield from self._branch(part, dot)
            else:
                yield self._action(part, dot)

    def _branch(self, branch: Branch, dot: dict[str, Any]) -> Iterator[str]:
        if branch.keyword == "range":
            if branch.conditions != [[".Messages"]]:
                raise Unknown(f"range {branch.conditions}")
            for message in dot["Messages"]:
                yield from self.all(branch.bodies[0], message)
            return
        if not branch.conditions:
            raise Unknown("if without a condition")
        for condition, body in zip(branch.conditions, branch.bodies, strict=False):
            if self._value(condition, dot):
                yield from self.all(body, dot)
                return
        if len(branch.bodies) > len(branch.conditions):
            yield from self.all(branch.bodies[-1], dot)

    def _action(self, tokens: list[str], dot: dict[str, Any]) -> str:
        if len(tokens) > 2 and tokens[1] in (":=", "=") and tokens[0].startswith("$"):
            outermost = "Role" not in dot
            if (tokens[1] == ":=" and not outermost) or (
                    (tokens[1] == "=") != (tokens[0] in self.variables)):
                raise Unknown(f"{tokens[0]} is declared once, outermost, and then assigned to")
            self.variables[tokens[0]] = self._value(tokens[2:], dot)
            return ""
        shown = self._value(tokens, dot)
        if not isinstance(shown, str):
            raise Unknown(f"how Go shows {shown}")
        return shown

    def _value(self, tokens: list[str], dot: dict[str, Any]) -> Any:
        values, left = self._operands(tokens, dot)
        if left or not values:
            raise Unknown(f"{tokens}")
        name, *given = values
        if name not in FUNCTIONS.values():
            if given:
                raise Unknown(f"{tokens}")
            return name
        return name(*given)

    def _operands(self, tokens: list[str], dot: dict[str, Any]) -> tuple[list[Any], list[str]]:
        """(values up to the end or to a bracket that closes, what is left from there)."""
        found: list[Any] = []
        while tokens and tokens[0] != ")":
            token, tokens = tokens[0], tokens[1:]
            if token == "(":
                inner, left = self._operands(tokens, dot)
                if left[:1] != [")"] or not inner or inner[0] not in FUNCTIONS.values():
                    raise Unknown(f"({tokens}")
                found.append(inner[0](*inner[1:]))
                tokens = left[1:]
            elif token in FUNCTIONS and not found:
                found.append(FUNCTIONS[token])
            else:
                found.append(self._operand(token, dot))
        return found, tokens

    def _operand(self, token: str, dot: dict[str, Any]) -> Any:
        if token.startswith('"'):
            return _text_of(token[1:-1])
        if token in ("true", "false"):
            return token == "true"
        if token in self.variables:
            return self.variables[token]
        if token.startswith(".") and token[1:] in dot:
            return dot[token[1:]]
        raise Unknown(token)


def _text_of(escaped: str) -> str:
    """A string of Go."""
    found = ESCAPE.sub(lambda one: chr(int(one[1], 16)) if one[1] else one[2], escaped)
    if "\\" in ESCAPE.sub("", escaped):
        raise Unknown(escaped)
    return found
