"""Multiple choice of one's own."""

from __future__ import annotations

import json
import math

import pytest
import torch

from gpt.errors import UserError
from gpt.evaluation import questions as module
from gpt.evaluation.questions import Question, ask, is_questions, read_questions, row_of
from gpt.language_model import LanguageModel
from gpt.tokenizer import build_tokenizer
from tests.tiny import CPU, ROOT, tiny_gpt

BYTES = build_tokenizer("byte", [])
PIECES = build_tokenizer("bpe:320", [(ROOT / "README.md").read_text()])
RECORDS = [{"context": "The capital of France is", "choices": ["Paris", "Rome"], "answer": 0},
           {"context": "She ___ home.", "choices": ["went", "apple", "é"], "answer": "apple"},
           {"context": "2 + 2 =\n", "choices": [" 4", " 5"], "answer": 1, "id": "kept"},
           {"context": "", "choices": ["a", "bb"], "answer": 1}]


def file_of(tmp_path, records=RECORDS):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n"
                            for each in records))
    return path


def test_questions_are_read_with_their_blanks(tmp_path):
    path = file_of(tmp_path)
    assert is_questions(path)
    assert read_questions(path) == [
        Question("The capital of France is", (" Paris", " Rome"), "", 0),
        Question("She ", ("went", "apple", "é"), " home.", 1),
        Question("2 + 2 =\n", (" 4", " 5"), "", 1), Question("", ("a", "bb"), "", 1)]


def by_hand(lm: LanguageModel, question: Question) -> list[tuple[float, float]]:
    """(likelihood of what stands behind the context, the same per byte), for each choice."""
    found = []
    for choice in question.choices:
        said = choice + question.behind
        ids = lm.tokenizer.encode_prompt(question.before + said, begin=True)
        before = lm.tokenizer.encode_prompt(question.before.rstrip(" "), begin=True)
        assert ids[:len(before)] == before
        with torch.no_grad():
            logprobs = lm.model(torch.tensor([ids]))[0].log_softmax(-1)
        total = sum(float(logprobs[i - 1, ids[i]]) for i in range(len(before), len(ids)))
        found.append((total, total / len(said.strip().encode())))
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_the_choice_is_the_likeliest_per_byte(tokenizer, seed, tmp_path):
    lm = LanguageModel(tiny_gpt(seed=seed, vocab_size=tokenizer.vocab_size, block_size=64),
                       tokenizer, CPU)
    asked = read_questions(file_of(tmp_path))
    found = ask(lm, asked)
    scores = [by_hand(lm, each) for each in asked]
    right, in_all = ([max(range(len(one)), key=[pair[k] for pair in one].__getitem__)
                      == each.answer for one, each in zip(scores, asked, strict=True)]
                     for k in (1, 0))
    assert found.accuracy == sum(right) / 4 and found.accuracy_in_all == sum(in_all) / 4
    assert found.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 2) / 4)
    assert found.questions == 4
    assert found.accuracy_interval.low <= found.accuracy <= found.accuracy_interval.high


def test_of_a_token_that_reaches_over_the_border_all_is_judged():
    """Where a choice changes how its context is cut into tokens, what differs counts."""
    text = "import numpy"
    whole = PIECES.encode_prompt(text, begin=True)
    for cut in range(1, len(text)):
        row = row_of(PIECES, text[:cut], text)
        alike = PIECES.encode_prompt(text[:cut], begin=True)
        assert row.ids == whole and whole[:row.start] == alike[:row.start]
        assert 1 <= row.start < len(whole)
    assert row_of(BYTES, "abc", "abc").start == 3  # nothing is added: the last token is judged


@pytest.mark.parametrize(("line", "message"), [
    ("{", "line 2 is no JSON"), ("[]", "line 2 is no object with context"),
    ({"choices": ["a", "b"]}, "line 2 has no answer, context"),
    ({"context": 1, "choices": ["a", "b"], "answer": 0}, "context must be a text"),
    ({"context": "", "choices": ["a"], "answer": 0}, "two or more"),
    ({"context": "", "choices": ["a", " "], "answer": 0}, "none of which is empty"),
    ({"context": "___ ___", "choices": ["a", "b"], "answer": 0}, "has ___ more than once"),
    ({"context": "", "choices": ["a", "b"], "answer": 2}, "its number from 0 to 1"),
    ({"context": "", "choices": ["a", "b"], "answer": True}, "its number from 0 to 1"),
    ({"context": "", "choices": ["a", "a"], "answer": "a"}, "one of the choices")])
def test_what_is_wrong_in_a_line_is_told(line, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_questions(file_of(tmp_path, [RECORDS[0], line]))


def test_other_files_are_no_questions(tmp_path):
    for text in ("", "{", '{"prompt": "a"}\n', "[1]\n", "[" * 100_000):
        (tmp_path / "a").write_text(text)
        assert not is_questions(tmp_path / "a")
    assert not is_questions(tmp_path / "none") and not is_questions(tmp_path)
    with pytest.raises(UserError, match="is empty"):
        read_questions(file_of(tmp_path, [""]))
    assert math.isclose(module._best([0.1, 0.3, 0.3]), 1)
