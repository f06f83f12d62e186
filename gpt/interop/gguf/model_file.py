"""A GGUF file of any tool as a model of ours.

Quantised weights become floats, by the gguf library; what was rounded away stays so.
"""

from __future__ import annotations

import importlib.util
import reprlib
import struct
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.files import sha256_of
from gpt.interop.architectures import Architecture, validated
from gpt.interop.gguf.architectures import FREQUENCIES, LLAMA_CPP, LONG, SHORT
from gpt.interop.gguf.their_tokens import their_tokenizer
from gpt.interop.options import Options
from gpt.model import GPT
from gpt.model.rope import rope_frequencies
from gpt.tokenizer import Tokenizer

SUFFIX, MAGIC = ".gguf", b"GGUF"
MOST = 2**24  # entries of a header
_DAMAGE = (ValueError, IndexError, KeyError, OverflowError, TypeError, MemoryError, OSError,
           AttributeError, ZeroDivisionError, RecursionError)
# What says nothing about the function that the weights compute.
_NEUTRAL = {"attention.causal", "rope.scaling.finetuned", "expert_count", "expert_used_count",
            "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon",
            "tensor_data_layout", "rope.scaling.yarn_log_multiplier"}
# The scaling of Llama 3 that published models have; a file holds its factors alone.
_LLAMA3 = [{"kind": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_block_size": 8192} for factor in (8.0, 32.0, 16.0, 4.0)]


def is_gguf(path: Path) -> bool:
    """Whether this is a file in GGUF's format, by its name."""
    return path.suffix == SUFFIX and path.is_file()


class GgufFile:
    """What a file holds: metadata, and tensors that are read when they are asked for."""

    def __init__(self, path: Path):
        """Raises UserError for what is no sound file, or for want of the library."""
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"{path}: reading GGUF needs the gguf package; run: pip install "
                            "'gpt-toolkit[gguf]'")
        _refuse_hostile_header(path)
        from gpt.interop.gguf.bounded_reader import BoundedReader
        self.path = path
        try:
            reader = BoundedReader(path)
            self.values = {name: _as_meant(field.contents())
                           for name, field in reader.fields.items()}
            self._tensors = {one.name: one for one in reader.tensors}
        except _DAMAGE as error:
            raise UserError(f"{path} is no sound GGUF file: {type(error).__name__}: {error}; fetch "
                            "it again") from error
        if self.values.get("split.count", 1) not in (0, 1):
            raise UserError(f"{path} is one of {self.values['split.count']} parts; join them with "
                            "llama.cpp's llama-gguf-split --merge, and give the whole file")

    def look(self) -> None:
        """Raises UserError for an architecture that is not known."""
        _ = self.table

    @property
    def names(self) -> set[str]:
        """All tensors."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, as torch has it."""
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def read(self, name: str) -> Tensor:
        """A tensor in float32. Raises UserError for a type that the library cannot read."""
        from gguf import quants
        one = self._tensors[name]
        try:
            numbers = np.array(quants.dequantize(one.data, one.tensor_type), dtype=np.float32)
        except (*_DAMAGE, NotImplementedError) as error:
            raise UserError(f"{self.path}: {name} is stored as {one.tensor_type.name}, which "
                            f"cannot be read ({error}); use a file of another quantisation"
                            ) from error
        return torch.from_numpy(numbers).reshape(self.shape(name))

    @cached_property
    def table(self) -> tuple[Architecture, str]:
        """Its architecture, and Hugging Face's name for that."""
        name = self.values.get("general.architecture")
        found = [(architecture, theirs) for theirs, architecture in LLAMA_CPP.known.items()
                 if architecture.model_type == name]
        if found:  # OLMo 2, and OLMo 3, whose layers slide
            return found[-1 if self.values.get(f"{name}.attention.sliding_window") else 0]
        known = ", ".join(dict.fromkeys(one.model_type for one in LLAMA_CPP.known.values()))
        raise UserError(f"{self.path}: general.architecture={reprlib.repr(name)} is not supported; "
                        f"choose a model of {known}")

    @cached_property
    def config(self) -> ModelConfig:
        """The architecture's options. Raises UserError for what we do not compute."""
        architecture, model_type = self.table
        options = Options(self._said() | self._stored(), str(self.path))
        fields = architecture.read(options) | {"model_type": model_type}
        if self.values.get(f"{architecture.model_type}.expert_count"):
            raise UserError(f"{self.path}: mixtures of experts are not supported")
        config = validated(fields, str(self.path))
        if left := [name for name in options.left_over()
                    if name not in _NEUTRAL and not name.startswith("_")]:
            print(f"warning: {self.path}: not understood, and not used: {', '.join(left)}",
                  file=sys.stderr)
        return config

    def _said(self) -> dict[str, Any]:
        """The metadata of the architecture, by its names."""
        prefix = f"{self.table[0].model_type}."
        return {name.removeprefix(prefix): value for name, value in self.values.items()
                if name.startswith(prefix)}

    def _stored(self) -> dict[str, Any]:
        """What the tensors say."""
        if "token_embd.weight" not in self.names:
            raise UserError(f"{self.path} has no token_embd.weight; it is no language model")
        parts = {"qkv_proj": ("attn_q", "attn_qkv"), "out_proj": ("attn_output",),
                 "up_proj": ("ffn_up",), "down_proj": ("ffn_down",), "norm": ("attn_norm",)}
        found: dict[str, Any] = {
            "vocab_size": self.shape("token_embd.weight")[0],
            "_tied": "output.weight" not in self.names,
            "_biases": [part for part, theirs in parts.items()
                        if any(f"blk.0.{one}.bias" in self.names for one in theirs)]
            + ["lm_head"] * ("output.bias" in self.names)}
        if "blk.0.attn_norm_2.weight" in self.names:
            found["_residual"] = "parallel"
        elif "blk.0.ffn_norm.weight" not in self.names:
            found["_residual"] = "parallel_one_norm"
        if (scaling := self._rope_scaling()) is not None:
            found["_rope_scaling"] = scaling
        return found

    def _rope_scaling(self) -> dict[str, Any] | None:
        """What tensors of factors say: Llama 3's scaling, or longrope."""
        if LONG in self.names and SHORT in self.names:
            return {"kind": "longrope", "long_factor": self.read(LONG).tolist(),
                    "short_factor": self.read(SHORT).tolist()}
        if FREQUENCIES not in self.names:
            return None
        factors = self.read(FREQUENCIES)
        base = self.values.get(f"{self.table[0].model_type}.rope.freq_base", 10_000.0)
        for scaling in _LLAMA3:
            plain = {"n_head": 1, "n_embd": 2 * len(factors), "n_kv_head": 1, "rope_base": base}
            known = (rope_frequencies(ModelConfig(**plain))
                     / rope_frequencies(ModelConfig(**plain, rope_scaling=scaling)))
            if torch.allclose(known, factors, rtol=1e-4):
                return scaling
        return {"kind": "longrope", "factor": 1.0, "original_block_size": 2**24,
                "attention_factor": 1.0, "long_factor": factors.tolist(),
                "short_factor": factors.tolist()}

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the file describes."""
        return their_tokenizer(self.values, str(self.path))

    def digest(self) -> str:
        """SHA-256 of the file."""
        return sha256_of(self.path)

    def model(self, dtype: torch.dtype = torch.float32) -> GPT:
        """The model, on the CPU, in evaluation mode. Raises UserError for tensors that are missing,
        left over, or of another shape than the metadata say."""
        architecture, config = self.table[0], self.config
        wanted = architecture.rules(config)
        names = [name for rule in wanted for name in rule.theirs]
        used = {*names, FREQUENCIES, LONG, SHORT}
        for what, found in (("missing", set(names) - self.names),
                            ("left over", self.names - used)):
            if found:
                raise UserError(f"{self.path}: {', '.join(sorted(found)[:3])} {what}, for a "
                                f"{architecture.model_type} of its metadata; it is another "
                                "architecture, or damaged")
        with torch.device("meta"):
            model = GPT(config)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        for rule in wanted:
            for name, required in rule.their_shapes(shapes[rule.ours]).items():
                if self.shape(name) != required:
                    raise UserError(f"{self.path}: {name} has the shape {self.shape(name)}, the "
                                    f"metadata ask for {required}; they belong to different "
                                    "models")
        model.load_state_dict({rule.ours: rule.join(self.read).to(dtype)
                               for rule in wanted}, assign=True)
        return model.eval()


def _as_meant(value: Any) -> Any:
    """A number that is stored in 32 bits, as it was before: 1e-5, and not 9.99999975e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _refuse_hostile_header(path: Path) -> None:
    """Raise UserError before memory is taken for as much as a header only says."""
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:4] != MAGIC:
        raise UserError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}")
    version, tensors, entries = struct.unpack("<IQQ", head[4:])
    size = path.stat().st_size
    if version not in (2, 3) or max(tensors, entries) > min(MOST, size // 8):
        raise UserError(f"{path} is no sound GGUF file: version {version}, {tensors} tensors and "
                        f"{entries} entries in {size} bytes; fetch it again")
