"""Documents that share a row do not see each other: exact zeros, and the same result as apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gpt.batches import IGNORE, DocumentRows, EvaluationWindows, MicroBatch, Windows
from gpt.machine.device import Machine
from gpt.model import GPT, KVCache
from gpt.model.visibility import positions_within, visible_within
from gpt.training.evaluate import evaluate
from tests.tiny import ARCHITECTURES, CPU, random_tokens, tiny_gpt, tokenized
from tests.tiny_runs import accumulate_gradients

DTYPES = (torch.float32, torch.bfloat16)
MACHINES = [pytest.param(Machine(torch.device(device), dtype), marks=marks, id=f"{device}-{dtype}")
            for device, marks in (("cpu", ()), ("cuda", pytest.mark.cuda))
            if device == "cpu" or torch.cuda.is_available() for dtype in DTYPES]
LENGTHS = (5, 1, 9, 6)  # documents of a row
LONG = (300, 400, 320)  # more keys than a kernel's block holds
END = 60  # end-of-text in the texts below


def segments_of(*lengths: int) -> Tensor:
    """(1, T) segment numbers of documents side by side."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).unsqueeze(0)


def stretches(lengths: tuple[int, ...]) -> list[slice]:
    """Where each document stands in the row."""
    stops = [sum(lengths[:i + 1]) for i in range(len(lengths))]
    return [slice(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]


def influence(model: GPT, tokens: Tensor, segments: Tensor | None, chosen: slice,
              machine: Machine) -> Tensor:
    """How much the loss of the chosen tokens depends on the vector of each token.  (T, C)"""
    vectors: list[Tensor] = []
    hook = model.embedding.register_forward_hook(lambda *call: vectors.append(call[-1]))
    with machine.autocast():
        logits = model(tokens, segments=segments)[0, chosen].float()
    hook.remove()
    loss = torch.nn.functional.cross_entropy(logits, tokens[0, chosen])
    return torch.autograd.grad(loss, vectors[0])[0][0]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loss_of_a_document_does_not_depend_on_any_other_to_the_last_bit(name, machine):
    model = tiny_gpt(**ARCHITECTURES[name]).to(machine.device)
    tokens = random_tokens(1, sum(LENGTHS)).to(machine.device)
    segments = segments_of(*LENGTHS).to(machine.device)
    for here in stretches(LENGTHS):
        inside = torch.zeros(sum(LENGTHS), dtype=torch.bool)
        inside[here] = True
        apart = influence(model, tokens, segments, here, machine)
        assert not apart[~inside].any() and apart[inside].any(dim=1).all()
        if here.start:
            assert influence(model, tokens, None, here, machine)[:here.start].any()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_editing_a_document_leaves_the_predictions_in_others_bit_equal(name, machine):
    model = tiny_gpt(**ARCHITECTURES[name]).to(machine.device)
    tokens = random_tokens(1, sum(LENGTHS)).to(machine.device)
    edited = tokens.clone()
    edited[:, 2:4] = (edited[:, 2:4] + 1) % 61
    segments = segments_of(*LENGTHS).to(machine.device)
    with torch.no_grad(), machine.autocast():
        before, after = model(tokens, segments=segments), model(edited, segments=segments)
        joined = model(tokens), model(edited)
    assert torch.equal(before[:, 5:], after[:, 5:])
    assert not torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(joined[0][:, 5:], joined[1][:, 5:])


@pytest.mark.parametrize("machine", MACHINES)
def test_rows_longer_than_a_kernels_block_are_isolated_too(machine):
    model = tiny_gpt(block_size=sum(LONG), n_layer=1).to(machine.device)
    tokens = random_tokens(1, sum(LONG)).to(machine.device)
    segments = segments_of(*LONG).to(machine.device)
    last = stretches(LONG)[-1]
    assert not influence(model, tokens, segments, last, machine)[:last.start].any()
    assert influence(model, tokens, None, last, machine)[:last.start].any()


def loss_and_gradient(model: GPT, batches: list[MicroBatch]) -> tuple[float, Tensor]:
    model.zero_grad(set_to_none=True)
    loss = float(accumulate_gradients(model, batches, CPU))
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def alone(batch: MicroBatch) -> list[MicroBatch]:
    """Each document of a batch in a row of its own, without padding and without segments."""
    found = []
    for inputs, targets, segments in zip(batch.inputs, batch.targets, batch.segments, strict=True):
        for segment in segments.unique():
            here = segments == segment
            found.append(MicroBatch(inputs[here][None], targets[here][None], int(here.sum())))
    return [part for part in found if part.supervised_tokens]


def documents(count: int = 12) -> list[int]:
    """Documents of 1 to 40 random tokens and their end-of-text."""
    tokens: list[int] = []
    for i in range(count):
        tokens += [*random_tokens(1 + 17 * i % 40, vocab_size=END, seed=i).tolist(), END]
    return tokens


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", [Windows, DocumentRows])
def test_packed_documents_give_the_loss_and_gradient_of_documents_apart(kind, name):
    model = tiny_gpt(**ARCHITECTURES[name])
    sequences = kind(tokenized(documents(), 61, END), 32, isolate=True)
    batch = sequences.read(torch.arange(len(sequences)).numpy())
    loss, gradient = loss_and_gradient(model, [batch])
    apart, gradient_apart = loss_and_gradient(model, alone(batch))
    # The same products summed in another order: float32 rounding, 2^-23, over some 250 tokens.
    assert loss == pytest.approx(apart, rel=1e-5)
    scale = float(gradient_apart.abs().max())
    assert_close(gradient, gradient_apart, rtol=1e-4, atol=1e-5 * scale)
    joined = kind(tokenized(documents(), 61, END), 32).read(torch.arange(len(sequences)).numpy())
    assert joined.segments is None and torch.equal(joined.inputs, batch.inputs)
    seeing_each_other = loss_and_gradient(model, [joined])[1]
    assert (seeing_each_other - gradient_apart).abs().max() > 1e-2 * scale


def test_what_remains_of_a_long_document_does_not_see_the_document_before_it_in_the_row():
    """Its first input is a token of text: end-of-text alone would not tell where it begins."""
    tokens = [*range(19), END, 20, 21, 22, 23, 24, END]
    rows = DocumentRows(tokenized(tokens, 61, END), 16, isolate=True)
    batch = rows.read(torch.arange(len(rows)).numpy())
    assert batch.inputs[1].tolist()[:10] == [END, 20, 21, 22, 23, 24, 15, 16, 17, 18]
    assert batch.segments[1].tolist() == [1] * 6 + [2] * 4 + [3, 4, 5, 6, 7, 8]


def test_windows_begin_a_segment_at_every_end_of_text_that_is_read():
    tokens = [1, 2, END, 3, END, END, 4, 5, 6, 7]
    batch = Windows(tokenized(tokens, 61, END), 9, isolate=True).read(torch.arange(1).numpy())
    assert batch.inputs.tolist() == [tokens[:9]]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 2, 3, 3, 3, 3]]


def test_positions_and_visible_tokens_of_a_row():
    segments = torch.tensor([[0, 0, 1, 2, 2], [3, 3, 3, 3, 3]])
    assert positions_within(segments).tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]
    visible = visible_within(segments, None)
    assert visible.shape == (2, 1, 5, 5)
    assert visible[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert torch.equal(visible[1, 0], torch.ones(5, 5, dtype=torch.bool).tril())


@pytest.mark.parametrize("window", [None, 1, 2, 9])
@pytest.mark.parametrize("marked", [False, True])
def test_stretches_of_a_row_read_what_they_read_in_the_whole(window, marked):
    segments = torch.cat((segments_of(*LENGTHS), segments_of(sum(LENGTHS))))
    prompts = random_tokens(*segments.shape) < 30 if marked else None
    whole = visible_within(segments, window, prompts)
    for queries, keys in ((slice(3, 9), slice(0, 21)), (slice(9, 14), slice(4, 14))):
        part = visible_within(segments, window, prompts, queries, keys)
        assert torch.equal(part, whole[:, :, queries, keys]) and part.any()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_row_of_one_document_is_read_as_without_segments(name):
    model = tiny_gpt(**ARCHITECTURES[name])
    tokens = random_tokens(2, 20)
    whole = torch.zeros(2, 20, dtype=torch.int64)
    # A mask instead of a causal kernel: the same sums, blocked differently.
    assert_close(model(tokens, segments=whole), model(tokens), rtol=1e-5, atol=1e-5)


def test_evaluation_isolates_when_it_is_asked_to():
    model, corpus, lengths = tiny_gpt(), tokenized(documents(), 61, END), torch.ones(61)
    isolated = EvaluationWindows(corpus, 32, 4, isolate=True)
    score = evaluate(model, isolated, lengths, CPU)
    parts = [part for batch in isolated for part in alone(batch)]
    apart = evaluate(model, parts, lengths, CPU)
    assert score.tokens == apart.tokens == len(documents())
    assert score.loss == pytest.approx(apart.loss, rel=1e-5)
    joined = evaluate(model, EvaluationWindows(corpus, 32, 4), lengths, CPU)
    assert joined.tokens == score.tokens
    assert abs(joined.loss - score.loss) > 1e-3 * score.loss


def test_padding_that_stands_alone_gives_no_infinite_or_missing_number():
    model = tiny_gpt()
    batch = DocumentRows(tokenized([1, END], 61, END), 32, isolate=True).read(
        torch.arange(1).numpy())
    assert (batch.targets != IGNORE).sum() == 2
    assert model(batch.inputs, segments=batch.segments).isfinite().all()
    loss, gradient = loss_and_gradient(model, [batch])
    assert gradient.isfinite().all() and 0 < loss < 100


def test_a_cache_and_segments_do_not_go_together():
    model = tiny_gpt()
    cache = KVCache(model.config, 1, 8, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="cannot be used with segments"):
        model(random_tokens(1, 4), cache, segments_of(2, 2))
    assert model(random_tokens(1, 4), cache).shape == (1, 4, 61)
