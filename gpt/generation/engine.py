"""Many texts at once, token by token: a text that ends makes room for the next one.

Each request has a row of the cache. A step reads the prompts of new requests or, if there are none,
one more token of every row (several, where a draft guesses ahead), and draws the next token of
each. What a request becomes does not depend on which others share a step.

Shape letters: N rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gpt.configuration import SamplingConfig
from gpt.generation.controls import Controls, Grammar
from gpt.generation.cuda_graph import GraphedStep
from gpt.generation.drafts import Draft
from gpt.generation.native import FEW, fastest
from gpt.generation.request import Continuation, Generation, Request
from gpt.generation.sampling import choose, refuse_nan
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.parallel import vocabulary

CHUNK = 512  # tokens of a prompt that are read at once, which bounds the memory that it takes
SHORT = 64  # tokens: prompts up to here are read side by side; longer ones fill a machine alone

MakeGrammar = Callable[[SamplingConfig], Grammar | None]


class Engine:
    """Continues requests of token ids.

    rows: how many at once. max_tokens: the longest of them, prompt included; block_size by default.
    stop_tokens: ids that end a text. never: ids that stand for no text, and are never chosen.
    grammar: what json_schema and regex of a request allow. draft: guesses tokens ahead.
    """

    def __init__(self, model: GPT, machine: Machine, stop_tokens: Sequence[int] = (),
                 never: Sequence[int] = (), *, rows: int = 16, max_tokens: int | None = None,
                 grammar: MakeGrammar | None = None, draft: Draft | None = None):
        self._model, self._machine = fastest(model, machine.dtype), machine
        self._grammar, self._draft = grammar, draft
        # Apple's GPUs have no float64, which draws are decided in.
        self._draws_on = torch.device("cpu") if machine.device.type == "mps" else machine.device
        self._stop_tokens = tuple(stop_tokens)
        self._never = torch.tensor([*never], dtype=torch.int64, device=self._draws_on)
        self._context = min(model.config.block_size, max_tokens or model.config.block_size)
        self._cache = model.new_cache(rows, self._context, machine.device, machine.dtype)
        self._graph = (GraphedStep(model, machine, self._cache) if machine.device.type == "cuda"
                       and not vocabulary.is_spread(model.output_weight) else None)
        self._waiting: deque[tuple[int, Request, Grammar | None]] = deque()
        self._rows: list[Continuation | None] = []
        self._submitted = 0

    # ----- Requests come and go

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting or self._running)

    def submit(self, request: Request) -> int:
        """Queue a request; returns the number that its tokens will come with.

        Raises UserError for a prompt that is longer than the context, and for a setting that this
        model cannot fulfil.
        """
        assert request.config.beams is None, "beams are searched for in gpt/generation/beam.py"
        request.check(self._context, self._model.vocab_size)
        grammar = None if self._grammar is None else self._grammar(request.config)
        number, self._submitted = self._submitted, self._submitted + 1
        if request.config.max_new_tokens:
            self._waiting.append((number, request, grammar))
        return number

    def cancel(self, number: int) -> None:
        """Forget a request, if it has not ended already."""
        for one in self._running:
            if one.number == number:
                return self._leave(one)
        self._waiting = deque(each for each in self._waiting if each[0] != number)

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generation]]:
        """(index of the request, its next token), until all have ended. Nothing else may be going
        on."""
        assert not self.busy, "these indices would be mixed up with others"
        first = self._submitted
        for request in requests:
            self.submit(request)
        while self.busy:
            for number, new in self.step():
                yield number - first, new

    def _seat(self) -> None:
        """Fill rows that became free with requests that wait or, if none do, with the last row."""
        for row, taken in enumerate(self._rows):
            if taken is None and self._waiting:
                self._rows[row] = self._begin(*self._waiting.popleft())
        while None in self._rows:
            row, last = self._rows.index(None), self._rows.pop()
            if last is not None:
                self._cache.copy_row(len(self._rows), row)
                self._rows[row] = last
        while self._waiting and len(self._rows) < self._cache.batch_size:
            self._rows.append(self._begin(*self._waiting.popleft()))
        self._cache.lengths[:len(self._rows)] = [one.read - one.start for one in self._running]

    def _begin(self, number: int, request: Request, grammar: Grammar | None) -> Continuation:
        controls = None
        if Controls.needed(request.config):
            controls = Controls(request.config, request.prompt, self._stop_tokens,
                                self._model.vocab_size, self._draws_on, grammar)
        return Continuation(number, request, self._context, controls)

    def _leave(self, one: Continuation) -> None:
        self._rows[self._rows.index(one)] = None
        if self._draft is not None:
            self._draft.forget(one.number)

    @property
    def _running(self) -> list[Continuation]:
        return [row for row in self._rows if row is not None]

    # ----- One step

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Generation]]:
        """The next tokens of requests that have a row: (number, token) each."""
        self._seat()
        new = [row for row, one in enumerate(self._running) if one.unread > 1]
        if new:
            return self._read_prompts(new)
        return self._decode() if self._running else []

    def _read_prompts(self, rows: list[int]) -> list[tuple[int, Generation]]:
        """Read what some rows have not read; what is equal, once."""
        running = self._running
        prompts = {row: (running[row].prefix, *running[row].tokens[running[row].read:])
                   for row in rows}
        firsts = {prompt: row for row, prompt in reversed(prompts.items())}
        scores: dict[int, Tensor] = {}
        for span in spans(sorted(firsts.values()), lambda row: running[row].unread,
                          lambda row: (running[row].unread > FEW, running[row].prefix > 0)):
            scores |= zip(span, self._read(span), strict=True)
        for row, prompt in prompts.items():
            if firsts[prompt] != row:
                self._cache.copy_row(firsts[prompt], row)
        logits = torch.stack([scores[firsts[prompts[row]]] for row in rows])
        return self._accept([running[row] for row in rows], logits.unsqueeze(1))

    def _read(self, rows: range) -> Tensor:
        """Read all unread tokens of neighbouring rows: the scores behind the last of each, (N, V).

        Rows are padded on the right: what causal attention reads at a token never is behind it.
        """
        running = self._running[rows.start:rows.stop]
        cache = self._cache.rows(rows.start, rows.stop)
        tokens = self._padded([one.tokens[one.read:] for one in running])
        prompts, size = None, CHUNK
        if any(one.prefix for one in running):
            places = torch.arange(tokens.size(1), device=tokens.device)
            prompts = places < torch.tensor([[one.prefix] for one in running], device=tokens.device)
            size = tokens.size(1)
        for start in range(0, tokens.size(1), size):
            with self._machine.autocast():
                x = self._model.hidden(tokens[:, start:start + size], cache, prompts=prompts)
        ends = [one.unread - 1 - start for one in running]
        return self._scores(x[range(len(running)), ends])

    def _decode(self) -> list[tuple[int, Generation]]:
        """Read the newest token of every row, and what a draft expects to follow it."""
        running = self._running
        room = self._context - int(self._cache.lengths[:len(running)].max())
        drafts = [self._draft.propose(one, room - 1) if self._draft is not None else []
                  for one in running]
        tokens = self._padded([[one.tokens[-1], *draft]
                               for one, draft in zip(running, drafts, strict=True)])
        cache = self._cache.rows(0, len(running))
        if self._graph is not None and tokens.size(1) == 1:
            scores = self._graph(tokens, cache.lengths)
            cache.advance(1)
            return self._accept(running, scores, drafts)
        with self._machine.autocast():
            x = self._model.hidden(tokens, cache)
        return self._accept(running, self._scores(x), drafts)

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(N, longest) int64"""
        width = max(map(len, rows))
        return self._machine.to_device(
            torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]))

    def _scores(self, x: Tensor) -> Tensor:
        """(…, C) -> (…, V) float32, where draws are made"""
        with self._machine.autocast():
            return self._model.logits(x).float().to(self._draws_on)

    def _draws_here(self, numbers: Tensor) -> Tensor:
        """Where draws are decided; a GPU that is still computing is not waited for."""
        if self._draws_on == self._machine.device:
            return self._machine.to_device(numbers)
        return numbers.to(self._draws_on)

    def _accept(self, running: Sequence[Continuation], scores: Tensor,
                drafts: Sequence[Sequence[int]] = ()) -> list[tuple[int, Generation]]:
        """Draw the next token of each row and, while that is what its draft expected, the next.

        scores: (N, T, V), behind the newest token and each one of the draft. A guess thus decides
        nothing: every token is drawn as it would be if there were no draft.
        """
        made: list[tuple[int, Generation]] = []
        rows = list(range(len(running)))
        for t in range(scores.size(1)):
            behind = scores[:, t] if len(rows) == len(running) else scores[rows, t]
            tokens, logprobs = self._draw([running[row] for row in rows], behind)
            as_expected = []
            for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
                one = running[row]
                end = one.accept(token, self._stop_tokens)
                made.append((one.number, Generation(token, logprob, end)))
                if end is not None:
                    self._leave(one)
                elif drafts and drafts[row][t:t + 1] == [token]:
                    as_expected.append(row)
            rows = as_expected
            if not rows:
                break
        return made

    def _draw(self, running: Sequence[Continuation], scores: Tensor
              ) -> tuple[list[int], list[float]]:
        """(tokens, their log-probabilities) for scores (N, V)."""
        logprobs = scores.log_softmax(dim=-1)
        changed = scores.index_fill(1, self._never, -torch.inf) if len(self._never) else scores
        alike: dict[tuple[object, ...], list[int]] = {}
        for row, one in enumerate(running):
            if one.controls is not None:
                changed[row] = one.controls.apply(changed[row])
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
        logprobs = logprobs if order == sorted(order) else logprobs[order]
        chosen = logprobs.gather(1, drawn.unsqueeze(1)).squeeze(1)
        # Both at once, so that a GPU is waited for a single time. Ids are far below 2^53.
        both = torch.stack((drawn.double(), chosen.double()), dim=1).tolist()
        refuse_nan(logprob for _, logprob in both)
        found = dict(zip(order, both, strict=True))
        return ([int(found[row][0]) for row in range(len(running))],
                [found[row][1] for row in range(len(running))])


def spans(rows: Sequence[int], length: Callable[[int], int], kind: Callable[[int], object]
          ) -> Iterator[range]:
    """Neighbouring rows, from the first to the last, whose prompts are read side by side: of a
    kind, which are read by the same kernels whether alone or together.

    Those of several rows are never longer than SHORT, which is less than a CHUNK.
    """
    start = None
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        start = row if start is None else start
        if (following != row + 1 or kind(row) != kind(following)
                or max(length(row), length(following)) > SHORT):
            yield range(start, row + 1)
            start = None


def room_for(requests: Sequence[Request], block_size: int) -> int:
    """Tokens that the longest of some requests can come to."""
    return min(block_size, max((block_size if request.config.slide else
                                len(request.prompt) + request.config.max_new_tokens
                                for request in requests), default=1))
