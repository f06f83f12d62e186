"""LongRoPE's two ways to read: short texts by one kind of factors, or texts of all lengths by the
other."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import gpt
from gpt import __main__ as verbs
from gpt.errors import UserError
from gpt.interop import export_huggingface, read_model
from gpt.interop.gguf.model_file import GgufFile
from gpt.interop.gguf.writing import export_gguf
from gpt.interop.long_context import longest, with_block_size
from gpt.interop.model_card import About
from tests.interop.models import CONTEXT, bpe, largest_difference, saved
from tests.tiny import call_main, random_tokens, tiny_gpt

LONG = 200  # of 2 · CONTEXT, which is what the model was stretched to


@pytest.fixture(scope="module")
def phi(tmp_path_factory):
    """(transformers' model, its folder)"""
    return saved("phi4 mini", tmp_path_factory.mktemp("phi") / "hf")


def tokens(length: int) -> torch.Tensor:
    return random_tokens(2, length, vocab_size=300)


def test_texts_of_each_kind_are_read_as_transformers_reads_them(phi):
    theirs, folder = phi
    short = read_model(folder)
    long = with_block_size(short, LONG)
    assert (short.config.block_size, long.config.block_size) == (CONTEXT, LONG)
    assert longest(short.config) == longest(long.config) == 2 * CONTEXT
    assert largest_difference(short, theirs, tokens(CONTEXT)) <= 1e-4
    for length in (CONTEXT + 1, LONG):
        assert largest_difference(long, theirs, tokens(length)) <= 1e-4
    assert largest_difference(long, theirs, tokens(CONTEXT)) > 0.1  # by the long factors, here
    with pytest.raises(ValueError, match="longer than block_size"):
        short(tokens(CONTEXT + 1))


@pytest.mark.parametrize("block_size", [LONG, 2 * CONTEXT])
def test_a_model_of_long_texts_is_exported_as_one_that_reads_all_texts_so(phi, block_size,
                                                                          tmp_path):
    long = with_block_size(read_model(phi[1]), block_size)
    export_huggingface(long, bpe(), tmp_path / "hf", About("phi"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    for length in (20, CONTEXT, CONTEXT + 1, LONG):
        assert largest_difference(long, theirs, tokens(length)) <= 1e-4
    export_gguf(long, bpe(), tmp_path / "gguf", About("phi"))
    for back in (read_model(tmp_path / "hf"),
                 GgufFile(tmp_path / "gguf/phi-float32.gguf").model()):
        assert back.config.block_size == block_size and back.config.model_type == "phi3"
        assert (back(tokens(LONG)) - long(tokens(LONG))).abs().max() <= 1e-5


def test_a_model_of_short_texts_keeps_both_ways_through_exports(phi, tmp_path):
    short = read_model(phi[1])
    export_huggingface(short, bpe(), tmp_path / "hf", About("phi"))
    export_gguf(short, bpe(), tmp_path / "gguf", About("phi"))
    for back in (read_model(tmp_path / "hf"),
                 GgufFile(tmp_path / "gguf/phi-float32.gguf").model()):
        assert back.config.block_size == CONTEXT and longest(back.config) == 2 * CONTEXT
        difference = with_block_size(back, LONG)(tokens(LONG)) - with_block_size(
            short, LONG)(tokens(LONG))
        assert difference.abs().max() <= 1e-5


def test_import_says_that_there_are_two_ways_and_takes_one(phi, tmp_path, monkeypatch, capsys):
    def call(*arguments):
        return call_main(verbs, "import", phi[1], *arguments, monkeypatch=monkeypatch,
                         capsys=capsys)

    code, _, err = call(tmp_path / "short")
    assert code == 0 and "note: it reads 128 tokens" in err and "up to 256, reads more" in err
    code, _, err = call(tmp_path / "long", f"--block-size={LONG}")
    assert code == 0 and "note" not in err
    code, _, err = call(tmp_path / "not", "--block-size=257")
    assert code == 2 and "--block-size 257: this model reads 1 to 256 tokens" in err
    assert not (tmp_path / "not").exists()
    sizes = [gpt.load(tmp_path / name, device="cpu").block_size for name in ("short", "long")]
    assert sizes == [CONTEXT, LONG]


def test_other_models_can_be_given_a_shorter_context_but_for_stored_positions():
    model = tiny_gpt()
    shorter = with_block_size(model, 9)
    assert torch.equal(shorter(random_tokens(2, 9)), model(random_tokens(2, 9)))
    assert not shorter.training and shorter.config.block_size == 9
    for size in (0, 33):
        with pytest.raises(UserError, match=f"--block-size {size}: this model reads 1 to 32 token"):
            with_block_size(model, size)
    with pytest.raises(UserError, match="a table of 32 positions has that block_size"):
        with_block_size(tiny_gpt(position="learned"), 9)
    assert with_block_size(tiny_gpt(position="learned"), 32).config.block_size == 32
