"""What config.json means: Hugging Face's architectures and ours, both ways.

A table per architecture (llama, layernorm) of the kinds of lines that rows, rope and layers define.
"""

from __future__ import annotations

from typing import Any

from gpt.errors import UserError
from gpt.interop.architectures import layernorm, llama
from gpt.interop.architectures.table import Architecture, differences, validated

__all__ = ["ARCHITECTURES", "Architecture", "differences", "refuse", "validated"]

ARCHITECTURES = {one.model_type: one for one in (
    layernorm.GPT2, llama.LLAMA, llama.MISTRAL, llama.QWEN3, llama.QWEN2, llama.SMOLLM3,
    llama.OLMO2, llama.OLMO3, llama.GEMMA2, llama.GEMMA3, llama.PHI3, llama.GRANITE, llama.GLM4,
    layernorm.GPT_NEOX, layernorm.FALCON, layernorm.STARCODER2, layernorm.STABLELM, layernorm.OPT,
    layernorm.GPTJ, layernorm.PHI)}


def refuse(options: dict[str, Any], target: str) -> None:
    """Raise UserError if a target cannot express some options."""
    if options:
        named = ", ".join(f"model.{name}={value}" for name, value in options.items())
        raise UserError(f"{target}, the nearest architecture, cannot express {named}; a model that "
                        "is to be exported has to be trained without")
