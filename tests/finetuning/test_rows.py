"""Examples become rows in which answers and their stop tokens alone are learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.batches import IGNORE, Batches, MicroBatch, Order, Shuffled
from gpt.chat import Message
from gpt.configuration import FinetuneSection
from gpt.errors import UserError
from gpt.finetuning import Example, encode_examples, padded_batches, refuse_useless
from gpt.finetuning.rows import PackedRows, PaddedRows, Row, first_rows, side_by_side
from gpt.finetuning.splits import hold_out, load_splits
from gpt.training.evaluate import evaluate
from tests.finetuning.conversations import chat_of, conversations, pair
from tests.tiny import ARCHITECTURES, CPU, tiny_gpt
from tests.tiny_runs import accumulate_gradients

END = 256


def rows_of(*examples: Example, block_size: int = 32, name: str = "plain",
            long_rows: str = "drop") -> list[Row]:
    return encode_examples(examples, chat_of(name), block_size, long_rows).rows


def pairs(*texts: tuple[str, str], block_size: int = 32) -> list[Row]:
    return rows_of(*(pair(*each) for each in texts), block_size=block_size)


def test_the_loss_counts_the_completion_and_its_stop_token_and_nothing_else():
    (batch,) = padded_batches(pairs(("ab", "xyz")), 99)
    a, b, x, y, z = b"abxyz"
    assert batch.inputs.tolist() == [[a, b, x, y, z]]
    assert batch.targets.tolist() == [[IGNORE, x, y, z, END]]


def test_padding_changes_no_loss():
    model = tiny_gpt(vocab_size=262)
    rows = pairs(("a", "b"), ("abcd", "efgh"), ("", "xyz"))
    lengths = torch.ones(262)
    alone = evaluate(model, padded_batches(rows, 1), lengths, CPU)
    together = evaluate(model, padded_batches(rows, 999), lengths, CPU)
    assert together.tokens == alone.tokens == 2 + 5 + 4
    assert together.loss == pytest.approx(alone.loss, rel=1e-5)


def loss_and_gradient(model, batches: list[MicroBatch]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = accumulate_gradients(model, batches, CPU)
    return float(loss), torch.cat([p.grad.flatten() for p in model.parameters()
                                   if p.grad is not None])


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_rows_have_the_losses_and_gradients_of_rows_alone(name, prompts):
    model = tiny_gpt(**ARCHITECTURES[name], **{"vocab_size": 262})
    rows = pairs(("a", "b"), ("abcd", "efgh"), ("", "xyz"), ("qw", "ertyuiop"), ("x", "yy"))
    packed = PackedRows(rows, 32, prompts)
    assert len(packed) < len(rows)
    alone = loss_and_gradient(model, padded_batches(rows, 1, prompts))
    together = loss_and_gradient(model, [packed.read(np.arange(len(packed)))])
    assert together[0] == pytest.approx(alone[0], rel=2e-6)
    # Sums of some hundred float32 terms in another order: 6e-8 of the largest, a hundred times.
    scale = alone[1].abs().max()
    torch.testing.assert_close(together[1] / scale, alone[1] / scale, rtol=0, atol=6e-6)


def test_without_isolation_packed_rows_would_differ():
    model = tiny_gpt(vocab_size=262)
    rows = pairs(("a", "b"), ("abcd", "efgh"))
    alone = loss_and_gradient(model, padded_batches(rows, 1))[0]
    leaking = loss_and_gradient(model, [side_by_side([rows], isolate=False)])[0]
    assert abs(leaking - alone) > 1e-3


@settings(max_examples=50)
@given(st.lists(conversations(), min_size=1, max_size=8))
def test_packing_drops_nothing(examples):
    rows = rows_of(*examples, block_size=400)
    packed = PackedRows(rows, 400)
    batch = packed.read(np.arange(len(packed)))
    assert batch.tokens == sum(map(len, rows))
    assert batch.supervised_tokens == sum(int(row.learned[1:].sum()) for row in rows)
    found = sorted(tuple(line[line != IGNORE].tolist()) for line in batch.targets)
    assert sorted(token for line in found for token in line) == sorted(
        token for row in rows for token in row.tokens[1:][row.learned[1:]].tolist())
    assert packed.tokens_per_sequence * len(packed) == pytest.approx(batch.tokens)


def test_a_step_puts_sequences_of_like_length_together_and_reads_the_same_ones():
    rows = pairs(*(("p" * n, "q") for n in (9, 1, 7, 2, 8, 3, 6, 4)), block_size=16)
    cut, whole = (Batches(Shuffled(PaddedRows(rows), 3), Order(8, micro)) for micro in (2, 8))
    for step in range(3):
        parts = cut.step(step)
        widths = [part.inputs.size(1) for part in parts]
        assert widths == sorted(widths) == [3, 5, 8, 10]  # the longest of each two neighbours
        together = [row[row != 0].tolist() for part in parts for row in part.inputs]
        [other] = whole.step(step)
        assert together == [row[row != 0].tolist() for row in other.inputs]
        assert sum(part.tokens for part in parts) == other.tokens


@pytest.mark.parametrize("packing", [False, True])
def test_an_epoch_of_rows_reads_each_once_whatever_the_batch(packing):
    rows = pairs(*(("p", chr(97 + i)) for i in range(12)), block_size=3 if packing else 8)
    sequences = PackedRows(rows, 3) if packing else PaddedRows(rows)
    orders = []
    for batch_size, micro in ((3, 3), (4, 1), (12, 5)):
        data = Batches(Shuffled(sequences, 3), Order(batch_size, micro))
        parts = [part for step in range(12 // batch_size) for part in data.step(step)]
        orders.append([int(row[1]) for part in parts for row in part.inputs])
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == list(range(97, 109)) != orders[0]


def test_a_micro_batch_in_which_nothing_is_learned_is_harmless():
    model, rows = tiny_gpt(vocab_size=262), pairs(("a", "b"), ("abcd", "efgh"))
    batches = padded_batches(rows, 16)
    masked = MicroBatch(batches[0].inputs, torch.full_like(batches[0].targets, IGNORE), 10)
    with_it, without = (loss_and_gradient(model, parts) for parts in ([*batches, masked], batches))
    assert with_it[0] == without[0]
    assert torch.equal(with_it[1], without[1])
    loss, gradient = loss_and_gradient(model, [masked])
    assert loss == 0.0 and not gradient.any()


def test_a_plain_text_longer_than_the_context_becomes_several_rows():
    rows = rows_of(pair("", "abcdefghij"), block_size=4)
    assert [row.tokens.tolist() for row in rows] == [
        [END, *b"abcd"], [*b"defgh"], [*b"hij", END]]
    learned = [token for row in rows for token in row.tokens[1:][row.learned[1:]].tolist()]
    assert learned == [*b"abcdefghij", END]


def test_conversations_longer_than_the_context_are_left_out_and_named():
    examples = [pair("a", "b" * 31), pair("a", "b" * 32, "f, line 2"), pair("a", "b")]
    found = encode_examples(examples, chat_of(), 32)
    assert [len(row.tokens) for row in found.rows] == [33, 3]
    assert [row.example.where for row in found.dropped] == ["f, line 2"]
    assert found.long_share == pytest.approx(1 / 3)


def test_long_conversations_lose_their_beginning_where_that_is_asked_for():
    examples = [pair("abcdef", "xy"), pair("a", "b" * 9)]
    found = encode_examples(examples, chat_of(), 5, "cut")
    assert [row.tokens.tolist() for row in found.rows] == [[*b"def", *b"xy", END]]
    assert found.rows[0].learned.tolist() == [False] * 3 + [True] * 3
    assert (found.cut, len(found.dropped)) == (1, 1)  # an answer alone is too long


def test_data_of_which_too_much_would_be_lost_are_refused():
    found = encode_examples([pair("a", "b" * 40), pair("a", "b")], chat_of(), 32)
    refuse_useless(found, "the data", "32 tokens", max_long_share=0.5)
    with pytest.raises(UserError, match=r"1 of the 2 examples .* 32 tokens \(50%; .* allows 49%\)"):
        refuse_useless(found, "the data", "32 tokens", max_long_share=0.49)


def test_data_of_which_nothing_fits_are_refused():
    found = encode_examples([pair("a", "b" * 40)], chat_of(), 32)
    with pytest.raises(UserError, match=r"none of the 1 examples .* 32 tokens .* has 41"):
        refuse_useless(found, "the data", "32 tokens", max_long_share=1.0)


def test_a_row_in_which_nothing_is_learned_is_refused():
    example = Example((Message("user", "a"), Message("assistant", "b")), "f, line 7")
    with pytest.raises(UserError, match="f, line 7: nothing of it is learned"):
        refuse_useless(encode_examples([example], chat_of(), 32), "the data", "32 tokens", 0.1)


def test_held_out_examples_stay_together_by_prompt():
    examples = [pair(f"p{i % 30}", str(i)) for i in range(90)]
    train, val = hold_out(examples, 0.2, seed=0)
    assert len(train) + len(val) == 90 and train and val
    assert not {e.prompt for e in train} & {e.prompt for e in val}


def test_texts_without_prompts_are_held_out_one_by_one():
    train, val = hold_out([pair("", str(i)) for i in range(40)], 0.2, seed=0)
    assert len(train) + len(val) == 40 and len(val) > 1


def test_rows_that_are_scored_together_are_of_similar_length():
    batches = padded_batches(pairs(("abcd", "efgh"), ("a", "b"), ("abcd", "efg"), ("x", "y")), 16)
    assert [batch.inputs.size(1) for batch in batches] == [2, 8]


def test_validation_reads_at_most_the_tokens_asked_for():
    rows = pairs(("abcd", "efgh"), ("a", "b"), ("x", "y"))
    assert [len(row.tokens) for row in first_rows(rows, None)] == [9, 3, 3]
    assert [len(row.tokens) for row in first_rows(rows, 10)] == [9, 3]
    assert len(first_rows(rows, 1)) == 1


def test_of_one_text_alone_the_last_part_is_held_out(tmp_path):
    """Without finetune.val_data, as in pretraining."""
    text = "".join(f"This is line {i} of it.\n" for i in range(100))
    (tmp_path / "text.txt").write_text(text)
    section = FinetuneSection(**{"from": "base", "data": str(tmp_path / "text.txt")})
    train, val = load_splits(section, seed=0)
    head, tail = train.examples[0].completion, val.examples[0].completion
    assert head + tail == text and head.endswith("\n") and 0.08 < len(tail) / len(text) < 0.12
    assert train.examples[0].messages[0].learned
    (tmp_path / "text.txt").write_text("word " * 5)
    train, val = load_splits(section.model_copy(update={"val_fraction": 0.3}), seed=0)
    assert train.examples[0].completion == "word " * 3
    (tmp_path / "text.txt").write_text("w")
    with pytest.raises(UserError, match=r"the text is too short to hold out 10% of it; give "
                                        r"finetune.val_data, or more text"):
        load_splits(section, seed=0)
