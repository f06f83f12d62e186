"""A model of ours as one GGUF file, which llama.cpp and Ollama run, with a Modelfile beside it.

Names and layouts follow llama.cpp's converter, as gpt/interop/gguf/architectures.py has them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.interop.architectures import Architecture
from gpt.interop.equivalent import standard, standard_form
from gpt.interop.gguf.architectures import FREQUENCIES, LLAMA_CPP, LONG, SHORT
from gpt.interop.gguf.modelfile import modelfile
from gpt.interop.gguf.proof import prove
from gpt.interop.gguf.tokens import TokenTable
from gpt.interop.model_card import About
from gpt.interop.new_folder import new_folder
from gpt.interop.writing import their_tensors
from gpt.model import GPT
from gpt.model.rope import rope_frequencies
from gpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

DTYPES = ("float32", "float16", "bfloat16", "q8_0", "q4_0")
BLOCK = 32  # numbers that share a scale, of q8_0 and q4_0
_FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16",
               "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
_STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0",
              "q4_0": "Q4_0"}


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
    architecture, config = standard(model.config, LLAMA_CPP)
    refuse_narrow(config, dtype)
    table = TokenTable.of(tokenizer, config.vocab_size or 0)
    written = standard_form(model, target=LLAMA_CPP)
    tensors = gguf_tensors(written, architecture)
    with new_folder(out) as folder:
        path = folder / f"{about.name}-{dtype}.gguf"
        _write(path, written.config, architecture, tensors, table, about, dtype)
        text, remark = modelfile(path.name, tokenizer, config.block_size)
        write_atomically(folder / "Modelfile", text)
        return "\n".join(filter(None, [prove(path, written, tokenizer, dtype,
                                                 architecture.model_type), remark]))


def refuse_narrow(config: ModelConfig, dtype: str) -> None:
    """Raise UserError for widths that a format cannot hold."""
    widths = {"n_embd": config.n_embd, "n_inner": config.n_inner,
              "n_head * head_dim": config.n_head * config.head_dim}
    odd = [f"model.{name}={width}" for name, width in widths.items() if width % BLOCK]
    if dtype.startswith("q") and odd:
        raise UserError(f"{dtype} needs widths that are multiples of {BLOCK}, unlike "
                        f"{', '.join(odd)}; export as float16")


def gguf_tensors(model: GPT, architecture: Architecture) -> dict[str, Tensor]:
    """All tensors under llama.cpp's names and in its layout, float32: matrices are (out, in)."""
    tensors = their_tensors(model, architecture)
    scaling = model.config.rope_scaling
    if scaling is not None and scaling.kind == "llama3":
        plain = rope_frequencies(model.config.model_copy(update={"rope_scaling": None}))
        tensors[FREQUENCIES] = plain / rope_frequencies(model.config)
    elif scaling is not None and scaling.kind == "longrope":
        tensors[LONG] = torch.tensor(scaling.long_factor)
        tensors[SHORT] = torch.tensor(scaling.short_factor)
    return tensors


def _write(path: Path, config: ModelConfig, architecture: Architecture, tensors: dict[str, Tensor],
           table: TokenTable, about: About, dtype: str) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants

    writer = GGUFWriter(path, architecture.model_type)
    writer.add_name(about.name)
    if about.licence:
        writer.add_license(about.licence)
    writer.add_file_type(LlamaFileType[_FILE_TYPES[dtype]])
    _add_shape(writer, config, architecture)
    table.add_to(writer)
    for tensor_name, tensor in tensors.items():
        kind = GGMLQuantizationType[stored_as(tensor_name, tensor.dim(), dtype)]
        data = quants.quantize(np.ascontiguousarray(tensor.numpy()), kind)
        writer.add_tensor(tensor_name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stored_as(name: str, dim: int, dtype: str) -> str:
    """The library's name of how a tensor is stored. With matrices in 4 bits, the tables of tokens
    have 8, as llama.cpp's own quantisation gives them more."""
    if dim < 2:
        return "F32"
    tables = ("token_embd.weight", "output.weight", "position_embd.weight")
    return "Q8_0" if dtype == "q4_0" and name in tables else _STORED_AS[dtype]


def _add_shape(writer: GGUFWriter, config: ModelConfig, architecture: Architecture) -> None:
    """The architecture's options; what only tensors say is not among them."""
    for name, value in architecture.write(config).items():
        if value is None or name.startswith("_"):
            continue
        key = f"{architecture.model_type}.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
