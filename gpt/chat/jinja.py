"""A chat format as a Jinja template: the same rendering, for other tools."""

from __future__ import annotations

import json

from gpt.chat.format import ChatFormat
from gpt.chat.messages import SYSTEM_ROLES


def as_jinja(form: ChatFormat, has_begin: bool) -> str:
    """The template. has_begin: a conversation begins with the tokenizer's begin-of-text."""
    begin = "{{- bos_token }}" if has_begin else ""
    cases = "".join(
        f'{{%- {"el" if number else ""}if message["role"] in {list(roles)} %}}'
        + _shown(turn.before, 'message["content"]',
                 (form.stop or "eos_token", form.stop is None) if role == "assistant" else None,
                 turn.after)
        for number, (role, roles, turn) in enumerate(
            (("system", SYSTEM_ROLES, form.system), ("user", ["user"], form.user),
             ("assistant", ["assistant"], form.assistant))))
    cases += ('{%- else %}{{- raise_exception("this model knows no role " ~ message["role"]) '
              "}}")
    default = "" if form.default_system is None else (
        f'{{%- if messages[0]["role"] not in {list(SYSTEM_ROLES)} %}}'
        + _literal(form.system.before + form.default_system + form.system.after)
        + "{%- endif %}")
    return (f"{begin}{default}{{%- for message in messages %}}{cases}{{%- endif %}}"
            "{%- endfor %}" + _asking(form.assistant.before))


def _asking(text: str) -> str:
    return f"{{%- if add_generation_prompt %}}{_literal(text)}{{%- endif %}}" if text else ""


def _shown(before: str, content: str, stop: tuple[str, bool] | None, after: str) -> str:
    shown = _literal(before) + f"{{{{- {content} }}}}"
    if stop is not None:
        name, is_variable = stop
        shown += f"{{{{- {name} }}}}" if is_variable else _literal(name)
    return shown + _literal(after)


def _literal(text: str) -> str:
    """A Jinja expression that prints a text, whatever is in it."""
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
