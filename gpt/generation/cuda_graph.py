"""One token of every row as one CUDA graph: a single launch instead of hundreds of kernels, each of
which a GPU would wait for at small batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gpt.machine.device import Machine
from gpt.model import GPT, KVCache, StaticCache

_WARM_UP = 3  # steps, in which kernels are chosen and libraries set memory aside


class GraphedStep:
    """What a model says behind one more token of each row.

    The graph is recorded when it is first called, which takes as long as a few steps. It computes
    all rows of the cache, those without a text too, and reads each to its end.
    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, model: GPT, machine: Machine, cache: KVCache):
        self._model, self._machine = model, machine
        self._tokens, self._places = torch.zeros(2, cache.batch_size, 1, dtype=torch.int64,
                                                 device=machine.device)
        self._cache = StaticCache(cache, self._places)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tokens: Tensor, lengths: np.ndarray) -> Tensor:
        """Scores (N, 1, V) float32, which the next call overwrites.

        tokens: of the first N rows, (N, 1) int64. lengths: of what each has read before, (N,).
        """
        self._tokens[:len(tokens)] = tokens
        self._places[:len(tokens), 0] = self._machine.to_device(torch.from_numpy(lengths))
        if self._graph is None:
            self._graph, self._scores = self._record()
        self._graph.replay()
        return self._scores[:len(tokens)]

    def _compute(self) -> Tensor:
        with self._machine.autocast():
            return self._model.logits(self._model.hidden(self._tokens, self._cache)).float()

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """(the graph, where it leaves the scores)"""
        beside = torch.cuda.Stream(self._machine.device)
        beside.wait_stream(torch.cuda.current_stream(self._machine.device))
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                self._compute()
        torch.cuda.current_stream(self._machine.device).wait_stream(beside)
        self._read = self._model.rotations.tables  # by the graph, wherever the model's are by then
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            scores = self._compute()
        return graph, scores
