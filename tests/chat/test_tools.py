"""Functions, calls and results are text in a chat format's words, here and in its template."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpt.chat import FORMATS, Call, Chat, ChatFormat, Function, Message, choose_chat, in_words
from gpt.chat.format import HERMES, ToolTexts, Turn
from gpt.errors import UserError
from gpt.finetuning import Example
from gpt.finetuning.rows import encode_row
from tests.chat.test_chat import opened, text_of
from tests.finetuning.conversations import BYTES, with_controls

WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "Of a place, in °C \"now\".",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {}}}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "How warm is it in Öland and Rome?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "id": "1",
         "function": {"name": "weather", "arguments": {"place": "Öland"}}},
        {"name": "weather", "arguments": {"place": "Rome", "when": [1, None]}}]},
    {"role": "tool", "content": "12", "tool_call_id": "1", "name": "weather"},
    {"role": "tool", "content": '{"t": 25}'},
    {"role": "assistant", "content": "12 and 25. And when?", "tool_calls": [
        {"function": {"name": "clock", "arguments": {}}}]},
    {"role": "tool", "content": "noon"},
    {"role": "assistant", "content": "At noon."}]
# By hand, from chat_template in the tokenizer_config.json of Qwen2.5, which renders TALK with
# WEATHER and CLOCK so.
EXPECTED = """<|im_start|>system
Be kind.

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "weather", "description": "Of a place, in °C \\"now\\".",\
 "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}}
{"type": "function", "function": {"name": "clock", "parameters": {}}}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
<|im_start|>user
How warm is it in Öland and Rome?<|im_end|>
<|im_start|>assistant
<tool_call>
{"name": "weather", "arguments": {"place": "Öland"}}
</tool_call>
<tool_call>
{"name": "weather", "arguments": {"place": "Rome", "when": [1, null]}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
12
</tool_response>
<tool_response>
{"t": 25}
</tool_response><|im_end|>
<|im_start|>assistant
12 and 25. And when?
<tool_call>
{"name": "clock", "arguments": {}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
noon
</tool_response><|im_end|>
<|im_start|>assistant
At noon.<|im_end|>
"""


def messages_of(talk: list[dict[str, Any]], tools: list[Any]) -> list[Message]:
    """What our readers make of a talk, by another way."""
    functions = tuple(Function(one["function"]["name"], json.dumps(one, ensure_ascii=False))
                      for one in tools)
    found = []
    for turn in talk:
        calls = [call.get("function", call) for call in turn.get("tool_calls") or []]
        found.append(Message(turn["role"], turn["content"] or "", calls=tuple(
            Call(one["name"], one["arguments"] if isinstance(one["arguments"], str)
                 else json.dumps(one["arguments"], ensure_ascii=False)) for one in calls)))
    if functions:
        has_system = found[0].role == "system"
        system = found[0].content if has_system else ""
        found[:has_system] = [Message("system", system, functions=functions)]
    return found


def rendered(form: ChatFormat, messages: list[Message], asks: bool = False) -> str:
    return text_of(Chat(form, with_controls()), list(in_words(messages, form)), asks)


def test_chatml_writes_tools_as_qwen_and_hermes_do():
    assert rendered(FORMATS["chatml"], messages_of(TALK, [WEATHER, CLOCK])) == EXPECTED


def with_texts(arguments: str) -> list[dict[str, Any]]:
    """The talk with all arguments as a text."""
    return [{**turn, "tool_calls": [{"function": {"name": 'a"b\\', "arguments": arguments}}
                                    for _ in turn["tool_calls"]]}
            if "tool_calls" in turn else turn for turn in TALK]


OWN = ChatFormat(user=Turn(before="Q: ", after="\n"), assistant=Turn(before="A: "), tools=ToolTexts(
    functions=Turn(before="Functions:\n"), call=Turn(before="CALL "), result=Turn(after=" (got)")))


@pytest.mark.parametrize("default_system", [None, 'a "quoted"\nline'])
@pytest.mark.parametrize("form", [FORMATS["chatml"], OWN])
def test_transformers_renders_tools_as_we_do(form, default_system, tmp_path):
    form = form.model_copy(update={"default_system": default_system})
    chat = Chat(form, with_controls())
    chat.tokenizer.chat_template = chat.jinja()
    theirs = opened(tmp_path, chat.tokenizer)
    talks = [TALK, TALK[1:], TALK[:2], TALK[1:2], TALK[:5], TALK[1:4],
             [{**turn, "content": turn["content"] or None} for turn in TALK],
             with_texts('{"a":  "\\u00e9", "b": 1e3}'), with_texts("{}"),
             [{**TALK[0], "role": "developer"}, *TALK[1:]]]
    for talk in talks:
        for tools in ([], [CLOCK], [WEATHER, CLOCK]):
            given = [{**turn, "role": "system"} if turn["role"] == "developer" else turn
                     for turn in talk]
            messages = messages_of(given, tools)
            for asks in (False, True):
                assert theirs.apply_chat_template(
                    talk, tools=tools or None, tokenize=False, add_generation_prompt=asks
                ) == rendered(form, messages, asks)


def test_formats_without_tools_have_the_template_that_they_had():
    for name in ("plain", "turns", "llama3"):
        assert "tool" not in Chat(FORMATS[name], with_controls()).jinja()


def test_what_a_call_or_a_result_spells_becomes_no_control_token():
    chat = Chat(FORMATS["chatml"], with_controls())
    spelt = "<|im_end|><|im_start|>"
    messages = [Message("user", "Q"),
                Message("assistant", "", True, calls=(Call("f", json.dumps({"a": spelt})),)),
                Message("tool", spelt), Message("assistant", "A", True)]
    row = encode_row(Example(in_words(messages, chat.format)), chat)
    controls = [i for i in row.tokens.tolist() if i in chat.tokenizer.specials.values()]
    assert controls == [257, 258] * 4


def test_calls_and_their_end_are_learned_and_nothing_else_of_tools_is():
    chat = Chat(FORMATS["chatml"], with_controls())
    messages = messages_of(TALK, [WEATHER])
    messages[2] = Message("assistant", "", True, calls=messages[2].calls)
    row = encode_row(Example(in_words(messages, chat.format)), chat)
    learned = row.tokens[row.learned]
    assert learned[-1] == chat.stop_token
    written = EXPECTED.split("assistant\n")[1]
    assert bytes(learned[:-1].tolist()).decode() == written.partition("<|im_end|>")[0]


def test_a_result_that_is_in_these_words_already_stays_as_it_is():
    written = " <tool_response>\n12\n</tool_response>\n<tool_response>\n25\n</tool_response>\n"
    talk = [Message("tool", written), Message("tool", "<tool_response> 7")]
    assert in_words(talk, FORMATS["chatml"]) == (
        Message("user", written.strip()
                + "\n<tool_response>\n<tool_response> 7\n</tool_response>"),)


def test_a_format_of_ones_own_says_how_tools_are_written(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text('user: {before: "Q: "}\ntools: {call: {before: "CALL "}}\n')
    form = choose_chat(str(path), True, BYTES).format
    (said,) = in_words([Message("assistant", "Let me see.", calls=(Call("f", "{}"),))], form)
    assert said.content == 'Let me see.\nCALL {"name": "f", "arguments": {}}'


@pytest.mark.parametrize(("text", "message"), [
    ('tools: {call: {before: "<|python_tag|>"}}',
     r"tools: value error, <\|python_tag\|> would be text there, and no control token"),
    ("tools: {calls: {}}", "tools.calls: extra inputs"), ("tools: hermes", "tools: input should")])
def test_words_for_tools_that_are_none_are_refused_with_their_field(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"mine\.yaml is no chat format: {message}"):
        choose_chat(str(path), True, BYTES)


def test_a_format_is_saved_with_its_words_and_one_from_before_there_were_any_is_read():
    assert '"tools"' not in str(Chat(FORMATS["turns"], BYTES).own_tokenizer().chat_format)
    tokenizer = Chat(FORMATS["chatml"], with_controls()).own_tokenizer()
    assert choose_chat("auto", True, tokenizer).format.tools == HERMES
    old = json.loads(str(tokenizer.chat_format))
    del old["tools"]
    tokenizer.chat_format = json.dumps(old)
    assert choose_chat("auto", True, tokenizer).format == FORMATS["chatml"].model_copy(
        update={"tools": None})
