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
from gpt.chat.messages import SYSTEM_ROLES, Message
from gpt.chat.rendering import Chat

__all__ = ["FORMATS", "SYSTEM_ROLES", "Chat", "ChatFormat", "Message", "choose_format",
           "converses_in", "read_format", "saved_format"]
