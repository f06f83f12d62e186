"""The next token of many requests at once: from scores, by each one's own settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gpt.errors import UserError
from gpt.generation.request import Alternatives, Continuation, Generation
from gpt.generation.sampling import NOT_NUMBERS, choose, probabilities
from gpt.machine.device import Machine


class Draws:
    """Decides tokens, as every request's settings, seed and controls have it.

    never: ids that stand for no text. device: where scores are, float32 of (…, V).
    """

    def __init__(self, machine: Machine, never: Sequence[int]):
        # Apple's GPUs have no float64, which draws are decided in.
        self._machine = machine
        self.device = torch.device("cpu") if machine.device.type == "mps" else machine.device
        self._never = torch.tensor([*never], dtype=torch.int64, device=self.device)

    def __call__(self, running: Sequence[Continuation], scores: Tensor) -> list[Generation]:
        """The next token of each, for scores (N, V). What cannot be drawn for one is its error."""
        logprobs = scores.log_softmax(dim=-1)
        changed = scores.index_fill(1, self._never, -torch.inf) if len(self._never) else scores
        failed: dict[int, UserError] = {}
        alike: dict[tuple[object, ...], list[int]] = {}
        for row, one in enumerate(running):
            try:
                if one.controls is not None:
                    changed[row] = one.controls.apply(changed[row])
            except UserError as error:
                failed[row] = error
            alike.setdefault(one.config.filters, []).append(row)
        order, tokens = [], []
        for rows in alike.values():
            config = running[rows[0]].config
            numbers = [running[row].uniform() for row in rows] if config.temperature else []
            uniforms = self._draws_here(torch.tensor(numbers, dtype=torch.float64))
            together = changed if len(rows) == len(running) else changed[rows]
            order += rows
            tokens.append(choose(together, config, uniforms))
        drawn = torch.cat(tokens).clamp(max=scores.size(1) - 1)  # where all is NaN, it lies behind
        in_order = logprobs if order == sorted(order) else logprobs[order]
        chosen = in_order.gather(1, drawn.unsqueeze(1)).squeeze(1)
        # Both at once, so that a GPU is waited for a single time. Ids are far below 2^53.
        both = torch.stack((drawn.double(), chosen.double()), dim=1).tolist()
        found = dict(zip(order, both, strict=True))
        likeliest = self._likeliest(logprobs, running)
        damaged = UserError(NOT_NUMBERS)
        made = [Generation(int(found[row][0]), found[row][1], likeliest=likeliest.get(row, ()),
                           error=damaged if math.isnan(found[row][1]) else failed.get(row))
                for row in range(len(running))]
        for row, one in enumerate(running):
            if one.chances and made[row].error is None:
                made[row] = _with_chances(made[row], one, logprobs[row], changed[row])
        return made

    def judged(self, one: Continuation, scores: Tensor, targets: Sequence[int]
               ) -> Iterator[Generation]:
        """What the model thought of tokens that are given, of scores (T, V)."""
        logprobs = scores.log_softmax(dim=-1)
        chosen = logprobs.gather(1, torch.tensor(targets, device=logprobs.device).unsqueeze(1))
        likeliest = self._likeliest(logprobs, [one] * len(targets))
        for place, (token, logprob) in enumerate(zip(targets, chosen.squeeze(1).tolist(),
                                                     strict=True)):
            yield Generation(token, logprob, likeliest=likeliest.get(place, ()))

    def _likeliest(self, logprobs: Tensor, running: Sequence[Continuation]
                   ) -> dict[int, Alternatives]:
        """So many of the likeliest tokens as each row of (N, V) asks for."""
        asked = {row: one.alternatives for row, one in enumerate(running) if one.alternatives}
        if not asked:
            return {}
        top = logprobs[list(asked)].topk(min(max(asked.values()), logprobs.size(1)), dim=-1)
        return {row: tuple(zip(ids[:count], values[:count], strict=True))
                for (row, count), ids, values in zip(asked.items(), top.indices.tolist(),
                                                     top.values.tolist(), strict=True)}

    def _draws_here(self, numbers: Tensor) -> Tensor:
        """Where draws are decided; a GPU that is still computing is not waited for."""
        if self.device == self._machine.device:
            return self._machine.to_device(numbers)
        return numbers.to(self.device)


def _with_chances(new: Generation, one: Continuation, logprobs: Tensor, changed: Tensor
                  ) -> Generation:
    """The same, with what is drawn most among its likeliest tokens, and the chance of each.

    logprobs, changed: (V,), the model's own and the scores that the token was drawn by.
    """
    drawn = probabilities(changed.unsqueeze(0), one.config).squeeze(0)
    most = drawn.topk(min(one.alternatives, len(drawn))).indices
    ids = torch.tensor([new.token, *(token for token, _ in new.likeliest)], device=drawn.device)
    ids = torch.cat((ids, most[drawn[most] > 0])).unique()
    ids = ids[logprobs[ids].argsort(descending=True, stable=True)]
    told = zip(ids.tolist(), logprobs[ids].tolist(), strict=True)
    return replace(new, likeliest=tuple(told), chances=tuple(drawn[ids].tolist()))
