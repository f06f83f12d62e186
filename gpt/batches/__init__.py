"""From shards to what a step reads, in an order that is a function of (seed, index).

A text is cut into numbered sequences (windows.py, or documents.py by way of packing.py), the order
says which of them the n-th is (order.py, mixture.py), and a step's are put side by side (batch.py).
"""

from gpt.batches.batch import (
    IGNORE,
    Batches,
    Endless,
    MicroBatch,
    Origin,
    Sequences,
    Shuffled,
    SizedBatches,
)
from gpt.batches.documents import DocumentRows
from gpt.batches.mixture import Mixture
from gpt.batches.order import Order, portions
from gpt.batches.packing import pack
from gpt.batches.read_ahead import ReadAhead
from gpt.batches.text import TokenizedText
from gpt.batches.windows import EvaluationWindows, Windows

__all__ = ["IGNORE", "Batches", "DocumentRows", "Endless", "EvaluationWindows", "MicroBatch",
           "Mixture", "Order", "Origin", "ReadAhead", "Sequences", "Shuffled", "SizedBatches",
           "TokenizedText", "Windows", "pack", "portions"]
