"""Two models on one text: the difference, and how sure it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpt.evaluation import Material, Subject, as_json, difference, difference_line, lines, measure
from gpt.language_model import LanguageModel
from gpt.tokenizer import build_tokenizer
from tests.tiny import CPU, ROOT, tiny_gpt

BYTES = build_tokenizer("byte", [])
PIECES = build_tokenizer("bpe:300", [(ROOT / "README.md").read_text()])


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((ROOT / "README.md").read_text()[:20_000])
    return Material.of_file(path, BYTES)


def measured(material: Material, tokenizer=BYTES, name: str = "a", samples: int = 0, **changes):
    """(the measurement, what a difference is made of)"""
    model = tiny_gpt(vocab_size=tokenizer.vocab_size, block_size=64, **changes)
    subject, own = Subject(name, name * 64), material.in_tokens_of(tokenizer)
    found, scored = measure(LanguageModel(model, tokenizer, CPU), subject, own, samples)
    return found, (subject, own, scored)


def test_a_model_differs_in_nothing_from_itself(material):
    _, one = measured(material)
    found = difference(one, one)
    assert found.loss == found.bits_per_byte == found.better == 0
    assert (found.loss_interval.low, found.loss_interval.high) == (0, 0)


def test_a_difference_is_that_of_the_figures_and_its_sign_that_of_the_worse_model(material):
    one, first = measured(material)
    two, second = measured(material, name="b", seed=1)
    found, back = difference(first, second), difference(second, first)
    assert found.loss == pytest.approx(two.figures.loss - one.figures.loss, abs=1e-6)
    assert found.bits_per_byte == pytest.approx(
        two.figures.bits_per_byte - one.figures.bits_per_byte, abs=1e-6)
    assert found.loss_interval.low <= found.loss <= found.loss_interval.high
    assert back.loss == -found.loss and back.better == pytest.approx(1 - found.better)
    assert found.loss / math.log(2) == pytest.approx(found.bits_per_byte)


def test_models_with_other_tokens_are_compared_by_bytes(material):
    one, first = measured(material)
    two, second = measured(material, PIECES, name="b")
    found = difference(first, second)
    assert found.loss is None and found.loss_interval is None
    assert found.bits_per_byte == pytest.approx(
        two.figures.bits_per_byte - one.figures.bits_per_byte, abs=1e-6)
    assert found.unit_count == one.figures.unit_count == two.figures.unit_count
    assert "nats" not in difference_line(found) and f"{found.bits_per_byte:+.4f}" in (
        difference_line(found))


def test_what_is_told_is_what_was_found_and_json_has_all_of_it(material):
    found, _ = measured(material, samples=4)
    told = "\n".join(lines(found))
    figures = found.figures
    for part in ("weights aaaaaaaaaaaaaaaa", f"{figures.loss:.4f} nats per token",
                 f"SHA-256 {material.sha256[:16]}", f"{figures.loss_interval.high:.4f} nats",
                 f"perplexity {figures.perplexity:,.3f}", "tokens read", "times in a million",
                 f"calibration error {figures.calibration_error:.4f}", "samples: distinct"):
        assert part in told, part
    assert told.splitlines()[1].endswith(f"over {len(material.text):,} tokens")
    values = as_json(found)
    assert values["figures"]["loss"] == figures.loss and values["data_sha256"] == material.sha256
    assert values["figures"]["perplexity"] == figures.perplexity
    assert values["figures"]["by_position"][0]["name"] == "1"
    assert values["generated"]["samples"]["repeated"] == found.generated.samples.repeated
    assert values["generated"]["memorisation"] is None  # what a file's models learned is not known
    assert found.dtype == "float32" and np.isfinite(figures.loss)
