"""A model with its tokenizer and machine: text in, text out."""

from __future__ import annotations

import copy
import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, overload

import torch

from gpt.chat import saved_format
from gpt.configuration import SamplingConfig, sampling_config
from gpt.errors import UserError
from gpt.generation import (
    Draft,
    DraftModel,
    Engine,
    Piece,
    PromptLookup,
    Request,
    Writer,
    beam_search,
    grammars,
    pieces_of,
    room_for,
)
from gpt.inspection import Look, look_at
from gpt.machine.device import Machine, choose_machine
from gpt.machine.ranks import Ranks
from gpt.model import GPT
from gpt.model.int8 import quantize
from gpt.parallel import layout_of_weights
from gpt.runs.saved_model import SavedModel, find_model
from gpt.tokenizer import Tokenizer

ROWS = 16  # texts at a time: more need more memory, and bring a processor little
SCORED = 256  # tokens at a time: their scores of the whole vocabulary stand in memory


class LanguageModel:
    """What `gpt.load` returns: `model` (an nn.Module), `tokenizer`, and its verbs.

    draft: what guesses tokens ahead, which makes generation faster and changes no token. exact:
    reads the weights again in float32, where "auto" has rounded those of `model`: for scores.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, machine: Machine,
                 draft: Draft | None = None, exact: Callable[[], GPT] | None = None):
        self.model, self.tokenizer, self.machine, self.draft = model, tokenizer, machine, draft
        self._exact, self._as_loaded = exact, _versions(model) if exact else []
        form = saved_format(tokenizer)
        self.reads_both_ways = form is not None and form.prefix == "bidirectional"
        self._grammar = grammars(tokenizer)

    @property
    def block_size(self) -> int:
        """Tokens that the model reads at once."""
        return self.model.config.block_size

    def with_tokenizer(self, tokenizer: Tokenizer) -> LanguageModel:
        """The same model, read with other control tokens: to be used in place of this one."""
        return LanguageModel(self.model, tokenizer, self.machine, self.draft, self._exact)

    @overload
    def generate(self, prompt: str, **settings: Any) -> str: ...
    @overload
    def generate(self, prompt: list[str], **settings: Any) -> list[str]: ...
    def generate(self, prompt: str | list[str], **settings: Any) -> str | list[str]:
        """The text that follows a prompt, or each of several; settings as in SamplingConfig.

        A prompt's result depends on itself and the settings, not on the others in the list.
        """
        config = sampling_config(**settings)
        prompts = prompt if isinstance(prompt, list | tuple) else [prompt]
        texts = [""] * len(prompts)
        for index, piece in self.write([self.request(self.prompt_tokens(one, config.begin), config)
                                        for one in prompts]):
            texts[index] += piece.text
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str, **settings: Any) -> Iterator[str]:
        """`generate`, piece by piece as it appears; multi-byte characters are never broken."""
        config = sampling_config(**settings)
        request = self.request(self.prompt_tokens(prompt, config.begin), config)
        return (piece.text for _, piece in self.write([request]) if piece.text)

    def request(self, prompt: Sequence[int], config: SamplingConfig,
                prefix: int | None = None, **asks: Any) -> Request:
        """A prompt of token ids, read as the model was trained to read one.

        prefix: of a conversation, the tokens before its first answer; None: all. asks: as in
        Request.

        Processes that hold the model together draw alike, and so all have to ask.
        """
        if config.seed is None and config.temperature and self.machine.ranks.size > 1:
            seed = self.machine.ranks.first(lambda: secrets.randbelow(2**31))
            config = config.model_copy(update={"seed": seed})
        if prefix is None:
            prefix = len(prompt) - asks.get("written", 0)
        return Request(prompt, config, prefix if self.reads_both_ways else 0, **asks)

    def writer(self, rows: int, max_tokens: int | None = None, in_turns: bool = False,
               remember: int = 0) -> Writer:
        """What continues up to `rows` requests at a time, each up to max_tokens with its prompt.

        in_turns, remember: as in Engine.
        """
        engine = Engine(self.model, self.machine, self.tokenizer.stop_tokens, self.never,
                        rows=rows, max_tokens=max_tokens, grammar=self._grammar, draft=self.draft,
                        in_turns=in_turns, remember=remember)
        return Writer(engine, self.tokenizer)

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Piece]]:
        """(index of the request, its next piece of text), until all have ended.

        Raises UserError for a prompt that is longer than the context, or for a setting that cannot
        be fulfilled.
        """
        drawn = [i for i, request in enumerate(requests) if request.config.beams is None]
        rows = [requests[i] for i in drawn]
        if rows:
            writer = self.writer(min(ROWS, len(rows)),
                                 room_for(rows, self.block_size))
            for row, piece in writer.write(rows):
                yield drawn[row], piece
        for i in sorted(set(range(len(requests))) - set(drawn)):
            made = beam_search(self.model, requests[i], self.machine, self.tokenizer.stop_tokens,
                               self.never)
            for piece in pieces_of(made, requests[i].config, self.tokenizer):
                yield i, piece

    @cached_property
    def never(self) -> list[int]:
        """Ids that are not to be chosen: padding of the vocabulary, and control tokens."""
        texts = {*self.tokenizer.text_ids, *self.tokenizer.stop_tokens}
        return [i for i in range(self.model.vocab_size) if i not in texts]

    def answers(self, prompts: Sequence[Sequence[int]], most: Sequence[int]
                ) -> list[tuple[str, bool]]:
        """What the model writes after each prompt of token ids, the likeliest token each time, and
        whether it came to an end. most: how many tokens each may have.

        Replicas of the model answer some each.
        """
        return self.machine.replicas.dealt_out(list(zip(prompts, most, strict=True)),
                                               self._answers)

    def _answers(self, asked: Sequence[tuple[Sequence[int], int]]) -> list[tuple[str, bool]]:
        texts, ended = [""] * len(asked), [False] * len(asked)
        for index, piece in self.write([
                self.request(prompt, SamplingConfig(temperature=0.0, max_new_tokens=count))
                for prompt, count in asked]):
            self.machine.stop.raise_if_asked()
            texts[index] += piece.text
            ended[index] = piece.end == "stop"
        return list(zip(texts, ended, strict=True))

    def prompt_tokens(self, prompt: str | bytes, begin: bool = False) -> list[int]:
        """Token ids of a prompt, as `Tokenizer.encode_prompt` gives them."""
        if not isinstance(prompt, str | bytes):
            raise UserError(f"a prompt is a text, or one of a list of texts, not {prompt!r}")
        return self.tokenizer.encode_prompt(prompt, begin)

    @torch.inference_mode()
    def score(self, text: str, begin: bool = True) -> list[float]:
        """Log-probability (natural) of each token of a text, as long as `tokenizer.encode(text)`.

        Texts longer than the context are scored in windows of block_size tokens, each of which sees
        the token before it and nothing earlier. begin: the first token follows begin-of-text, or
        end-of-text where the tokenizer has none; `generate` with the same `begin` (there False
        unless it is given) reads the text the same way. Without it nothing says how likely the
        first token is, unless the tokenizer has a begin-of-text: it is nan. In float32, unless
        another number format was asked for: the same on every processor.
        """
        model, machine = self._measured
        inputs = self.prompt_tokens(text, begin)
        tokens = self.tokenizer.encode(text)
        scores = [math.nan] if len(inputs) == len(tokens) else []  # of what nothing predicts
        tokens, inputs = tokens[len(scores):], inputs[:-1]
        for start in range(0, len(tokens), self.block_size):
            window = slice(start, start + self.block_size)
            read = torch.tensor([inputs[window]], device=self.machine.device)
            targets = torch.tensor(tokens[window], device=self.machine.device)
            with machine.autocast():
                x = model.hidden(read)[0]
                for part, ids in zip(x.split(SCORED), targets.split(SCORED), strict=True):
                    logprobs = model.logits(part).float().log_softmax(dim=-1)
                    scores += logprobs.gather(1, ids.unsqueeze(1)).squeeze(1).tolist()
        return scores

    def look(self, text: str, begin: bool = False) -> Look:
        """What happens inside the model while it reads a text, in the numbers of `score`.

        begin: as in `generate`. Raises UserError for no text, a longer one than the context, and
        where several processes hold the model."""
        if self.machine.ranks.size > 1:
            raise UserError("look: one process looks into a model, not several; start one")
        if not text and not begin:
            raise UserError("look: there is nothing to read; give a text, or ask for `begin`")
        lm, tokens = self.measured(), self.prompt_tokens(text, begin)
        with lm.machine.autocast():
            return look_at(lm.model, lm.tokenizer, tokens, self.reads_both_ways)

    def measured(self) -> LanguageModel:
        """The model as scores are computed with it; itself, where that is the same."""
        if self._exact is None:
            return self
        model, machine = self._measured
        return LanguageModel(model, self.tokenizer, machine)

    @property
    def _measured(self) -> tuple[GPT, Machine]:
        """What scores are computed with: the model, but in float32 where "auto" rounded it."""
        if self._exact is None:
            return self.model, self.machine
        if _versions(self.model) != self._as_loaded:  # somebody changed it: as it is now
            return copy.deepcopy(self.model).float(), self.machine.measuring()
        return self._exact(), self.machine.measuring()


@dataclass(frozen=True)
class Over:
    """The processes that a model lies on: which, how (one of gpt.configuration.WAYS), and whether
    copies are of use, since each reads texts of its own."""

    ranks: Ranks = field(default_factory=Ranks)
    way: str = "auto"
    copies: bool = False


def load(run: str, device: str = "auto", dtype: str = "auto",
         draft: str | None = None, over: Over | None = None) -> LanguageModel:
    """Open a run folder (its newest sound checkpoint, of a run that eval.patience ended the best;
    RUN@newest, RUN@best, RUN@step-N choose), one checkpoint folder, a Hugging Face folder, the name
    of one on the Hugging Face Hub, or a GGUF file (docs/interop.md has the architectures).

    device: auto, cpu, cuda, mps. dtype: auto, float32, bfloat16, float16, or int8: matrices in 8
    bits, all else as in auto. auto is for generation: bfloat16 where the hardware computes in it;
    scores are in float32 all the same. draft: what guesses tokens ahead to save time: "prompt"
    (what followed the same words before), or a smaller model with the same tokenizer, named as
    `run` is.
    over: the processes that hold the model together; None: this one is alone.
    Raises UserError (a ValueError) if there is none, if its files are damaged, or if it has options
    that this toolkit does not have.
    """
    return opened(find_model(str(run)), device, dtype, draft, over)


def opened(saved: SavedModel, device: str = "auto", dtype: str = "auto",
           draft: str | None = None, over: Over | None = None) -> LanguageModel:
    """`load` for a model that has been found, and verified, already.

    over: the processes that hold it together; None: this one is alone.
    """
    over = over or Over()
    machine = choose_machine(device, "auto" if dtype == "int8" else dtype, over.ranks)
    tokenizer = saved.tokenizer()
    if dtype == "int8" and over.ranks.size > 1:
        raise UserError("dtype=int8 is for one process; give another one, or start one process")

    def read(used: Machine) -> GPT:
        model = saved.model(used.dtype)
        if dtype == "int8":
            quantize(model)
        layout_of_weights(over.way, model.config, used, over.copies).place(model)
        return model

    rounded = dtype in ("auto", "int8") and machine.dtype != torch.float32
    lm = LanguageModel(read(machine), tokenizer, machine,
                       exact=cache(partial(read, machine.measuring())) if rounded else None)
    if draft == "prompt":
        lm.draft = PromptLookup()
    elif draft is not None:
        smaller = opened(find_model(draft), device, dtype,
                         over=Over(over.ranks, "replicate"))
        if _ids_of(smaller.tokenizer) != _ids_of(tokenizer):
            raise UserError(f"draft={draft} has another tokenizer than {saved.path}; a draft needs "
                            "the same one")
        lm.draft = DraftModel(smaller.model, machine, smaller.never)
    return lm


def opened_together(models: Mapping[str, SavedModel], device: str = "auto", dtype: str = "auto",
                    draft: str | None = None) -> dict[str, LanguageModel]:
    """Several models by name. Adapters of one base share its weights, if several of them have it.
    """
    bases = {name: saved.base().weight_hash() for name, saved in models.items()}
    users = Counter(bases.values())
    shared: dict[str, LanguageModel] = {}
    found = {}
    for name, saved in models.items():
        if users[bases[name]] == 1 or dtype == "int8":
            found[name] = opened(saved, device, dtype, draft)
            continue
        if bases[name] not in shared:
            shared[bases[name]] = opened(saved.base(), device, dtype, draft)
        found[name] = _adapted(saved, shared[bases[name]])
    return found


def _adapted(saved: SavedModel, base: LanguageModel) -> LanguageModel:
    """A model whose adapters stand beside the weights of its base, which it shares."""
    model = saved.adapted_model(base.model)
    if model is None:
        return base
    exact = None if base.measured() is base else partial(saved.model, torch.float32)
    return LanguageModel(model.to(base.machine.device), saved.tokenizer(), base.machine,
                         base.draft, exact)


def _versions(model: GPT) -> list[tuple[int, int]]:
    """Which tensors a model has, and how often each was changed."""
    return [(id(tensor), tensor._version) for tensor in model.state_dict(keep_vars=True).values()]


def _ids_of(tokenizer: Tokenizer) -> dict[int, bytes | str]:
    """What each id stands for."""
    names = {i: name for name, i in tokenizer.specials.items()}
    return names | {i: tokenizer.decode_bytes([i]) for i in tokenizer.text_ids}
