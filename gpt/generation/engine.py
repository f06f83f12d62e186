"""Token by token: prefill the prompt once, then decode one token at a time from the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.errors import UserError
from gpt.generation.sampling import SamplingConfig, next_token
from gpt.model import GPT, KVCache
from gpt.runtime import Machine


@dataclass(frozen=True)
class Generation:
    """One new token, and what the model thought of it."""

    token: int
    logprob: float  # natural logarithm, before temperature and filters


class ContextFull(Exception):
    """The sequence has reached block_size."""


@torch.inference_mode()
def generate_tokens(model: GPT, prompt: list[int], config: SamplingConfig, machine: Machine,
                    stop_tokens: Sequence[int], never: Tensor | None = None,
                    both_ways: bool = False) -> Iterator[Generation]:
    """Continue a prompt until a stop token, max_new_tokens, or the end of the context.

    never: ids that are not to be chosen, (n,) int64: those that stand for no text.
    both_ways: each token of the prompt reads all of it, as the model was trained.
    The stop token is yielded too, so that a caller can tell why it ended. Raises UserError for a
    prompt that is longer than the context, ContextFull when there is no room for another token.
    """
    block_size = model.config.block_size
    if len(prompt) > block_size:
        raise UserError(f"the prompt has {len(prompt)} tokens, the model reads {block_size} "
                        "(model.block_size); shorten the prompt")
    assert prompt, "a prompt is never empty: the end-of-text token stands for nothing"
    generator = torch.Generator().manual_seed(config.seed) if config.seed is not None else None
    generator = generator or _fresh_generator()
    sequence = list(prompt)
    room = block_size if config.slide else min(block_size, len(prompt) + config.max_new_tokens)
    cache, unread = _new_cache(model, room, machine), sequence
    for _ in range(config.max_new_tokens):
        if cache.length + len(unread) > block_size:
            if not config.slide:
                raise ContextFull
            cache, unread = _new_cache(model, room, machine), sequence[-max(1, block_size // 2):]
        logits = read_tokens(model, unread, cache, machine, both_ways and unread is sequence)
        if never is not None:
            logits[never] = -torch.inf
        seen = torch.tensor(sequence) if config.repetition_penalty != 1.0 else torch.empty(0).long()
        token = next_token(logits, config, seen, generator)
        yield Generation(token, float(logits.log_softmax(dim=-1)[token]))
        if token in stop_tokens:
            return
        sequence.append(token)
        unread = [token]


def read_tokens(model: GPT, tokens: list[int], cache: KVCache, machine: Machine,
                both_ways: bool = False) -> Tensor:
    """Feed tokens to the model; returns the scores of the next one, (V,) float32 on the CPU."""
    read = torch.tensor([tokens], device=machine.device)
    prompts = torch.ones_like(read, dtype=torch.bool) if both_ways else None
    with machine.autocast():
        x = model.hidden(read, cache, prompts=prompts)
        return model.logits(x[:, -1]).squeeze(0).float().cpu()


def _new_cache(model: GPT, room: int, machine: Machine) -> KVCache:
    return KVCache(model.config, 1, room, machine.device, machine.dtype)


def _fresh_generator() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator
