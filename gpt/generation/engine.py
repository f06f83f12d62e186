"""Many texts at once, token by token: a text that ends makes room for the next one.

Each request has a row of the cache. A step reads the prompts of new requests or, if there are none,
one more token of every row (several, where a draft guesses ahead), and draws the next token of
each; where prompts must not keep others waiting, it reads a stretch of them, and the next step does
that. What a request becomes does not depend on which others share a step.

Shape letters: N rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpt.configuration import SamplingConfig
from gpt.generation.controls import Controls, Grammar
from gpt.generation.cuda_graph import GraphedStep
from gpt.generation.drafts import Draft
from gpt.generation.drawing import Draws
from gpt.generation.native import FEW, fastest
from gpt.generation.prefixes import Prefixes
from gpt.generation.request import Continuation, Generation, Request
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.parallel import vocabulary

CHUNK = 256  # tokens of a prompt that are read at once, which bounds the memory that it takes
SHORT = 64  # tokens: prompts up to here are read side by side; longer ones fill a machine alone

MakeGrammar = Callable[[SamplingConfig], Grammar | None]


@dataclass(frozen=True)
class Prepared:
    """A request that an engine can fulfil, and its grammar."""

    request: Request
    grammar: Grammar | None


class Engine:
    """Continues requests of token ids.

    rows: how many at once. max_tokens: the longest of them, prompt included; block_size by default.
    stop_tokens: ids that end a text. never: ids that stand for no text, and are never chosen.
    grammar: what json_schema and regex of a request allow. draft: guesses tokens ahead.
    in_turns: a step reads no more than CHUNK tokens of prompts, and the next one goes on with the
    others; else it reads all prompts that there is a row for. remember: tokens of prompts whose
    keys and values are kept for others that begin alike.
    """

    def __init__(self, model: GPT, machine: Machine, stop_tokens: Sequence[int] = (),
                 never: Sequence[int] = (), *, rows: int = 16, max_tokens: int | None = None,
                 grammar: MakeGrammar | None = None, draft: Draft | None = None,
                 in_turns: bool = False, remember: int = 0):
        self._model, self._machine = fastest(model, machine.dtype), machine
        self._grammar, self._draft = grammar, draft
        self._draws, self._stop_tokens = Draws(machine, never), tuple(stop_tokens)
        self._in_turns, self._prefixes = in_turns, Prefixes(remember, CHUNK)
        self._others_turn = False  # after a step that has read of prompts
        self._context = min(model.config.block_size, max_tokens or model.config.block_size)
        self._cache = model.new_cache(rows, self._context, machine.device, machine.dtype)
        self._graph = (GraphedStep(model, machine, self._cache) if machine.device.type == "cuda"
                       and not vocabulary.is_spread(model.output_weight) else None)
        self._waiting: deque[tuple[int, Prepared]] = deque()
        self._rows: list[Continuation | None] = []
        self._submitted = 0

    # ----- Requests come and go

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting or self._running)

    def prepare(self, request: Request) -> Prepared:
        """What `submit` takes without further ado; from any thread, as grammars can take a while.

        Raises UserError for a prompt that is longer than the context, and for a setting that this
        model cannot fulfil.
        """
        assert request.config.beams is None, "beams are searched for in gpt/generation/beam.py"
        request.check(self._context, self._model.vocab_size)
        return Prepared(request, self._grammar(request.config) if self._grammar else None)

    def submit(self, request: Request | Prepared) -> int:
        """Queue a request; returns the number that its tokens will come with. Raises as `prepare`.
        """
        prepared = self.prepare(request) if isinstance(request, Request) else request
        number, self._submitted = self._submitted, self._submitted + 1
        if prepared.request.config.max_new_tokens:
            self._waiting.append((number, prepared))
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
                if new.error is not None:
                    raise new.error
                yield number - first, new

    def _seat(self) -> None:
        """Fill rows that became free with requests that wait or, if none do, with the last row."""
        for row, taken in enumerate(self._rows):
            if taken is None and self._waiting:
                self._rows[row] = self._begin(*self._waiting.popleft(), row)
        while None in self._rows:
            row, last = self._rows.index(None), self._rows.pop()
            if last is not None:
                self._cache.copy_row(len(self._rows), row)
                self._rows[row] = last
        while self._waiting and len(self._rows) < self._cache.batch_size:
            self._rows.append(self._begin(*self._waiting.popleft(), len(self._rows)))
        self._cache.lengths[:len(self._rows)] = [one.read - one.start for one in self._running]

    def _begin(self, number: int, prepared: Prepared, row: int) -> Continuation:
        request, controls = prepared.request, None
        if Controls.needed(request.config):
            begun = len(request.prompt) - request.written
            controls = Controls(request.config, request.prompt[:begun], self._stop_tokens,
                                self._model.vocab_size, self._draws.device, prepared.grammar)
            for token in request.prompt[begun:]:
                controls.accept(token)
        one = Continuation(number, request, self._context, controls)
        if not (one.prefix or one.scored):
            one.read += self._prefixes.recall(one.tokens[one.start:], self._cache, row)
        return one

    def _leave(self, one: Continuation) -> None:
        self._rows[self._rows.index(one)] = None
        if self._draft is not None:
            self._draft.forget(one)

    @property
    def _running(self) -> list[Continuation]:
        return [row for row in self._rows if row is not None]

    # ----- One step

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Generation]]:
        """The next tokens of requests that have a row: (number, token) each."""
        self._seat()
        reads = [row for row, one in enumerate(self._running) if one.unread > 1]
        if reads and not self._others_turn:
            self._others_turn = self._in_turns
            return self._read_prompts(reads)
        self._others_turn = False
        return self._decode()

    def _read_prompts(self, rows: list[int]) -> list[tuple[int, Generation]]:
        """Read what some rows have not read; what is equal, once. In turns: a CHUNK of it, of those
        of which the least has been read."""
        running = self._running
        firsts: dict[object, int] = {}
        for row in sorted(rows, key=lambda row: -running[row].read):
            firsts.setdefault(running[row].whole, row)
        found = list(spans(sorted(firsts.values()), lambda row: running[row].unread,
                           lambda row: (running[row].unread > FEW, running[row].prefix > 0)))
        found.sort(key=lambda span: running[span.start].read)
        scores: dict[int, Tensor] = {}
        for span in found[:1] if self._in_turns else found:
            scores |= self._read(span)
        ended = [row for row in rows if firsts[running[row].whole] in scores]
        for row in ended:
            first = firsts[running[row].whole]
            if first != row:
                self._cache.copy_row(first, row)
                running[row].before = running[first].before
        if not ended:
            return []
        logits = torch.stack([scores[firsts[running[row].whole]] for row in ended])
        return self._accept([running[row] for row in ended], logits.unsqueeze(1))

    def _read(self, rows: range) -> dict[int, Tensor]:
        """Read the unread tokens of neighbouring rows: the scores behind the last of each, (V,). In
        turns: a CHUNK of them, and there are scores if that was the last one.

        Rows are padded on the right: what causal attention reads at a token never is behind it.
        """
        running = self._running[rows.start:rows.stop]
        cache = self._cache.rows(rows.start, rows.stop)
        both_ways = any(one.prefix for one in running)
        size = max(one.unread for one in running) if both_ways else CHUNK
        while True:
            tokens = self._padded([one.tokens[one.read:one.read + size] for one in running])
            ends = [min(one.unread, size) - 1 for one in running]
            with self._machine.autocast():
                x = self._model.hidden(tokens, cache, prompts=self._prompts(running, tokens)
                                       if both_ways else None)
            for row, one in enumerate(running):
                self._judge(one, x[row])
                one.read += ends[row] + 1
                if not both_ways:
                    self._prefixes.keep(one.tokens[one.start:one.read], cache, row)
            if not running[0].unread:
                return dict(zip(rows, self._scores(x[range(len(running)), ends]), strict=True))
            if self._in_turns:
                return {}

    def _prompts(self, running: Sequence[Continuation], tokens: Tensor) -> Tensor:
        """Which tokens read each other in both directions, (N, T) bool."""
        places = torch.arange(tokens.size(1), device=tokens.device)
        return places < torch.tensor([[one.prefix] for one in running], device=tokens.device)

    def _judge(self, one: Continuation, x: Tensor) -> None:
        """Of a prompt that is scored: what the model thought of the tokens behind those read in x,
        (T, C)."""
        targets = one.tokens[one.read + 1:one.read + 1 + len(x)] if one.scored else []
        if targets:
            one.before += self._draws.judged(one, self._scores(x[:len(targets)]), targets)

    def _decode(self) -> list[tuple[int, Generation]]:
        """Read the newest token of every row, and what a draft expects to follow it.

        A row that is still reading its prompt reads its next token in vain.
        """
        running = self._running
        ready = [row for row, one in enumerate(running) if one.unread == 1]
        if not ready:
            return []
        room = self._context - int(self._cache.lengths[:len(running)].max())
        drafts = [self._draft.propose(one, room - 1) if self._draft is not None
                  and one.unread == 1 else [] for one in running]
        tokens = self._padded([[one.tokens[one.read], *draft]
                               for one, draft in zip(running, drafts, strict=True)])
        cache = self._cache.rows(0, len(running))
        if self._graph is not None and tokens.size(1) == 1:
            scores = self._graph(tokens, cache.lengths)
            cache.advance(1)
        else:
            with self._machine.autocast():
                x = self._model.hidden(tokens, cache)
            scores = self._scores(x)
        if len(ready) < len(running):
            running, scores = [running[row] for row in ready], scores[ready]
            drafts = [drafts[row] for row in ready]
        return self._accept(running, scores, drafts)

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(N, longest) int64"""
        width = max(map(len, rows))
        return self._machine.to_device(
            torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]))

    def _scores(self, x: Tensor) -> Tensor:
        """(…, C) -> (…, V) float32, where draws are made"""
        with self._machine.autocast():
            return self._model.logits(x).float().to(self._draws.device)

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
            as_expected = []
            for row, new in zip(rows, self._draws([running[row] for row in rows], behind),
                                strict=True):
                one = running[row]
                end = "error" if new.error else one.accept(new.token, self._stop_tokens)
                before, one.before = tuple(one.before), []
                made.append((one.number, replace(new, end=end, before=before)))
                if end is not None:
                    self._leave(one)
                elif drafts and drafts[row][t:t + 1] == [new.token]:
                    as_expected.append(row)
            rows = as_expected
            if not rows:
                break
        return made


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
