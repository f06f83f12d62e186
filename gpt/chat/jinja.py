"""A chat format as a Jinja template: the same rendering, for other tools."""

from __future__ import annotations

import json

from gpt.chat.format import ChatFormat, ToolTexts
from gpt.chat.messages import SYSTEM_ROLES, TOOL_ROLES

_CONTENT = '{{- message["content"] }}'


def as_jinja(form: ChatFormat, has_begin: bool) -> str:
    """The template. has_begin: a conversation begins with the tokenizer's begin-of-text."""
    begin = "{{- bos_token }}" if has_begin else ""
    shown = {"system": _CONTENT, "user": _CONTENT, "assistant": _CONTENT + _stop(form)}
    if form.tools is not None:
        shown["assistant"] = _answer(form.tools) + _stop(form)
    cases = "".join(
        f'{{%- {"el" if number else ""}if message["role"] in {list(roles)} %}}'
        + _literal(turn.before) + shown[role] + _literal(turn.after)
        for number, (role, roles, turn) in enumerate(
            (("system", SYSTEM_ROLES, form.system), ("user", ["user"], form.user),
             ("assistant", ["assistant"], form.assistant))))
    if form.tools is not None:
        cases += _result(form, form.tools)
    cases += ('{%- else %}{{- raise_exception("this model knows no role " ~ message["role"]) '
              "}}")
    messages = "messages" if form.tools is None else "messages[(1 if said.system else 0):]"
    return (f"{begin}{_opening(form)}{{%- for message in {messages} %}}{cases}{{%- endif %}}"
            "{%- endfor %}" + _asking(form.assistant.before))


def _opening(form: ChatFormat) -> str:
    """The system message with tools in it, or the default one; and in said.system, where tools
    are known, whether that was the first message."""
    role, names = 'messages[0]["role"]', list(SYSTEM_ROLES)
    default = "" if form.default_system is None else (
        _literal(form.system.before + form.default_system + form.system.after))
    if form.tools is None:
        return f"{{%- if {role} not in {names} %}}{default}{{%- endif %}}" if default else ""
    given = '{{- messages[0]["content"] ~ "\\n\\n" }}'
    absent = "" if form.default_system is None else _literal(form.default_system + "\n\n")
    return (f"{{%- set said = namespace(system=false) %}}{{%- if tools %}}"
            f"{{%- set said.system = {role} in {names} %}}{_literal(form.system.before)}"
            f'{{%- if said.system and messages[0]["content"] %}}{given}{{%- else %}}{absent}'
            f"{{%- endif %}}{_literal(form.tools.functions.before)}{{%- for tool in tools %}}"
            '{%- if not loop.first %}{{- "\\n" }}{%- endif %}{{- tool | tojson }}{%- endfor %}'
            + _literal(form.tools.functions.after + form.system.after)
            + (f"{{%- elif {role} not in {names} %}}{default}" if default else "") + "{%- endif %}")


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
    return (f'{{%- elif message["role"] in {roles} %}}'
            f'{{%- if not loop.first and loop.previtem["role"] in {roles} %}}{{{{- "\\n" }}}}'
            f"{{%- else %}}{_literal(form.user.before)}{{%- endif %}}"
            + _literal(texts.result.before) + _CONTENT + _literal(texts.result.after)
            + f'{{%- if loop.last or loop.nextitem["role"] not in {roles} %}}'
            + _literal(form.user.after) + "{%- endif %}")


def _stop(form: ChatFormat) -> str:
    return "{{- eos_token }}" if form.stop is None else _literal(form.stop)


def _asking(text: str) -> str:
    return f"{{%- if add_generation_prompt %}}{_literal(text)}{{%- endif %}}" if text else ""


def _literal(text: str) -> str:
    """A Jinja expression that prints a text, whatever is in it."""
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
