"""Beam search: the likeliest text that can be found by following a few likely ones at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpt.generation.native import NativeModel, fastest
from gpt.generation.request import End, Generation, Request
from gpt.generation.sampling import log_probabilities
from gpt.machine.device import Machine
from gpt.model import GPT, KVCache


@dataclass(frozen=True)
class Beam:
    """A text that may become the likeliest. score: the sum of its tokens' log-probabilities."""

    made: tuple[Generation, ...]
    score: float

    @property
    def rank(self) -> float:
        """Log-probability per token, so that long texts are not at a disadvantage."""
        return self.score / len(self.made)

    def ended(self, end: End) -> Beam:
        """The same text, which ends here."""
        return replace(self, made=(*self.made[:-1], replace(self.made[-1], end=end)))


@torch.inference_mode()
def beam_search(model: GPT, request: Request, machine: Machine, stop_tokens: Sequence[int] = (),
                never: Sequence[int] = ()) -> list[Generation]:
    """The text of the highest log-probability per token that config.beams beams find.

    In each step every beam is continued with every token, and the likeliest continuations are the
    next beams; those that a stop token ends are set aside. It ends when as many are set aside as
    there are beams and no beam is better than the worst of them, at max_new_tokens, or when the
    context is full.
    Source: Sutskever et al. 2014 (arXiv:1409.3215), section 3.2; the division by the length, Wu et
    al. 2016 (arXiv:1609.08144), section 7, with α = 1.
    """
    config, block_size = request.config, model.config.block_size
    request.check(block_size, model.vocab_size)
    steps = min(config.max_new_tokens, block_size - len(request.prompt) + 1)
    last: End = "length" if steps == config.max_new_tokens else "context"
    assert config.beams is not None
    cache = model.new_cache(config.beams, len(request.prompt) + steps - 1, machine.device,
                            machine.dtype)
    reader = fastest(model, machine.dtype)
    beams, ended = [Beam((), 0.0)], list[Beam]()
    unread = [list(request.prompt)]
    for step in range(steps):
        logprobs = _logprobs(reader, unread, cache.rows(0, len(beams)), machine, never,
                             0 if step else request.prefix)
        found = list(_continued(beams, logprobs, config.beams, stop_tokens))
        ended += [beam for rank, (_, beam) in enumerate(found)
                  if beam.made[-1].end and rank < config.beams]
        ended = sorted(ended, key=lambda beam: beam.rank, reverse=True)[:config.beams]
        going = [each for each in found if not each[1].made[-1].end][:config.beams]
        beams = [beam for _, beam in going]
        if not beams or (len(ended) == config.beams and beams[0].rank <= ended[-1].rank):
            break
        cache.reorder(torch.tensor([parent for parent, _ in going]))
        unread = [[beam.made[-1].token] for beam in beams]
    else:
        ended += [beam.ended(last) for beam in beams if beam.made]
    return list(max(ended, key=lambda beam: beam.rank).made) if ended else []


def _continued(beams: Sequence[Beam], logprobs: Tensor, count: int, stop_tokens: Sequence[int]
               ) -> Iterator[tuple[int, Beam]]:
    """(parent, beam): the likeliest continuations, so many that `count` of them can go on."""
    scores = logprobs + torch.tensor([[beam.score] for beam in beams], device=logprobs.device)
    best = scores.flatten().topk(min(count * (1 + len(stop_tokens)), scores.numel()))
    chosen = logprobs.flatten()[best.indices].tolist()
    for score, place, logprob in zip(best.values.tolist(), best.indices.tolist(), chosen,
                                     strict=True):
        parent, token = divmod(place, scores.size(1))
        if score > -torch.inf:
            new = Generation(token, logprob, "stop" if token in stop_tokens else None)
            yield parent, Beam((*beams[parent].made, new), score)


def _logprobs(model: GPT | NativeModel, tokens: Sequence[Sequence[int]], cache: KVCache,
              machine: Machine, never: Sequence[int], prefix: int) -> Tensor:
    """Of every next token behind each beam, (beams, V) float32."""
    read, prompts = torch.tensor(tokens, device=machine.device), None
    if prefix:
        prompts = torch.arange(read.size(1), device=machine.device).unsqueeze(0) < prefix
    with machine.autocast():
        scores = model.logits(model.hidden(read, cache, prompts=prompts)[:, -1]).float()
    logprobs = log_probabilities(scores)
    logprobs[:, [*never]] = -torch.inf
    return logprobs
