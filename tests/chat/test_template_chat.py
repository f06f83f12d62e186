"""A model's own chat template: the ids of transformers, and of each answer what is learned."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from gpt.chat import (
    FORMATS,
    Call,
    Chat,
    Function,
    Message,
    TemplateChat,
    choose_chat,
    converses,
    own_chat,
)
from gpt.chat import template as template_module
from gpt.chat.protection import Protection, any_of, unused, without
from gpt.chat.template import ChatTemplate, Renderer, Wanted
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer, build_tokenizer
from tests.chat.templates import (
    BOUNDARIES,
    KINDS_TRIED,
    PUBLISHED,
    TEMPLATES,
    WRITTEN,
    both,
    folder_of,
)
from tests.finetuning.conversations import CONTROLS, with_controls
from tests.tiny import SHARED

SEEDED = settings(max_examples=40, derandomize=True, database=None, deadline=None)
WRITES_TOOLS = ("tools in a macro", "qwen3")
DEFINITION = {"type": "function", "function": {
    "name": "f", "description": "Größe <b>", "parameters": {"type": "object", "properties": {
        "a": {"type": "integer"}}}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": " Be brief. "}
TALKS: list[list[dict[str, Any]]] = [
    [user("Hello there"), answer("Hi.\n")],
    [SYSTEM, user(" two  "), answer("3 "), user("\n\nagain"),
     answer("<think>\nhm\n</think>\n\nNé 中")],
    [user("a"), answer("<think>x</think>b"), user("c\td"), answer("  d")]]


def ours(talk: list[dict[str, Any]]) -> list[Message]:
    """A conversation of texts, whose answers are all learned."""
    return [Message(turn["role"], turn["content"], learned=turn["role"] == "assistant",
                    reasoning=turn.get("reasoning_content", ""),
                    calls=tuple(Call("f", one["function"]["arguments"]
                                     if isinstance(one["function"]["arguments"], str)
                                     else json.dumps(one["function"]["arguments"]),
                                     isinstance(one["function"]["arguments"], str), one["id"])
                                for one in turn.get("tool_calls", ())),
                    call_id=turn.get("tool_call_id", "")) for turn in talk]


def chat_of(tokenizer: Tokenizer) -> TemplateChat:
    chat = own_chat(tokenizer)
    assert isinstance(chat, TemplateChat)
    return chat


def theirs_of(library: PreTrainedTokenizerBase, talk: list[dict[str, Any]],
              **more: Any) -> list[int]:
    ids: list[int] = library.apply_chat_template(talk, return_dict=False, **more)
    return ids


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(ours, transformers', the chat) of a template and a kind of tokenizer."""
    known: dict[tuple[str, str], Any] = {}

    def of(name: str, kind: str = "gpt2"
           ) -> tuple[Tokenizer, PreTrainedTokenizerBase, TemplateChat]:
        if (name, kind) not in known:
            mine, library = both(folder_of(tmp_path_factory.mktemp("t"), name, kind))
            known[name, kind] = (mine, library, chat_of(mine))
        return known[name, kind]

    return of


@pytest.mark.parametrize("kind", KINDS_TRIED)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ids_are_those_of_transformers(opened, name, kind):
    _, library, chat = opened(name, kind)
    for talk in TALKS:
        assert chat.prompt(ours(talk[:-1])) == theirs_of(library, talk[:-1],
                                                         add_generation_prompt=True)
        assert chat.rows(ours(talk))[-1].ids == theirs_of(library, talk)


def test_there_are_published_templates_and_eight_that_were_written_for_this():
    assert len(WRITTEN) >= 8
    assert set(PUBLISHED) == set(BOUNDARIES) or not (SHARED / "chat_templates").is_dir()


@pytest.mark.parametrize("name", ["default system", "the date", "qwen3", "gemma3", "llama3_1",
                                  "trimmed, with bos_token and eos_token in the text"])
@SEEDED
@given(data=st.data())
def test_any_texts_have_the_ids_of_transformers(opened, name, data):
    text = st.text(min_size=1, max_size=12).filter(str.strip)
    talk = [turn for _ in range(data.draw(st.integers(1, 3)))
            for turn in (user(data.draw(text)), answer(data.draw(text)))]
    _, library, chat = opened(name)
    assert chat.rows(ours(talk))[-1].ids == theirs_of(library, talk)


def learned_texts(tokenizer: Tokenizer, row: Any) -> list[str]:
    """The stretches of a row that are learned, control tokens by their names."""
    texts, inside = [], False
    for token, learned in zip(row.ids, row.learned, strict=True):
        if learned:
            texts = texts if inside else [*texts, ""]
            texts[-1] += tokenizer.token_text(token)
        inside = learned
    return texts


@pytest.mark.parametrize(("name", "learned"), [
    ("default system", [["b<|im_end|>", "d<|im_end|>"]]),
    ("trimmed, with bos_token and eos_token in the text",
     [[" b <|endoftext|>", " d <|endoftext|>"]]),
    ("thoughts of earlier answers dropped", [["b<|im_end|>", "d<|im_end|>"]]),
    ("namespaces and exceptions", [["b<|end|>", "d<|end|>"]]),
    ("a generation prompt that opens a thought", [["b<|endoftext|>", "d<|endoftext|>"]]),
    ("control tokens that take blanks away", [["b<|end|>", "d<|end|>"]]),
    ("no control tokens", [["b\n\n", "d\n\n"]]),
    ("loop controls and generation tags", [["b<|im_end|>", "d<|im_end|>"]]),
    ("reasoning, and whether to think",
     [["<think></think>b<|im_end|>", "<think></think>d<|im_end|>"]]),
    ("gemma3", [["b<end_of_turn>", "d<end_of_turn>"]]),
    ("llama3_1", [["b<|eot_id|>", "d<|eot_id|>"]]),
    ("deepseek_v3", [["b<｜end▁of▁sentence｜>", "d<｜end▁of▁sentence｜>"]]),
    ("qwen3", [["<think>\n\n</think>\n\nb<|im_end|>"], ["<think>\n\n</think>\n\nd<|im_end|>"]])])
def test_answers_are_learned_with_what_ends_them(opened, name, learned):
    tokenizer, _, chat = opened(name)
    rows = chat.rows(ours([user("a"), answer("b"), user("c"), answer("d")]))
    assert [learned_texts(tokenizer, row) for row in rows] == learned


def test_an_answer_that_is_not_to_be_learned_is_not(opened):
    tokenizer, _, chat = opened("llama3_1")
    talk = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"),
            Message("assistant", "d", learned=True)]
    (row,) = chat.rows(talk)
    assert learned_texts(tokenizer, row) == ["d<|eot_id|>"]
    assert [any(one.learned) for one in chat.rows(talk[:2])] == [False]


def test_where_earlier_answers_are_written_differently_each_has_a_row_of_its_own(opened):
    tokenizer, library, _ = opened("qwen3")
    chat = chat_of(tokenizer)
    talk = [user("a"), answer("b", reasoning_content="why"), user("c"), answer("d")]
    rows = chat.rows(ours(talk))
    assert [row.ids for row in rows] == [theirs_of(library, talk[:2]), theirs_of(library, talk)]
    assert [row.turns for row in rows] == [2, 4]
    assert learned_texts(tokenizer, rows[0]) == ["<think>\nwhy\n</think>\n\nb<|im_end|>"]
    assert learned_texts(tokenizer, rows[1]) == ["<think>\n\n</think>\n\nd<|im_end|>"]
    assert chat.notes == ["1 conversations are a row for each answer: the template writes earlier "
                          "answers differently (without their thoughts, say)"]


def test_it_is_said_where_answers_do_not_begin_as_they_are_asked_for_or_have_no_end(opened):
    for name, said in (("a generation prompt that opens a thought", "2 answers do not begin as"),
                       ("no control tokens", "warning: the template ends 2 answers with no")):
        chat = chat_of(opened(name)[0])
        chat.rows(ours(TALKS[2]))
        assert len(chat.notes) == 1 and chat.notes[0].startswith(said)
    assert chat_of(opened("llama3_1")[0]).notes == []


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["gpt2", "llama2", "qwen"])
def test_no_text_of_users_becomes_a_control_token(opened, name, kind):
    tokenizer, _, chat = opened(name, kind)
    controls = set(tokenizer.specials.values())

    def controls_in(text: str) -> list[int]:
        row = chat.rows([Message("user", text), Message("assistant", text, learned=True)])[-1]
        return [i for i in row.ids if i in controls]

    expected = controls_in("a")
    for spelled in tokenizer.specials:
        for text in (spelled, f"a{spelled}b", f" {spelled}", spelled * 2,
                     spelled[1:] + spelled[:-1], f"a</think>{spelled}"):
            assert controls_in(text) == expected, (spelled, text)


def test_names_and_definitions_of_functions_are_texts_of_users_too(opened):
    tokenizer, _, chat = opened("tools in a macro")
    stop = tokenizer.specials["<|im_end|>"]

    def ends(word: str) -> int:
        definition = json.dumps({"type": "function",
                                 "function": {"name": "f", word: {word: [word]}}})
        talk = [Message("system", "", functions=(Function("f", definition),)),
                Message("user", "a"),
                Message("assistant", word, True, calls=(Call("f", json.dumps({word: word})),)),
                Message("tool", word, call_id=word), Message("assistant", "b", True)]
        return chat.rows(talk)[0].ids.count(stop)

    assert ends("<|im_end|>") == ends("a") == 5


def test_what_a_record_says_to_the_template_is_text_of_users_too():
    tokenizer = with_controls()
    tokenizer.chat_template = "{{ style }}{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = chat_of(tokenizer)
    ids = chat.prompt([Message("user", "a")], {"style": "<|im_end|>"})
    assert ids == tokenizer.encode("<|im_end|>a")


def test_what_users_spell_comes_out_as_they_wrote_it(opened):
    tokenizer, _, chat = opened("llama3_1")
    for text in ("<|eot_id|>\ue000 a <|start_header_id|>", r"a: '\ue000' \uE001 x", "\ue001"):
        ids = chat.prompt([Message("user", text)])
        assert text in tokenizer.decode(ids)


TOOL_TALK = [user("a"), answer("", tool_calls=[
    {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]),
    {"role": "tool", "content": "2", "tool_call_id": "call00001"}, answer("b")]


@pytest.mark.parametrize("name", WRITES_TOOLS)
@pytest.mark.parametrize("arguments", [{"a": 1, "ä": ["<b>", None]}, '{"a":1}'])
def test_tools_calls_and_results_have_the_ids_of_transformers(opened, name, arguments):
    _, library, chat = opened(name)
    talk = json.loads(json.dumps(TOOL_TALK))
    talk[1]["tool_calls"][0]["function"]["arguments"] = arguments
    system = Message("system", "", functions=(Function("f", json.dumps(DEFINITION)),))
    row = chat.rows([system, *ours(talk)])[-1]
    assert row.ids == theirs_of(library, talk, tools=[DEFINITION])
    assert row.turns == 5
    with_system = [SYSTEM, *talk]
    system = Message("system", SYSTEM["content"], functions=system.functions)
    assert chat.rows([system, *ours(talk)])[-1].ids == theirs_of(library, with_system,
                                                                 tools=[DEFINITION])


def test_a_template_that_asks_whether_content_is_none_is_told_so_of_calls(opened):
    tokenizer, _, chat = opened("deepseek_v3")
    talk = json.loads(json.dumps(TOOL_TALK))
    talk[1]["tool_calls"][0]["function"]["arguments"] = "{}"
    (row,) = chat.rows(ours(talk))
    first, second = learned_texts(tokenizer, row)
    assert first == ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
                     "{}\n```<｜tool▁call▁end｜>")
    assert second == "b<｜end▁of▁sentence｜>"


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize("name", ["qwen3", "reasoning, and whether to think"])
def test_reasoning_and_whether_to_think_have_the_ids_of_transformers(opened, name, thinks):
    _, library, chat = opened(name)
    options = {"enable_thinking": thinks}
    talk = [user("a"), answer("b", reasoning_content="why <|im_end|"), user("c")]
    assert chat.prompt(ours(talk), options) == theirs_of(
        library, talk, add_generation_prompt=True, **options)
    assert chat.rows(ours(talk[:2]), options)[0].ids == theirs_of(library, talk[:2], **options)


@pytest.mark.parametrize(("name", "message", "options", "field"), [
    ("llama3_1", Message("system", "", functions=(Function("f", "{}"),)), {}, "tools"),
    ("gemma3", Message("assistant", "", calls=(Call("f", "{}"),)), {}, "tool_calls"),
    ("llama3_1", Message("assistant", "a", reasoning="b"), {}, "reasoning_content"),
    ("llama3_1", Message("user", "a"), {"enable_thinking": False}, "enable_thinking")])
def test_what_a_template_does_not_name_is_refused_by_name(opened, name, message, options, field):
    chat = opened(name)[2]
    with pytest.raises(UserError) as caught:
        chat.speakable([message], options, "d.jsonl, line 3")
    assert str(caught.value).startswith(f"d.jsonl, line 3: {field} means nothing to the base "
                                        "model's own template (")
    assert chat.speakable([Message("user", "a")], {}, "") == (Message("user", "a"),)


@pytest.mark.parametrize(("message", "options", "field"), [
    (Message("assistant", "a", reasoning="b"), {}, "reasoning_content"),
    (Message("user", "a"), {"enable_thinking": False}, "enable_thinking")])
def test_formats_know_no_reasoning_and_say_so(message, options, field):
    with pytest.raises(UserError, match=f"line 1: {field} means nothing in the chat format chatml"):
        Chat(FORMATS["chatml"], with_controls(), "chatml").speakable([message], options, "line 1")


def test_a_refusal_of_the_template_is_one_line_of_ours(opened):
    chat = opened("namespaces and exceptions")[2]
    with pytest.raises(UserError) as caught:
        chat.prompt([Message("tool", "a")])
    assert str(caught.value).endswith("refuses this conversation: no tools here: tool")
    chat = opened("gemma3")[2]
    with pytest.raises(UserError, match="roles must alternate"):
        chat.prompt([Message("user", "a"), Message("user", "b")])
    assert chat.prompt([Message("user", "a")])  # and goes on


def test_an_answer_alone_is_its_tokens_and_its_end(opened):
    tokenizer, _, chat = opened("qwen3")
    assert learned_texts(tokenizer, chat.rows(ours([user("?"), answer("yes")]))[0]) == [
        "".join(map(tokenizer.token_text, chat.answer("yes")))]
    assert (chat.stop, chat.stop_token) == ("<|im_end|>", chat.answer("yes")[-1])
    assert chat.stop_token in chat.tokenizer.stop_tokens
    assert chat_of(opened("no control tokens")[0]).stop == "<|endoftext|>"


# ----- Where answers begin and end

HEAD = "{% for m in messages %}"
HEADERS = "{{ '<|im_start|>' + m.role + '\n' + m.content }}"
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}"
    "{% for m in loop_messages %}{% if m.role == 'user' %}{% if loop.last and system is defined %}"
    "{{ '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}{% else %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}{% else %}"
    "{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}")
THINKS = (HEAD + HEADERS + "{{ ' /think' if m.role == 'user' and loop.last }}{{ '<|im_end|>\n' }}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
NOT_LAST = (HEAD + HEADERS + "{{ '<|im_end|>\n' if not loop.last else '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
PHI3 = (HEAD + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}"
        "{% endif %}")
ALWAYS = (HEAD + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
          "{{ '<|im_start|>assistant\n' }}")
NO_END = (HEAD + "{{ '<|im_start|>' + m.role + '\n' }}{{ '<|eot_id|>' if m.role == 'assistant' }}"
          "{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
          "{% endif %}")


def chat_by(text: str, tokenizer: Tokenizer | None = None) -> TemplateChat:
    tokenizer = tokenizer or with_controls()
    tokenizer.chat_template = text
    return chat_of(tokenizer)


@pytest.mark.parametrize(("text", "learned", "stop"), [
    (MISTRAL, [" b<|endoftext|>", " d<|endoftext|>"], "<|endoftext|>"),
    (THINKS, ["b<|im_end|>", "d<|im_end|>"], "<|im_end|>"),
    (NOT_LAST, ["b\n", "d\n"], "<|endoftext|>"),
    (PHI3, ["b<|im_end|>", "d<|im_end|>"], "<|im_end|>"),
    (ALWAYS, ["b<|im_end|>", "d<|im_end|>"], "<|im_end|>"),
    (NO_END, ["<|eot_id|>b", "<|eot_id|>d"], "<|endoftext|>")])
def test_no_more_than_an_answer_is_learned_and_it_stands_behind_what_asks_for_it(text, learned,
                                                                                 stop):
    chat = chat_by(text)
    assert chat.stop == stop
    for system in ([], [Message("system", "s")]):
        for asked in ("a", "c\n\nc", "<|im_end|>", "b"):
            talk = [*system, *ours([user(asked), answer("b"), user(asked), answer("d")])]
            rows = chat.rows(talk)
            assert [text for row in rows for text in learned_texts(chat.tokenizer, row)] == learned
            for row in rows:
                first = row.learned.index(True)
                asks = chat.prompt(talk[:next(i for i, one in enumerate(talk) if one.learned)])
                assert len(rows) == 1 or row.turns > 2 + len(system) or row.ids[:first] == asks


@pytest.mark.parametrize(("text", "rows", "notes"), [
    (PHI3, 1, []), (ALWAYS, 1, []), (MISTRAL, 1, []), (NO_END, 1, ["no control token"]),
    (THINKS, 2, ["a row for each answer", "do not begin as"])])
def test_what_is_not_as_usual_is_said(text, rows, notes):
    chat = chat_by(text)
    assert len(chat.rows(ours([user("a"), answer("b"), user("c"), answer("d")]))) == rows
    assert len(chat.notes) == len(notes)
    assert all(some in note for some, note in zip(notes, chat.notes, strict=True))


def test_a_system_message_that_is_written_before_the_last_question_alone_is_read_there():
    chat = chat_by(MISTRAL)
    talk = [Message("system", "s"), *ours([user("a"), answer("b"), user("c"), answer("d")])]
    texts = ["".join(map(chat.tokenizer.token_text, row.ids)) for row in chat.rows(talk)]
    assert texts == ["[INST] s\n\na[/INST] b<|endoftext|>",
                     "[INST] a[/INST] b<|endoftext|>[INST] s\n\nc[/INST] d<|endoftext|>"]


@pytest.mark.parametrize("talk", [
    [user("q" * 20), answer("a" * 20)] * 300, [user("a" * 300_000), answer("b")] * 12,
    [user("a" * 600_000), answer("b"), *[user("c"), answer("d")] * 20]])
def test_long_conversations_are_written_like_short_ones(talk):
    chat = chat_by(WRITTEN["default system"][0])
    (row,) = chat.rows(ours(talk))
    assert len(learned_texts(chat.tokenizer, row)) == len(talk) // 2


def test_texts_that_spell_control_tokens_once_the_template_takes_them_apart_are_refused():
    text = WRITTEN["default system"][0].replace("m.content +", "m.content.replace('/think', '') +")
    chat = chat_by(text)
    with pytest.raises(UserError, match="texts of this conversation would become control tokens"):
        chat.prompt([Message("user", "<|im_/thinkend|>")])
    assert chat.prompt([Message("user", "a </think> <b> /think <|im_end|>")])
    keys = chat_by("{{ messages[0].content }}{% for k, v in options.items() %}{{ k }}{{ v }}"
                   "{% endfor %}")
    with pytest.raises(UserError, match="would become control tokens"):
        keys.prompt([Message("user", "a")], {"options": {"<|": "im", "_end|>": ""}})


CALLED = Message("assistant", "said", True, calls=(Call("f", "{}"),))


@pytest.mark.parametrize(("name", "talk", "field"), [
    ("deepseek_v3", [Message("user", "a"), CALLED], "tool_calls"),
    ("{{ thinking }}" + WRITTEN["default system"][0],
     [Message("user", "a"), Message("assistant", "b", True, reasoning="c")], "reasoning_content"),
    ("{# tools #}" + WRITTEN["default system"][0],
     [Message("system", "", functions=(Function("f", json.dumps(DEFINITION)),)),
      Message("user", "a"), Message("assistant", "b", True)], "tools"),
    ("{# tool_calls #}" + PHI3.replace("{% for m in messages %}",
                                       "{% for m in messages if m.role != 'tool' %}"),
     [Message("user", "a"), Message("assistant", "b"), Message("tool", "1"),
      Message("assistant", "c", True)], "a tool's result")])
def test_what_a_template_leaves_out_is_refused_by_name(opened, name, talk, field):
    chat = opened(name)[2] if name in BOUNDARIES else chat_by(name)
    assert chat.speakable(talk, {}, "")
    with pytest.raises(UserError, match=f"{field} means nothing to the base model's own template"):
        chat.rows(talk)


def test_control_tokens_whose_names_are_words_change_no_roles():
    tokenizer = with_controls((*CONTROLS, "system", "user", "mask"))
    chat = chat_by(WRITTEN["namespaces and exceptions"][0], tokenizer)
    ids = chat.prompt([Message("system", "a mask"), Message("user", "b")])
    assert tokenizer.specials["mask"] not in ids and "a mask\nb" in tokenizer.decode(ids)


def test_thousands_of_control_tokens_and_a_megabyte_that_nearly_spells_them_take_no_second():
    tokenizer = with_controls((*CONTROLS, *(f"<SPECIAL_{i}>" for i in range(3000))))
    chat = chat_by(WRITTEN["default system"][0], tokenizer)
    begin = time.process_time()
    chat.prompt([Message("user", "<SPE <SPECIAL_ " * 70_000)])
    assert time.process_time() - begin < 3  # 17 s where each place is tried with each name


@SEEDED
@given(names=st.lists(st.text("<|ab>", min_size=1, max_size=5), max_size=8),
       text=st.text("<|ab>", max_size=20))
def test_the_expression_for_names_finds_the_longest_of_them(names, text):
    plain = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    expected = re.findall(plain, text) if names else []
    assert (re.findall(any_of(names), text) if names else []) == expected


def test_the_expression_for_hundreds_of_names_that_begin_alike_is_no_deeper_than_python_reads():
    names = ["a" * length for length in range(1, 900)]
    assert re.fullmatch(any_of(names), "a" * 700)
    assert re.findall(any_of(names), "a" * 1000) == ["a" * 899, "a" * 101]


def test_blanks_that_an_end_takes_away_are_not_learned_nor_those_that_are_none(tmp_path):
    folder = folder_of(tmp_path / "t", "control tokens that take blanks away")
    definition = json.loads((folder / "tokenizer.json").read_text())
    for token in definition["added_tokens"]:
        token |= {"lstrip": token["content"] == "<|end|>", "rstrip": False}
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    mine, library = both(folder)
    chat = chat_of(mine)
    for said in ("hello", "hello \n", "hello\x1c", "hello\x85\u3000"):
        talk = [user("a"), answer(said)]
        (row,) = chat.rows(ours(talk))
        assert row.ids == theirs_of(library, talk)
        assert learned_texts(mine, row) == [said.rstrip(" \n\x85\u3000") + "<|end|>"]


# ----- Which is chosen

def test_auto_takes_the_template_and_a_format_by_its_name_says_that_it_does_not(tmp_path):
    folder = folder_of(tmp_path / "t", "qwen3")
    tokenizer = build_tokenizer(str(folder))
    for asks in (True, False):
        chat = choose_chat("auto", asks, tokenizer)
        assert isinstance(chat, TemplateChat)
        assert chat.name == f"the base model's own template ({folder}/tokenizer_config.json)"
    named = choose_chat("chatml", True, tokenizer)
    assert isinstance(named, Chat)
    assert named.name == "chatml (instead of the base model's template)"
    assert converses(tokenizer)


def test_a_saved_format_stands_before_the_template_that_says_the_same():
    tokenizer = Chat(FORMATS["chatml"], with_controls()).own_tokenizer()
    assert tokenizer.chat_template is not None
    chat = choose_chat("auto", True, tokenizer)
    assert isinstance(chat, Chat) and chat.format == FORMATS["chatml"]


def test_a_template_may_come_from_a_file_and_is_saved_with_the_model(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(WRITTEN["default system"][0])
    chat = choose_chat(str(path), True, with_controls())
    assert isinstance(chat, TemplateChat) and chat.name == f"the template {path}"
    chat.own_tokenizer().save(tmp_path / "saved")
    again = chat_of(Tokenizer.load(tmp_path / "saved"))
    assert again.name.endswith(f"template ({tmp_path}/saved/chat_template.jinja)")
    talk = ours(TALKS[0])
    assert again.rows(talk) == chat.rows(talk)
    with pytest.raises(UserError, match=r"cannot read the chat template none\.jinja: No such file"):
        choose_chat("none.jinja", True, with_controls())


@pytest.mark.parametrize("several", [
    [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}],
    {"default": "yes", "rag": "no"}])
def test_of_several_templates_the_default_one_is_taken(several, tmp_path):
    folder = folder_of(tmp_path / "t", "qwen3")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": several}))
    assert build_tokenizer(str(folder)).chat_template == "yes"
    (folder / "chat_template.jinja").write_text("a file")
    tokenizer = build_tokenizer(str(folder))
    assert tokenizer.chat_template == "a file"
    assert tokenizer.template_source == str(folder / "chat_template.jinja")


def test_what_templates_call_tokens_is_kept_in_runs(tmp_path):
    name = "trimmed, with bos_token and eos_token in the text"
    folder = folder_of(tmp_path / "t", name, "llama2")
    tokenizer = build_tokenizer(str(folder))
    tokenizer.save(tmp_path / "saved")
    talk = ours(TALKS[1])
    assert chat_of(Tokenizer.load(tmp_path / "saved")).rows(talk) == chat_of(tokenizer).rows(talk)
    assert tokenizer.named_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    folder = folder_of(tmp_path / "u", name, "gpt2", unk_token="<|endoftext|>")
    build_tokenizer(str(folder)).save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").named_tokens == {
        "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}


# ----- What a template cannot do

def renderer_of(text: str, **more: Any) -> Renderer:
    return Renderer(ChatTemplate(text, source="hostile.jinja", **more))


def rendered(renderer: Renderer, *turns: dict[str, Any], **variables: Any) -> str:
    (text,) = renderer.render(turns, [Wanted(range(len(turns)))], variables)
    return text


HOSTILE = {
    "endless": "{% for i in range(10 ** 5) %}{% for j in range(10 ** 5) %}{% endfor %}{% endfor %}",
    "doubling": "{% set ns = namespace(a='aaaaaaaa') %}{% for i in range(60) %}"
                "{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}",
    "huge": "{{ 'a' * (10 ** 10) }}", "power": "{{ 9 ** (9 ** 9) }}"}
FORBIDDEN = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attributes": "{{ messages.__class__ }}", "globals": "{{ raise_exception.__globals__ }}",
    "initialisers": "{{ namespace.__init__.__globals__ }}",
    "names in a namespace": "{% set ns = namespace(__class__=1) %}{{ ns.__class__ }}",
    "modules": "{{ self.__init__.__globals__ }}", "other files": "{% include 'sandbox.py' %}",
    "changes": "{{ messages.append(1) }}", "formats": "{{ '{0.__class__}'.format(messages) }}",
    "cyclers": "{{ cycler.__init__.__globals__.os.system('touch owned') }}"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_takes_too_long_or_too_much_is_ended(name, monkeypatch):
    monkeypatch.setattr("gpt.chat.template.SECONDS", 2)
    monkeypatch.setattr("gpt.chat.template.START_SECONDS", 5)
    renderer = renderer_of(HOSTILE[name])
    begin = time.monotonic()
    with pytest.raises(UserError) as caught:
        rendered(renderer)
    assert time.monotonic() - begin < 30
    message = str(caught.value)
    assert "\n" not in message and "hostile.jinja" in message


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_template_reaches_nothing_but_what_it_is_given(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        text = rendered(renderer_of(FORBIDDEN[name]), user("a"))
    except UserError as error:
        assert "refuses this conversation" in str(error)
    else:
        assert "class" not in text and "function" not in text
    assert not (tmp_path / "owned").exists()


def test_namespaces_hold_no_names_that_python_would_look_for():
    for text in ("{% set ns = namespace(_x=1) %}", "{% set ns = namespace({'__html__': 1}) %}",
                 "{% set ns = namespace() %}{% set ns.__html__ = 1 %}"):
        with pytest.raises(UserError, match="a namespace cannot hold '_"):
            rendered(renderer_of(text))


def test_a_template_that_is_none_is_refused_where_it_is_used(tmp_path):
    tokenizer = with_controls()
    tokenizer.chat_template = "{% if %}"
    chat = chat_of(tokenizer)
    assert chat.stop == "<|endoftext|>"
    with pytest.raises(UserError, match="refuses this conversation: Expected an expression"):
        chat.prompt([Message("user", "a")])


@pytest.mark.parametrize(("text", "problem"), [
    ("{{ ' ' }}", "writes nothing of this conversation"),
    ("{{ messages[0].content }}", "writes nothing of an answer")])
def test_a_template_that_writes_nothing_is_refused(text, problem):
    chat = chat_by(text)
    with pytest.raises(UserError, match=problem):
        chat.answer("a")
    if "messages" not in text:
        with pytest.raises(UserError, match=problem):
            chat.prompt([Message("user", "a")])


def test_renderings_go_on_after_one_that_was_ended(monkeypatch):
    renderer = renderer_of("{% if go %}{{ 'a' * 3 }}{% else %}{{ 'a' * 10 ** 11 }}{% endif %}")
    assert rendered(renderer, go=True) == "aaa"
    with pytest.raises(UserError):
        rendered(renderer, go=False)
    assert rendered(renderer, go=True) == "aaa"


def test_what_is_rendered_after_an_interruption_is_what_is_asked_for(monkeypatch):
    renderer = renderer_of("{% for i in range(n) %}{% for j in range(10 ** 5) %}{% endfor %}"
                           "{% endfor %}{{ a }}")
    assert rendered(renderer, n=0, a="first") == "first"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            rendered(renderer, n=10 ** 4, a="old")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rendered(renderer, n=0, a="new") == "new"


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="this system has no alarm")
def test_a_process_that_nobody_waits_for_ends_by_itself(tmp_path):
    sandbox = Path(template_module.SANDBOX).read_text()
    (tmp_path / "sandbox.py").write_text(sandbox.replace("ABANDONED_SECONDS = 60",
                                                         "ABANDONED_SECONDS = 1"))
    asked = {"now": "2024-01-01", "turns": [], "variables": {}, "wanted": [
        {"turns": [], "asks": False}]}
    with subprocess.Popen([sys.executable, str(tmp_path / "sandbox.py")], encoding="ascii",
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(f"{json.dumps(HOSTILE['endless'])}\n{json.dumps(asked)}\n")
        process.stdin.flush()
        assert process.wait(30) == -signal.SIGALRM


def test_a_refusal_is_printable_and_the_process_goes_on():
    renderer = renderer_of("{{ raise_exception('\x1b[31mred\n' ~ a) if a else 'b' }}")
    with pytest.raises(UserError) as caught:
        rendered(renderer, a="!")
    assert str(caught.value).endswith("refuses this conversation: [31mred !")
    first = renderer._process
    assert rendered(renderer, a="") == "b" and renderer._process is first


def test_where_no_process_starts_it_is_said(monkeypatch, tmp_path):
    (tmp_path / "none.py").write_text("raise SystemExit")
    monkeypatch.setattr("gpt.chat.template.SANDBOX", tmp_path / "none.py")
    with pytest.raises(UserError, match=r"does not start .* is jinja2 installed"):
        rendered(renderer_of("a"))


def test_a_template_is_told_the_time_it_is_to_tell():
    told = renderer_of("{{ strftime_now('%Y-%m-%d') }}", now="2024-02-29")
    assert rendered(told) == "2024-02-29"
    today = rendered(renderer_of("{{ strftime_now('%Y-%m-%d') }}"))
    assert today == datetime.date.today().isoformat()
    assert ChatTemplate("{{ strftime_now('%d') }}").tells_the_time
    assert not ChatTemplate("{{ strftime_nowhere }}").tells_the_time


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_that_is_forked_renders_for_itself():
    assert rendered(FORKED, a=1) == "1"
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(_rendered, range(6), chunksize=1)
        assert [text for text, _ in found] == [str(n) for n in range(6)]
        assert FORKED._process.pid not in {pid for _, pid in found}
    assert rendered(FORKED, a=2) == "2"


FORKED = renderer_of("{{ a }}")


def _rendered(number: int) -> tuple[str, int]:
    return rendered(FORKED, a=number), FORKED._process.pid


def test_lines_of_a_template_that_only_command_leave_no_line_behind():
    text = "{% if true %}\n  {% for a in 'bc' %}\n{{ a }}\n  {% endfor %}\n{% endif %}\nd"
    assert rendered(renderer_of(text)) == "b\nc\nd"


# ----- Marks

NAMES = ("<|a|>", "<|ab|>", "|>|>", "é<")


@SEEDED
@given(parts=st.lists(st.sampled_from(["<", "|", ">", "a", "b", " ", "é", *NAMES]), max_size=8))
def test_a_protected_text_spells_no_name_and_comes_back(parts):
    text, protection = "".join(parts), Protection(NAMES)
    (mark,) = unused(text, "", 1)
    marked = protection.protected(text, mark)
    assert without(mark, marked) == text
    assert not any(name in marked for name in NAMES)
    assert without(mark, json.dumps(marked)) == json.dumps(text)
    assert marked.strip().replace(mark, "") == text.strip()


@SEEDED
@given(first=st.sampled_from([name[:n] for name in NAMES for n in range(1, len(name))]),
       rest=st.sampled_from([name[n:] for name in NAMES for n in range(1, len(name))]))
def test_neighbours_of_a_protected_text_do_not_complete_a_name(first, rest):
    protection = Protection(NAMES)
    marked = protection.protected(rest, "\ue000")
    joined = first + marked
    assert not any(name in joined for name in NAMES if name not in first and name not in rest)
    joined = protection.protected(first, "\ue000") + rest
    assert not any(name in joined for name in NAMES if name not in first and name not in rest)


def test_the_mark_is_a_character_that_nobody_wrote():
    assert unused({"\ue000": ["\ue001", {"a": "\ue002"}]}, "\ue003", 2) == ["\ue004", "\ue005"]
    assert unused(r"\uE000 and \ue002", "\ue001", 1) == ["\ue003"]  # as JSON writes them
    every = "".join(map(chr, range(0xE000, 0xF900)))
    assert unused(every, "", 1) == ["\U000f0000"]
    every += "".join(map(chr, [*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)]))
    with pytest.raises(UserError, match="all characters that mean nothing"):
        unused(every, "", 1)

