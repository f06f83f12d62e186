"""Generation as a text grows, for benchmarks/lstm.py: time per token, and the bytes that are kept.

Arms: the Transformer with its cache of keys and values in torch, the same by the toolkit's engine
in C (what sample.py runs on a processor), and the LSTM with its state in torch. The time does not
depend on what weights have learned, so they are fresh.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.lstm_model import LSTM, State
from benchmarks.runs import spread
from gpt.generation.native import fastest
from gpt.model import GPT, KVCache

TEXT_LENGTHS, NEW_TOKENS = (32, 128, 512, 2048, 8192), 64  # of each length, tokens that are timed
CHUNK = 256  # tokens that are read at once
HERE, FORMAT = torch.device("cpu"), torch.float32
Next = Callable[[Tensor], Tensor]  # a token, (1, 1) int64, to the next one


@torch.inference_mode()
def decoding(transformer: GPT, lstm: LSTM, text: Tensor, rounds: int) -> dict[str, Any]:
    """Read a text up to each length, then let the arms take turns in going on with it.

    text: token ids, (at least the longest of TEXT_LENGTHS and one,) int64.
    """
    transformer.eval(), lstm.eval()
    engine = fastest(transformer, FORMAT)
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        cache = transformer.new_cache(1, max(TEXT_LENGTHS) + NEW_TOKENS, HERE, FORMAT)
        state, read = None, 0
        for length in TEXT_LENGTHS:
            for part in text[read:length].unsqueeze(0).split(CHUNK, dim=1):
                transformer.hidden(part, cache)
                state = lstm.read(part, state)[1]
            read = length
            arms = {"transformer": cached(transformer, cache), "engine": cached(engine, cache),
                    "lstm": carried(lstm, state)}
            if engine is transformer:
                del arms["engine"]
            for arm, next_token in arms.items():
                taken = statistics.median(timed(next_token, text[length].view(1, 1)))
                seconds.setdefault((arm, length), []).append(taken)
                cache.lengths[:] = length  # what was added is forgotten
    if engine is transformer:
        print("decoding   the engine in C cannot be built here: that arm is left out")
    return {"unit": "seconds per token of one text", "records": [
        told(arm, length, state_bytes(lstm if arm == "lstm" else transformer, length),
             seconds[arm, length]) for arm, length in sorted(seconds)]}


def told(arm: str, length: int, kept: int, seconds: list[float]) -> dict[str, Any]:
    """Print a line; the record."""
    print(f"decoding   {arm:12} {length:5} tokens: {kept:10,} bytes, "
          f"{spread([1e3 * each for each in seconds], '.3f')} ms per token", flush=True)
    return {"arm": arm, "length": length, "bytes": kept, "seconds_per_token": seconds}


def cached(model: Any, cache: KVCache) -> Next:
    """Greedy tokens of a GPT; model: it, or what stands for it in C."""
    return lambda token: model.logits(model.hidden(token, cache)).argmax(-1)


def carried(model: LSTM, state: State | None) -> Next:
    """Greedy tokens of an LSTM."""
    def next_token(token: Tensor) -> Tensor:
        nonlocal state
        scores, state = model.read(token, state)
        return scores.argmax(-1)
    return next_token


def timed(next_token: Next, token: Tensor) -> Iterator[float]:
    """Seconds of each new token."""
    for _ in range(NEW_TOKENS):
        started = perf_counter()
        token = next_token(token)
        yield perf_counter() - started


def state_bytes(model: GPT | LSTM, length: int) -> int:
    """What has to be kept of a text of `length` tokens to go on with it: keys and values of all of
    them, or h and c of the last."""
    if isinstance(model, LSTM):
        return sum(part.nbytes for part in model.read(torch.zeros(1, 1, dtype=torch.int64))[1])
    cache = model.new_cache(1, length, HERE, FORMAT)
    return sum(space.nbytes for space in (*cache.keys, *cache.values))
