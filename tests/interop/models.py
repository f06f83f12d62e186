"""Tiny models with random weights that transformers makes and saves, a tokenizer beside each."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging

from gpt.model import GPT
from gpt.tokenizer import Boundaries, RankTokenizer, Tokenizer, build_tokenizer
from tests.interop.variants import CONTEXT, SIZES, VARIANTS, VOCAB, variant
from tests.model.published import gpt2_names, llama_names
from tests.tiny import ROOT, random_tokens
from tests.tokenizer.hub_tokenizers import KINDS as TOKENIZERS
from tests.tokenizer.hub_tokenizers import write_folder

TOLERANCE = 1e-4
TEXT = "the thing that thinks, 1234 times: naïve café " * 30
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def _gpt2(**changes: Any) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(**{
        "vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4,
        "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None, **changes}))


def _llama(**changes: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes}))


def _mistral(**changes: Any) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**{**SIZES, "sliding_window": 7, **changes}))


def _qwen3(**changes: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "head_dim": 16, **changes}))


# name: (how to make it, the kind of its tokenizer)
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "gpt2": (_gpt2, "gpt2"),
    "gpt2 untied": (lambda: _gpt2(tie_word_embeddings=False, n_inner=40,
                                  activation_function="gelu", layer_norm_epsilon=1e-3), "gpt2"),
    "llama 2": (lambda: _llama(num_key_value_heads=4), "llama2"),
    "llama 3": (lambda: _llama(rope_parameters=LLAMA3, rms_norm_eps=1e-5), "llama3"),
    "llama tied": (lambda: _llama(rope_parameters=LLAMA3, tie_word_embeddings=True, head_dim=12,
                                  num_key_value_heads=1), "llama3"),
    "llama biases": (lambda: _llama(attention_bias=True, mlp_bias=True), "control_first"),
    "mistral": (_mistral, "mistral"),
    "mistral all": (lambda: _mistral(sliding_window=None, head_dim=16), "mistral"),
    "qwen3": (lambda: _qwen3(tie_word_embeddings=True, max_window_layers=28), "qwen"),
    "qwen3 sliding": (lambda: _qwen3(
        num_hidden_layers=3, use_sliding_window=True, sliding_window=5, max_window_layers=0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"]), "qwen"),
    **{name: (functools.partial(variant, name), tokenizer)
       for name, (_, _, tokenizer) in VARIANTS.items()},
}


def make(name: str, seed: int = 0) -> PreTrainedModel:
    """A model in which every parameter matters."""
    torch.manual_seed(seed)
    model = MODELS[name][0]().eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save(model: PreTrainedModel, tokenizer: str, folder: Path, **how: Any) -> Path:
    """As save_pretrained writes it, with a tokenizer of this kind."""
    logging.disable_progress_bar()
    model.save_pretrained(folder, **how)
    definition, eos = TOKENIZERS[tokenizer]
    return write_folder(folder, definition(), eos)


def saved(name: str, folder: Path, **how: Any) -> tuple[PreTrainedModel, Path]:
    model = make(name)
    return model, save(model, MODELS[name][1], folder, **how)


def change_config(folder: Path, without: tuple[str, ...] = (), **changes: Any) -> None:
    """Rewrite config.json."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if k not in without}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite model.safetensors."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path, metadata={"format": "pt"})


def largest_difference(ours: GPT, theirs: PreTrainedModel, tokens: Tensor) -> float:
    with torch.no_grad():
        return float((ours(tokens) - theirs(tokens).logits).abs().max())


def assert_same_logits(ours: GPT, theirs: PreTrainedModel, text: list[int]) -> None:
    """On random and on real text, over the whole context."""
    random = random_tokens(2, CONTEXT, vocab_size=VOCAB)
    real = torch.tensor([text[:CONTEXT]])
    assert real.shape == (1, CONTEXT)
    for tokens in (random, real):
        assert largest_difference(ours, theirs, tokens) <= TOLERANCE
        with torch.no_grad():
            assert ours(tokens).std() > 0.3  # not a comparison of zeros


def assert_same_gradients(ours: GPT, theirs: PreTrainedModel, vocab_size: int = VOCAB) -> None:
    """Of the loss, for each parameter. The name maps are not those of gpt/interop."""
    rename = gpt2_names if hasattr(theirs, "transformer") else llama_names
    tokens = random_tokens(2, 40, vocab_size=vocab_size)
    for logits in (ours(tokens), theirs(tokens).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = rename(ours.config, {name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        assert parameter.grad.any(), name
        # some hundred products in another order: a few hundred float32 roundings of the largest
        assert_close(gradients[name], parameter.grad, rtol=0,
                     atol=400 * 2**-24 * float(parameter.grad.abs().max()), msg=name)


def assert_same_after_a_step(ours: GPT, theirs: PreTrainedModel) -> None:
    """Gradient descent changes both alike, whatever their parameters are called and how they lie.
    """
    tokens = random_tokens(2, 40, vocab_size=VOCAB)
    before = theirs(tokens).logits.detach()
    for model, logits in ((ours, ours(tokens)), (theirs, theirs(tokens).logits)):
        model.zero_grad()
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    assert all(p.grad is not None and p.grad.any() for p in theirs.parameters())
    norm = torch.cat([p.grad.flatten() for p in theirs.parameters()]).norm()
    with torch.no_grad():
        for parameter in (*ours.parameters(), *theirs.parameters()):
            parameter -= 0.3 / norm * parameter.grad
    moved = float((theirs(tokens).logits - before).abs().max())
    assert moved > 0.05 and largest_difference(ours, theirs, tokens) <= 2e-3 * moved


def bpe() -> Tokenizer:
    return build_tokenizer("bpe:300", [TEXT])


def chatty() -> RankTokenizer:
    """Everything that a tokenizer can have."""
    plain = build_tokenizer("bpe:301", [(ROOT / "README.md").read_text()])
    assert isinstance(plain, RankTokenizer)
    return RankTokenizer("x", plain.ranks, plain.pattern,
                         {"<end>": 300, "<begin>": 301, "<turn>": 302},
                         Boundaries(300, 301, (302,)), "{{ messages }}")
