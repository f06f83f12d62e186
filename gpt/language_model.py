"""A model with its tokenizer and machine: text in, text out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, overload

import torch
from pydantic import ValidationError

from gpt.batches import MicroBatch
from gpt.errors import UserError
from gpt.evaluate import token_losses
from gpt.finetuning.chat import saved_format
from gpt.generation.engine import ContextFull, Generation, generate_tokens
from gpt.generation.sampling import SamplingConfig
from gpt.generation.text import stream_text
from gpt.model import GPT
from gpt.runtime import Machine, choose_machine
from gpt.saved_model import SavedModel, find_model
from gpt.tokenizer import Tokenizer


class LanguageModel:
    """What `gpt.load` returns: `model` (an nn.Module), `tokenizer`, and three verbs."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, machine: Machine):
        self.model, self.tokenizer, self.machine = model, tokenizer, machine
        texts = {*tokenizer.text_ids, *tokenizer.stop_tokens}
        form = saved_format(tokenizer)
        self._both_ways = form is not None and form.prefix == "bidirectional"
        self._never = torch.tensor(  # padding of the vocabulary, and control tokens
            [i for i in range(model.output_weight.size(0)) if i not in texts], dtype=torch.int64)

    @overload
    def generate(self, prompt: str, **settings: Any) -> str: ...
    @overload
    def generate(self, prompt: list[str], **settings: Any) -> list[str]: ...
    def generate(self, prompt: str | list[str], **settings: Any) -> str | list[str]:
        """The text that follows a prompt, or each of several; settings as in SamplingConfig.

        A prompt's result depends on itself and the settings, not on the others in the list.
        """
        if isinstance(prompt, list):
            return [self.generate(one, **settings) for one in prompt]
        return "".join(self.stream(prompt, **settings))

    def stream(self, prompt: str, **settings: Any) -> Iterator[str]:
        """`generate`, piece by piece as it appears; multi-byte characters are never broken."""
        config = sampling_config(**settings)
        return self.stream_from(self.prompt_tokens(prompt), config)

    def stream_from(self, prompt: list[int], config: SamplingConfig,
                    on_token: Callable[[Generation], None] | None = None) -> Iterator[str]:
        """Text that follows a prompt of token ids; on_token hears of every token behind it."""
        return stream_text(self._token_bytes(prompt, config, on_token), config.stop)

    def _token_bytes(self, prompt: list[int], config: SamplingConfig,
                     on_token: Callable[[Generation], None] | None) -> Iterator[bytes]:
        try:
            for new in generate_tokens(self.model, prompt, config, self.machine,
                                       self.tokenizer.stop_tokens, self._never,
                                       self._both_ways):
                if on_token is not None:
                    on_token(new)
                if new.token in self.tokenizer.stop_tokens:
                    return
                yield self.tokenizer.decode_bytes([new.token])
        except ContextFull:
            print(f"(the context of {self.model.config.block_size} tokens is full; slide=True, or "
                  "--slide, goes on from its last half)", file=sys.stderr)

    def answer(self, prompt: list[int], max_new_tokens: int) -> tuple[str, bool]:
        """(what the model writes after a prompt of token ids, whether it came to an end); the
        likeliest token each time."""
        made: list[Generation] = []
        config = SamplingConfig(temperature=0.0, max_new_tokens=max_new_tokens)
        text = "".join(self.stream_from(prompt, config, made.append))
        return text, bool(made) and made[-1].token in self.tokenizer.stop_tokens

    def prompt_tokens(self, prompt: str | bytes) -> list[int]:
        """Token ids of a prompt, as `Tokenizer.encode_prompt` gives them."""
        return self.tokenizer.encode_prompt(prompt)

    @torch.inference_mode()
    def score(self, text: str) -> list[float]:
        """Log-probability (natural) of each token of a text, as long as `tokenizer.encode(text)`.

        Texts longer than the context are scored in windows of block_size tokens, each of which sees
        the token before it and nothing earlier; the first token follows begin-of-text, or
        end-of-text where the tokenizer has none.
        """
        tokens = self.tokenizer.encode(text)
        begin = self.tokenizer.begin_of_text
        inputs = [self.tokenizer.end_of_text if begin is None else begin, *tokens[:-1]]
        scores: list[float] = []
        for start in range(0, len(tokens), self.model.config.block_size):
            stop = min(start + self.model.config.block_size, len(tokens))
            with self.machine.autocast():
                losses = token_losses(self.model, MicroBatch(
                    torch.tensor([inputs[start:stop]], device=self.machine.device),
                    torch.tensor([tokens[start:stop]], device=self.machine.device), stop - start))
            scores += (-losses[0]).tolist()
        return scores


def load(run: str, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """Open a run folder (its newest sound checkpoint), one checkpoint folder, a Hugging Face folder
    (GPT-2, Llama, Mistral, Qwen3), or the name of one on the Hugging Face Hub.

    device: auto, cpu, cuda, mps. dtype: auto, float32, bfloat16, float16.
    Raises UserError (a ValueError) if there is none, if its files are damaged, or if it has options
    that this toolkit does not have.
    """
    return opened(find_model(str(run)), device, dtype)


def opened(saved: SavedModel, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """`load` for a model that has been found, and verified, already."""
    machine = choose_machine(device, dtype)
    tokenizer = saved.tokenizer()
    return LanguageModel(saved.model(machine.dtype).to(machine.device), tokenizer, machine)


def sampling_config(**settings: Any) -> SamplingConfig:
    """Validated settings; `stop` may be one text. Raises UserError naming the wrong one."""
    if isinstance(settings.get("stop"), str):
        settings["stop"] = [settings["stop"]]
    try:
        return SamplingConfig(**settings)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"][:1]))
        if problem["type"] == "extra_forbidden":
            known = ", ".join(SamplingConfig.model_fields)
            raise UserError(f"there is no setting {name}; choose from {known}") from error
        message = problem["msg"].removeprefix("Value error, ").lower()
        raise UserError(f"{name}: {message} (given: {problem['input']!r})") from error
