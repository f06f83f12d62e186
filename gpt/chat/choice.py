"""Which format or template a model's conversations are written in."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from gpt.chat.format import (
    FORMATS,
    ChatFormat,
    controls_of,
    converses_in,
    read_format,
    saved_format,
)
from gpt.chat.rendering import Chat
from gpt.chat.template import ChatTemplate
from gpt.chat.template_chat import TemplateChat
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer

AnyChat: TypeAlias = Chat | TemplateChat


def choose_chat(name: str, converses: bool, tokenizer: Tokenizer, now: str = "") -> AnyChat:
    """By a format's name, or from a YAML file or a Jinja template.

    auto: what the model was trained with, as a format or as the template that came with it. Where
    neither is known: plain for prompts and completions; for conversations (converses) by the
    control tokens that the tokenizer has, else turns. now: the time that templates are told.
    """
    if name == "auto" and (own := own_chat(tokenizer, now)) is not None:
        return own
    instead = _instead_of(tokenizer)
    if name.endswith(".jinja"):
        template = _template_of(tokenizer, _read(Path(name)), name, now)
        return TemplateChat(template, tokenizer, f"the template {name}{instead}")
    name, form = _format(name, converses, tokenizer)
    return Chat(form, tokenizer, name if form == saved_format(tokenizer) else name + instead)


def _instead_of(tokenizer: Tokenizer) -> str:
    """What is said of a choice beside what a model was trained with."""
    saved = saved_format(tokenizer)
    if saved is None:
        return "" if not tokenizer.chat_template else " (instead of the base model's template)"
    return "" if saved == FORMATS["plain"] else " (instead of the base model's)"


def own_chat(tokenizer: Tokenizer, now: str = "") -> AnyChat | None:
    """What a model was trained with; None where it is not known, or plain."""
    saved = saved_format(tokenizer)
    if saved is not None:
        plain = saved == FORMATS["plain"]
        return None if plain else Chat(saved, tokenizer, "the base model's")
    if not tokenizer.chat_template:
        return None
    source = tokenizer.template_source
    template = _template_of(tokenizer, tokenizer.chat_template, source, now)
    return TemplateChat(template, tokenizer, "the base model's own template"
                                             + (f" ({source})" if source else ""))


def converses(tokenizer: Tokenizer) -> bool:
    """Whether a model is asked in conversations, so that a bare text is no question to it."""
    saved = saved_format(tokenizer)
    return bool(tokenizer.chat_template) if saved is None else converses_in(saved)


def _template_of(tokenizer: Tokenizer, text: str, source: str, now: str) -> ChatTemplate:
    return ChatTemplate(text, tokenizer.named_tokens, source, now)


def _format(name: str, converses: bool, tokenizer: Tokenizer) -> tuple[str, ChatFormat]:
    if name == "auto" and not converses:
        name = "plain"
    elif name == "auto":
        name = next((known for known in ("chatml", "llama3")
                     if set(controls_of(FORMATS[known])) <= tokenizer.specials.keys()), "turns")
    if name in FORMATS:
        return name, FORMATS[name]
    if not (path := Path(name)).is_file():
        raise UserError(f"finetune.chat: there is no chat format {name}: choose auto, "
                        f"{', '.join(FORMATS)}, or the path of a YAML file or a .jinja template")
    return name, read_format(path)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise UserError(f"cannot read the chat template {path}: {reason}") from error
