"""Proof of a GGUF file: every option and tensor, and the ids that its own tokenizer data give."""

from __future__ import annotations

import math
import reprlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.configuration import ModelConfig
from gpt.errors import WorkFailed
from gpt.interop import proof
from gpt.interop.gguf.reading import FREQUENCIES, our_weights, stored_tensors
from gpt.interop.gguf.tokens import CONTROL, NORMAL, UNUSED
from gpt.model import GPT
from gpt.model.embedding import rope_frequencies
from gpt.tokenizer import Tokenizer

# How llama.cpp cuts text, by the name in the file (its src/llama-vocab.cpp).
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-bpe": f"{_CONTRACTION}|{_WORD}",
    "qwen2": f"{_CONTRACTION}|{_WORD.replace('{1,3}', '')}",
    "gpt-4o": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?"
              rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
              r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"}
WHOLE_WORDS_FIRST = {"llama-bpe"}  # a piece that is a token is not merged together


def prove(path: Path, expected: GPT, tokenizer: Tokenizer, dtype: str) -> str:
    """Compare a file with the model it was made from; returns one line saying how.

    Raises WorkFailed naming the option, the weights or the place in the text that differs.
    """
    from gguf import GGUFReader

    reader, config = GGUFReader(path), expected.config
    for name, value in metadata(config, tokenizer).items():
        _compare_option(name, value, reader)
    stored, state = stored_tensors(reader), expected.state_dict()
    _compare_frequencies(stored, config)
    found = our_weights(stored, config, architecture_name(config), list(state))
    for name, weight in state.items():
        _compare_weight(name, found[name], weight, dtype)
    difference = _logit_difference(expected, found, tokenizer, dtype)
    text = proof.sample_text(tokenizer)
    ids = Reconstructed(reader).encode(text)
    proof.compare_ids(tokenizer.encode(text), ids, "a reading of the GGUF file")
    return (f"read back: options and all {len(stored)} tensors are the model's"
            f"{'' if dtype == 'float32' else f', rounded to {dtype}'}; logits differ by at most "
            f"{difference:.2g}, ids of {len(text):,} characters are the same")


def architecture_name(config: ModelConfig) -> str:
    """Which of llama.cpp's architectures computes a model."""
    if config.norm == "layernorm":
        return "gpt2"
    return "qwen3" if config.qk_norm else "llama"


def metadata(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the file has to say, by its names."""
    name, begin = architecture_name(config), tokenizer.begin_of_text
    needed: dict[str, Any] = {
        "context_length": config.block_size, "embedding_length": config.n_embd,
        "block_count": config.n_layer, "feed_forward_length": config.n_inner,
        "attention.head_count": config.n_head, "attention.head_count_kv": config.n_kv_head}
    if name == "gpt2":
        needed["attention.layer_norm_epsilon"] = config.norm_eps
    else:
        needed |= {"attention.layer_norm_rms_epsilon": config.norm_eps,
                   "attention.key_length": config.head_dim,
                   "attention.value_length": config.head_dim,
                   "rope.dimension_count": config.head_dim, "rope.freq_base": config.rope_base}
    control = set(tokenizer.specials.values())
    tokens = {"eos_token_id": tokenizer.end_of_text, "add_bos_token": begin is not None,
              "token_type": [NORMAL if i in tokenizer.text_ids else CONTROL if i in control
                             else UNUSED for i in range(config.vocab_size or 0)],
              **({} if begin is None else {"bos_token_id": begin})}
    texts = {} if tokenizer.chat_template is None else {
        "tokenizer.chat_template": tokenizer.chat_template}
    return ({"general.architecture": name} | {f"{name}.{key}": v for key, v in needed.items()}
            | {f"tokenizer.ggml.{key}": v for key, v in tokens.items()} | texts)


def _compare_option(name: str, expected: Any, reader: Any) -> None:
    found = reader.fields[name].contents() if name in reader.fields else None
    if isinstance(expected, float) and isinstance(found, float):  # stored as float32
        same = math.isclose(found, expected, rel_tol=2**-23)
    else:
        same = found == expected
    if not same:
        raise WorkFailed(f"the export is wrong and was deleted: its {name} is "
                         f"{reprlib.repr(found)}, the model's {reprlib.repr(expected)}; please "
                         "report this with the model's configuration")


def _compare_frequencies(stored: dict[str, Tensor], config: ModelConfig) -> None:
    """llama.cpp has no option for the scaling of Llama 3: a tensor divides the frequencies."""
    if config.rope_scaling is None:
        return
    expected = rope_frequencies(config)
    plain = rope_frequencies(config.model_copy(update={"rope_scaling": None}))
    found = plain / stored.get(FREQUENCIES, torch.ones(()))
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-6, atol=0):
        raise WorkFailed(f"the export is wrong and was deleted: {FREQUENCIES} is not what the "
                         "model's rope_scaling does; please report this with its configuration")


def _compare_weight(name: str, found: Tensor, expected: Tensor, dtype: str) -> None:
    """Float formats are rounded to nearest; q8_0 is off by half a step of its block at most."""
    if expected.dim() < 2 or dtype == "float32":
        limit = torch.zeros(())
    elif dtype == "q8_0":
        blocks = expected.reshape(-1, 32)
        step = blocks.abs().amax(dim=1, keepdim=True) / 127
        limit = (step * (0.5 + 127 * 2**-10)).expand_as(blocks).reshape(expected.shape)
    else:
        digits = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
        limit = expected.abs() * digits + 2**-24
    if found.shape != expected.shape or not bool(((found - expected).abs() <= limit).all()):
        raise WorkFailed(f"the export is wrong and was deleted: read back from the GGUF file, "
                         f"{name} is not the model's; please report this with the model's "
                         "configuration")


def _logit_difference(expected: GPT, weights: dict[str, Tensor], tokenizer: Tokenizer,
                      dtype: str) -> float:
    """Of the sample. What rounding does is told, not judged; without rounding there is none."""
    config = expected.config
    assert config.vocab_size is not None
    tokens = proof.sample_tokens(tokenizer, config.block_size, config.vocab_size)
    with torch.device("meta"):
        found = GPT(config).eval()
    found.load_state_dict(weights, assign=True)
    states = proof.layer_states(expected, tokens), proof.layer_states(found, tokens)
    if dtype == "float32":
        return proof.compare_states(*states, "the GGUF file")
    return float((states[0]["logits"] - states[1]["logits"]).abs().max())


class Reconstructed:
    """The tokenizer that a GGUF file describes, built from the file alone."""

    def __init__(self, reader: Any):
        from tokenizers import Regex, models, pre_tokenizers
        from tokenizers import Tokenizer as Built

        fields = {name: reader.fields[f"tokenizer.ggml.{name}"].contents()
                  for name in ("tokens", "merges", "pre")}
        pairs = [tuple(merge.split(" ")) for merge in fields["merges"]]
        vocab = {token: i for i, token in enumerate(fields["tokens"])}
        self._ids = dict(vocab)
        for left, right in pairs:  # steps on the way to a token
            vocab.setdefault(left + right, len(fields["tokens"]) + len(vocab))
        self._tokens = {number: token for token, number in vocab.items()}
        self._built = Built(models.BPE(vocab=vocab, merges=pairs,
                                       ignore_merges=fields["pre"] in WHOLE_WORDS_FIRST))
        self._built.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(PATTERNS[fields["pre"]]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def encode(self, text: str) -> list[int]:
        """Ids as llama.cpp finds them: what is no token falls apart into bytes."""
        found: list[int] = []
        for number in self._built.encode(text, add_special_tokens=False).ids:
            token = self._tokens[number]
            found += [self._ids[token]] if token in self._ids else [self._ids[c] for c in token]
        return found
