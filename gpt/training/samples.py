"""Texts that a model writes while it learns, to look at."""

from __future__ import annotations

from collections.abc import Callable

from gpt.configuration import LogConfig, SamplingConfig
from gpt.errors import UserError
from gpt.language_model import LanguageModel

SAMPLE_TOKENS = 128


def refuse_long_prompts(log: LogConfig, tokens_of: Callable[[str], list[int]], limit: int) -> None:
    """Raise UserError if there is a prompt that the model cannot read."""
    for prompt in log.sample_prompts if log.samples_every_steps else ():
        if (length := len(tokens_of(prompt))) > limit:
            raise UserError(f"log.sample_prompts: a prompt has {length} tokens, the model reads "
                            f"{limit} (model.block_size); shorten it")


def sampler(lm: LanguageModel, prompt_tokens: Callable[[str], list[int]] | None
            ) -> Callable[[str], str]:
    """Text that the model in training would write after a prompt.

    prompt_tokens: how samples are asked for; None: as plain text.
    """
    def sample(prompt: str) -> str:
        tokens = (prompt_tokens or lm.prompt_tokens)(prompt)
        room = max(0, min(SAMPLE_TOKENS, lm.model.config.block_size - len(tokens)))
        lm.model.eval()
        config = SamplingConfig(max_new_tokens=room, temperature=0.8, top_k=50, seed=0)
        text = "".join(piece.text for _, piece in lm.write([lm.request(tokens, config)]))
        lm.model.train()
        return text

    return sample
