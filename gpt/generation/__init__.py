"""Generation: logits → next token (sampling), and the loop around it (engine)."""

from gpt.generation.engine import Generation, generate_tokens
from gpt.generation.sampling import SamplingConfig

__all__ = ["Generation", "SamplingConfig", "generate_tokens"]
