"""Task data for fine-tuning: files, records, conversations, calls."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.chat import FORMATS, Chat, in_words
from gpt.finetuning.formats import FORMATS as NAMES
from gpt.finetuning.formats import read_task
from gpt.tokenizer import build_tokenizer
from tests.fuzz.inputs import TEXTS, VALUES, as_json, damaged, fuzzed, is_read, mutated

CHAT = Chat(FORMATS["turns"].model_copy(update={"tools": FORMATS["chatml"].tools}),
            build_tokenizer("byte"))
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {
    "type": "object", "properties": {"x": {"type": "string", "default": None}}}}}
CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"x": "a"}}}
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "weight": 1},
        {"role": "tool", "content": "12"}, {"role": "assistant", "content": [
            {"type": "text", "text": "12."}]}]
RECORDS = {
    "text": {"text": "Once upon a time."},
    "completion": {"prompt": "1 + 1", "completion": "2", "system": "Count."},
    "alpaca": {"instruction": "Say", "input": "it", "output": "it", "history": [["a", "b"]]},
    "xlam": {"query": "q", "answers": json.dumps([{"name": "f", "arguments": {}}]),
             "tools": json.dumps([TOOL["function"]])},
    "messages": {"messages": TALK, "tools": [TOOL]},
    "functions": {"messages": [TALK[1], {"role": "assistant", "content": None, "function_call": {
        "name": "f", "arguments": "{\"x\": 1}"}}], "functions": [TOOL["function"]]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {
        "from": "gpt", "value": "Ho"}], "system": ""},
    "rounds": {"conversation": [{"human": "Hi", "assistant": "Ho"}]},
    "classification": {"text": "good", "label": 1},
    "preference": {"prompt": "Hi", "chosen": "Ho", "rejected": "No"},
    "transcripts": {"chosen": "\n\nHuman: Hi\n\nAssistant: Ho",
                    "rejected": "\n\nHuman: Hi\n\nAssistant: No", "id": 7, "tags": ["a", "b"]}}


def learn(path, format="auto"):
    """From a file to what a model is shown."""
    task = read_task(path, format)
    talks = [one.messages for one in task.examples] + [one.prompt for one in task.preferences]
    for messages in talks:
        assert list(CHAT.encode(CHAT.pieces(in_words(messages, CHAT.format))))


@pytest.mark.parametrize("kind", RECORDS)
def test_any_record_is_learned_from_or_refused(kind, tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_bytes(as_json(RECORDS[kind]))
    learn(path)
    seen = set()

    @fuzzed(60)
    @given(mutated(RECORDS[kind]), st.sampled_from(["auto", "auto", *NAMES]))
    def tried(record, format):
        path.write_bytes(as_json(RECORDS[kind]) + b"\n" + as_json(record))
        seen.add(is_read(lambda: learn(path, format)))

    tried()
    assert False in seen  # and what is sound was read above


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "txt"])
def test_any_file_is_learned_from_or_refused(ending, tmp_path):
    path = tmp_path / f"task.{ending}"
    record = RECORDS["completion"]
    rows = {"jsonl": as_json(record) + b"\n" + as_json(record) + b"\n",
            "json": as_json([record, record]), "txt": "Größe.\n".encode(),
            "csv": b'prompt,completion\n"a ""b""",c\n"d,\ne",f\n',
            "tsv": b"prompt\tcompletion\na\tb\n"}
    path.write_bytes(rows[ending])
    learn(path)
    seen = set()

    @fuzzed(60)
    @given(damaged(rows[ending], [b'""', b";", b"\t", b"|", b"\r\r", b"prompt,", b'"x']))
    def tried(data):
        path.write_bytes(data)
        seen.add(is_read(lambda: learn(path)))

    tried()
    assert False in seen  # and what is sound was read above


def test_any_parquet_is_learned_from_or_refused(tmp_path):
    pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
    path = tmp_path / "task.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "completion": ["c", "d"]}), path)
    sound = path.read_bytes()
    learn(path)
    seen = set()

    @fuzzed(40)
    @given(damaged(sound))
    def tried(data):
        path.write_bytes(data)
        seen.add(is_read(lambda: learn(path)))

    tried()
    assert False in seen


TURNS = st.lists(st.sampled_from(["Human:", "Assistant:", "User:", "\n\n", "\n", " ", "x"]),
                 max_size=12).map("".join)


def test_any_transcript_and_any_table_of_names_is_learned_from_or_refused(tmp_path):
    path = tmp_path / "task.jsonl"

    @fuzzed(100)
    @given(TURNS, st.dictionaries(TEXTS, VALUES, max_size=4))
    def tried(said, more):
        path.write_bytes(as_json({"chosen": said, "rejected": said + "y", **more}))
        is_read(lambda: learn(path))

    tried()


MANY = 50_000


@pytest.mark.parametrize("content", [
    json.dumps({f"n{i}": 1 for i in range(MANY)}), "{" + '"a": 1, ' * MANY + '"b": 2}',
    "{" + "".join(f'"n{i}": 1, ' for i in range(MANY)) + '"z": 1, "z": 2}',
    json.dumps({"prompt": "a", "completion": "b"} | {f"n{i}": 1 for i in range(MANY)}),
    json.dumps({"messages": [{"role": "user", "content": "a"}] * MANY}),
    json.dumps({"messages": [TALK[1], TALK[4]], "tools": [TOOL] * 20_000}),
    json.dumps({"prompt": "(" * 10**6, "completion": " " * 10**6 + "x"}),
    json.dumps({"chosen": "\n\nHuman: a\n\nAssistant: b" * 20_000, "rejected": "x"})],
    ids=["names", "one name", "a name twice", "more names", "messages", "tools", "long", "turns"])
def test_much_of_anything_is_learned_from_or_refused_in_time(content, tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text(content)
    is_read(lambda: learn(path))


@pytest.mark.parametrize("content", [
    ",".join(f"n{i}" for i in range(MANY)) + "\n", '"' * 10**6, ";" * 10**6, "\n" * 10**6,
    "prompt,completion\n" + '"a' * MANY], ids=["names", "quotes", "nothing", "lines", "open"])
def test_much_of_a_table_is_learned_from_or_refused_in_time(content, tmp_path):
    path = tmp_path / "task.csv"
    path.write_text(content)
    is_read(lambda: learn(path))
