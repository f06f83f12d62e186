"""Examples with characters that the base model's tokenizer has no token for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import finetune
from gpt import __main__ as verbs
from gpt.configuration import FinetuneConfig
from gpt.finetuning import TaskRows, read_task, written
from gpt.runs import checkpoint
from gpt.tokenizer import build_tokenizer
from tests.tiny import call_main, tiny_gpt
from tests.tokenizer.hub_tokenizers import KINDS, write_folder

ROWS = [{"prompt": f"ask {i}", "completion": f"say {i}"} for i in range(6)]
ROWS[2]["completion"] = "a\x04b"
ROWS[4]["prompt"] = "what is \U00040000"
PAIRS = [{"prompt": "a", "chosen": "b", "rejected": "c\x1d"}, {"prompt": "a", "chosen": "b",
                                                              "rejected": "d"}]
TEXTS = [{"text": "one\x04", "label": "x\x04"}, {"text": "two", "label": "y"}]


@pytest.fixture
def tokenizer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("rows", ROWS), ("pairs", PAIRS), ("texts", TEXTS)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_tokenizer(str(write_folder(tmp_path / "hub", KINDS["smollm"][0](),
                                            "<|endoftext|>")))


@pytest.fixture
def base(tokenizer):
    checkpoint.save_model(Path("base"), tiny_gpt(vocab_size=640, block_size=64), tokenizer, "test")
    return tokenizer


def tuned(monkeypatch, capsys, *arguments):
    return call_main(finetune, "finetune.from=base", "finetune.data=rows.jsonl",
                     "finetune.answers=0", "finetune.val_fraction=0", "train.steps=1",
                     "run.name=run", *arguments, monkeypatch=monkeypatch, capsys=capsys)


def test_the_first_of_them_is_named_with_what_may_be_done(base, monkeypatch, capsys):
    code, _, errors = tuned(monkeypatch, capsys)
    assert code == 2 and len(errors.splitlines()) == 1
    assert "rows.jsonl, line 3: the tokenizer " in errors
    assert "has no token for the character U+0004; take it out, or set " in errors
    assert "finetune.on_bad_text=replace or finetune.on_bad_text=skip" in errors


@pytest.mark.parametrize(("policy", "rows", "said"), [("replace", 6, "mended"),
                                                      ("skip", 4, "left out")])
def test_they_are_mended_or_left_out_by_choice(policy, rows, said, base, monkeypatch, capsys):
    code, out, errors = tuned(monkeypatch, capsys, f"finetune.on_bad_text={policy}")
    assert code == 0, errors
    assert f"training: {rows} rows, " in out
    assert f"learned; 2 with characters that have no token {said}" in out
    other = "skip" if policy == "replace" else "replace"
    code, _, errors = tuned(monkeypatch, capsys, f"finetune.on_bad_text={other}")
    assert code == 2 and "finetune.on_bad_text" in errors


def test_what_replaces_a_character_is_no_control_token(tokenizer):
    config = FinetuneConfig(finetune={"from": "base", "data": "rows.jsonl", "val_fraction": 0,
                                      "on_bad_text": "replace"})
    rows = TaskRows.load(config, tokenizer, 64).train.rows.rows
    texts = [tokenizer.decode(row.tokens) for row in rows]
    assert "a\ufffdb" in texts[2] and "what is \ufffd" in texts[4]
    assert all(row.tokens.tolist().count(tokenizer.end_of_text) == 1 for row in rows)


def test_preferences_and_labels_go_by_the_same_policy(tokenizer):
    pairs, texts = read_task(Path("pairs.jsonl")), read_task(Path("texts.jsonl"))
    mended, bad = written(pairs, tokenizer, "replace")
    assert bad == 1 and [one.rejected.content for one in mended.preferences] == [
        "c\ufffd", "d"]
    skipped = written(pairs, tokenizer, "skip").data.preferences
    assert [one.rejected.content for one in skipped] == ["d"]
    mended, bad = written(texts, tokenizer, "replace")
    assert bad == 1 and [one.label for one in mended.examples] == ["x\ufffd", "y"]
    assert [one.completion for one in mended.examples] == ["x\ufffd", "y"]


def test_prompts_and_texts_to_score_are_refused_in_one_line(base, monkeypatch, capsys):
    import sample
    code, _, errors = call_main(sample, "base", "--prompt", "a\x04", monkeypatch=monkeypatch,
                                capsys=capsys)
    assert code == 2 and "has no token for the character U+0004, at place 1 of this text" in errors
    code, _, errors = call_main(verbs, "evaluate", "base", "--data", "rows.jsonl",
                                monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "rows.jsonl, line 3: the tokenizer" in errors


def test_a_tokenizer_that_can_write_everything_changes_nothing(tokenizer):
    data = read_task(Path("rows.jsonl"))
    assert written(data, build_tokenizer("byte"), "error") == (data, 0)


def test_texts_prepared_with_such_a_tokenizer_are_mixed_in(base, monkeypatch, capsys):
    """Bases of which preparation knew no way to cut texts into pieces."""
    from data import prepare
    Path("corpus").mkdir()
    for i in range(4):
        Path(f"corpus/{i}.txt").write_text("Some text to go on with.\x04\n" * 60)
    code, _, errors = call_main(prepare, "corpus", "tokenizer=hub", "out=texts",
                                "on_bad_text=replace", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, errors
    code, _, errors = tuned(monkeypatch, capsys, "finetune.on_bad_text=skip",
                              "finetune.pretrain_data=texts", "finetune.pretrain_share=0.5")
    assert code == 0, errors
