"""Records become rows in which completions and their stop token alone are learned."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt.batches import IGNORE, Batches, Shuffled
from gpt.batches.order import Order
from gpt.errors import UserError
from gpt.evaluate import evaluate
from gpt.finetuning import (
    Record,
    Rows,
    encode_records,
    first_rows,
    hold_out,
    padded_batches,
    read_records,
)
from gpt.tokenizer import build_tokenizer
from tests.hub_tokenizers import llama3, write_folder
from tests.tiny import CPU, tiny_gpt

BYTES = build_tokenizer("byte")
END = BYTES.end_of_text


def test_the_loss_counts_the_completion_and_its_stop_token_and_nothing_else():
    rows, _ = encode_records([Record("ab", "xyz")], BYTES, 32)
    (batch,) = padded_batches(rows, 8)
    a, b, x, y, z = b"abxyz"
    assert batch.inputs.tolist() == [[a, b, x, y, z]]
    assert batch.targets.tolist() == [[IGNORE, x, y, z, END]]


@given(st.lists(st.tuples(st.text(max_size=8), st.text(min_size=1, max_size=8)), min_size=1,
                max_size=6))
def test_for_any_records_the_supervised_targets_are_the_completions(pairs):
    rows, too_long = encode_records([Record(*pair) for pair in pairs], BYTES, 200)
    (batch,) = padded_batches(rows, len(rows))
    assert too_long == 0
    for i, (prompt, completion) in enumerate(pairs):
        supervised = batch.targets[i][batch.targets[i] != IGNORE].tolist()
        assert supervised == [*BYTES.encode(completion), END]
        start = int((batch.targets[i] != IGNORE).int().argmax())
        read = batch.inputs[i][:start + 1].tolist()
        assert read == (BYTES.encode(prompt) or [END])


def test_a_prompt_begins_with_the_token_that_goes_before_every_text(tmp_path):
    llama = build_tokenizer(str(write_folder(tmp_path, llama3(), "<|end_of_text|>")))
    rows, _ = encode_records([Record("def", " x"), Record("", "x")], llama, 32)
    begin, end = llama.specials["<|begin_of_text|>"], llama.end_of_text
    assert [row.tokens for row in rows] == [
        [begin, *llama.encode("def"), *llama.encode(" x"), end], [begin, *llama.encode("x"), end]]
    assert [row.prompt_tokens for row in rows] == [1 + len(llama.encode("def")), 1]


def test_text_that_spells_the_stop_token_does_not_become_it():
    rows, _ = encode_records([Record("p", "<|endoftext|>")], BYTES, 32)
    assert rows[0].tokens.count(END) == 1 and rows[0].tokens[-1] == END


def test_padding_changes_no_loss():
    model = tiny_gpt(vocab_size=257)
    rows, _ = encode_records([Record("a", "b"), Record("abcd", "efgh"), Record("", "xyz")],
                             BYTES, 32)
    lengths = torch.ones(257)
    alone = evaluate(model, padded_batches(rows, 1), lengths, CPU)
    together = evaluate(model, padded_batches(rows, 3), lengths, CPU)
    assert together.tokens == alone.tokens == 2 + 5 + 4
    assert together.loss == pytest.approx(alone.loss, rel=1e-5)


def test_rows_longer_than_the_context_are_left_out_and_counted():
    records = [Record("a", "b" * 31), Record("a", "b" * 32), Record("a", "b")]
    rows, too_long = encode_records(records, BYTES, 32)
    assert [len(row.tokens) for row in rows] == [33, 3] and too_long == 1
    with pytest.raises(UserError, match=r"none of the 1 records fits .* 32 tokens .* has 34"):
        encode_records(records[1:2], BYTES, 32)


def test_an_epoch_of_rows_reads_each_once_whatever_the_batch():
    rows, _ = encode_records([Record("p", chr(97 + i)) for i in range(12)], BYTES, 8)
    orders = []
    for batch_size, micro in ((3, 3), (4, 1), (12, 5)):
        data = Batches(Shuffled(Rows(rows), 3), Order(batch_size, micro))
        parts = [part for step in range(12 // batch_size) for part in data.step(step)]
        orders.append([int(row[1]) for part in parts for row in part.inputs])
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == list(range(97, 109)) != orders[0]


def test_held_out_records_stay_together_by_prompt():
    records = [Record(f"p{i % 30}", str(i)) for i in range(90)]
    train, val = hold_out(records, 0.2, seed=0)
    assert len(train) + len(val) == 90 and train and val
    assert not {r.prompt for r in train} & {r.prompt for r in val}


@pytest.mark.parametrize(("text", "message"), [
    ("", "has no records"),
    ('{"prompt": "a", "completion": "b"}\n{"prompt": 1}\n', "line 2: prompt must be text, not int"),
    ('{"prompt": "a"}', r"line 1: the field completion is missing \(fields there: prompt\)"),
    ('\n\n{"prompt": "a", "completion": ""}', "line 3: completion is empty"),
    ("[1]", "line 1: expected an object"), ("{nope", "line 1: not valid JSON"),
    ("[" * 100_000, "line 1: not valid JSON")])
def test_a_wrong_record_is_named_by_file_line_and_field(tmp_path, text, message):
    path = tmp_path / "task.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_records(path)
    assert str(path) in str(error.value)


def test_records_are_read_with_or_without_a_byte_order_mark(tmp_path):
    path = tmp_path / "task.jsonl"
    line = json.dumps({"prompt": "a\u2028b", "completion": "é", "other": 1}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n" + line.encode())
    assert read_records(path) == [Record("a\u2028b", "é")] * 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the records .*none\.jsonl"):
        read_records(tmp_path / "none.jsonl")


def test_tokens_are_counted_without_padding_however_the_batch_is_cut():
    rows, _ = encode_records([Record("a", "b"), Record("abcd", "efgh")], BYTES, 32)
    for size in (1, 2):
        assert sum(batch.tokens for batch in padded_batches(rows, size)) == 2 + 8


def test_validation_reads_at_most_the_tokens_asked_for():
    records = [Record("abcd", "efgh"), Record("a", "b"), Record("x", "y")]
    rows, _ = encode_records(records, BYTES, 32)
    assert [len(row.tokens) for row in first_rows(rows, None)] == [3, 3, 9]
    assert [len(row.tokens) for row in first_rows(rows, 10)] == [3, 9]
    assert len(first_rows(rows, 1)) == 1
