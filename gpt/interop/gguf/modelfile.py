"""What `ollama create NAME -f Modelfile` reads: a chat format in Ollama's language, and its stops.

A template is Go's text/template over .Messages. What it renders is read with the names of control
tokens as these tokens, and llama.cpp puts begin-of-text before it where the tokenizer has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gpt.chat import FORMATS, SYSTEM_ROLES, ChatFormat, saved_format
from gpt.tokenizer import Tokenizer


class Modelfile(NamedTuple):
    """remark: what it cannot express, as a line for the user; empty if it lacks nothing."""

    text: str
    remark: str


def modelfile(gguf: str, tokenizer: Tokenizer, block_size: int) -> Modelfile:
    """The Modelfile of a GGUF file.

    Without a chat format, or with plain, a prompt goes in as it is. Where the format cannot be
    expressed there is no TEMPLATE: Ollama then goes by the GGUF file's own, which is Jinja.
    """
    form, template = saved_format(tokenizer), ["TEMPLATE " + _quoted("{{ .Prompt }}")]
    names = {number: name for name, number in tokenizer.specials.items()}
    lacking = _inexpressible(form, tokenizer)
    if lacking is not None:
        template = []
    elif form is not None and form != FORMATS["plain"]:
        template = ["TEMPLATE " + _quoted(go_template(form, names[tokenizer.end_of_text],
                                                      tokenizer.begin_of_text is not None))]
        if form.default_system is not None:
            template.append("SYSTEM " + _quoted(form.default_system))
    stops = [f'PARAMETER stop "{names[one]}"' for one in tokenizer.stop_tokens if one in names]
    lines = [f"FROM ./{gguf}", *template, f"PARAMETER num_ctx {block_size}", *stops, ""]
    return Modelfile("\n".join(lines), "" if lacking is None else (
        f"the Modelfile has no TEMPLATE, which cannot express {lacking}: Ollama takes the one in "
        "the GGUF file, which its older versions cannot read"))


def _inexpressible(form: ChatFormat | None, tokenizer: Tokenizer) -> str | None:
    """What of a model's way to converse a Modelfile cannot say."""
    if form is None:
        return None if tokenizer.chat_template is None else "a chat template of another tool"
    system = form.default_system
    if system == "":
        return "a default system message that is empty"
    if system is not None and ('"""' in system or not all(map(_is_kept, system))):
        return 'a default system message with """ or with characters that cannot be printed'
    return None


def go_template(form: ChatFormat, end_of_text: str, has_begin: bool) -> str:
    """A format in Go's text/template: what `Chat.pieces` gives for a prompt, but begin-of-text."""
    turns = [(SYSTEM_ROLES, form.system.before, form.system.after),
             (("user",), form.user.before, form.user.after),
             (("assistant",), form.assistant.before,
              (form.stop or end_of_text) + form.assistant.after)]
    cases = "{{ else ".join(
        f"if {_is_one_of(roles)} }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}"
        for roles, before, after in turns)
    shown = [role for roles, before, after in turns if before or after for role in roles]
    turn = f"{{{{ {cases}{{{{ end }}}}"
    if has_begin or form.assistant.before:
        return f"{{{{ range .Messages }}}}{turn}{{{{ end }}}}{_literal(form.assistant.before)}"
    # What would begin with an answer, or with nothing, begins with end-of-text.
    end = _literal(end_of_text)
    return ("{{ $begun := false }}{{ range .Messages }}"
            f'{{{{ if and .Content (eq .Role "assistant") (not $begun) }}}}{end}{{{{ end }}}}{turn}'
            f"{{{{ if or .Content ({_is_one_of(shown)}) }}}}{{{{ $begun = true }}}}{{{{ end }}}}"
            f"{{{{ end }}}}{{{{ if not $begun }}}}{end}{{{{ end }}}}")


def _is_one_of(roles: Iterable[str]) -> str:
    return "eq .Role " + " ".join(f'"{role}"' for role in roles)


def _literal(text: str) -> str:
    """A text in a template; as a string of Go if a brace, a quote or what is lost is in it."""
    if all(map(_is_kept, text)) and not set('{"') & set(text):
        return text
    escaped = {'"': '\\"', "\\": "\\\\"}
    return '{{ "' + "".join(escaped.get(one) or (
        one if one.isascii() and one.isprintable() else f"\\U{ord(one):08x}")
        for one in text) + '" }}'


def _quoted(text: str) -> str:
    return f'"""{text}"""'


def _is_kept(character: str) -> bool:
    """Ollama's reading of a Modelfile drops what Go's strconv.IsPrint is false for."""
    return character.isprintable() or character in "\t\n"
