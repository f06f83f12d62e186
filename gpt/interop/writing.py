"""A model of ours as a Hugging Face folder, which transformers, vLLM and lm-eval open."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gpt.errors import UserError, WorkFailed
from gpt.files import write_atomically, write_json
from gpt.files.tensors import save_tensors
from gpt.interop import proof
from gpt.interop.architectures import Architecture
from gpt.interop.equivalent import standard, standard_form
from gpt.interop.model_card import About, model_card
from gpt.interop.new_folder import new_folder
from gpt.interop.reading import read_model
from gpt.interop.weight_files import INDEX, ONE_FILE
from gpt.model import GPT
from gpt.tokenizer import (
    CHAT_FORMAT,
    CHAT_TEMPLATE,
    Tokenizer,
    padding,
    read_huggingface_tokenizer,
    tokenizer_config,
    tokenizer_json,
)

MAX_SHARD_BYTES = 5 * 10**9


def export_huggingface(model: GPT, tokenizer: Tokenizer, out: Path, about: About,
                       dtype: torch.dtype = torch.float32,
                       max_shard_bytes: int = MAX_SHARD_BYTES) -> str:
    """Write `out`, and prove it; returns one line saying how. `dtype`: of the stored weights.

    Raises UserError if the name is taken or an option of the model cannot be expressed, and
    WorkFailed, with nothing left of the folder, if what was written is not the same model.
    """
    architecture, _ = standard(model.config)
    written = standard_form(model, dtype)
    with new_folder(out) as folder:
        write_folder(folder, written, tokenizer, architecture, max_shard_bytes)
        write_atomically(folder / "README.md", model_card(about, written, tokenizer))
        return prove(folder, standard_form(written), tokenizer)


def write_folder(folder: Path, model: GPT, tokenizer: Tokenizer, architecture: Architecture,
                 max_shard_bytes: int) -> None:
    """config.json, generation_config.json, weights and tokenizer."""
    dtype = next(model.parameters()).dtype
    stored = str(dtype).removeprefix("torch.")
    ids = {"bos_token_id": tokenizer.begin_of_text, "eos_token_id": tokenizer.end_of_text}
    write_json(folder / "config.json", {
        "architectures": [architecture.class_name], "model_type": architecture.model_type,
        **architecture.write(model.config), **ids, "pad_token_id": None,
        "dtype": stored, "torch_dtype": stored})
    stops = list(tokenizer.stop_tokens)
    write_json(folder / "generation_config.json",
               {**ids, "eos_token_id": stops if len(stops) > 1 else stops[0],
                "pad_token_id": padding(tokenizer)})
    write_weights(folder, their_tensors(model, architecture), max_shard_bytes)
    write_tokenizer(folder, tokenizer, model.config.block_size)


def write_tokenizer(folder: Path, tokenizer: Tokenizer, block_size: int) -> None:
    """tokenizer.json and tokenizer_config.json; the chat template, and its source, which this
    toolkit reads."""
    write_atomically(folder / "tokenizer.json", tokenizer_json(tokenizer))
    write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, block_size))
    for name, text in ((CHAT_TEMPLATE, tokenizer.chat_template),
                       (CHAT_FORMAT, tokenizer.chat_format)):
        if text is not None:
            write_atomically(folder / name, text)


def their_tensors(model: GPT, architecture: Architecture) -> dict[str, Tensor]:
    """The weights under the architecture's names."""
    state = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for rule in architecture.rules(model.config):
        tensors |= rule.split(state[rule.ours])
    return tensors


def write_weights(folder: Path, tensors: dict[str, Tensor], max_shard_bytes: int) -> None:
    """model.safetensors, or several files of at most max_shard_bytes, and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > max_shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_tensors(tensors, folder / ONE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_tensors(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def prove(folder: Path, expected: GPT, tokenizer: Tokenizer) -> str:
    """Read a folder back, with our reader and with transformers where it is installed.

    expected: the model in float32 with the weights that were stored.
    """
    config = expected.config
    assert config.vocab_size is not None
    tokens = proof.sample_tokens(tokenizer, config.block_size, config.vocab_size)
    states, text = proof.layer_states(expected, tokens), proof.sample_text(tokenizer)
    ids = tokenizer.encode(text)
    _prove_to_ourselves(folder, expected, tokens, states, text, ids)
    if not proof.has_transformers():
        return ("read back by this toolkit: same logits, same ids (transformers is not installed "
                "here; pip install transformers for a second opinion)")
    difference = proof.compare_states(states, proof.transformers_states(folder, tokens),
                                      "transformers")
    proof.compare_ids(ids, proof.transformers_ids(folder, text), "transformers")
    return (f"read back by transformers: logits differ by at most {difference:.2g} on "
            f"{tokens.numel()} tokens, ids of {len(text):,} characters are the same")


def _prove_to_ourselves(folder: Path, expected: GPT, tokens: Tensor, states: dict[str, Tensor],
                        text: str, ids: list[int]) -> None:
    """Options, logits and ids by our own reader."""
    try:
        found, tokenizer = read_model(folder), read_huggingface_tokenizer(folder)
    except UserError as error:
        raise WorkFailed(f"the export is wrong and was deleted: {error}") from error
    proof.compare_options(expected.config, found.config)
    proof.compare_states(states, proof.layer_states(found, tokens), "this toolkit")
    proof.compare_ids(ids, tokenizer.encode(text), "this toolkit")
