"""What config.json means: Hugging Face's architectures and ours, both ways.

HF letters: hidden_size is n_embd, intermediate_size n_inner, and so on. GPT-2 has names of its own.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.interop.options import Options


@dataclass(frozen=True)
class Architecture:
    """One model_type of transformers.

    read: config.json's options -> fields of ModelConfig. write: the reverse. refusals: the options
    of a ModelConfig that it cannot express.
    """

    model_type: str
    class_name: str
    read: Callable[[Options], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    refusals: Callable[[ModelConfig], dict[str, Any]]


# ----- GPT-2

_GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu",
                     "relu2": "relu2"}


def _read_gpt2(options: Options) -> dict[str, Any]:
    options.require("add_cross_attention", False, default=False)
    options.require("scale_attn_weights", True, default=True)
    options.require("scale_attn_by_inverse_layer_idx", False, default=False)
    options.take("reorder_and_upcast_attn", None)  # an order of float16 operations
    activation = options.require("activation_function", *_GPT2_ACTIVATIONS, default="gelu_new")
    rates = {options.number(f"{part}_pdrop", 0.1) for part in ("embd", "attn", "resid")}
    if len(rates) > 1:
        raise UserError(f"{options.where}: embd_pdrop, attn_pdrop and resid_pdrop must be equal; "
                        "this toolkit has one dropout. Set them to one value")
    n_embd, n_head = options.count("n_embd", 768), options.count("n_head", 12)
    return {"vocab_size": options.count("vocab_size", 50_257),
            "block_size": options.count("n_positions", 1024),
            "n_layer": options.count("n_layer", 12), "n_head": n_head, "n_kv_head": n_head,
            "n_embd": n_embd, "n_inner": options.count("n_inner", 4 * n_embd),
            "position": "learned", "norm": "layernorm",
            "norm_eps": options.number("layer_norm_epsilon", 1e-5),
            "mlp": _GPT2_ACTIVATIONS[activation], "qk_norm": False, "bias": True,
            "tie_embeddings": options.require("tie_word_embeddings", True, False, default=True),
            "dropout": rates.pop()}


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in _GPT2_ACTIVATIONS.items()} | {"gelu_tanh": "gelu_new"}
    rates = {f"{part}_pdrop": config.dropout for part in ("embd", "attn", "resid")}
    return {"vocab_size": config.vocab_size, "n_positions": config.block_size,
            "n_ctx": config.block_size, "n_layer": config.n_layer, "n_head": config.n_head,
            "n_embd": config.n_embd, "n_inner": config.n_inner,
            "activation_function": names[config.mlp], "layer_norm_epsilon": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings, **rates}


def _gpt2_refusals(config: ModelConfig) -> dict[str, Any]:
    return _different(config, position="learned", norm="layernorm", bias=True, qk_norm=False,
                      n_kv_head=config.n_head, head_dim=config.n_embd / config.n_head,
                      window=None, logit_softcap=None) | (
        {"mlp": "swiglu"} if config.mlp == "swiglu" else {})


# ----- Llama, Mistral, Qwen3

def _read_llama_family(options: Options, n_kv_head: int | None = None,
                       head_dim: int | None = None) -> dict[str, Any]:
    """n_kv_head, head_dim: what the architecture has where config.json does not say it; None: as
    many as n_head, and its share of n_embd."""
    n_embd, n_head = options.count("hidden_size"), options.count("num_attention_heads")
    if n_kv_head is None or "num_key_value_heads" in options:
        n_kv_head = n_head  # that is what null stands for
    options.require("hidden_act", "silu", "swish", default="silu")
    options.require("attention_dropout", 0, 0.0, default=0.0)
    fields = {"vocab_size": options.count("vocab_size"),
              "block_size": options.count("max_position_embeddings"),
              "n_layer": options.count("num_hidden_layers"), "n_head": n_head,
              "n_kv_head": options.count("num_key_value_heads", n_kv_head), "n_embd": n_embd,
              "head_dim": options.count("head_dim", head_dim or max(1, n_embd // n_head)),
              "n_inner": options.count("intermediate_size"),
              "position": "rope", "norm": "rmsnorm", "mlp": "swiglu",
              "norm_eps": options.number("rms_norm_eps", 1e-6),
              "tie_embeddings": options.require("tie_word_embeddings", True, False, default=False)}
    return fields | _read_rope(options)


def _read_rope(options: Options) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 writes it, or `rope_theta` and `rope_scaling` before."""
    before, now = options.section("rope_scaling"), options.section("rope_parameters")
    if before is not None and now is not None:
        raise UserError(f"{options.where}: rope_scaling and rope_parameters are both given; one "
                        "of them must go")
    options.require("partial_rotary_factor", 1, 1.0, default=1.0)
    base = options.number("rope_theta", 10_000.0)
    rope = before or now
    if rope is None:
        return {"rope_base": base}
    base = rope.number("rope_theta", base)
    rope.require("partial_rotary_factor", 1, 1.0, default=1.0)
    kind = rope.take("rope_type", rope.take("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(f"{rope.where}: rope_type={kind!r} is not supported; this toolkit "
                        "computes with 'default' or 'llama3'")
    scaling = {} if kind == "default" else {"rope_scaling": {
        "factor": rope.number("factor"), "low_freq_factor": rope.number("low_freq_factor"),
        "high_freq_factor": rope.number("high_freq_factor"),
        "original_block_size": rope.count("original_max_position_embeddings")}}
    if left := rope.left_over():  # such as an object for each kind of layer
        raise UserError(f"{rope.where}: {', '.join(left)} is not supported with rope_type={kind!r}")
    return {"rope_base": base} | scaling


def _write_llama_family(config: ModelConfig) -> dict[str, Any]:
    """rope_theta and rope_scaling, which every version of transformers reads."""
    options: dict[str, Any] = {
        "vocab_size": config.vocab_size, "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer, "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head, "hidden_size": config.n_embd,
        "head_dim": config.head_dim, "intermediate_size": config.n_inner, "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_base, "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings}
    if (scaling := config.rope_scaling) is not None:
        options["rope_scaling"] = {
            "rope_type": "llama3", "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_block_size}
    return options


def _llama_family_refusals(config: ModelConfig, **required: Any) -> dict[str, Any]:
    return _different(config, position="rope", norm="rmsnorm", mlp="swiglu", logit_softcap=None,
                      **required)


def _read_llama(options: Options) -> dict[str, Any]:
    options.take("pretraining_tp", 1)  # a way to split products; the same function
    options.require("rope_interleaved", False, default=False)
    bias = options.require("attention_bias", True, False, default=False)
    if options.require("mlp_bias", True, False, default=False) != bias:
        raise UserError(f"{options.where}: attention_bias and mlp_bias differ; this toolkit has "
                        "biases in all linear layers of a block or in none")
    return _read_llama_family(options) | {"qk_norm": False, "bias": bias}


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return _write_llama_family(config) | {"attention_bias": config.bias, "mlp_bias": config.bias}


def _read_mistral(options: Options) -> dict[str, Any]:
    return _read_llama_family(options, n_kv_head=8) | {"qk_norm": False,
                                                       "window": _sliding_window(options)}


def _sliding_window(options: Options) -> int | None:
    """null is no window, but what is absent is 4096."""
    window: int | None = options.count(
        "sliding_window", None if "sliding_window" in options else 4096)
    return window


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    return _write_llama_family(config) | {"sliding_window": config.window}


def _read_qwen3(options: Options) -> dict[str, Any]:
    options.require("attention_bias", False, default=False)
    fields = _read_llama_family(options, n_kv_head=32, head_dim=128) | {"qk_norm": True}
    slides = options.require("use_sliding_window", True, False, default=False)
    window, kinds = _sliding_window(options), options.take("layer_types", None)
    first_sliding = int(min(max(0, options.number("max_window_layers", 28)), fields["n_layer"]))
    if kinds is not None:
        pattern = _window_pattern(kinds, fields["n_layer"], options.where)
    else:
        pattern = "F" * first_sliding + "S" * (fields["n_layer"] - first_sliding)
    if slides and window is not None:
        return fields | ({"window": window, "window_pattern": pattern} if "S" in pattern else {})
    if kinds is not None and "S" in pattern:
        raise UserError(f"{options.where}: layer_types names layers that slide, but "
                        "use_sliding_window is off; set one of them right")
    return fields


def _window_pattern(kinds: Any, n_layer: int, where: str) -> str:
    letters = {"full_attention": "F", "sliding_attention": "S"}
    if not isinstance(kinds, list) or not set(map(str, kinds)) <= letters.keys():
        raise UserError(f"{where}: layer_types={reprlib.repr(kinds)} is not supported; this "
                        f"toolkit computes {' and '.join(letters)}")
    if len(kinds) != n_layer:
        raise UserError(f"{where}: layer_types has {len(kinds)} entries for {n_layer} layers")
    return "".join(letters[kind] for kind in kinds)


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    kinds = ["full_attention" if window is None else "sliding_attention"
             for window in config.windows]
    sliding = config.window is not None
    return _write_llama_family(config) | {
        "attention_bias": False, "use_sliding_window": sliding, "sliding_window": config.window,
        "max_window_layers": 0 if sliding else config.n_layer, "layer_types": kinds}


def _different(config: ModelConfig, **required: Any) -> dict[str, Any]:
    """Fields that do not have the value they need, with the one they have."""
    return {name: getattr(config, name) for name, value in required.items()
            if getattr(config, name) != value}


GPT2 = Architecture("gpt2", "GPT2LMHeadModel", _read_gpt2, _write_gpt2, _gpt2_refusals)
LLAMA = Architecture(
    "llama", "LlamaForCausalLM", _read_llama, _write_llama,
    lambda config: _llama_family_refusals(config, qk_norm=False, window=None))
MISTRAL = Architecture(
    "mistral", "MistralForCausalLM", _read_mistral, _write_mistral,
    lambda config: _llama_family_refusals(config, qk_norm=False, bias=False, window_pattern="S"))
QWEN3 = Architecture(
    "qwen3", "Qwen3ForCausalLM", _read_qwen3, _write_qwen3,
    lambda config: _llama_family_refusals(config, qk_norm=True, bias=False))
ARCHITECTURES = {one.model_type: one for one in (GPT2, LLAMA, MISTRAL, QWEN3)}


def architecture_for(config: ModelConfig) -> Architecture:
    """The nearest one to a configuration. Raises UserError naming the options that it lacks."""
    if config.norm == "layernorm":
        nearest = GPT2
    elif config.qk_norm:
        nearest = QWEN3
    else:
        nearest = LLAMA if config.window is None else MISTRAL
    refuse(nearest.refusals(config), f"Hugging Face's {nearest.model_type}")
    return nearest


def refuse(options: dict[str, Any], target: str) -> None:
    """Raise UserError if a target cannot express some options."""
    if options:
        named = ", ".join(f"model.{name}={value}" for name, value in options.items())
        raise UserError(f"{target}, the nearest architecture, cannot express {named}; a model that "
                        "is to be exported has to be trained without")
