"""Training on many devices: how a model lies on them, and what they tell each other."""

__all__ = ["plan", "tensor", "vocabulary"]
