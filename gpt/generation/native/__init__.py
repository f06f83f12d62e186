"""Generation on a processor: a few tokens through all layers in one call of C."""

from gpt.generation.native.model import FEW, NativeModel, fastest

__all__ = ["FEW", "NativeModel", "fastest"]
