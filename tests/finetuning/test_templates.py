"""Fine-tuning by the base model's own chat template, from a file of data to a run that goes on."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import finetune
import sample
from gpt import __main__ as verbs
from gpt.chat import Call, Message, own_chat
from gpt.errors import UserError
from gpt.finetuning import Example, answer_figures, read_task
from gpt.finetuning.rows import encode_rows
from gpt.runs import checkpoint
from tests.chat.templates import TEMPLATES, WRITTEN
from tests.finetuning.conversations import pair, with_controls
from tests.tiny import call_main, tiny_gpt

TALKS = [{"messages": [
    {"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "<think>y</think>n"},
    {"role": "user", "content": "m"}, {"role": "assistant", "content": " k"}]} for i in range(20)]
SHORT = ("train.steps=4", "train.batch_size=2", "checkpoint.every_steps=2", "eval.every_steps=null",
         "finetune.answers=0")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def base(name: str, text: str | None = None) -> Path:
    """A model whose tokenizer has a template, in a folder of the template's name."""
    tokenizer = with_controls()
    tokenizer.chat_template = TEMPLATES[name][0] if text is None else text
    checkpoint.save_model(Path("base"), tiny_gpt(vocab_size=262, block_size=160), tokenizer, "test")
    return Path("base")


def write(name: str, records: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return name


@pytest.fixture
def tune(monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        return call_main(finetune, "finetune.from=base", "run.dtype=float32", *arguments,
                         monkeypatch=monkeypatch, capsys=capsys)
    return run


def done(result: tuple[int, str, str]) -> str:
    assert result[0] == 0, result
    return result[1]


def test_a_preview_shows_the_template_and_where_it_came_from(tune):
    base("default system")
    shown = done(tune(f"finetune.data={write('talks.jsonl', TALKS)}", "--preview=1"))
    assert ("chat format: the base model's own template (base/tokenizer/chat_template.jinja); "
            "answers end with <|im_end|>") in shown
    assert ("<|im_start|>system\nYou are small.<|im_end|>\n<|im_start|>user\n0<|im_end|>\n"
            "<|im_start|>assistant\n⟦<think>y</think>n<|im_end|>⟧\n") in shown
    shown = done(tune("finetune.data=talks.jsonl", "finetune.chat=chatml", "--preview=1"))
    assert "chat format: chatml (instead of the base model's template)" in shown
    assert "You are small" not in shown


def test_what_the_template_drops_makes_a_row_for_each_answer_and_it_is_said(tune):
    base("thoughts of earlier answers dropped")
    shown = done(tune(f"finetune.data={write('talks.jsonl', TALKS)}", "--preview=2",
                      "finetune.val_fraction=0"))
    assert "20 conversations are a row for each answer" in shown
    assert "training: 40 rows" in shown
    assert "assistant\n⟦<think>y</think>n<|im_end|>⟧\n\n-----" in shown
    assert ("assistant\nn<|im_end|>\n<|im_start|>user\nm<|im_end|>\n<|im_start|>assistant\n⟦ k"
            in shown)


@pytest.mark.parametrize("data", [
    [{"prompt": f"{i}", "completion": "n"} for i in range(20)],
    [{"text": f"{i}", "label": "even" if i % 2 else "odd"} for i in range(20)],
    [{"prompt": f"{i}", "chosen": "n", "rejected": "y"} for i in range(20)]])
def test_prompts_classes_and_preferences_are_written_by_the_template(tune, data):
    base("default system")
    arguments = (f"finetune.data={write('data.jsonl', data)}",)
    shown = done(tune(*arguments, "--preview=1"))
    answer = {"completion": "n", "label": "odd", "chosen": "n"}[next(
        name for name in ("completion", "label", "chosen") if name in data[0])]
    assert f"user\n0<|im_end|>\n<|im_start|>assistant\n⟦{answer}<|im_end|>⟧" in shown
    done(tune(*arguments, *SHORT, "run.name=r", "finetune.answers=2"))


def test_an_answer_is_exact_if_it_is_what_the_template_makes_of_it():
    tokenizer = with_controls()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' }}{% if m.role == 'assistant' %}<t></t>"
        "{% endif %}{{ m.content | upper }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}")
    chat = own_chat(tokenizer)
    (row,) = encode_rows(pair("a", "b"), chat)
    for said, share in (("<t></t>B", 1.0), ("b", 0.0)):
        found = answer_figures([row], 1, lambda prompts, most, said=said: [(said, True)],
                               chat.tokenizer)
        assert found.figures["exact_match"] == share


def test_each_row_of_a_conversation_is_asked_for_its_own_answer():
    tokenizer = with_controls()
    tokenizer.chat_template = TEMPLATES["thoughts of earlier answers dropped"][0]
    chat = own_chat(tokenizer)
    talk = tuple(Message(turn["role"], turn["content"], learned=turn["role"] == "assistant")
                 for turn in TALKS[7]["messages"])
    rows = encode_rows(Example(talk), chat)
    said = [("<think>y</think>n", True), (" k", True)]
    found = answer_figures(rows, 2, lambda prompts, most: said, chat.tokenizer)
    assert found.figures["exact_match"] == 1.0
    assert [asked for asked, _ in found.texts] == ["7", "7\n<think>y</think>n\nm"]


def test_plain_texts_stay_plain(tune):
    base("default system")
    texts = write("texts.jsonl", [{"text": f"some text {i}"} for i in range(20)])
    shown = done(tune(f"finetune.data={texts}", "--preview=1"))
    assert "chat format: plain" in shown and "⟦some text 0<|endoftext|>⟧" in shown


def test_a_run_goes_on_with_the_template_and_its_model_is_asked_in_it(tune, monkeypatch, capsys):
    base("default system")
    arguments = (f"finetune.data={write('talks.jsonl', TALKS)}", "run.name=t", *SHORT)
    out = done(tune(*arguments))
    assert "sample from it with: python sample.py runs/t --chat" in out
    identity = json.loads(Path("runs/t/identity.json").read_text())
    assert list(identity["finetune.chat"]) == ["template"]
    shown = done(tune("finetune.data=talks.jsonl", "finetune.from=runs/t", "--preview=1"))
    assert "template (runs/t/checkpoints/step-00000004/tokenizer/chat_template.jinja)" in shown
    code, out, errors = call_main(verbs, "evaluate", "runs/t", "--data", "talks.jsonl",
                                  monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and "20 examples (messages; chat format: the base model's own" in out, errors
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    code, _, errors = call_main(sample, "runs/t", "--chat", "--max-new-tokens", 1,
                                monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and "not trained to converse" not in errors, errors
    Path("other.jinja").write_text(WRITTEN["loop controls and generation tags"][0])
    code, _, errors = tune(*arguments, "finetune.chat=other.jinja")
    assert code == 2 and "holds a different run" in errors and "finetune.chat" in errors


def test_a_run_that_tells_the_date_goes_on_with_that_of_its_beginning(tune):
    base("the date")
    arguments = (f"finetune.data={write('talks.jsonl', TALKS)}", *SHORT)
    done(tune(*arguments, "run.name=whole"))
    began = json.loads(Path("runs/whole/identity.json").read_text())
    began["finetune.chat"]["date"] = "2024-02-29"
    shutil.copytree("runs/whole", "runs/again")
    shutil.rmtree("runs/again/checkpoints/step-00000004")
    Path("runs/again/identity.json").write_text(json.dumps(began))
    shown = done(tune(*arguments, "run.name=again", "--preview=1"))
    assert "Today is 29 February 2024." in shown
    done(tune(*arguments, "run.name=again"))
    assert json.loads(Path("runs/again/identity.json").read_text()) == began


def test_formats_read_in_both_directions_are_no_templates(tune):
    base("default system")
    code, _, errors = tune(f"finetune.data={write('talks.jsonl', TALKS)}",
                           "finetune.prefix=bidirectional")
    assert code == 2 and "finetune.prefix=bidirectional is for formats that are data" in errors
    done(tune("finetune.data=talks.jsonl", "finetune.prefix=causal", "--preview=1"))


def test_a_template_that_refuses_a_conversation_ends_with_one_line(tune):
    base("", "{{ raise_exception('not today') }}")
    code, _, errors = tune(f"finetune.data={write('talks.jsonl', TALKS)}")
    assert code == 2 and errors.count("\n") == 1
    assert errors.startswith("error: talks.jsonl, line 1: the chat template (base/tokenizer/chat")
    assert errors.endswith("refuses this conversation: not today\n")


# ----- What data say to templates

def read(record: dict[str, Any]) -> Any:
    task = read_task(Path(write("one.jsonl", [record])))
    return (task.examples or task.preferences)[0]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read_by_any_of_its_names(name):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", name: "why"}]
    assert read({"messages": talk}).messages[1].reasoning == "why"
    assert read({"prompt": talk[:1], "chosen": talk[1:], "rejected": "c"}).chosen.reasoning == "why"
    same = [{**talk[1], name: "else"}]
    assert read({"prompt": talk[:1], "chosen": talk[1:], "rejected": same}).rejected != \
        read({"prompt": talk[:1], "chosen": talk[1:], "rejected": same}).chosen
    with pytest.raises(UserError, match=rf"messages\[0\]: {name} is the user's"):
        read({"messages": [{**talk[0], name: "why"}, talk[1]]})
    with pytest.raises(UserError, match=rf"{name} is a list; it must be text"):
        read({"messages": [talk[0], {**talk[1], name: ["why"]}]})


def test_names_and_ids_of_calls_are_read_and_nothing_rests_on_their_kind():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}
    talk = [{"role": "user", "content": "a", "name": 3},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"},
            {"role": "assistant", "content": "b"}]
    asked, called, result, _ = read({"messages": talk}).messages
    assert (asked.name, result.name, result.call_id) == ("", "f", "c1")
    assert called.calls[0] == Call("f", "{}") and called.calls[0].id == "c1"
    assert not called.calls[0].is_text


@pytest.mark.parametrize(("record", "options"), [
    ({"enable_thinking": False}, {"enable_thinking": False}),
    ({"enable_thinking": None}, {}), ({"chat_template_kwargs": None}, {}),
    ({"chat_template_kwargs": {"enable_thinking": True, "x": None, "y": [1]}},
     {"enable_thinking": True, "y": [1]})])
def test_what_a_record_says_to_the_template_is_read(record, options):
    assert read({"prompt": "a", "completion": "b", **record}).options == options
    assert read({"prompt": "a", "chosen": "b", "rejected": "c", **record}).options == options


def test_what_no_template_can_be_told_is_refused(tune):
    record = {"completion": "b", "prompt": "a"}
    with pytest.raises(UserError, match="line 1: chat_template_kwargs is a number; it must be an"):
        read({**record, "chat_template_kwargs": 3})
    with pytest.raises(UserError, match="line 1: chat_template_kwargs is nested too deeply"):
        read({**record, "chat_template_kwargs": {"a": json.loads("[" * 700 + "]" * 700)}})
    base("default system")
    data = write("d.jsonl", [{**record, "prompt": f"{i}", "chat_template_kwargs": {
        "messages": []}} for i in range(20)])
    code, _, errors = tune(f"finetune.data={data}")
    assert code == 2 and "d.jsonl, line 1: messages is no option of a template" in errors


def test_options_reach_the_template_and_are_refused_by_name_where_they_mean_nothing(tune):
    base("reasoning, and whether to think")
    records = [{"messages": [{"role": "user", "content": f"{i}"}, {
        "role": "assistant", "content": "b", "reasoning_content": "why"}],
        "enable_thinking": i % 2 == 0} for i in range(20)]
    arguments = (f"finetune.data={write('think.jsonl', records)}", "finetune.val_fraction=0")
    shown = done(tune(*arguments, "--preview=2"))
    assert "Reasoning: on" in shown and "Reasoning: off" in shown
    assert "⟦<think>why</think>b<|im_end|>⟧" in shown
    code, _, errors = tune(*arguments, "finetune.chat=chatml")
    assert code == 2 and ("think.jsonl, line 1: enable_thinking means nothing in the chat format "
                          "chatml") in errors
    base("default system")
    code, _, errors = tune(*arguments)
    assert code == 2 and "line 1: messages[1]: reasoning_content means nothing to" in errors


def test_messages_compare_by_what_they_say():
    assert Message("assistant", "a", reasoning="b") != Message("assistant", "a")
    assert Message("tool", "a", call_id="1") == Message("tool", "a", call_id="2")
