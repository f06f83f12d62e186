"""Tokenizers: saved ones, rank files, and the JSON files of Hugging Face folders."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.chat import FORMATS, Call, Chat, Message, own_chat, saved_format
from gpt.tokenizer import Tokenizer, build_tokenizer
from tests.chat.templates import WRITTEN
from tests.finetuning.conversations import with_controls
from tests.fuzz.inputs import as_json, damaged, fuzzed, is_read, json_files, mutated
from tests.tokenizer.hub_tokenizers import gpt2, llama2, llama3, two_files, unigram, write_folder

TEXT = "Größe, naïve café  \n\n 12345 don't 中文 🙂 <|endoftext|>"


def use(tokenizer):
    """All that is done with a tokenizer before and while a model is trained on its ids."""
    ids = tokenizer.encode(TEXT) + tokenizer.encode_bytes(b"a\xff b") + tokenizer.encode_prompt("")
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    tokenizer.decode(ids)
    assert len(tokenizer.byte_lengths()) == tokenizer.vocab_size
    [tokenizer.token_text(i) for i in (0, 1, tokenizer.end_of_text, tokenizer.vocab_size - 1)]
    if (form := saved_format(tokenizer)) is not None:
        assert Chat(form, tokenizer).jinja()


@pytest.fixture
def saved(tmp_path):
    """A tokenizer as it lies beside a model that converses."""
    tokenizer = Chat(FORMATS["turns"], build_tokenizer("byte")).own_tokenizer()
    tokenizer.save(tmp_path / "t")
    return tmp_path / "t"


def seal(folder, value):
    """Write encoding.json with the hash that such a tokenizer has."""
    (folder / "encoding.json").write_bytes(as_json(value))
    try:
        meta = json.loads(as_json(value))
        made = Tokenizer._kinds[meta.get("kind", "ranks")]._read(folder, meta, None)
        meta["sha256"] = made.fingerprint
        (folder / "encoding.json").write_bytes(as_json(meta))
    except Exception:  # it is none, and stays as it is
        pass


@pytest.mark.parametrize("name", ["encoding.json", "ranks.tiktoken", "chat_format.json",
                                  "chat_template.jinja"])
def test_any_saved_tokenizer_is_used_or_refused(name, saved):
    sound = (saved / name).read_bytes()
    meta = json.loads((saved / "encoding.json").read_text())
    use(Tokenizer.load(saved))
    seen = set()
    contents = json_files(json.loads(sound)) if name.endswith(".json") else damaged(sound)

    @fuzzed(40)
    @given(mutated(meta) if name == "encoding.json" else contents)
    def tried(content):
        if name == "encoding.json":
            seal(saved, content)
        else:
            (saved / name).write_bytes(content)
            seal(saved, meta)
        seen.add(is_read(lambda: use(Tokenizer.load(saved))))

    tried()
    assert False in seen and (True in seen or name == "ranks.tiktoken")


TALK = [Message("system", "a"), Message("user", "b <|im_end|>\n"),
        Message("assistant", "c", learned=True, calls=(Call("f", '{"d": [1]}'),), reasoning="f"),
        Message("tool", "g", call_id="h"), Message("assistant", "i", learned=True)]


@pytest.mark.parametrize("name", ["tools in a macro", "reasoning, and whether to think",
                                  "loop controls and generation tags"])
def test_any_template_writes_conversations_or_refuses_them(name):
    tokenizer = with_controls()
    seen = set()

    def talk() -> None:
        chat = own_chat(tokenizer)
        if chat is None:
            assert not tokenizer.chat_template
            return
        assert all(0 <= i < tokenizer.vocab_size for i in chat.prompt(TALK[:2]))
        for row in chat.rows(TALK):
            assert len(row.ids) == len(row.learned)

    @fuzzed(25)
    @given(damaged(WRITTEN[name][0].encode(), [b"{%", b"%}", b"{{", b"}}", b"loop", b"namespace",
                                               b"{% for a in messages %}", b"| list", b"[::-1]"]))
    def tried(data):
        tokenizer.chat_template = data.decode("utf-8", "replace")
        seen.add(is_read(talk))

    tried()
    assert seen == {True, False}


RANKS = [b"AAE= 256\n", b"AAE= 257", b"  257\n", b"= 257\n", b"AAE= -1\n", b"AAE= 9999999\n",
         b"AAE=  257\n", b"AAE= 257 1\n", b"AAE= 2_57\n", b"AAE= \xd9\xa3\n"]


def test_any_rank_file_is_used_or_refused(saved, tmp_path):
    sound = (saved / "ranks.tiktoken").read_bytes()
    seen = set()

    @fuzzed(100)
    @given(damaged(sound, RANKS))
    def tried(data):
        (tmp_path / "own.tiktoken").write_bytes(data)
        seen.add(is_read(lambda: use(build_tokenizer(str(tmp_path / "own.tiktoken")))))

    tried()
    assert False in seen


SETTINGS = {"eos_token": "</s>", "bos_token": {"content": "<s>"}, "add_bos_token": True,
            "pad_token": None, "chat_template": "{{ 1 }}", "extra_special_tokens": {"a": "<s>"},
            "additional_special_tokens": ["<s>"], "added_tokens_decoder": {}}
MADE = {"gpt2": (gpt2, "<|endoftext|>"), "llama2": (llama2, "</s>"),
        "llama3": (llama3, "<|end_of_text|>"), "unigram": (unigram, "</s>")}


@pytest.mark.parametrize("kind", MADE)
def test_any_definition_of_a_tokenizer_is_used_or_refused(kind, tmp_path):
    make, end = MADE[kind]
    definition = make()
    write_folder(tmp_path, definition, end)
    use(build_tokenizer(str(tmp_path)))
    seen = set()

    @fuzzed(60)
    @given(json_files(definition))
    def tried(data):
        (tmp_path / "tokenizer.json").write_bytes(data)
        seen.add(is_read(lambda: use(build_tokenizer(str(tmp_path)))))

    tried()
    assert False in seen  # and what is sound was read above


@pytest.mark.parametrize("name, value", [
    ("tokenizer_config.json", SETTINGS), ("special_tokens_map.json", SETTINGS),
    ("generation_config.json", {"eos_token_id": [1, 2]}), ("config.json", {"eos_token_id": 2}),
    ("chat_format.json", FORMATS["turns"].model_dump())])
def test_any_settings_of_a_tokenizer_are_read_or_refused(name, value, tmp_path):
    write_folder(tmp_path, llama2(), None if name == "config.json" else "</s>")
    seen = set()

    @fuzzed(40)
    @given(json_files(value))
    def tried(data):
        (tmp_path / name).write_bytes(data)
        seen.add(is_read(lambda: use(build_tokenizer(str(tmp_path)))))

    tried()
    assert False in seen  # and what is sound was read above


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_any_files_of_gpt2s_kind_are_used_or_refused(name, tmp_path):
    two_files(tmp_path)
    use(build_tokenizer(str(tmp_path)))
    sound = (tmp_path / name).read_bytes()
    seen = set()

    @fuzzed(30)
    @given(st.one_of(damaged(sound), json_files(json.loads(sound)) if name.endswith("json")
                     else damaged(sound, [b"a b\n", b"a\n", b" \n", b"a b c\n", b"#version\n"])))
    def tried(data):
        (tmp_path / name).write_bytes(data)
        seen.add(is_read(lambda: use(build_tokenizer(str(tmp_path)))))

    tried()
    assert False in seen
