"""Proof of a GGUF file: every option and tensor, and the ids that its own tokenizer data give."""

from __future__ import annotations

import math
import reprlib
import unicodedata
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.configuration import ModelConfig
from gpt.errors import WorkFailed
from gpt.interop import proof
from gpt.interop.gguf.reading import FREQUENCIES, our_weights, stored_tensors
from gpt.interop.gguf.retokenizing import (
    OTHERWISE,
    Reconstructed,
    llama_cpp_ids,
    llama_cpp_version,
)
from gpt.interop.gguf.tokens import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from gpt.model import GPT
from gpt.model.rope import rope_frequencies
from gpt.tokenizer import JsonTokenizer, Tokenizer
from gpt.tokenizer.definition import kinds

_OWN_WIDTH = {"llama", "qwen3", "smollm3", "granite", "glm4", "gemma2", "gemma3"}  # of heads
_MOST_LINES = 4_000  # of the sample that are compared one by one


def prove(path: Path, expected: GPT, tokenizer: Tokenizer, dtype: str, architecture: str) -> str:
    """Compare a file with the model it was made from; returns one line saying how.

    Raises WorkFailed naming the option, the weights or the place in the text that differs.
    """
    from gguf import GGUFReader

    reader, config = GGUFReader(path), expected.config
    for name, value in metadata(config, tokenizer, architecture).items():
        _compare_option(name, value, reader)
    stored, state = stored_tensors(reader), expected.state_dict()
    _compare_frequencies(stored, config)
    found = our_weights(stored, config, architecture, list(state))
    for name, weight in state.items():
        _compare_weight(name, found[name], weight, dtype, config.norm == "rmsnorm_1p")
    difference, perplexities = _logit_difference(expected, found, tokenizer, dtype)
    return (f"read back: options and all {len(stored)} tensors are the model's"
            f"{'' if dtype == 'float32' else f', rounded to {dtype}'}; logits differ by at most "
            f"{difference:.2g}{perplexities}, {prove_ids(path, reader, tokenizer)}")


def prove_ids(path: Path, reader: Any, tokenizer: Tokenizer) -> str:
    """Compare the ids of the sample with those by the file's own data, and with llama.cpp's.

    Raises WorkFailed for the former. That llama.cpp encodes some texts otherwise is told.
    """
    text, form = proof.sample_text(tokenizer), normal_form(tokenizer)
    in_form = text if form is None else unicodedata.normalize(form, text)
    proof.compare_ids(tokenizer.encode(text), Reconstructed(reader).encode(in_form),
                      "a reading of the GGUF file")
    lines = list(filter(None, dict.fromkeys(in_form.split("\n"))))
    lines = lines[::max(1, len(lines) // _MOST_LINES)]
    if version := llama_cpp_version():
        who, found = f"llama.cpp (llama-cpp-python {version})", llama_cpp_ids(path, lines)
    else:
        pre = reader.fields["tokenizer.ggml.pre"].contents()
        theirs = Reconstructed(reader, OTHERWISE.get(pre))
        who = "a reading by llama.cpp's rules (for its own: pip install llama-cpp-python)"
        found = [theirs.encode(line) for line in lines]
    other = [line for line, ids in zip(lines, found, strict=True) if ids != tokenizer.encode(line)]
    if form is not None:
        who = f"in {form}, which is left to the caller, {who}"
    return (f"ids of {len(text):,} characters are the same by the file's own data; {who} finds "
            + (f"other ids in {len(other):,} of {len(lines):,} lines of them, first in "
               f"{other[0][:40]!r}" if other else f"them too in {len(lines):,} lines"))


def normal_form(tokenizer: Tokenizer) -> Literal["NFC"] | None:
    """The Unicode form that a tokenizer brings texts into, and GGUF has no word for."""
    if not isinstance(tokenizer, JsonTokenizer):
        return None
    return "NFC" if "NFC" in kinds(tokenizer.parsed.get("normalizer")) else None


def metadata(config: ModelConfig, tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """What the file has to say, by its names; name: of the architecture."""
    begin, scaling, length = tokenizer.begin_of_text, config.rope_scaling, config.block_size
    if scaling is not None and scaling.kind == "longrope" and length <= scaling.original_block_size:
        length = max(length, round(scaling.original_block_size * scaling.factor))
    needed: dict[str, Any] = {
        "context_length": length, "embedding_length": config.n_embd,
        "block_count": config.n_layer, "feed_forward_length": config.n_inner,
        "attention.head_count": config.n_head, "attention.head_count_kv": config.n_kv_head}
    kind = "layer_norm" if config.norm == "layernorm" else "layer_norm_rms"
    needed[f"attention.{kind}_epsilon"] = config.norm_eps
    if config.position == "rope":
        needed |= {"rope.dimension_count": config.rope_dim, "rope.freq_base": config.rope_base}
    if name in _OWN_WIDTH:
        needed |= {"attention.key_length": config.head_dim,
                   "attention.value_length": config.head_dim}
    tokens = {"eos_token_id": tokenizer.end_of_text, "add_bos_token": begin is not None,
              "token_type": _kinds(tokenizer, config.vocab_size or 0),
              **({} if begin is None else {"bos_token_id": begin})}
    texts = {} if tokenizer.chat_template is None else {
        "tokenizer.chat_template": tokenizer.chat_template}
    return ({"general.architecture": name} | {f"{name}.{key}": v for key, v in needed.items()}
            | {f"tokenizer.ggml.{key}": v for key, v in tokens.items()} | texts)


def _kinds(tokenizer: Tokenizer, rows: int) -> list[int]:
    """llama.cpp's kind of each token."""
    found, unknown = [NORMAL if i in tokenizer.text_ids else UNUSED for i in range(rows)], None
    if isinstance(tokenizer, JsonTokenizer):
        definition, model = tokenizer.parsed, tokenizer.parsed["model"]
        escapes = bool(model.get("byte_fallback"))
        unknown = model.get("unk_token") if escapes else None
        for token in definition.get("added_tokens", ()):
            if not (escapes and "▁" in token["content"]):
                found[token["id"]] = USER_DEFINED
        if escapes:
            for b in range(256):
                if (i := model["vocab"].get(f"<0x{b:02X}>")) is not None:
                    found[i] = BYTE
    for name, i in tokenizer.specials.items():
        found[i] = UNKNOWN if name == unknown else CONTROL
    return found


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
    if config.rope_scaling is None or config.rope_scaling.kind != "llama3":
        return
    expected = rope_frequencies(config)
    plain = rope_frequencies(config.model_copy(update={"rope_scaling": None}))
    found = plain / stored.get(FREQUENCIES, torch.ones(()))
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-6, atol=0):
        raise WorkFailed(f"the export is wrong and was deleted: {FREQUENCIES} is not what the "
                         "model's rope_scaling does; please report this with its configuration")


def _compare_weight(name: str, found: Tensor, expected: Tensor, dtype: str, shifted: bool) -> None:
    """Float formats are rounded to nearest; q8_0 is off by half a step of its block at most, q4_0
    by a whole one, at the end that it cuts off."""
    if shifted and name.endswith("norm.weight"):  # 1 was added, and taken away
        limit = 2**-23 * (1 + expected.abs())
    elif expected.dim() < 2 or dtype == "float32":
        limit = torch.zeros(())
    elif dtype in ("q8_0", "q4_0"):
        blocks = expected.reshape(-1, 32)
        largest = blocks.abs().amax(dim=1, keepdim=True)
        eight = dtype == "q8_0" or "embedding" in name or name.startswith("lm_head")
        limit = largest / 127 * (0.5 + 127 * 2**-10) if eight else largest / 8 * (1 + 8 * 2**-10)
        limit = limit.expand_as(blocks).reshape(expected.shape)
    else:
        digits = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
        limit = expected.abs() * digits + 2**-24
    if found.shape != expected.shape or not bool(((found - expected).abs() <= limit).all()):
        raise WorkFailed(f"the export is wrong and was deleted: read back from the GGUF file, "
                         f"{name} is not the model's; please report this with the model's "
                         "configuration")


def _logit_difference(expected: GPT, weights: dict[str, Tensor], tokenizer: Tokenizer,
                      dtype: str) -> tuple[float, str]:
    """Of the sample, and what rounding does to its perplexity: told, not judged; without rounding
    there is no difference."""
    config = expected.config
    assert config.vocab_size is not None
    tokens = proof.sample_tokens(tokenizer, config.block_size, config.vocab_size)
    with torch.device("meta"):
        found = GPT(config).eval()
    found.load_state_dict(weights, assign=True)
    states = proof.layer_states(expected, tokens), proof.layer_states(found, tokens)
    if dtype == "float32":
        return proof.compare_states(*states, "the GGUF file"), ""
    text = tokens[0, 1:]  # the real one
    before, after = (math.exp(F.cross_entropy(one["logits"][0, :-1], text)) for one in states)
    return (float((states[0]["logits"] - states[1]["logits"]).abs().max()),
            f", the perplexity of {len(text)} tokens of the sample is {after:.5g} where it was "
            f"{before:.5g}")
