"""What models write, measured on texts that are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from gpt.evaluation import Material
from gpt.evaluation.generated import LENGTHS, PROMPT, generated, memorisation, passages, variety
from gpt.generation import Piece
from gpt.language_model import LanguageModel
from gpt.tokenizer import build_tokenizer
from tests.tiny import CPU, tiny_gpt, tokenized

BYTES = build_tokenizer("byte", [])
END = BYTES.end_of_text


def text_of(seed: int, *lengths: int):
    generator = np.random.default_rng(seed)
    return tokenized(np.concatenate([np.append(generator.integers(0, 256, n), END)
                                     for n in lengths]), BYTES.vocab_size, END)


TRAINING, HELDOUT = text_of(0, 300, 90, 500, 20), text_of(1, 400, 50, 200)


class Parrot(LanguageModel):
    """It goes on with what it knows; after `good` tokens it errs."""

    def __init__(self, good: int = 1000):
        super().__init__(tiny_gpt(vocab_size=BYTES.vocab_size, block_size=128), BYTES, CPU)
        self.known, self.good = TRAINING.read(0, len(TRAINING)).tolist(), good
        self.asked = []

    def write(self, requests):
        for row, request in enumerate(requests):
            self.asked.append(request)
            prompt, count = list(request.prompt), request.config.max_new_tokens
            place = next((i for i in range(len(self.known))
                          if self.known[i:i + len(prompt)] == prompt), 0)
            told = self.known[place + len(prompt):][:count]
            for n, token in enumerate([*told, *[7] * (count - len(told))]):
                wrong = (token + 1) % 256
                yield row, Piece("", SimpleNamespace(token=token if n < self.good else wrong), None)


def material(training=TRAINING) -> Material:
    return Material(HELDOUT, BYTES, "0" * 64, training=training)


@pytest.mark.parametrize(("good", "known"), [(1000, LENGTHS), (20, (8, 16)), (0, ())])
def test_what_was_learned_by_heart_is_told_from_what_was_never_seen(good, known):
    found = memorisation(Parrot(good), material(), 12)
    assert found.training == {n: float(n in known) for n in LENGTHS}
    assert found.heldout == dict.fromkeys(LENGTHS, 0.0) and found.passages == 12


def test_without_the_training_text_or_room_nothing_is_said_of_memory():
    assert memorisation(Parrot(), material(None), 4) is None
    assert memorisation(Parrot(), material(text_of(2, 20, 30)), 4) is None
    short = Parrot()
    short.model = tiny_gpt(vocab_size=BYTES.vocab_size, block_size=PROMPT + 10)
    assert memorisation(short, material(), 4).training.keys() == {8}
    short.model = tiny_gpt(vocab_size=BYTES.vocab_size, block_size=PROMPT)
    assert memorisation(short, material(), 4) is None


@pytest.mark.parametrize(("count", "length"), [(5, 60), (40, 19), (1, 500), (2000, 96)])
def test_passages_are_spread_over_a_text_and_none_crosses_a_document(count, length):
    found = passages(TRAINING, count, length)
    whole = TRAINING.read(0, len(TRAINING)).tolist()
    places = [next(i for i in range(len(whole)) if whole[i:i + length] == each) for each in found]
    room = sum(max(0, n - length + 1) for n in (300, 90, 500, 20))
    assert len(found) == len(set(places)) == min(count, room) and places == sorted(places)
    assert all(END not in each for each in found)
    assert passages(TRAINING, count, 501) == []


def test_variety_counts_what_is_distinct_and_what_comes_again():
    found = variety([[1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    assert found.distinct == {1: 5 / 13, 2: 5 / 11, 3: 5 / 9, 4: 5 / 7}
    assert found.repeated == pytest.approx((1 / 5 + 0) / 2)
    assert variety([]).repeated == 0 and variety([[1]]).distinct[2] == 0


def test_samples_are_drawn_one_by_one_and_alike_each_time():
    lm = LanguageModel(tiny_gpt(vocab_size=BYTES.vocab_size, block_size=64), BYTES, CPU)
    found = generated(lm, material(), 6)
    assert found == generated(lm, material(), 6)
    assert 0.3 < found.samples.distinct[1] < 0.9 and found.samples.distinct[2] > 0.9
    assert found.real.distinct[3] == 1.0
    parrot = Parrot()
    generated(parrot, material(), 3)
    seeds = [each.config.seed for each in parrot.asked if each.config.temperature]
    assert len(set(seeds)) == 3
