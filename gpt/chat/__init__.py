"""Conversations as text and token ids: messages, a format that is data, its rendering here and as
Jinja for other tools.
"""

from gpt.chat.format import (
    FORMATS,
    ChatFormat,
    choose_format,
    converses_in,
    read_format,
    saved_format,
)
from gpt.chat.messages import SYSTEM_ROLES, TOOL_ROLES, Call, Function, Message
from gpt.chat.rendering import Chat
from gpt.chat.tools import in_words

__all__ = ["FORMATS", "SYSTEM_ROLES", "TOOL_ROLES", "Call", "Chat", "ChatFormat", "Function",
           "Message", "choose_format", "converses_in", "in_words", "read_format", "saved_format"]
