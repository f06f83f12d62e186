"""A model of ours as one GGUF file, which llama.cpp and Ollama run, with a Modelfile beside it.

Names and layouts follow llama.cpp's converter. Of its architectures, "gpt2", "llama" and "qwen3"
are used; the tokenizer is byte-level byte-pair encoding in all cases.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.interop.architectures import COMMON, Architecture, refuse
from gpt.interop.equivalent import standard, standard_form
from gpt.interop.gguf.modelfile import modelfile
from gpt.interop.gguf.proof import prove
from gpt.interop.gguf.tokens import TokenTable
from gpt.interop.model_card import About
from gpt.interop.new_folder import new_folder
from gpt.interop.writing import their_tensors
from gpt.model import GPT
from gpt.model.rope import attention_factor, rope_frequencies
from gpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

DTYPES = ("float32", "float16", "bfloat16", "q8_0")
Q8_BLOCK = 32  # numbers that share a scale
_FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16",
               "q8_0": "MOSTLY_Q8_0"}
_STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}

# What llama.cpp calls the parts of a model, and of a layer.
_NAMES = {
    "transformer.wte": "token_embd", "model.embed_tokens": "token_embd",
    "transformer.wpe": "position_embd", "lm_head": "output",
    "transformer.ln_f": "output_norm", "model.norm": "output_norm",
    "ln_1": "attn_norm", "input_layernorm": "attn_norm",
    "ln_2": "ffn_norm", "post_attention_layernorm": "ffn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def export_gguf(model: GPT, tokenizer: Tokenizer, out: Path, about: About,
                dtype: str = "float32") -> str:
    """Write out/NAME-DTYPE.gguf and out/Modelfile, and prove them; returns a line saying how.

    A second line says what the Modelfile lacks.

    Raises UserError if the name is taken or llama.cpp cannot express the model, and WorkFailed,
    with nothing left of the folder, if what was written is not the same model.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("--format gguf needs the gguf package; run: pip install "
                        "'gpt-toolkit[gguf]'")
    architecture, config = standard(model.config, COMMON)
    refuse_what_gguf_lacks(config, architecture, dtype)
    table = TokenTable.of(tokenizer, config.vocab_size or 0)
    written = standard_form(model, among=COMMON)
    tensors = gguf_tensors(written, architecture)
    with new_folder(out) as folder:
        path = folder / f"{about.name}-{dtype}.gguf"
        _write(path, written.config, architecture, tensors, table, about, dtype)
        text, remark = modelfile(path.name, tokenizer, config.block_size)
        write_atomically(folder / "Modelfile", text)
        return "\n".join(filter(None, [prove(path, written, tokenizer, dtype), remark]))


def refuse_what_gguf_lacks(config: ModelConfig, architecture: Architecture, dtype: str) -> None:
    """Raise UserError for what llama.cpp cannot express of an architecture, or of a format."""
    lacking: dict[str, object] = {}
    if config.window is not None:
        lacking["window"] = config.window
    if config.mlp not in ("swiglu", "gelu_tanh"):
        lacking["mlp"] = config.mlp
    if architecture.model_type == "qwen3" and config.rope_scaling is not None:
        lacking["rope_scaling"] = "(given) beside qk_norm=True"
    if attention_factor(config) != 1:
        lacking["rope_scaling.kind"] = config.rope_scaling and config.rope_scaling.kind
    if config.qk_norm and config.biases:
        lacking["bias"] = config.bias
    refuse(lacking, "llama.cpp's " + architecture.model_type)
    widths = {"n_embd": config.n_embd, "n_inner": config.n_inner,
              "n_head * head_dim": config.n_head * config.head_dim}
    odd = [f"model.{name}={width}" for name, width in widths.items() if width % Q8_BLOCK]
    if dtype == "q8_0" and odd:
        raise UserError(f"q8_0 needs widths that are multiples of {Q8_BLOCK}, unlike "
                        f"{', '.join(odd)}; export as float16")


def gguf_tensors(model: GPT, architecture: Architecture) -> dict[str, Tensor]:
    """All tensors under llama.cpp's names and in its layout, float32: matrices are (out, in)."""
    config, tensors = model.config, {}
    for name, tensor in their_tensors(model, architecture).items():
        part, _, kind = name.rpartition(".")
        if kind == "weight" and ("attn.c_" in part or "mlp.c_" in part):  # GPT-2's Conv1D
            tensor = tensor.T
        if architecture.model_type == "llama" and part.endswith(("q_proj", "k_proj")):
            tensor = interleaved(tensor, config.head_dim)
        tensors[f"{_part_name(part)}.{kind}"] = tensor.contiguous()
    if config.rope_scaling is not None:
        plain = rope_frequencies(config.model_copy(update={"rope_scaling": None}))
        tensors["rope_freqs.weight"] = plain / rope_frequencies(config)
    return tensors


def _part_name(part: str) -> str:
    if part in _NAMES:
        return _NAMES[part]
    _, _, rest = part.partition("h." if part.startswith("transformer.h.") else "layers.")
    number, _, name = rest.partition(".")
    return f"blk.{number}.{_NAMES[name]}"


def interleaved(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows of query and key matrices in the order that llama.cpp's "llama" rotates them in.

    It turns neighbours (2i, 2i + 1) of a head, where Llama's checkpoints turn (i, i + D/2).
    """
    return (tensor.view(-1, 2, head_dim // 2, *tensor.shape[1:]).transpose(1, 2)
            .reshape(tensor.shape))


def _write(path: Path, config: ModelConfig, architecture: Architecture, tensors: dict[str, Tensor],
           table: TokenTable, about: About, dtype: str) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants

    writer = GGUFWriter(path, architecture.model_type)
    writer.add_name(about.name)
    if about.licence:
        writer.add_license(about.licence)
    writer.add_file_type(LlamaFileType[_FILE_TYPES[dtype]])
    _add_shape(writer, config)
    table.add_to(writer)
    for tensor_name, tensor in tensors.items():
        kind = GGMLQuantizationType["F32" if tensor.dim() < 2 else _STORED_AS[dtype]]
        data = quants.quantize(np.ascontiguousarray(tensor.numpy()), kind)
        writer.add_tensor(tensor_name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: GGUFWriter, config: ModelConfig) -> None:
    """The architecture's options."""
    assert config.vocab_size is not None
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    if config.norm == "layernorm":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
