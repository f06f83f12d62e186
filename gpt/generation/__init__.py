"""Generation: requests for tokens, and the engine that continues many of them at once."""

from gpt.generation.engine import Engine, room_for
from gpt.generation.request import Generation, Request
from gpt.generation.writer import Piece, Writer

__all__ = ["Engine", "Generation", "Piece", "Request", "Writer", "room_for"]
