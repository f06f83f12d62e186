"""Texts as they grow on the screen, or as JSON for other programs."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt.errors import WorkFailed
from gpt.generation import Generation, Piece, Request
from gpt.language_model import LanguageModel
from gpt.streams import raise_if_unread

ENDS = {"stop": "came to its end", "length": "max-new-tokens reached",
        "context": "the context is full: --slide goes on from its last half"}


@dataclass
class Sample:
    """One text: what was asked, what came, and when."""

    request: Request
    text: str = ""
    made: list[Generation] = field(default_factory=list)
    end: str | None = None
    first_seconds: float | None = None  # from the start of all until its first token
    seconds: float = 0.0  # until its last

    def add(self, piece: Piece, seconds: float) -> None:
        """What came, and when."""
        self.text += piece.text
        self.made.append(piece.new)
        self.end, self.seconds = piece.end, seconds
        self.first_seconds = seconds if self.first_seconds is None else self.first_seconds


def generate(lm: LanguageModel, samples: Sequence[Sample]) -> Iterator[tuple[Sample, str]]:
    """(sample, what can be shown now) in the order of samples; the last text of each is "".

    All are written side by side; what comes for a later one waits for its turn.
    """
    shown, turn, start = 0, 0, time.monotonic()
    for index, piece in lm.write([one.request for one in samples]):
        samples[index].add(piece, time.monotonic() - start)
        while turn < len(samples):
            one = samples[turn]
            if len(one.text) > shown:
                yield one, one.text[shown:]
                shown = len(one.text)
            if one.end is None and one.request.config.max_new_tokens:
                break
            yield one, ""
            shown, turn = 0, turn + 1
    for one in samples[turn:]:  # of which no token was asked for
        yield one, ""


def show(lm: LanguageModel, requests: Sequence[Request], logprobs: bool) -> None:
    """Print each prompt and what follows it, and speed on standard error."""
    samples, current = [Sample(request) for request in requests], None
    for one, text in generate(lm, samples):
        if one is not current:
            write("---------------\n" if current is not None else "")
            current = one
            if list(one.request.prompt) != [lm.tokenizer.end_of_text]:
                write(lm.tokenizer.decode(one.request.prompt))
        write(text)
        if not text:
            write("\n")
            for new in one.made if logprobs else ():
                write(f"{new.logprob:9.4f}  {lm.tokenizer.decode([new.token])!r}\n")
    print(closing_line(samples), file=sys.stderr)
    refuse_unfinished(samples)


def show_json(lm: LanguageModel, requests: Sequence[Request]) -> None:
    """Print an object for each text, on a line of its own."""
    samples = [Sample(request) for request in requests]
    for one, text in generate(lm, samples):
        if not text:
            write(json.dumps(record(lm, one), ensure_ascii=False) + "\n")
    refuse_unfinished(samples)


def refuse_unfinished(samples: Sequence[Sample]) -> None:
    """Raises WorkFailed if a text that was to have a form was cut off before it had it."""
    cut = sum(one.end != "stop" for one in samples
              if one.request.config.json_schema is not None or one.request.config.regex is not None)
    if cut:
        raise WorkFailed(f"{cut} of {len(samples)} texts were cut off before they were what "
                         "--json-schema or --regex asks for; raise --max-new-tokens")


def record(lm: LanguageModel, one: Sample) -> dict[str, Any]:
    """A text for other programs. Seconds count from the start, when all prompts were given."""
    return {"prompt": lm.tokenizer.decode(one.request.prompt), "completion": one.text,
            "prompt_tokens": list(one.request.prompt), "tokens": [new.token for new in one.made],
            "logprobs": [new.logprob if math.isfinite(new.logprob) else None for new in one.made],
            "end": one.end,
            "seed": one.request.config.seed,
            "first_token_seconds": one.first_seconds and round(one.first_seconds, 4),
            "seconds": round(one.seconds, 4)}


def closing_line(samples: Iterable[Sample]) -> str:
    """How many tokens, how fast, and why it ended."""
    samples = list(samples)
    count = sum(len(one.made) for one in samples)
    if not count:
        return "(no tokens)"
    seconds = max(one.seconds for one in samples)
    first = min(one.first_seconds for one in samples if one.first_seconds is not None)
    texts = f" in {len(samples)} texts" if len(samples) > 1 else ""
    ends = {one.end for one in samples if one.end is not None}
    why = f"; {ENDS[ends.pop()]}" if len(ends) == 1 else ""
    return (f"({count} tokens{texts}, {count / max(seconds, 1e-9):.0f} per second, the first after "
            f"{first:.2f} s{why})")


def write(text: str) -> None:
    """Text to standard output at once, whatever encoding the terminal has. Raises OSError once
    nobody reads it."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)
    raise_if_unread()
