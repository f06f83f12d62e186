"""The models that are served, by name, and how texts of each are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from gpt.chat import Message, converses, own_chat
from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.generation import Request, Writer
from gpt.language_model import LanguageModel, opened_together
from gpt.machine.hardware import memory_bytes
from gpt.model import cache_bytes
from gpt.runs.saved_model import find_model

REMEMBERED = 4  # contexts' worth of prompts whose keys and values are kept, per model


@dataclass(frozen=True)
class Limits:
    """What one server may take: texts at once and waiting, tokens of a text with its prompt."""

    rows: int = 16
    max_queue: int = 64
    max_tokens: int = 8192


class Served:
    """A model under a name. writer: what continues its texts. run: what names it on disk.
    checkpoint: which of the run's it is. watched: whether newer ones take its place."""

    def __init__(self, name: str, lm: LanguageModel, limits: Limits, run: str = "",
                 checkpoint: str = "", watched: bool = False,
                 taken: dict[int, int] | None = None):
        self.name, self.limits = name, limits
        self.run, self.checkpoint, self.watched = run, checkpoint, watched
        self.context = min(lm.block_size, limits.max_tokens)
        self._chat = own_chat(lm.tokenizer) if converses(lm.tokenizer) else None
        self.lm = lm.with_tokenizer(self._chat.tokenizer) if self._chat else lm
        self.kept_bytes = self._kept_bytes({} if taken is None else taken)
        self.writer = self.lm.writer(limits.rows, self.context, in_turns=True,
                                     remember=REMEMBERED * self.context)

    def _kept_bytes(self, taken: dict[int, int]) -> int:
        """Of keys and values, at most. Raises UserError if the device has no room for them beside
        all weights and what other models keep: `taken`, which this adds to."""
        tokens = (self.limits.rows + REMEMBERED) * self.context
        needed = tokens * cache_bytes(self.lm.model.config, self.lm.machine.dtype)
        self._weigh(taken)
        there, beside = memory_bytes(self.lm.machine.device), sum(taken.values())
        if beside + needed > there:
            raise UserError(
                f"{self.name}: keys and values of {self.limits.rows} texts of {self.context:,} "
                f"tokens, and of prompts that are remembered, take up to {needed / 2**30:.1f} GiB "
                f"beside {beside / 2**30:.1f} of weights and other models, and the device has "
                f"{there / 2**30:.1f}; give smaller --max-tokens or --rows")
        taken[id(self)] = needed
        return needed

    def _weigh(self, taken: dict[int, int]) -> None:
        taken.update({each.data_ptr(): each.nbytes for each in self.lm.model.parameters()})

    def take(self, taken: dict[int, int]) -> None:
        """Add the bytes of weights, which others may share, and of keys and values."""
        self._weigh(taken)
        taken[id(self)] = self.kept_bytes

    @cached_property
    def scorer(self) -> Writer:
        """The same in float32, for what is to be scored; the same one, where that is what
        generates."""
        exact = self.lm.measured()
        return self.writer if exact is self.lm else exact.writer(
            self.limits.rows, self.context, in_turns=True)

    @property
    def converses(self) -> bool:
        """Whether it has a chat format."""
        return self._chat is not None

    @cached_property
    def _most_bytes(self) -> int:
        """Of a text that may fit: as many of the longest token as there is room for. Four times
        that, as some tokenizers shorten texts first."""
        tokenizer = self.lm.tokenizer
        return 4 * self.context * max(len(tokenizer.decode_bytes([i]))
                                      for i in tokenizer.text_ids)

    def _refuse_if_long(self, text: str) -> None:
        """Before it is made tokens of, which takes seconds for millions of characters."""
        if len(text) > self._most_bytes:
            raise UserError(f"the prompt has {len(text):,} characters; this server reads "
                            f"{self.context} tokens, prompt and answer together")

    def prompt(self, text: str | Sequence[int] | None) -> list[int]:
        """Token ids of a prompt; ids are taken as they are."""
        if text is None or isinstance(text, str):
            self._refuse_if_long(text or "")
            return self.lm.prompt_tokens(text or "")
        vocab_size = self.lm.model.vocab_size
        if wrong := [i for i in text if not 0 <= i < vocab_size]:
            raise UserError(f"prompt: there is no token {wrong[0]}; ids lie in 0 to "
                            f"{vocab_size - 1}")
        return list(text) or self.lm.prompt_tokens("")

    def asked(self, messages: Sequence[tuple[str, str]],
              options: Mapping[str, Any] = MappingProxyType({})) -> tuple[list[int], int]:
        """(token ids of a conversation, how many of them its first answer comes after).

        messages: (role, text) each. options: what the model's template is told. Raises UserError
        if the model has no chat format, or one that knows no such options.
        """
        if self._chat is None:
            raise UserError(
                f"the model {self.name} does not converse: it was not trained on conversations, or "
                "its folder has neither a chat template nor a chat_format.json; ask "
                "/v1/completions")
        self._refuse_if_long("".join(text for _, text in messages))
        turns = self._chat.speakable(
            [Message("system" if role == "developer" else role, text) for role, text in messages],
            options, "chat_template_kwargs")
        tokens = self._chat.prompt(turns, options)
        if not self._chat.reads_both_ways:
            return tokens, len(tokens)
        first = next((i for i, turn in enumerate(turns) if turn.role == "assistant"), len(turns))
        return tokens, len(self._chat.prompt(turns[:first]))

    def request(self, prompt: Sequence[int], config: SamplingConfig, prefix: int | None = None,
                **asks: Any) -> Request:
        """What an engine is asked for; asks: as in Request. Raises UserError for a prompt that is
        too long."""
        if len(prompt) > self.context:
            raise UserError(f"the prompt has {len(prompt)} tokens; this server reads "
                            f"{self.context}, prompt and answer together")
        return self.lm.request(prompt, config, prefix, **asks)


class Opening(NamedTuple):
    """How models are opened, as sample.py has it."""

    device: str = "auto"
    dtype: str = "auto"
    draft: str | None = None


def serve_models(specs: Sequence[str], limits: Limits, how: Opening) -> dict[str, Served]:
    """The models that RUN or NAME=RUN name. Raises UserError."""
    runs: dict[str, str] = {}
    for spec in specs:
        name, equals, run = spec.partition("=")
        name, run = (name, run) if equals else (Path(spec.partition("@")[0]).name or spec, spec)
        if name in runs:
            raise UserError(f"two models are to be called {name}; give names: NAME=RUN")
        runs[name] = run
    saved = {name: find_model(run) for name, run in runs.items()}
    taken: dict[int, int] = {}
    return {name: Served(name, lm, limits, runs[name], saved[name].path.name, taken=taken)
            for name, lm in opened_together(saved, *how).items()}
