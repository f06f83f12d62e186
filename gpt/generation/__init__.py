"""Generation: requests for tokens, and the engine that continues many of them at once."""

from gpt.generation.background import Job, Worker
from gpt.generation.beam import beam_search
from gpt.generation.drafts import Draft, DraftModel, PromptLookup
from gpt.generation.engine import Engine, Prepared, room_for
from gpt.generation.grammar import grammars
from gpt.generation.request import Generation, Request
from gpt.generation.writer import Piece, Writer, pieces_of

__all__ = ["Draft", "DraftModel", "Engine", "Generation", "Job", "Piece", "Prepared",
           "PromptLookup", "Request", "Worker", "Writer", "beam_search", "grammars", "native",
           "pieces_of", "room_for"]
