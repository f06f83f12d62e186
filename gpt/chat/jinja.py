"""A chat format as a Jinja template: the same rendering, for other tools."""

from __future__ import annotations

import json

from gpt.chat.format import ChatFormat, ToolTexts
from gpt.chat.messages import SYSTEM_ROLES, TOOL_ROLES

_CONTENT = '{{- message["content"] }}'
_FIRST = f'messages[0]["role"] in {list(SYSTEM_ROLES)}'


def as_jinja(form: ChatFormat, has_begin: bool) -> str:
    """The template. has_begin: a conversation begins with the tokenizer's begin-of-text."""
    begin = "{{- bos_token }}" if has_begin else ""
    answer = _CONTENT if form.tools is None else _answer(form.tools)
    cases = [f'{{%- if message["role"] in {list(roles)} %}}'
             + _literal(turn.before) + shown + _literal(turn.after) for roles, turn, shown in (
                 (SYSTEM_ROLES, form.system, _CONTENT), (["user"], form.user, _CONTENT),
                 (["assistant"], form.assistant, answer + _stop(form)))]
    if form.tools is not None:  # the first message was said with them
        cases = [f"{{%- if tools and loop.first and {_FIRST} %}}", *cases,
                 _result(form, form.tools)]
    chosen = cases[0] + "".join(case.replace("{%- if", "{%- elif", 1) for case in cases[1:])
    chosen += ('{%- else %}{{- raise_exception("this model knows no role " ~ message["role"]) '
               "}}")
    return (f"{begin}{_opening(form)}{{%- for message in messages %}}{chosen}{{%- endif %}}"
            "{%- endfor %}" + _asking(form.assistant.before))


def _opening(form: ChatFormat) -> str:
    """The system message with tools in it, or the default one."""
    no_system = _FIRST.replace(" in ", " not in ", 1)
    default = "" if form.default_system is None else (
        f"{{%- if {no_system} %}}"
        + _literal(form.system.before + form.default_system + form.system.after)
        + "{%- endif %}")
    if form.tools is None:
        return default
    absent = "" if form.default_system is None else _literal(form.default_system + "\n\n")
    return ("{%- if tools %}" + _literal(form.system.before)
            + f'{{%- if {_FIRST} and messages[0]["content"] %}}'
            '{{- messages[0]["content"] ~ "\\n\\n" }}{%- else %}' + absent + "{%- endif %}"
            + _literal(form.tools.functions.before) + "{%- for tool in tools %}"
            '{%- if not loop.first %}{{- "\\n" }}{%- endif %}{{- tool | tojson }}{%- endfor %}'
            + _literal(form.tools.functions.after + form.system.after)
            + (f"{{%- else %}}{default}" if default else "") + "{%- endif %}")


def _answer(texts: ToolTexts) -> str:
    """What the assistant says, and its calls; arguments are an object, or JSON as it is written."""
    return ('{%- if message["content"] %}' + _CONTENT + "{%- endif %}"
            '{%- for call in message["tool_calls"] or [] %}'
            '{%- if message["content"] or not loop.first %}{{- "\\n" }}{%- endif %}'
            "{%- if call.function is defined %}{%- set call = call.function %}{%- endif %}"
            + _literal(texts.call.before + '{"name": ')
            + "{{- call.name | tojson }}" + _literal(', "arguments": ')
            + "{%- if call.arguments is string %}{{- call.arguments }}"
              "{%- else %}{{- call.arguments | tojson }}{%- endif %}"
            + _literal("}" + texts.call.after) + "{%- endfor %}")


def _result(form: ChatFormat, texts: ToolTexts) -> str:
    """What a call gave back: those that follow each other in one turn of the user."""
    roles = list(TOOL_ROLES)
    return (f'{{%- if message["role"] in {roles} %}}'
            f'{{%- if not loop.first and messages[loop.index0 - 1]["role"] in {roles} %}}'
            '{{- "\\n" }}{%- else %}' + _literal(form.user.before) + "{%- endif %}"
            + _literal(texts.result.before) + _CONTENT + _literal(texts.result.after)
            + f'{{%- if loop.last or messages[loop.index0 + 1]["role"] not in {roles} %}}'
            + _literal(form.user.after) + "{%- endif %}")


def _stop(form: ChatFormat) -> str:
    return "{{- eos_token }}" if form.stop is None else _literal(form.stop)


def _asking(text: str) -> str:
    return f"{{%- if add_generation_prompt %}}{_literal(text)}{{%- endif %}}" if text else ""


def _literal(text: str) -> str:
    """A Jinja expression that prints a text, whatever is in it."""
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
