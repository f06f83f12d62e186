"""The Transformer, bottom-up: embedding, rope, norm → attention → feedforward → block → gpt.

Beside them: visibility (which keys a query may read) and the cache of generation.
"""

from gpt.model.cache import KVCache, StaticCache
from gpt.model.gpt import GPT
from gpt.model.size import activation_bytes, cache_bytes, flops_per_token, parameter_count

__all__ = ["GPT", "KVCache", "StaticCache", "activation_bytes", "adapted_linear", "attention",
           "blockwise", "cache_bytes", "embedding", "flops_per_token", "int8", "lora",
           "norm", "parameter_count", "rope", "visibility"]
