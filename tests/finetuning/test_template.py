"""The chat template of a fine-tuned model renders messages as its rows were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt.finetuning import Record, encode_records, plain_template
from gpt.tokenizer import Tokenizer, build_tokenizer, tokenizer_config, tokenizer_json

PAIRS = [("Name a colour:\n", " blue"), ("x", ""), ("{{ eos_token }}<|endoftext|>", "{% raw %} é"),
         ("  spaces\n\n", "\nlines\n")]


def opened(folder: Path, tokenizer: Tokenizer):
    transformers = pytest.importorskip("transformers")
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(tokenizer, 64)))
    if tokenizer.chat_template is not None:
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def tokenizer() -> Tokenizer:
    found = build_tokenizer("byte")
    found.chat_template = plain_template(found)
    return found


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_transformers_renders_a_pair_as_its_training_row(prompt, completion, tokenizer, tmp_path):
    theirs = opened(tmp_path, tokenizer)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    rows, _ = encode_records([Record(prompt, completion)], tokenizer, 10_000)
    assert theirs.apply_chat_template(messages, tokenize=False) == (
        prompt + completion + "<|endoftext|>")
    text = theirs.apply_chat_template(messages, tokenize=False).removesuffix("<|endoftext|>")
    ids = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert [*ids, tokenizer.end_of_text] == rows[0].tokens


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_a_prompt_alone_is_rendered_as_sampling_reads_it(prompt, completion, tokenizer, tmp_path):
    theirs = opened(tmp_path, tokenizer)
    text = theirs.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                      add_generation_prompt=True)
    ids = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert ids == tokenizer.encode_prompt(prompt)


def test_where_texts_begin_with_a_token_the_template_does_too(tokenizer, monkeypatch):
    assert "bos_token" not in plain_template(tokenizer)
    monkeypatch.setattr(type(tokenizer), "begin_of_text", 3)
    assert plain_template(tokenizer).startswith("{{- bos_token }}")
