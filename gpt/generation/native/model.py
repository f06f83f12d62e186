"""A GPT that reads few tokens at a time by model.c, and many as ever."""

from __future__ import annotations

import ctypes
import functools
import math
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpt.configuration import ModelConfig
from gpt.generation.native.library import library
from gpt.machine.hardware import computes_in_bfloat16
from gpt.model import GPT, KVCache
from gpt.model.embedding import sinusoids
from gpt.model.int8 import Int8Linear
from gpt.model.norm import RMSNorm1p, ScaledRMSNorm
from gpt.model.rope import Angles, RotationTable

FEW = 16  # tokens of a text: more of them keep torch's kernels busy
_AT_ONCE = 64  # tokens, of all texts, that one call reads
_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # as products.h numbers them
_MLPS = ("swiglu", "geglu", "gelu", "gelu_tanh", "relu", "relu2")  # as model.c does
_RESIDUALS = ("sequential", "parallel", "parallel_one_norm")     # as model.c does
_ROTATIONS = ("global", "local")
_BLOCK_NORMS = ("attention_norm", "attention_post_norm", "feedforward_norm",
                "feedforward_post_norm")
_NO_MEMORY = 1                                                   # as model.c does
_EVERYTHING = 2**62  # a window
# Of a module: not what it computes, or compared otherwise.
_PASSING = {"training", "recompute", "adapter", "config", "_compiled", "rotations",
            "in_features", "out_features", "_parameters", "_buffers", "_modules"}


class _Matrix(Structure):
    _fields_ = [("weight", c_void_p), ("scale", c_void_p), ("bias", c_void_p),
                ("format", c_int64), ("outputs", c_int64), ("inputs", c_int64)]


class _Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Layer(Structure):
    _fields_ = [*((name, _Norm) for name in (*_BLOCK_NORMS, "q_norm", "k_norm")),
                *((name, _Matrix) for name in ("qkv_proj", "out_proj", "up_proj", "down_proj")),
                ("window", c_int64), ("rotation", c_int64)]


class _Table(Structure):
    _fields_ = [("numbers", c_void_p), ("format", c_int64)]


class _Model(Structure):
    _fields_ = [("layers", POINTER(_Layer)), ("final_norm", _Norm), ("tokens", _Table),
                *((name, c_int64) for name in ("vocab_size", "n_layer", "n_embd", "n_head",
                                               "n_kv_head", "head_dim", "rope_dim", "n_inner",
                                               "mlp", "residual", "layernorm", "across_heads")),
                *((name, c_float) for name in ("token_scale", "norm_eps", "attention_scale",
                                               "attention_softcap", "residual_scale"))]


class _Batch(Structure):
    _fields_ = [("N", c_int64), ("tokens", c_void_p), ("rows", c_void_p), ("positions", c_void_p),
                ("keys", POINTER(c_void_p)), ("values", POINTER(c_void_p)),
                ("cache_format", c_int64), ("max_tokens", c_int64), ("places", _Table),
                ("cosines", c_void_p * 2), ("sines", c_void_p * 2)]


class NativeModel:
    """What generation needs of a GPT: it reads the model's weights where they lie.

    Weights that are changed in place count from the next token on; weights that are put in their
    place do not. Weights of norms, biases and scales that are not float32 are copied, and so are
    those of norms that multiply by something else than their weights.
    """

    def __init__(self, model: GPT, functions: ctypes.CDLL):
        self.model, self.config, self.vocab_size = model, model.config, model.vocab_size
        self._functions = functions
        self._kept: list[Tensor] = []  # what pointers point to
        self._layers = (_Layer * model.config.n_layer)(
            *map(self._layer, model.blocks, model.config.windows, model.config.rotations))
        self._description = self._describe(model.config)
        self._output = (self._linear(model.lm_head) if hasattr(model, "lm_head") else
                        self._matrix(model.output_weight))
        # What torch multiplies slowly is read by model.c however much there is of it.
        self._always = (model.output_weight.dtype == torch.bfloat16
                        and not computes_in_bfloat16("cpu"))
        # What is added to tokens at the first positions: (positions, C).
        self._added: Tensor | None = None
        if model.config.position == "learned":
            self._added = model.embedding.position_embedding.weight.detach()
        self._rotations = RotationTable(self.config)

    def hidden(self, tokens: Tensor, cache: KVCache, prompts: Tensor | None = None) -> Tensor:
        """As GPT.hidden: (B, T) int64 -> (B, T, C)

        Whether C or torch reads a text depends on how many tokens of it there are, and on nothing
        else: it decides the last bits, which other texts should not.
        """
        B, T = tokens.shape
        if prompts is not None or (T > FEW and not self._always):
            return self.model.hidden(tokens, cache, prompts=prompts)
        self.model.refuse_too_long(T, cache)
        if cache.batch_size != B:
            raise ValueError(f"{B} texts do not go on those of {cache.batch_size} rows")
        before = cache.lengths.copy()
        try:
            rows = [self._read(tokens[row:row + _AT_ONCE], cache.rows(row, min(row + _AT_ONCE, B)))
                    for row in range(0, B, _AT_ONCE)]
        except BaseException:
            cache.lengths[:] = before
            raise
        return torch.cat(rows)

    def _read(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """`hidden` for so few rows that one call can read a token of each, or more."""
        parts = tokens.split(_AT_ONCE // len(tokens), dim=1)
        return torch.cat([self._call_hidden(part, cache) for part in parts], dim=1)

    def _call_hidden(self, tokens: Tensor, cache: KVCache) -> Tensor:
        B, T = tokens.shape
        x = _empty(B, T, self.config.n_embd)
        tokens = tokens.long().contiguous()
        rows = np.repeat(np.arange(B), T)
        positions = (cache.lengths[:, np.newaxis] + np.arange(T)).reshape(-1)
        places = self._places_of(cache.max_tokens)  # both kept until the call is over
        angles = self._angles_of(cache.max_tokens)
        batch = _Batch(
            N=B * T, tokens=tokens.data_ptr(), rows=rows.ctypes.data,
            positions=positions.ctypes.data, keys=_pointers(cache.keys),
            values=_pointers(cache.values), cache_format=_FORMATS[cache.keys[0].dtype],
            max_tokens=cache.max_tokens)
        if places is not None:
            batch.places = _table(places)
        for number, (cosines, sines) in angles.items():
            batch.cosines[number], batch.sines[number] = cosines.data_ptr(), sines.data_ptr()
        self._call("hidden", byref(self._description), byref(batch), c_void_p(x.data_ptr()))
        cache.advance(T)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """As GPT.logits: (…, C) -> (…, V) float32"""
        x, y = x.float().contiguous(), _empty(*x.shape[:-1], self.vocab_size)
        self._call("product", byref(self._output), c_void_p(x.data_ptr()),
                   c_int64(x.numel() // x.size(-1)), c_void_p(y.data_ptr()))
        return self.model.bend(y)

    def _call(self, name: str, *arguments: Any) -> None:
        torch.get_num_threads()  # which makes OpenMP in this thread use as many
        problem = getattr(self._functions, name)(*arguments)
        if problem == _NO_MEMORY:
            raise MemoryError("no memory is left for the next token")
        if problem:
            raise IndexError(f"a token id is negative, or not below {self.vocab_size}")

    def _places_of(self, count: int) -> Tensor | None:
        """What is added to tokens at so many positions, or more: (positions, C)."""
        if self.config.position == "sinusoidal" and (
                self._added is None or len(self._added) < count):
            self._added = sinusoids(torch.arange(count, device="cpu"), self.config.n_embd)
        return self._added

    def _angles_of(self, count: int) -> dict[int, Angles]:
        """Cosines and sines of so many positions, or more, by the number of the rotation."""
        self._rotations.cover(count, torch.device("cpu"))
        tables = self._rotations.at(slice(None)).items()
        return {_ROTATIONS.index(rotation): angles for rotation, angles in tables
                if rotation is not None and angles is not None}

    # ----- The model, as C sees it

    def _describe(self, config: ModelConfig) -> _Model:
        same = ("vocab_size", "n_layer", "n_embd", "n_head", "n_kv_head", "head_dim", "rope_dim",
                "n_inner", "norm_eps", "attention_scale", "residual_scale")
        tokens = self.model.embedding.token_embedding.weight.detach()
        self._kept.append(tokens)
        scale = float(torch.tensor(config.embedding_scale, dtype=tokens.dtype))  # as in Embedding
        scale *= math.sqrt(config.n_embd) if config.position == "sinusoidal" else 1.0
        return _Model(layers=self._layers, final_norm=self._norm(self.model.final_norm),
                      mlp=_MLPS.index(config.mlp), tokens=_table(tokens), token_scale=scale,
                      layernorm=config.norm == "layernorm",
                      across_heads=config.qk_norm == "across_heads",
                      residual=_RESIDUALS.index(config.residual),
                      attention_softcap=config.attention_softcap or 0.0,
                      **{name: getattr(config, name) for name in same})

    def _layer(self, block: Any, window: int | None, rotation: str | None) -> _Layer:
        attention, feedforward = block.attention, block.feedforward
        return _Layer(
            **{name: self._norm(getattr(block, name)) for name in _BLOCK_NORMS},
            **{name: self._norm(getattr(attention, name)) for name in ("q_norm", "k_norm")},
            **{name: self._linear(getattr(attention, name)) for name in ("qkv_proj", "out_proj")},
            **{name: self._linear(getattr(feedforward, name)) for name in ("up_proj", "down_proj")},
            window=_EVERYTHING if window is None else window,
            rotation=-1 if rotation is None else _ROTATIONS.index(rotation))

    def _linear(self, layer: Any) -> _Matrix:
        return self._matrix(layer.weight, layer.bias, getattr(layer, "scale", None))

    def _matrix(self, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None
                ) -> _Matrix:
        self._kept.append(weight.detach())  # the numbers: a parameter can be given others
        outputs, inputs = weight.shape
        return _Matrix(weight=weight.data_ptr(), format=_FORMATS[weight.dtype], outputs=outputs,
                       inputs=inputs, bias=self._float32(bias), scale=self._float32(scale))

    def _norm(self, norm: nn.Module) -> _Norm:
        weight = getattr(norm, "weight", None)
        if isinstance(norm, RMSNorm1p):
            weight = 1 + norm.weight.float()
        elif isinstance(norm, ScaledRMSNorm):
            weight = norm.weight.float() * norm.scale
        return _Norm(weight=self._float32(weight),
                     bias=self._float32(getattr(norm, "bias", None)))

    def _float32(self, numbers: Tensor | None) -> int | None:
        """Where they lie."""
        if numbers is None:
            return None
        self._kept.append(numbers.detach().float().contiguous())
        return self._kept[-1].data_ptr()


def fastest(model: GPT, dtype: torch.dtype) -> GPT | NativeModel:
    """What generates fastest with a model's weights: model.c if it can read them, and a cache of
    this dtype, and the model's modules are what its configuration says."""
    if dtype not in (torch.float32, torch.bfloat16) or not _as_built(model):
        return model
    functions = library()
    return model if functions is None else NativeModel(model, functions)


def _as_built(model: GPT) -> bool:
    weights = [*model.parameters(), *model.buffers()]
    drops = model.config.dropout and any(module.training for module in model.modules())
    # Of int8 models the output layer is apart from the embedding.
    config = model.config.model_copy(update={"tie_embeddings": not hasattr(model, "lm_head")})
    return (not drops
            and all(type(each) in (nn.Parameter, Tensor) and each.is_cpu and each.is_contiguous()
                    and each.dtype in _FORMATS for each in weights)
            and _outline(model) == _outline_of(config.model_dump_json()))


@functools.lru_cache(maxsize=8)
def _outline_of(config: str) -> dict[str, Any]:
    """What a model of this configuration looks like."""
    with torch.device("meta"):
        return _outline(GPT(ModelConfig.model_validate_json(config)))


def _outline(model: GPT) -> dict[str, Any]:
    """All that its modules compute with, but for the weights: shapes, hooks, methods that were put
    into objects, and numbers such as a norm's epsilon."""
    return {name: (nn.Linear if type(module) is Int8Linear else type(module),
                   {key: None if weight is None else weight.shape
                    for key, weight in [*module._parameters.items(), *module._buffers.items()]
                    if key != "scale"},
                   {key: value for key, value in vars(module).items() if key not in _PASSING})
            for name, module in model.named_modules()}


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _table(numbers: Tensor) -> _Table:
    return _Table(numbers=numbers.data_ptr(), format=_FORMATS[numbers.dtype])


def _pointers(spaces: list[Tensor]) -> Any:
    return (c_void_p * len(spaces))(*(space.data_ptr() for space in spaces))
