"""How a conversation becomes text: a format that is data.

What surrounds each role's turns may hold control tokens, by name; what people wrote never does,
whatever it spells.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from gpt.configuration import Section, strict_yaml
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer

_CONTROL = re.compile(r"<\|\w+\|>")


class Turn(Section):
    """What stands around one role's messages."""

    before: str = ""
    after: str = ""


class ToolTexts(Section):
    """What stands around functions, calls and results. All of it is text: messages hold it."""

    functions: Turn = Field(
        default_factory=Turn,
        description="around the definitions, a line each, which follow the system message")
    call: Turn = Field(default_factory=Turn, description="around each call of an answer")
    result: Turn = Field(
        default_factory=Turn, description="around what a call gives back, in the user's turn")

    @model_validator(mode="after")
    def _have_no_control_tokens(self) -> ToolTexts:
        for turn in (self.functions, self.call, self.result):
            if found := _CONTROL.search(turn.before + turn.after):
                raise ValueError(f"{found[0]} would be text there, and no control token")
        return self


class ChatFormat(Section):
    """The text around a conversation's turns. Control tokens in it are written by their names."""

    system: Turn = Field(default_factory=Turn)
    user: Turn = Field(default_factory=Turn)
    assistant: Turn = Field(default_factory=Turn, description="`after` follows the stop token")
    stop: str | None = Field(
        None, description="control token that ends an answer, and is learned; null: end-of-text")
    default_system: str | None = Field(
        None, description="system message of conversations that have none")
    prefix: Literal["causal", "bidirectional"] = Field(
        "causal", description="how what stands before the first answer is read")
    tools: ToolTexts | None = Field(
        None, description="how tools are written; null: conversations have none")


_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
_TURN = "<|im_start|>{}\n"
# As Hermes 2 Pro and Qwen2.5 write it. Source: chat_template in Qwen2.5's tokenizer_config.json.
HERMES = ToolTexts(
    functions=Turn(
        before="# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
               "You are provided with function signatures within <tools></tools> XML tags:\n"
               "<tools>\n",
        after="\n</tools>\n\nFor each function call, return a json object with function name and "
              "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
              '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'),
    call=Turn(before="<tool_call>\n", after="\n</tool_call>"),
    result=Turn(before="<tool_response>\n", after="\n</tool_response>"))
FORMATS = {
    # Nothing in between: a prompt, and what follows it.
    "plain": ChatFormat(),
    # Headlines, for models whose only control token is end-of-text.
    "turns": ChatFormat(system=Turn(after="\n\n"), user=Turn(before="User:\n", after="\n\n"),
                        assistant=Turn(before="Assistant:\n")),
    "chatml": ChatFormat(
        **{role: Turn(before=_TURN.format(role), after="<|im_end|>\n")
           for role in ("system", "user")},
        assistant=Turn(before=_TURN.format("assistant"), after="\n"), stop="<|im_end|>",
        tools=HERMES),
    "llama3": ChatFormat(
        **{role: Turn(before=_HEADER.format(role), after="<|eot_id|>")
           for role in ("system", "user")},
        assistant=Turn(before=_HEADER.format("assistant")), stop="<|eot_id|>"),
}


def read_format(file: Path) -> ChatFormat:
    """From YAML, or from JSON. Raises UserError."""
    return _validated(strict_yaml.load_file(file).values, str(file))


def saved_format(tokenizer: Tokenizer) -> ChatFormat | None:
    """The format that a model was trained with, where it is known."""
    if tokenizer.chat_format is None:
        return None
    where = "the model's chat_format.json"
    try:
        values = json.loads(tokenizer.chat_format)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged: it is not valid JSON ({error})") from error
    return _validated(values, where)


def converses_in(form: ChatFormat | None) -> bool:
    """Whether a format puts anything around the turns, so that a bare text is no question in it."""
    return form is not None and any(turn.before or turn.after
                                    for turn in (form.system, form.user, form.assistant))


def _validated(values: object, where: str) -> ChatFormat:
    try:
        return ChatFormat.model_validate(values or {})
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or "it"
        raise UserError(f"{where} is no chat format: {field}: {problem['msg'].lower()}; it has "
                        f"{', '.join(ChatFormat.model_fields)}") from error


def controls_of(form: ChatFormat) -> list[str]:
    """Names of the control tokens in a format, and of others that look like one."""
    texts = [turn.before + turn.after for turn in (form.system, form.user, form.assistant)]
    return [*_CONTROL.findall("".join(texts)), *filter(None, [form.stop])]
