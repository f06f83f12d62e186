"""Where the sequences of a step are from: what is told is what was read."""

from __future__ import annotations

import numpy as np
import pytest

from gpt.batches import (
    IGNORE,
    Batches,
    DocumentRows,
    Mixture,
    Order,
    Shuffled,
    TokenizedText,
    Windows,
)
from tests.tiny import END, tokenized


def a_text(seed, name="the text"):
    """Documents of all lengths, some longer than a row."""
    draw = np.random.Generator(np.random.PCG64(seed))
    documents = [np.append(draw.integers(END, size=draw.integers(40)), END) for _ in range(60)]
    text = tokenized(np.concatenate(documents))
    return TokenizedText(text.stream, text.vocab_size, text.end_of_text, name)


def read_again(texts, origin):
    """What stands where a piece of a sequence is from; its documents checked, too."""
    text = texts[origin["text"]]
    start, stop = origin["tokens"]
    first, last = origin["documents"]
    starts = [*text.stream.document_starts.tolist(), len(text)]
    assert starts[first] <= start < starts[first + 1]
    assert starts[last] < stop <= starts[last + 1]
    return text.read(start, stop).tolist()


@pytest.mark.parametrize("micro_batch_size", [2, 4])
def test_windows_stand_where_they_are_said_to(micro_batch_size):
    text = a_text(0)
    batches = Batches(Shuffled(Windows(text, 8), 0), Order(4, micro_batch_size))
    for step in range(20):
        for batch, origins in zip(batches.step(step), batches.origins(step), strict=True):
            for row, [origin] in zip(batch.inputs.tolist(), origins, strict=True):
                assert read_again({text.name: text}, origin)[:-1] == row


def test_pieces_of_rows_of_documents_stand_where_they_are_said_to():
    text = a_text(1)
    batches = Batches(Shuffled(DocumentRows(text, 16), 0), Order(4, 2))
    several = 0
    for step in range(20):
        for batch, origins in zip(batches.step(step), batches.origins(step), strict=True):
            for targets, pieces in zip(batch.targets.tolist(), origins, strict=True):
                told = [token for piece in pieces for token in read_again({text.name: text}, piece)]
                assert told == [token for token in targets if token != IGNORE]
                several += len(pieces) > 1
    assert several > 10


def test_of_a_mixture_the_source_is_told():
    texts = {name: a_text(seed, name) for seed, name in enumerate(("one", "other"))}
    mixture = Mixture([Windows(text, 8) for text in texts.values()], [3, 1], 0)
    batches, names = Batches(mixture, Order(4, 4)), []
    for step in range(30):
        for batch, origins in zip(batches.step(step), batches.origins(step), strict=True):
            for row, [origin] in zip(batch.inputs.tolist(), origins, strict=True):
                assert read_again(texts, origin)[:-1] == row
                names.append(origin["text"])
    assert set(names) == {"one", "other"}
