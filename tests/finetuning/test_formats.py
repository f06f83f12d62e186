"""Every format of task data becomes the same conversations, and what cannot is refused by name."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.chat import Message
from gpt.configuration import FinetuneSection
from gpt.errors import UserError
from gpt.finetuning import read_task
from gpt.finetuning.examples import Example, Preference
from gpt.finetuning.formats import FORMATS, TaskData, detect
from tests.finetuning.conversations import answers_of

SEEDED = settings(max_examples=300, derandomize=True, database=None, deadline=None)


def system(text: str) -> Message:
    return Message("system", text)


def user(text: str) -> Message:
    return Message("user", text)


def answer(text: str, learned: bool = True) -> Message:
    return Message("assistant", text, learned)


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def said(by: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"from": by, "value": value, **more}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def task_of(data: bytes | str, name: str = "task.jsonl", format: str = "auto") -> TaskData:
    Path(name).write_bytes(data.encode() if isinstance(data, str) else data)
    return read_task(Path(name), format)


def read(*records: Any, format: str = "auto") -> TaskData:
    return task_of("\n".join(map(json.dumps, records)), format=format)


def messages_of(record: Any, format: str = "auto") -> tuple[Message, ...]:
    (example,) = read(record, format=format).examples
    return example.messages


def refusal(*records: Any, format: str = "auto") -> str:
    with pytest.raises(UserError) as caught:
        read(*records, format=format)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


GOLDEN: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "text": ({"text": " One.\n"}, (answer(" One.\n"),)),
    "completion": ({"prompt": "Q ", "completion": " A", "id": 7}, (user("Q "), answer(" A"))),
    "alpaca": ({"instruction": "Add.", "input": "1, 2", "output": "3", "text": "### Add."},
               (user("Add.\n\n1, 2"), answer("3"))),
    "messages": ({"messages": [turn("system", "Be kind."), turn("user", "Q"),
                               turn("assistant", "A"), turn("user", "R"), turn("assistant", "B")]},
                 (system("Be kind."), user("Q"), answer("A"), user("R"), answer("B"))),
    "sharegpt": ({"id": "x", "conversations": [said("human", "Q"), said("gpt", "A")]},
                 (user("Q"), answer("A"))),
    "classification": ({"text": "Fine.", "label": " good "}, (user("Fine."), answer("good"))),
}


@pytest.mark.parametrize("format", GOLDEN)
def test_a_record_of_each_format_becomes_a_conversation(format):
    record, messages = GOLDEN[format]
    label = "good" if format == "classification" else None
    expected = TaskData(format, [Example(messages, "task.jsonl, line 1", label)])
    assert read(record) == read(record, format=format) == expected


def test_every_format_has_a_golden_record():
    assert {*GOLDEN, "preference"} == set(FORMATS)


@pytest.mark.parametrize(("fields", "format"), [
    ("text", "text"), ("text label", "classification"), ("text source", "text"),
    ("text label prompt completion", "completion"), ("prompt response id", "completion"),
    ("question answer", "completion"), ("question response system_prompt", "completion"),
    ("input output", "completion"), ("instruction input output", "alpaca"),
    ("instruction output text prompt", "alpaca"), ("instruction context response", "alpaca"),
    ("messages prompt prompt_id", "messages"), ("conversations id", "sharegpt"),
    ("prompt prompt_id chosen rejected messages", "preference"), ("chosen rejected", "preference"),
    ("prompt", None), ("chosen prompt", None), ("label", None), ("", None)])
def test_a_format_is_found_by_the_names_of_the_fields(fields, format):
    assert detect(dict.fromkeys(fields.split())) == format


@pytest.mark.parametrize(("record", "messages"), [
    ({"prompt": "", "completion": "A"}, (answer("A"),)),
    ({"prompt": " ", "completion": "A"}, (user(" "), answer("A"))),
    ({"prompt": "Q", "response": "A"}, (user("Q"), answer("A"))),
    ({"question": "Q", "answer": "A", "context": "C"}, (user("Q\n\nC"), answer("A"))),
    ({"question": "Q", "response": "A", "system_prompt": "S"},
     (system("S"), user("Q"), answer("A"))),
    ({"input": "Q", "output": "A", "system": None}, (user("Q"), answer("A"))),
    ({"prompt": "Q", "completion": "A", "system": " "}, (user("Q"), answer("A"))),
    ({"prompt": "Q", "completion": "A", "system_id": 3}, (user("Q"), answer("A"))),
    ({"prompt": "Q", "completion": "A", "system": "S", "systems": 3},
     (system("S"), user("Q"), answer("A"))),
    ({"prompt": [turn("user", "Q"), turn("assistant", "A"), turn("user", "R")],
      "completion": [turn("assistant", "B")]},
     (user("Q"), answer("A", learned=False), user("R"), answer("B"))),
    ({"instruction": "Q", "input": "", "output": "A"}, (user("Q"), answer("A"))),
    ({"instruction": "", "input": "Q", "output": "A"}, (user("Q"), answer("A"))),
    ({"instruction": "Q", "context": "C", "response": "A"}, (user("Q\n\nC"), answer("A"))),
    ({"instruction": "Q", "output": "A", "system": "S", "history": [["O", "P"]]},
     (system("S"), user("O"), answer("P"), user("Q"), answer("A"))),
    ({"instruction": "Q", "output": "A", "history": []}, (user("Q"), answer("A")))])
def test_prompts_and_answers_have_several_names_and_may_have_company(record, messages):
    assert messages_of(record) == messages


@pytest.mark.parametrize(("turns", "messages"), [
    ([turn("developer", "S"), turn("user", "Q"), turn("assistant", "A")],
     (system("S"), user("Q"), answer("A"))),
    ([turn("system", ""), turn("user", "Q"), turn("assistant", "A")], (user("Q"), answer("A"))),
    ([turn("user", [{"type": "text", "text": "Q"}, {"type": "text", "text": "?"}]),
      turn("assistant", "A")], (user("Q?"), answer("A"))),
    ([turn("user", "Q"), turn("assistant", "A", weight=0), turn("user", "R", weight=None),
      turn("assistant", "B", weight=1)],
     (user("Q"), answer("A", learned=False), user("R"), answer("B"))),
    ([turn("user", "Q", tool_calls=None, name="Eve"), turn("assistant", "A", tool_calls=[])],
     (user("Q"), answer("A"))),
    ([said("human", "Q"), turn("assistant", "A")], (user("Q"), answer("A")))])
def test_messages_are_openais(turns, messages):
    assert messages_of({"messages": turns, "tools": [], "functions": None}) == messages
    assert messages_of({"messages": turns, "functions": 3, "images": 0.5}) == messages


@pytest.mark.parametrize("ours", ["assistant", "gpt", "chatgpt", "bard", "bing"])
def test_sharegpt_has_many_names_for_those_who_speak(ours):
    for theirs in ("human", "user"):
        turns = [said("system", "S"), said(theirs, "Q"), said(ours, "A")]
        assert messages_of({"conversations": turns}) == (system("S"), user("Q"), answer("A"))


def test_roles_in_capitals_are_those_in_lower_case():
    for asks, answers in [("USER", "ASSISTANT"), ("User", "Assistant"), ("Human", "GPT")]:
        assert messages_of({"messages": [turn("System", "S"), turn(asks, "Q"), turn(answers, "A")]}
                           ) == (system("S"), user("Q"), answer("A"))
        assert messages_of({"conversations": [said(asks, "Q"), said(answers, "A")]}) == (
            user("Q"), answer("A"))


@pytest.mark.parametrize("record", [
    {"conversation": [turn("user", "Q"), turn("assistant", "A")], "model": "m", "turn": 1},
    {"conversation": [{"input": "Q", "output": "A"}], "source": "s"},
    {"conversation": [{"human": "Q", "assistant": "A"}], "category": "c"},
    {"query": "Q", "response": "A", "original_question": "O", "type": "t"},
    {"problem": "Q", "solution": "A", "level": "Level 1"}])
def test_published_sets_are_read_as_they_are(record):
    assert messages_of(record) == (user("Q"), answer("A"))


def test_rounds_may_have_a_weight_and_must_say_something():
    rounds = [{"input": "Q", "output": "A", "weight": 0}, {"input": "R", "output": "B"}]
    assert messages_of({"conversation": rounds}) == (
        user("Q"), answer("A", learned=False), user("R"), answer("B"))
    assert f"conversation[0]: output {EMPTY}" in refusal(
        {"conversation": [{"input": "Q", "output": ""}]})


def test_sharegpt_conversations_may_be_said_in_openais_words_and_have_their_system_beside():
    turns = [turn("user", "Q"), turn("assistant", "A")]
    assert messages_of({"conversations": turns, "system": "S", "tools": "[]"}) == (
        system("S"), user("Q"), answer("A"))


def test_what_gpt_says_before_anybody_asked_is_left_out_of_sharegpt_alone():
    turns = [said("gpt", "Hi."), said("gpt", "…"), said("human", "Q"), said("gpt", "A")]
    assert messages_of({"conversations": turns}) == (user("Q"), answer("A"))
    assert messages_of({"conversations": [said("system", "S"), *turns]}) == (
        system("S"), user("Q"), answer("A"))
    assert "messages[0] is the assistant's and must be the user's" in refusal({"messages": turns})


@pytest.mark.parametrize(("label", "text"), [("a b", "a b"), (" x\n", "x"), (3, "3"), (-1, "-1"),
                                             (True, "true"), (False, "false")])
def test_labels_are_text_in_the_end(label, text):
    (example,) = read({"text": "T", "label": label}).examples
    assert example.messages == (user("T"), answer(text)) and example.label == text


Q, A, R = turn("user", "Q"), turn("assistant", "A"), turn("user", "R")
PROMPT = (user("Q"), answer("A", learned=False), user("R"))


@pytest.mark.parametrize(("record", "prompt"), [
    ({"prompt": "R", "chosen": "good", "rejected": "bad"}, (user("R"),)),
    ({"question": "R", "system": "S", "chosen": "good", "rejected": "bad"},
     (system("S"), user("R"))),
    ({"instruction": "R", "input": "C", "chosen": "good", "rejected": "bad"}, (user("R\n\nC"),)),
    ({"prompt": [Q, A, R], "chosen": [turn("assistant", "good")],
      "rejected": [turn("assistant", "bad", weight=0)]}, PROMPT),
    ({"input": "R", "system": "", "chosen": "good", "rejected": "bad"}, (user("R"),)),
    ({"instruction": "R", "chosen_response": "good", "rejected_response": "bad"}, (user("R"),)),
    ({"prompt": None, "chosen": [Q, A, R, turn("assistant", "good")],
      "rejected": [Q, A, R, turn("assistant", "bad")]}, PROMPT),
    ({"prompt": "R", "chosen": [Q, A, R, turn("assistant", "good")], "messages": [],
      "rejected": [Q, A, R, turn("assistant", "bad")]}, PROMPT),
    ({"conversations": [said("human", "Q"), said("gpt", "A"), said("human", "R")],
      "chosen": said("gpt", "good"), "rejected": said("gpt", "bad")}, PROMPT)])
def test_preferences_are_texts_messages_or_whole_conversations(record, prompt):
    expected = Preference(prompt, *answers_of("good", "bad"), "task.jsonl, line 1")
    assert read(record) == TaskData("preference", [], [expected])


CONVERSATIONS = [(user("Q é\n"), answer("A")),
                 (system("S"), user("Q"), answer(' "A", '), user("R"), answer("B"))]


def as_messages(messages: tuple[Message, ...]) -> dict[str, Any]:
    return {"messages": [turn(one.role, one.content) for one in messages]}


def as_sharegpt(messages: tuple[Message, ...]) -> dict[str, Any]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"conversations": [said(names[one.role], one.content) for one in messages]}


def as_parquet(records: list[Any]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), sink)
    return sink.getvalue()


@pytest.mark.parametrize("of_one", [as_messages, as_sharegpt])
def test_a_conversation_is_the_same_from_every_file(of_one):
    records = [of_one(messages) for messages in CONVERSATIONS]
    for name, data, places in [
            ("a.jsonl", "\n".join(map(json.dumps, records)), ["line 1", "line 2"]),
            ("a.json", json.dumps(records, indent=1), ["line 2", "line 14"]),
            ("a.parquet", as_parquet(records), ["row 1", "row 2"])]:
        assert task_of(data, name).examples == [
            Example(messages, f"{name}, {place}")
            for messages, place in zip(CONVERSATIONS, places, strict=True)]


def test_a_pair_is_the_same_from_every_file():
    pairs = [{"prompt": "a\nb", "completion": "c, d"}, {"prompt": "", "completion": '"e"'}]
    table = io.StringIO()
    writer = csv.DictWriter(table, ["prompt", "completion"])
    writer.writeheader()
    writer.writerows(pairs)
    expected = [(user("a\nb"), answer("c, d")), (answer('"e"'),)]
    for name, data in [("a.csv", table.getvalue().encode()), ("a.parquet", as_parquet(pairs)),
                       ("a.json", json.dumps(pairs).encode())]:
        assert [example.messages for example in task_of(data, name).examples] == expected


def test_a_text_file_is_one_text():
    (example,) = task_of("All of\r\nit.\n", "a.txt").examples
    assert example.messages == (answer("All of\r\nit.\n"),)


def test_a_format_that_is_asked_for_is_read_where_its_fields_are():
    record = {"text": "T", "label": "L", "prompt": "P", "completion": "C"}
    assert messages_of(record) == (user("P"), answer("C"))
    assert messages_of(record, format="classification") == (user("T"), answer("L"))
    assert messages_of(record, format="text") == (answer("T"),)
    assert "line 2 has the fields of text (text), and completion is expected" in refusal(
        record, {"text": "T"}, format="completion")


def test_records_of_two_formats_are_refused_with_both_lines():
    assert "task.jsonl, line 2 has the fields of completion (prompt, completion), and " in refusal(
        {"text": "T"}, {"prompt": "P", "completion": "C"})
    message = refusal({"text": "T", "label": 1}, {"text": "T", "label": 0}, {"text": "T"})
    assert message == ("task.jsonl, line 3 has the fields of text (text), and task.jsonl, line 1 "
                       "those of classification; put each format into a file of its own, or mend "
                       "the record")
    assert "has the fields of classification" in refusal({"text": "T"}, {"text": "T", "label": 1})


def conversation(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


def is_refused(record: Any, message: str) -> bool:
    return refusal(record).startswith("task.jsonl, line 1") and message in refusal(record)


EMPTY = "is empty; write something there, or take the record out"


@pytest.mark.parametrize(("record", "message"), [
    ({"promt": "Q", "completion": "A"},
     ": no format has these fields: promt, completion; is promt meant to be prompt? Rename it"),
    ({"id": 1}, ": no format has these fields: id; rename them to text, or prompt and completion, "
                "or instruction and output, or messages, or conversations, or text and label, or "
                "chosen and rejected"),
    ({}, ": no format has these fields: none"),
    ({"prompt": "Q"}, ": no format has these fields: prompt; rename them to text, or"),
    ([1], " is a list; it must be an object with named fields"),
    ("text", " is text; it must be an object"), (None, " is null; it must be an object"),
    (1.5, " is a number; it must be an object"), (True, " is true or false; it must be an object")])
def test_a_record_of_no_format_is_refused(record, message):
    assert is_refused(record, message)


@pytest.mark.parametrize(("record", "message"), [
    ({"text": " \n"}, f"text {EMPTY}"),
    ({"text": 3}, "text is a number; it must be text"),
    ({"text": "T", "labels": "L"},
     "the field labels means nothing here; rename it to label, or take it out"),
    ({"text": "T", "label": " "}, f"label {EMPTY}"),
    ({"text": "", "label": "L"}, f"text {EMPTY}"),
    ({"text": "T", "label": 1.0},
     "label is a fraction; it must be text, a whole number, true or false"),
    ({"text": "T", "label": [1]}, "label is a list; it must be text")])
def test_a_text_or_its_label_that_is_none_is_refused(record, message):
    assert is_refused(record, message)


@pytest.mark.parametrize(("record", "message"), [
    ({"prompt": "Q", "completion": ""}, f"completion {EMPTY}"),
    ({"prompt": "Q", "completion": None}, "completion is null; it must be text"),
    ({"prompt": ["Q"], "completion": "A"}, "prompt[0] is text; it must be an object"),
    ({"prompt": {}, "completion": "A"}, "prompt is an object; it must be text"),
    ({"prompt": "Q", "completion": "A", "label": False},
     "label judges completion, and all answers would be learned; keep the good ones, and take "
     "label out"),
    ({"prompt": [Q], "completion": [Q, A]},
     "completion is more than one message; move the others to prompt"),
    ({"prompt": "Q", "completion": [turn("assistant", "A", weight=0)]},
     "completion has weight 0, so nothing is learned; take the record out"),
    ({"prompt": [Q, A], "completion": "A"}, "prompt[1] is the assistant's, and the last must be "
                                            "the user's; add that, or take this one out"),
    ({"prompt": "", "completion": "A", "system": "S"},
     "prompt is empty, after a system message or a history; write what the user says"),
    ({"instruction": "", "output": "A", "history": [["O", "P"]]}, "instruction is empty, after"),
    ({"prompt": "Q", "completion": "A", "system": 1}, "system is a number; it must be text"),
    ({"prompt": "Q", "completion": "A", "sytem": "S"},
     "the field sytem means nothing here; rename it to system"),
    ({"instruction": "Q", "imput": "I", "output": "A"},
     "the field imput means nothing here; rename it to input"),
    ({"instruction": "Q", "input": 1, "output": "A"}, "input is a number; it must be text"),
    ({"instruction": "Q", "output": "A", "images": ["a.png"]},
     "images cannot be learned, only text can; take such records out"),
    *(({"instruction": "Q", "output": "A", "history": history},
       "history must be a list of pairs: what the user said, and the answer, neither of them empty")
      for history in ("O", ["O"], [["O"]], [["O", 1]], [["O", " "]]))])
def test_a_prompt_or_an_answer_that_is_none_is_refused(record, message):
    assert is_refused(record, message)


@pytest.mark.parametrize(("record", "message"), [
    ({"messages": "Q"}, "messages is text; it must be a list of messages"),
    ({"messages": None}, "messages is null; it must be a list of messages"),
    (conversation(), "messages has nothing that the user says; add it, or take the record out"),
    (conversation(turn("system", "S")), "messages has nothing that the user says"),
    ({"conversations": [said("gpt", "A")]}, "conversations has nothing that the user says"),
    (conversation(Q), "messages[0] is the user's, and the last must be the assistant's; add that, "
                      "or take this one out"),
    (conversation(Q, A, R), "messages[2] is the user's, and the last must be the assistant's"),
    (conversation(Q, R, A),
     "messages[1] is the user's and must be the assistant's: user and assistant take turns, the "
     "user first; add what is missing, or join two of one role"),
    (conversation(A, Q, A), "messages[0] is the assistant's and must be the user's"),
    (conversation(turn("system", "S"), A), "messages[1] is the assistant's and must be the user's"),
    (conversation(Q, turn("system", "S"), A), "messages[1] is a system message, which only the "
                                              "first may be; move it there, or take it out"),
    (conversation(turn("system", "S"), Q, A, system="T"),
     "system is given, and so is a first message of that role; keep one"),
    (conversation(turn("system", "S"), Q, A, system_prompt="T"), "system_prompt is given, and so"),
    (conversation(Q, turn("assistant", "A", weight=0)),
     "messages has no answer to learn, all have weight 0; take the record out")])
def test_a_conversation_out_of_order_is_refused_by_its_turn(record, message):
    assert is_refused(record, message)


@pytest.mark.parametrize(("message", "problem"), [
    ("A", " is text; it must be an object with named fields"),
    (turn("assistant", " "), f": content {EMPTY}"), (said("gpt", ""), f": value {EMPTY}"),
    (turn("assistant", []), f": content {EMPTY}"),
    (turn("assistant", None), ": content is null; it must be text"),
    ({"role": "assistant"}, ": content is missing (the fields are role); add it"),
    ({"rol": "assistant", "content": "A"},
     ": role is missing (the fields are rol, content); is rol meant to be it? Rename it"),
    ({"form": "gpt", "value": "A"}, ": from is missing (the fields are form, value); is form"),
    (turn("narrator", "A"), ": role is narrator; it must be system, user, assistant or tool "
                            "(human, gpt, function_call and observation in ShareGPT)"),
    (turn("a\nb", "A"), ": role is 'a\\nb'; it must be"),
    *((turn("assistant", None, **{name: ["x"]}),
       f": {name} cannot be learned, only text can; take such records out")
      for name in ("images", "audio")),
    (turn("assistant", [{"type": "image_url"}]),
     ": content[0]: type is image_url; only text can be learned"),
    (turn("assistant", [{"type": "text"}]), ": content[0]: text is missing"),
    (turn("assistant", ["A"]), ": content[0] is text; it must be an object"),
    *((turn("assistant", "A", weight=weight), ": weight must be 0 (read, and not learned) or 1")
      for weight in (0.5, -1, "0", [0])),
    (turn("assistant", "A", wieght=0), ": the field wieght means nothing here; rename it to w"),
    *((turn("assistant", "A", **{name: False}),
       f": {name} is not read here; rename it to weight, which is 0 or 1")
      for name in ("loss", "train", "training"))])
def test_a_message_that_cannot_be_learned_is_refused_by_its_number(message, problem):
    assert is_refused(conversation(Q, message), f"messages[1]{problem}")


@pytest.mark.parametrize(("record", "message"), [
    ({"chosen": "A", "rejected": "B"},
     "prompt is missing (the fields are chosen, rejected); add it"),
    ({"promt": "Q", "chosen": "A", "rejected": "B"}, "is promt meant to be it? Rename it"),
    ({"prompt": "", "chosen": "A", "rejected": "B"}, "prompt is empty; write what the user says"),
    ({"prompt": None, "chosen": "A", "rejected": "B"}, "prompt is empty; write what the user says"),
    ({"prompt": "Q", "chosen": "A", "rejected": ""}, f"rejected {EMPTY}"),
    ({"prompt": "Q", "chosen": None, "rejected": "B"}, "chosen is null; it must be text"),
    ({"prompt": "Q", "chosen": "A", "rejected": "A"},
     "rejected is the same as chosen; take the record out"),
    ({"prompt": [A], "chosen": "A", "rejected": "B"},
     "prompt[0] is the assistant's and must be the user's"),
    ({"prompt": "Q", "chosen": [Q], "rejected": [A]},
     "chosen[0] is the user's, and the last must be the assistant's"),
    ({"prompt": "Q", "chosen": [A], "rejected": []}, "rejected has nothing that the user says"),
    ({"chosen": [Q, A], "rejected": [R, turn("assistant", "B")]},
     "rejected answers another conversation than chosen; they may differ in the last message"),
    ({"prompt": "Q", "chosen": [R, A], "rejected": [R, turn("assistant", "B")]},
     "prompt is not in the conversation that chosen answers; take one of them out")])
def test_a_preference_that_is_none_is_refused(record, message):
    assert is_refused(record, message)


def test_a_record_that_lacks_a_field_is_named_with_the_fields_it_has():
    assert refusal({"prompt": "Q", "completion": "A"}, {"prompt": "Q", "completon": "A"}) == (
        "task.jsonl, line 2: completion is missing (the fields are prompt, completon); is "
        "completon meant to be it? Rename it")
    assert "line 2: answer is missing (the fields are question, id); add it" in refusal(
        {"question": "Q", "answer": "A"}, {"question": "Q", "id": 1})
    assert "line 1: instruction is missing (the fields are id)" in refusal(
        {"id": 1}, format="alpaca")
    assert "line 1: messages is missing (the fields are mesages); is mesages meant" in refusal(
        {"mesages": [Q, A]}, format="messages")


def test_a_format_that_there_is_not_is_refused():
    assert refusal({"text": "T"}, format="chatml") == (
        "there is no format chatml of task data; choose auto, text, completion, alpaca, messages, "
        "sharegpt, classification, preference")


@pytest.mark.parametrize(("name", "data", "message"), [
    ("a.csv", "prompt,completion\nQ,A\nR,\n", f"a.csv, line 3: completion {EMPTY}"),
    ("a.csv", "prompt,completion\nQ,A\nR, and more,B\n", "a.csv, line 3: the row and the header"),
    ("a.csv", b"text,label\ncaf\xe9,x\n", "a.csv, line 2: byte 4 of the line (0xe9) is not UTF-8"),
    ("a.csv", "messages\n[]\n", "a.csv, line 2: messages is text; it must be a list of messages"),
    ("a.jsonl", '{"prompt": "Q", "completion": "A", "completion": "B"}', "'completion' is given "
                                                                         "twice"),
    ("a.jsonl", '{"prompt": "Q", "completion": "A",}', "a.jsonl, line 1, column "),
    ("a.jsonl", '[{"prompt": "Q", "completion": "A"}]', "a.jsonl, line 1 is a list; it must be an "
                                                        "object with named fields"),
    ("a.json", '{"version": 1, "data": []}', "a.json, line 1: no format has these fields: version, "
                                             "data"),
    ("a.parquet", as_parquet([{"text": b"T", "label": 1}]), "a.parquet, row 1: text is of type "
                                                            "bytes; it must be text"),
    ("a.parquet", as_parquet([{"text": "T", "label": 1}, {"text": "U", "label": None}]),
     "a.parquet, row 2: label is null; it must be text")])
def test_mistakes_in_files_are_found_where_they_are(name, data, message):
    with pytest.raises(UserError) as caught:
        task_of(data, name)
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [
    b'\xef\xbb\xbf{"prompt": "Q", "completion": "A"}\r\n\r\n{"prompt": "Q", "completion": "A"}\r\n',
    b'[{"prompt": "Q", "completion": "A"},\r\n{"prompt": "Q", "completion": "A"}]',
    b'{"completion": "A", "prompt": "Q", "source": null}\n{"prompt": "Q", "completion": "A"}'])
def test_what_is_only_written_differently_is_read(data):
    task = task_of(data, "a.json")
    assert [example.messages for example in task.examples] == [(user("Q"), answer("A"))] * 2


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats(-1, 1) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner,
                                                                max_size=2), max_leaves=6)
TEXTS = st.text("Qa?é \n", min_size=1, max_size=4)
ROUNDS = st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from([0, 1, None])), min_size=1, max_size=3)
OPENAI = ROUNDS.map(lambda rounds: [one for asked, answered, weight in rounds for one in (
    turn("user", asked), turn("assistant", answered, weight=weight))])
SHAREGPT = ROUNDS.map(lambda rounds: [one for asked, answered, _ in rounds for one in (
    said("human", asked), said("gpt", answered))])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("prompt", "instruction", "input", "question", "context"),
                    TEXTS | st.just("") | OPENAI.map(lambda turns: turns[:-1])),
    **dict.fromkeys(("chosen", "rejected"), TEXTS | OPENAI | OPENAI.map(lambda turns: turns[-1:])),
    **dict.fromkeys(("text", "completion", "output", "response", "answer", "system"), TEXTS),
    "messages": OPENAI, "conversations": SHAREGPT, "label": TEXTS | st.integers() | st.booleans(),
    "history": st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=2), "tools": st.just([])}


def damaged(value: Any, draw: Any) -> Any:
    """A value with one thing in it dropped, exchanged for another, or made anything at all."""
    if not isinstance(value, list | dict) or not value or draw(st.integers(0, 3)) == 0:
        return draw(ANYTHING | st.sampled_from(["", " ", "tool", "system"]))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, other = draw(st.sampled_from(keys)), draw(st.sampled_from(keys))
    copy = type(value)(value)
    match draw(st.integers(0, 2)):
        case 0:
            del copy[key]
        case 1:
            copy[key] = copy[other]
        case _:
            copy[key] = damaged(copy[key], draw)
    return copy


@st.composite
def records(draw: Any) -> Any:
    """The fields of a format, often others as well, and often with one thing wrong in them."""
    needed = draw(st.sampled_from(SHAPES)) + " " + draw(st.sampled_from(["", *FIELDS]))
    record = {name: draw(FIELDS[name]) for name in needed.split()}
    if record.keys() >= {"chosen", "rejected"} and draw(st.booleans()):
        record["rejected"] = [*record["chosen"][:-1], turn("assistant", "?")]
    return damaged(record, draw) if draw(st.booleans()) else record


SHAPES = ["text", "text label", "prompt completion", "prompt response", "question answer",
          "input output", "instruction output", "instruction input output history", "messages",
          "messages system", "conversations", "prompt chosen rejected", "chosen rejected"]


def in_turn(messages: tuple[Message, ...], first: int = 0) -> bool:
    """Whether user and assistant alternate, behind at most one system message; none is empty."""
    turns = messages[messages[0].role == "system":]
    roles = [message.role for message in turns]
    if "tool" in roles:  # its turns: tests/finetuning/test_tool_calls.py
        return roles[0] == "user"
    expected = ["user", "assistant"] * len(roles)
    return roles == expected[first:first + len(roles)] and all(m.content for m in turns)


@SEEDED
@given(found=st.lists(records(), min_size=1, max_size=2),
       format=st.sampled_from(["auto", "auto", "auto", *FORMATS]))
def test_any_records_are_sound_examples_or_one_line_that_says_what_is_wrong(found, format):
    try:
        task = read(*found, format=format)
    except UserError as error:
        assert "task.jsonl, line " in str(error) and len(str(error).splitlines()) == 1
        return
    assert len(task.examples) + len(task.preferences) == len(found)
    for example in task.examples:
        alone = len(example.messages) == 1
        assert in_turn(example.messages, first=alone) and example.messages[-1].role == "assistant"
        assert any(message.learned for message in example.messages)
        assert all(message.role == "assistant" for message in example.messages if message.learned)
        assert (example.label is not None) == (task.format == "classification")
    for preference in task.preferences:
        assert in_turn(preference.prompt) and preference.prompt[-1].role in ("user", "tool")
        assert preference.chosen.content.strip() and preference.rejected.content.strip()
        assert preference.chosen != preference.rejected


def test_the_configuration_names_the_formats_that_there_are():
    named = get_args(FinetuneSection.model_fields["format"].annotation)
    assert set(named) == {"auto", *FORMATS}
