"""The table of architectures in docs/interop.md, from models that transformers makes."""

from __future__ import annotations

import re

import pytest
import torch

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.generation.native import NativeModel, fastest
from gpt.interop import read_model
from gpt.interop.architectures import ARCHITECTURES
from gpt.interop.equivalent import standard
from gpt.interop.gguf.architectures import LLAMA_CPP
from tests.interop.models import CONTEXT, MODELS, VOCAB, saved
from tests.tiny import ROOT, random_tokens

KNOWN_AS = {
    "gpt2": "GPT-2, DistilGPT-2, Cerebras-GPT", "llama": "Llama 1 to 3, SmolLM 1 and 2, TinyLlama",
    "mistral": "Mistral 7B, Mistral NeMo", "qwen3": "Qwen3", "qwen2": "Qwen2, Qwen2.5",
    "smollm3": "SmolLM3", "olmo2": "OLMo 2", "olmo3": "OLMo 3", "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 270M and 1B", "phi3": "Phi-3, Phi-4, Phi-4-mini",
    "granite": "Granite 3", "glm4": "GLM-4-0414", "gpt_neox": "Pythia, GPT-NeoX",
    "falcon": "Falcon 7B to 180B, Falcon 2", "starcoder2": "StarCoder2",
    "stablelm": "StableLM 3B, StableLM 2 1.6B", "opt": "OPT but 350M",
    "gptj": "GPT-J", "phi": "Phi-1, Phi-1.5, Phi-2"}


@pytest.fixture(scope="module")
def tried(tmp_path_factory) -> dict[str, list[tuple[str, ModelConfig, bool]]]:
    """{model_type: (variant, its options, whether C generates it)}"""
    found: dict[str, list[tuple[str, ModelConfig, bool]]] = {}
    for name in MODELS:
        theirs, folder = saved(name, tmp_path_factory.mktemp("table") / "m")
        model = read_model(folder)
        quick = fastest(model, torch.float32)
        if isinstance(quick, NativeModel):
            _assert_same_in_c(quick, theirs)
        found.setdefault(theirs.config.model_type, []).append(
            (name, model.config, isinstance(quick, NativeModel)))
    return found


@torch.inference_mode()
def _assert_same_in_c(quick: NativeModel, theirs) -> None:
    """A few tokens at a time, by C, against transformers on the whole text."""
    tokens = random_tokens(2, 40, vocab_size=VOCAB)
    cache = quick.model.new_cache(2, CONTEXT, torch.device("cpu"), torch.float32)
    logits = torch.cat([quick.logits(quick.hidden(some, cache)) for some in tokens.split(8, 1)], 1)
    assert (logits - theirs(tokens).logits).abs().max() <= 1e-4


def refused_by_gguf(config: ModelConfig) -> str | None:
    """The first option that is refused."""
    try:
        standard(config, LLAMA_CPP)
    except UserError as error:
        return re.search(r"model\.(\w+)", str(error))[1]
    return None


def table(tried) -> str:
    """In Markdown."""
    lines = ["| model_type | models | variants tried | in, trained, out | C | GGUF in | GGUF out |",
             "| --- " * 7 + "|"]
    for model_type in ARCHITECTURES:
        variants = tried[model_type]
        lacking = sorted({refused for _, config, _ in variants
                          if (refused := refused_by_gguf(config)) is not None})
        some = any(refused_by_gguf(config) is None for _, config, _ in variants)
        gguf = "yes" if not lacking else (
            f"{'not with' if some else 'no:'} {', '.join(f'`{one}`' for one in lacking)}")
        c = "yes" if all(by_c for *_, by_c in variants) else "no"
        named = LLAMA_CPP.known.get("llama" if model_type == "mistral" else model_type)
        there = "no" if named is None else f"`{named.model_type}`"
        lines.append(f"| `{model_type}` | {KNOWN_AS[model_type]} | {len(variants)} | yes | {c} | "
                     f"{there} | {gguf} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_the_docs_is_what_was_tried(tried):
    made = table(tried)
    assert made in (ROOT / "docs/interop.md").read_text(), f"docs/interop.md should say:\n{made}"


def test_every_architecture_is_tried_and_generated_by_c(tried):
    assert tried.keys() == ARCHITECTURES.keys() == KNOWN_AS.keys()
    assert all(by_c for variants in tried.values() for *_, by_c in variants)
