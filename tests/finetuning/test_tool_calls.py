"""Functions, calls and results are read in every published shape, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.chat import FORMATS, Call, Chat, Function, Message
from gpt.errors import UserError
from gpt.finetuning import read_task
from gpt.finetuning.examples import Example, Preference
from gpt.finetuning.tool_texts import spoken
from tests.finetuning.conversations import answers_of, with_controls
from tests.finetuning.test_formats import ANYTHING, SEEDED, damaged, said, turn

DEFINITION = {"name": "weather", "description": "Of a place.", "parameters": {"type": "object"}}
WRAPPED = {"type": "function", "function": DEFINITION}
FUNCTIONS = (Function("weather", json.dumps(WRAPPED)),)
ARGUMENTS = {"place": "Öland"}
CALL = {"name": "weather", "arguments": ARGUMENTS}
CALLS = (Call("weather", '{"place": "Öland"}'),)
TALK = (Message("system", "S", functions=FUNCTIONS), Message("user", "Q"),
        Message("assistant", "", True, calls=CALLS), Message("tool", "12"),
        Message("assistant", "A", True))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(record: Any) -> Example | Preference:
    Path("task.jsonl").write_text(json.dumps(record))
    task = read_task(Path("task.jsonl"))
    (found,) = (*task.examples, *task.preferences)
    return found


def messages_of(record: Any) -> tuple[Message, ...]:
    found = read(record)
    assert isinstance(found, Example)
    return found.messages


def refusal(record: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(record)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).removeprefix("task.jsonl, line 1: ")


def openai(*calls: Any, definitions: Any = (WRAPPED,), content: Any = None,
           **more: Any) -> dict[str, Any]:
    """The talk in OpenAI's words."""
    return {"messages": [
        turn("system", "S"), turn("user", "Q"),
        turn("assistant", content, tool_calls=list(calls), **more),
        turn("tool", "12", tool_call_id="1", name="weather"), turn("assistant", "A")],
        "tools": list(definitions), "parallel_tool_calls": False}


def sharegpt(calls: Any, tools: Any, *names: str) -> dict[str, Any]:
    return {"conversations": [said("human", "Q"), said(names[0], calls), said(names[1], "12"),
                              said("gpt", "A")], "system": "S", "tools": tools}


HELD = {"type": "function", "id": "1", "function": CALL}
AS_TEXT = json.dumps(ARGUMENTS, ensure_ascii=False)


@pytest.mark.parametrize("record", [
    openai(HELD), openai(CALL), openai({"function": {"name": "weather", "arguments": AS_TEXT}}),
    openai({**HELD, "name": None}), openai(json.dumps(HELD)), openai(HELD, content=""),
    openai(HELD, definitions=[DEFINITION]), openai(HELD, definitions=[json.dumps(WRAPPED)]),
    openai(HELD, definitions=[{**DEFINITION, "type": "function"}]),
    {**openai(HELD), "tools": json.dumps([WRAPPED])},
    {"messages": [turn("system", "S"), turn("user", "Q"),
                  turn("assistant", None, function_call={"name": "weather", "arguments": AS_TEXT}),
                  turn("function", "12", name="weather"), turn("assistant", "A")],
     "functions": [DEFINITION]},
    {"messages": [turn("system", "S", tools=[WRAPPED]), *openai(HELD)["messages"][1:]]},
    {"messages": [turn("system", "S"), turn("user", "Q"), turn("tool_call", json.dumps(CALL)),
                  turn("tool_response", "12"), turn("assistant", "A")], "tools": [WRAPPED]},
    sharegpt(json.dumps(CALL), json.dumps([DEFINITION]), "function_call", "observation"),
    sharegpt(json.dumps([CALL]), [WRAPPED], "function_call", "tool"),
    sharegpt(json.dumps(CALL), json.dumps(WRAPPED), "FUNCTION_CALL", "Observation")])
def test_tools_are_the_same_in_every_shape(record):
    assert messages_of(record) == TALK


@pytest.mark.parametrize("nothing", [None, [], "", "[]", {}, 3])
def test_where_there_are_no_tools_nothing_is_said_of_any(nothing):
    record = {"messages": [turn("user", "Q", tools=nothing, tool_calls=nothing),
                           turn("assistant", "A", function_call=nothing)],
              "tools": nothing, "functions": nothing}
    assert messages_of(record) == (Message("user", "Q"), Message("assistant", "A", True))


def test_arguments_in_a_text_stay_as_they_are_written():
    found = messages_of(openai({"name": "weather", "arguments": '{"a":1,\n "b": "\\u00e9"}'}))
    assert found[2].calls == (Call("weather", '{"a":1,\n "b": "\\u00e9"}', is_text=True),)


def test_what_is_null_in_an_object_is_as_good_as_not_there():
    call = {"name": "weather", "arguments": {**ARGUMENTS, "at": None, "in": [{"a": None}, None]}}
    found = messages_of(openai(call, definitions=[{**WRAPPED, "strict": None}]))
    assert found[0] == TALK[0]
    assert found[2].calls[0].arguments == '{"place": "Öland", "in": [{}, null]}'
    written = openai({"name": "weather", "arguments": '{"at": null}'})
    assert messages_of(written)[2].calls[0].arguments == '{"at": null}'


def test_a_turn_may_have_several_calls_and_a_text_and_no_weight():
    record = openai(HELD, CALL, content="Let me see.", weight=0)
    record["messages"].insert(4, turn("tool", ""))
    assert messages_of(record) == (*TALK[:2], Message("assistant", "Let me see.", calls=CALLS * 2),
                                   TALK[3], Message("tool", ""), TALK[4])


def test_calls_in_turns_of_their_own_belong_to_the_answer_before_them():
    record = {"messages": [turn("user", "Q"), turn("assistant", "Let me see."),
                           turn("tool_call", json.dumps(CALL)), turn("tool_call", json.dumps(CALL)),
                           turn("tool_response", "1"), turn("tool_response", "2"),
                           turn("assistant", "A")]}
    assert messages_of(record) == (
        TALK[1], Message("assistant", "Let me see.", True, calls=CALLS * 2), Message("tool", "1"),
        Message("tool", "2"), TALK[4])
    record["messages"][1]["weight"] = 0
    assert refusal(record).startswith("messages[2]: weight differs from that of the answer before")


def test_a_talk_may_end_with_calls_and_a_prompt_with_what_they_gave_back():
    record = openai(HELD)
    record["messages"] = record["messages"][:3]
    assert messages_of(record) == TALK[:3]
    asked = [turn("user", "Q"), turn("assistant", "", tool_calls=[CALL]), turn("tool", "12")]
    expected = (TALK[1], Message("assistant", "", calls=CALLS), TALK[3])
    assert messages_of({"prompt": asked, "completion": "A"}) == (*expected, TALK[4])
    assert read({"prompt": asked, "chosen": "A", "rejected": "B"}) == Preference(
        expected, *answers_of("A", "B"), "task.jsonl, line 1")


def test_the_calls_of_xlam_are_its_answers():
    record = {"query": "Q", "tools": json.dumps([DEFINITION]), "answers": json.dumps([CALL])}
    assert messages_of(record) == (Message("system", "", functions=FUNCTIONS), *TALK[1:3])


@pytest.mark.parametrize("system", [
    'Call <tools>[{"type": "function", "function": {"name": "weather"}}]</tools>',
    "{'name': 'weather'}"])
def test_functions_that_the_system_message_describes_are_not_described_again(system):
    record = openai(HELD)
    record["messages"][0]["content"] = system
    assert messages_of(record)[0] == Message("system", system)


def test_answers_of_preferences_may_be_calls():
    record = {"prompt": [turn("user", "Q")], "tools": [WRAPPED],
              "chosen": [turn("assistant", None, tool_calls=[CALL])],
              "rejected": [turn("assistant", "No.")]}
    assert read(record) == Preference((Message("system", "", functions=FUNCTIONS), TALK[1]),
                                      Message("assistant", "", True, calls=CALLS),
                                      *answers_of("No."), "task.jsonl, line 1")
    record["rejected"] = record["chosen"]
    assert refusal(record) == "rejected is the same as chosen; take the record out"
    record["chosen"] = [turn("assistant", None, tool_calls=[{**CALL, "name": "f"}])]
    assert refusal(record).startswith("chosen[0]: the call of f is of no function")


@pytest.mark.parametrize(("call", "problem"), [
    ({"name": "wether", "arguments": {}}, ": the call of wether is of no function that the record "
     "defines (weather); rename one of them, or take the record out"),
    ({"name": "weather"}, ": tool_calls[0]: arguments is missing (the fields are name); add it"),
    ({"arguments": {}}, ": tool_calls[0]: name is missing (the fields are arguments); add it"),
    ({"name": " ", "arguments": {}}, ": tool_calls[0]: name is empty"),
    ({"name": "weather", "arguments": [1]},
     ": tool_calls[0]: arguments is a list; it must be an object, {} if empty, or one as"),
    ({"name": "weather", "arguments": None}, ": tool_calls[0]: arguments is null; it must be"),
    ({"name": "weather", "arguments": "1"}, ": tool_calls[0]: arguments is a number; it must be"),
    ({"name": "weather", "arguments": ""}, ": tool_calls[0]: arguments is no JSON (Expecting"),
    ({"name": "weather", "arguments": "{'a': 1}"}, ": tool_calls[0]: arguments is no JSON ("),
    ({"name": "weather", "arguments": '{"a": NaN}'}, ": tool_calls[0]: arguments is no JSON (NaN"),
    ({"name": "weather", "arguments": "[" * 100_000},
     ": tool_calls[0]: arguments is nested too deeply"),
    ({"type": "custom", "custom": {}}, ": tool_calls[0]: type is custom; only functions can be"),
    ({"function": "weather"}, ": tool_calls[0]: function is text; it must be an object"),
    ("weather()", ": tool_calls[0] is no JSON ("), (3, ": tool_calls[0] is a number; it must be")])
def test_a_call_that_is_none_is_refused_by_its_field(call, problem):
    assert refusal(openai(call)).startswith(f"messages[2]{problem}")


@pytest.mark.parametrize(("definition", "problem"), [
    ({"type": "code_interpreter"}, "tools[0]: type is code_interpreter; only functions can be"),
    ({"type": "function"}, "tools[0]: name is missing"),
    ({"function": {}}, "tools[0]: function: name is missing"),
    ("hammer", "tools[0] is no JSON ("), (3, "tools[0] is a number; it must be an object")])
def test_a_definition_that_is_none_is_refused_by_its_field(definition, problem):
    assert refusal(openai(HELD, definitions=[definition])).startswith(problem)


@pytest.mark.parametrize(("record", "problem"), [
    ({"messages": [turn("user", "Q", tool_calls=[CALL]), turn("assistant", "A")]},
     "messages[0]: tool_calls is the user's; only the assistant calls"),
    ({"messages": [turn("user", "Q"), turn("assistant", "A", tool_call=[CALL])]},
     "messages[1]: the field tool_call means nothing here; rename it to tool_calls"),
    ({"messages": [turn("user", "Q", tools=[WRAPPED]), turn("assistant", "A")]},
     "messages[0]: tools is the user's; move it to the record, or to the system message"),
    ({"messages": [turn("user", "Q"), turn("assistant", "", tool_calls=[CALL]), turn("user", "R")]},
     "messages[2] is the user's and must be the tool's"),
    ({"messages": [turn("user", "Q"), turn("tool", "1"), turn("assistant", "A")]},
     "messages[1] is the tool's and must be the assistant's"),
    ({"messages": [turn("user", "Q"), turn("assistant", "A"), turn("tool", "1")]},
     "messages[2] is the tool's, and the last must be the assistant's"),
    ({"messages": [turn("user", "Q"), turn("assistant", "A"), turn("tool", None)]},
     "messages[2]: content is null; it must be text"),
    ({"messages": [turn("system", "S", tools=[WRAPPED]), turn("user", "Q"), turn("assistant", "A")],
      "tools": [WRAPPED]}, "tools are given, and so are those of the system message; keep one"),
    ({"conversations": [said("human", "Q"), said("function_call", "weather()")]},
     "conversations[1]: value is no JSON ("),
    ({"conversations": [said("human", "Q"), said("function_call", "[]")]},
     "conversations[1]: value calls nothing; write a call there")])
def test_tools_out_of_place_are_refused(record, problem):
    assert refusal(record).startswith(problem)


def spoken_in(name: str, record: Any) -> tuple[Message, ...]:
    Path("task.jsonl").write_text(json.dumps(record))
    chat = Chat(FORMATS[name], with_controls(), name)
    (example,) = spoken(read_task(Path("task.jsonl")), chat).examples
    return example.messages


RESULT = {"messages": [turn("user", "Q"), turn("assistant", "<tool_call>"), turn("tool", "1"),
                       turn("assistant", "A")]}


@pytest.mark.parametrize("name", ["plain", "turns", "llama3"])
@pytest.mark.parametrize(("record", "problem"), [
    (openai(HELD), ": tools cannot"),
    ({**openai(HELD), "tools": None}, ": messages[2]: tool_calls"),
    (RESULT, ": messages[2]: a tool's result")])
def test_a_format_without_words_for_tools_refuses_them_by_name(name, record, problem):
    with pytest.raises(UserError) as caught:
        spoken_in(name, record)
    message = str(caught.value)
    assert message.startswith(f"task.jsonl, line 1{problem}")
    assert message.endswith(f"cannot be written in the chat format {name}; choose "
                            "finetune.chat=chatml, or a format that has `tools`, or take such "
                            "records out")


def test_a_conversation_that_was_written_for_hermes_is_itself_in_chatml():
    written = "<tool_response>\n12\n</tool_response>"
    turns = [said("system", "S <tools>{'name': 'weather'}</tools>"), said("human", "Q"),
             said("gpt", "<tool_call>\n{'name': 'weather'}\n</tool_call>"), said("tool", written),
             said("gpt", "A")]
    assert spoken_in("chatml", {"conversations": turns, "tools": json.dumps([WRAPPED])}) == (
        Message("system", turns[0]["value"]), Message("user", "Q"),
        Message("assistant", turns[2]["value"], True), Message("user", written),
        Message("assistant", "A", True))


def test_a_result_of_nothing_is_refused():
    record = {"messages": [turn("user", "Q"), turn("assistant", "B"), turn("tool", "1"),
                           turn("assistant", "A")]}
    with pytest.raises(UserError, match=r"messages\[2\]: a tool's result follows an answer that "
                                        "calls nothing; add the call, or take the record out"):
        spoken_in("chatml", record)


TOOL_TALKS = st.lists(st.sampled_from([
    turn("user", "Q"), turn("assistant", "A"), turn("assistant", "", tool_calls=[HELD, CALL]),
    turn("assistant", None, function_call=CALL), turn("tool", "1"), turn("function", ""),
    said("human", "Q"), said("function_call", json.dumps(CALL)), said("observation", "1")]),
    max_size=6)


@SEEDED
@given(turns=TOOL_TALKS, tools=st.sampled_from([[], [WRAPPED], json.dumps([DEFINITION])]),
       damages=st.booleans(), data=st.data())
def test_any_tools_are_sound_or_one_line_that_says_what_is_wrong(turns, tools, damages, data):
    record: Any = {"messages": turns, "tools": tools}
    if damages:
        key = data.draw(st.sampled_from(["messages", "tools"]))
        record[key] = damaged(record[key], data.draw) if turns else data.draw(ANYTHING)
    try:
        messages = spoken_in("chatml", record)
    except UserError as error:
        assert "task.jsonl, line 1" in str(error) and len(str(error).splitlines()) == 1
        return
    roles = [message.role for message in messages[messages[0].role == "system":]]
    assert roles == (["user", "assistant"] * len(roles))[:len(roles)]
    assert all(message.content for message in messages)


def test_a_call_or_a_definition_that_is_nested_without_end_is_refused():
    deep = json.loads("[" * 700 + "]" * 700)
    for tool, call in ((DEFINITION | {"parameters": deep}, CALL),
                       (DEFINITION, CALL | {"arguments": {"a": deep}})):
        record = {"messages": [turn("user", "Q"), turn("assistant", "", tool_calls=[call])],
                  "tools": [tool]}
        with pytest.raises(UserError, match="nested too deeply; a function needs a few levels"):
            spoken_in("chatml", record)
