"""The proof of a GGUF file: whatever is written wrongly is noticed, named and deleted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.errors import WorkFailed
from gpt.interop.gguf import proof as gguf_proof
from gpt.interop.gguf import writing as gguf_writing
from gpt.interop.gguf.architectures import LLAMA as LLAMA_TABLE
from gpt.interop.gguf.tokens import TokenTable
from gpt.interop.gguf.writing import DTYPES, export_gguf
from gpt.interop.model_card import About
from gpt.tokenizer import (
    BPE_PATTERN,
    CL100K_PATTERN,
    GPT2_PATTERN,
    O200K_PATTERN,
    Boundaries,
    RankTokenizer,
    Tokenizer,
)
from gpt.tokenizer.patterns import QWEN2_PATTERN
from tests.interop.models import bpe, chatty
from tests.tiny import ARCHITECTURES, tiny_gpt

gguf = pytest.importorskip("gguf")
LLAMA = {"qk_norm": False, "norm_eps": 1e-5}


def export(folder: Path, changes: dict[str, Any], dtype: str = "float32",
           tokenizer: Tokenizer | None = None) -> str:
    model = tiny_gpt(**{"vocab_size": 320, "block_size": 64, **changes})
    return export_gguf(model, tokenizer or bpe(), folder / "out", About("tiny"), dtype)


def refused(tmp_path, expected: str, changes: dict[str, Any], dtype: str = "float32",
            tokenizer: Tokenizer | None = None) -> None:
    with pytest.raises(WorkFailed, match=expected) as failure:
        export(tmp_path, changes, dtype, tokenizer)
    assert str(failure.value).startswith("the export is wrong and was deleted: ")
    assert "please report this" in str(failure.value)
    assert not list(tmp_path.iterdir())


WRONG_SHAPES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "context_length": (lambda n: n - 1, "llama.context_length is 63, the model's 64"),
    "embedding_length": (lambda n: 2 * n, "llama.embedding_length is 64, the model's 32"),
    "block_count": (lambda n: n - 1, "llama.block_count"),
    "feed_forward_length": (lambda n: n + 1, "llama.feed_forward_length"),
    "attention.head_count": (lambda n: n // 2, "llama.attention.head_count is 2, the model's 4"),
    "attention.head_count_kv": (lambda n: n * 2, "llama.attention.head_count_kv is 4"),
    "attention.layer_norm_rms_epsilon": (lambda x: x * 1.001,
                                         "llama.attention.layer_norm_rms_epsilon"),
    "rope.freq_base": (lambda x: x + 0.5, "llama.rope.freq_base is 10000.5, the model's 10000"),
    "rope.dimension_count": (lambda n: n // 2, "llama.rope.dimension_count"),
    "attention.key_length": (lambda n: n // 2, "llama.attention.key_length is 4, the model's 8"),
    "attention.value_length": (lambda n: n // 2, "llama.attention.value_length"),
}


def change_key(monkeypatch, key: str, change: Callable[[Any], Any]) -> None:
    """Let one of the architecture's options be written otherwise, or not at all."""
    right = gguf_writing._add_shape

    def wrong(writer, config, architecture):
        rows = (*architecture.rows, Careless(key, change, architecture))
        right(writer, config, dataclasses.replace(architecture, rows=rows))
    monkeypatch.setattr(gguf_writing, "_add_shape", wrong)


@dataclasses.dataclass(frozen=True)
class Careless:
    """A last line that writes another value."""

    key: str
    change: Callable[[Any], Any]
    right: Any

    def write(self, config):
        return {self.key: self.change(self.right.write(config)[self.key])}


@pytest.mark.parametrize("key", WRONG_SHAPES)
def test_a_wrong_shape_in_the_file_is_noticed_and_named(key, tmp_path, monkeypatch):
    change, expected = WRONG_SHAPES[key]
    change_key(monkeypatch, key, change)
    refused(tmp_path, expected, LLAMA, tokenizer=chatty())


WRONG_OPTIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "add_eos_token_id": (lambda n: n + 1, "tokenizer.ggml.eos_token_id is 301, the model's 300"),
    "add_bos_token_id": (lambda n: n + 1, "tokenizer.ggml.bos_token_id is 302"),
    "add_add_bos_token": (lambda b: not b, "tokenizer.ggml.add_bos_token is False"),
    "add_chat_template": (lambda text: text + " ", "tokenizer.chat_template is"),
    "add_token_types": (lambda kinds: [1] * len(kinds), r"tokenizer.ggml.token_type is \[1, 1, "),
    "add_tokenizer_pre": (lambda name: "gpt-2", "encodes the sample text differently from token"),
    "add_token_merges": (lambda merges: merges[:-1], "encodes the sample text differently"),
}


@pytest.mark.parametrize("method", WRONG_OPTIONS)
def test_a_wrong_option_in_the_file_is_noticed_and_named(method, tmp_path, monkeypatch):
    change, expected = WRONG_OPTIONS[method]
    right = getattr(gguf.GGUFWriter, method)
    monkeypatch.setattr(gguf.GGUFWriter, method, lambda self, v: right(self, change(v)))
    refused(tmp_path, expected, LLAMA, tokenizer=chatty())


def test_a_wrong_epsilon_of_gpt2_is_noticed(tmp_path, monkeypatch):
    change_key(monkeypatch, "attention.layer_norm_epsilon", lambda x: 1e-6)
    refused(tmp_path, "gpt2.attention.layer_norm_epsilon is", ARCHITECTURES["gpt2"])


@pytest.mark.parametrize("key", ["rope.freq_base", "attention.layer_norm_rms_epsilon",
                                 "attention.head_count_kv", "context_length"])
def test_an_option_that_is_not_written_is_noticed(key, tmp_path, monkeypatch):
    change_key(monkeypatch, key, lambda value: None)
    refused(tmp_path, " is None, the model's", LLAMA)


@pytest.mark.parametrize("other", ["llama", "gpt2"])
def test_another_architecture_is_noticed(other, tmp_path, monkeypatch):
    right = gguf.GGUFWriter
    monkeypatch.setattr(gguf, "GGUFWriter", lambda path, name: right(path, other))
    refused(tmp_path, f"general.architecture is {other!r}, the model's 'qwen3'", {})


def swap(one: str, other: str) -> Callable[[dict], dict]:
    return lambda tensors: tensors | {one: tensors[other], other: tensors[one]}


WRONG_TENSORS: dict[str, tuple[dict[str, Any], Callable[[dict], dict], str]] = {
    "two layers": ({}, swap("blk.0.ffn_down.weight", "blk.1.ffn_down.weight"),
                   r"blocks\.0\.feedforward\.down_proj\.weight is not the model's"),
    "gate and value": ({}, swap("blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"),
                       r"blocks\.1\.feedforward\.up_proj\.weight is not"),
    "norms": ({}, swap("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"),
              r"blocks\.0\.attention_norm\.weight is not"),
    "head norms": ({}, swap("blk.1.attn_q_norm.weight", "blk.1.attn_k_norm.weight"),
                   r"blocks\.1\.attention\.q_norm\.weight is not"),
    "biases": (ARCHITECTURES["gpt2"], swap("blk.0.attn_output.bias", "blk.1.attn_output.bias"),
               r"blocks\.0\.attention\.out_proj\.bias is not"),
    "turned": (ARCHITECTURES["gpt2"], lambda t: t | {"blk.0.attn_output.weight": t[
        "blk.0.attn_output.weight"].T.contiguous()}, r"blocks\.0\.attention\.out_proj\.weight"),
    "missing": ({}, lambda t: {k: v for k, v in t.items() if k != "output.weight"},
                r"has no output\.weight"),
    "too many": ({"tie_embeddings": True}, lambda t: t | {"output.weight": t["token_embd.weight"]},
                 r"has output\.weight, which is none of the model's"),
    "wrong scaling": (ARCHITECTURES["llama"], lambda t: t | {
        "rope_freqs.weight": t["rope_freqs.weight"] + 1e-3}, "rope_freqs.weight is not what"),
    "inverse scaling": (ARCHITECTURES["llama"], lambda t: t | {
        "rope_freqs.weight": 1 / t["rope_freqs.weight"]}, "rope_freqs.weight is not what"),
    "no scaling": (ARCHITECTURES["llama"], lambda t: {
        k: v for k, v in t.items() if "freqs" not in k}, "rope_freqs.weight is not what"),
    "scaling for nothing": (LLAMA, lambda t: t | {"rope_freqs.weight": torch.ones(4)},
                            r"has rope_freqs\.weight, which is none"),
    "not a number": ({}, lambda t: t | {"output.weight": t["output.weight"] * torch.nan},
                     r"lm_head\.weight is not the model's"),
}


@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_a_wrong_tensor_is_noticed_and_named(name, tmp_path, monkeypatch):
    changes, change, expected = WRONG_TENSORS[name]
    right = gguf_writing.gguf_tensors
    monkeypatch.setattr(gguf_writing, "gguf_tensors", lambda *given: change(right(*given)))
    refused(tmp_path, expected, changes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_were_not_interleaved_are_noticed(dtype, tmp_path, monkeypatch):
    flat = dataclasses.replace(LLAMA_TABLE, names=dataclasses.replace(
        LLAMA_TABLE.names, interleaved=False))
    monkeypatch.setattr(gguf_writing, "standard", lambda config, target: (flat, config))
    refused(tmp_path, r"blocks\.0\.attention\.qkv_proj\.weight is not the model's", LLAMA, dtype)
    monkeypatch.undo()
    export(tmp_path, {}, dtype)  # Qwen3 turns halves, as we do


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_that_is_off_by_more_than_rounding_is_noticed(dtype, tmp_path, monkeypatch):
    """One number of one matrix, by one and a half of the steps that rounding takes there."""
    right = gguf_writing.gguf_tensors
    steps = {"float32": 2**-22, "float16": 2**-9, "bfloat16": 2**-6}

    def off(model, architecture):
        tensors = right(model, architecture)
        matrix = tensors["blk.1.attn_output.weight"] = tensors["blk.1.attn_output.weight"].clone()
        at = matrix[3].abs().argmax()
        levels = {"q8_0": 127, "q4_0": 4}.get(dtype)
        matrix[3, at] += (1.5 * matrix[3].abs().max() / levels if levels
                          else matrix[3, at] * steps[dtype])
        return tensors
    monkeypatch.setattr(gguf_writing, "gguf_tensors", off)
    refused(tmp_path, r"blocks\.1\.attention\.out_proj\.weight is not", {}, dtype)


def test_a_table_of_other_tokens_is_noticed(tmp_path, monkeypatch):
    right = TokenTable.of.__func__

    def wrong(cls, tokenizer, rows):
        table = right(cls, tokenizer, rows)
        a, b = (table.tokens.index(letter) for letter in "ab")
        table.tokens[a], table.tokens[b] = "b", "a"
        return table
    monkeypatch.setattr(TokenTable, "of", classmethod(wrong))
    refused(tmp_path, "encodes the sample text differently from token", {})


def test_a_control_token_that_llama_cpp_would_read_in_plain_text_is_noticed(tmp_path):
    """It looks a whole word up among all tokens, control tokens too."""
    plain = chatty()
    careless = RankTokenizer("x", plain.ranks, plain.pattern, {"ending": 300},
                             Boundaries(300))
    refused(tmp_path, "a reading of the GGUF file encodes the sample text differently", LLAMA,
            tokenizer=careless)


PARTS = [b"lC", b"'S", b"12", b"123", b"1234", b".\n", b"./", b"(a", b" 1", b"ab", b"abc", b"BC"]
NAMES = {GPT2_PATTERN: "gpt-2", BPE_PATTERN: "llama-bpe", CL100K_PATTERN: "llama-bpe",
         O200K_PATTERN: "gpt-4o", QWEN2_PATTERN: "qwen2"}


@pytest.mark.parametrize("pattern", NAMES, ids=range(len(NAMES)))
def test_every_pattern_has_its_name_and_no_other_will_do(pattern, tmp_path, monkeypatch):
    ranks = {bytes([b]): b for b in range(256)} | {part: 256 + i for i, part in enumerate(PARTS)}
    tokenizer = RankTokenizer("x", ranks, pattern, {"<end>": 300}, Boundaries(300))
    right = gguf.GGUFWriter.add_tokenizer_pre
    for name in sorted(set(NAMES.values())):
        monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_pre",
                            lambda self, given, name=name: right(self, name))
        if name != NAMES[pattern]:
            refused(tmp_path, "encodes the sample text differently", {}, tokenizer=tokenizer)
    monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_pre", right)
    export(tmp_path, {}, tokenizer=tokenizer)
    reader = gguf.GGUFReader(tmp_path / "out/tiny-float32.gguf")
    assert reader.fields["tokenizer.ggml.pre"].contents() == NAMES[pattern]


@pytest.mark.parametrize("place", [0, 7, -1])
def test_any_changed_merge_is_noticed(place, tmp_path, monkeypatch):
    """The sample text spells every token, so that no merge can hide."""
    right = gguf.GGUFWriter.add_token_merges

    def wrong(self, merges):
        merges = list(merges)
        merges[place] = "! !"
        right(self, merges)
    monkeypatch.setattr(gguf.GGUFWriter, "add_token_merges", wrong)
    refused(tmp_path, "encodes the sample text differently from token", {})


def test_logits_that_differ_are_named_by_layer(tmp_path, monkeypatch):
    """The last resort: were options and tensors compared wrongly, the layers would show it."""
    monkeypatch.setattr(gguf_proof, "_compare_weight", lambda *given: None)
    right = gguf_writing.gguf_tensors
    monkeypatch.setattr(gguf_writing, "gguf_tensors", lambda *given: swap(
        "blk.0.ffn_norm.weight", "blk.1.ffn_norm.weight")(right(*given)))
    refused(tmp_path, "read back by the GGUF file, block 0 differs by", {})
