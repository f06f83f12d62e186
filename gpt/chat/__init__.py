"""Conversations as text and token ids: messages; a format that is data, its rendering here and as
Jinja for other tools; the template that came with a model, rendered apart.
"""

from gpt.chat.choice import AnyChat, choose_chat, converses, own_chat
from gpt.chat.format import FORMATS, ChatFormat, converses_in, read_format, saved_format
from gpt.chat.messages import SYSTEM_ROLES, TOOL_ROLES, Call, Function, Message
from gpt.chat.rendering import Chat
from gpt.chat.template_chat import TemplateChat
from gpt.chat.tools import in_words, with_tools

__all__ = ["FORMATS", "SYSTEM_ROLES", "TOOL_ROLES", "AnyChat", "Call", "Chat", "ChatFormat",
           "Function", "Message", "TemplateChat", "choose_chat", "converses", "converses_in",
           "in_words", "own_chat", "read_format", "saved_format", "with_tools"]
