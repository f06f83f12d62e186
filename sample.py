"""Generate text from a trained run.

usage: python sample.py RUN [--prompt TEXT | --prompt-file FILE | --prompts FILE | --chat] [options]

RUN is a run folder (its newest sound checkpoint, or RUN@best, RUN@newest, RUN@step-N), one
checkpoint folder, a Hugging Face folder, the name of one on its Hub, or a GGUF file. Without a
prompt, text piped into standard input is continued; without that, the start of a document.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpt.errors import run_command

if TYPE_CHECKING:
    from gpt.generation import Request
    from gpt.language_model import LanguageModel


def main(argv: list[str]) -> None:
    """Parse, load, generate."""
    from gpt.terminal.options import parse, read_prompts

    options = parse(argv, __doc__)
    # Importing torch takes longer than all before this line: help and mistakes do without it.
    from gpt.chat import converses
    from gpt.language_model import Over, load
    from gpt.machine.ranks import joined
    from gpt.terminal.chat import converse
    from gpt.terminal.show import show, show_json

    with joined(options.device) as ranks:
        prompts = [] if options.chat else ranks.first(lambda: read_prompts(options), patiently=True)
        lm = load(options.run, options.device, options.dtype, options.draft,
                  Over(ranks, options.parallel))
        if prompts and converses(lm.tokenizer):
            print("(this model was trained on conversations; --chat asks it in their format)",
                  file=sys.stderr)
        if options.chat:
            converse(lm, options.config, options.system)
        elif options.json:
            show_json(lm, list(requests(lm, prompts, options)))
        else:
            show(lm, list(requests(lm, prompts, options)), options.logprobs)


def requests(lm: LanguageModel, prompts: Sequence[str | bytes], options: argparse.Namespace
             ) -> Iterator[Request]:
    """Each prompt as often as samples are asked for, every sample with a seed of its own."""
    for prompt in prompts:
        tokens = lm.prompt_tokens(prompt, options.config.begin)
        for number in range(options.num_samples):
            seed = None if options.config.seed is None else options.config.seed + number
            yield lm.request(tokens, options.config.model_copy(update={"seed": seed}))


if __name__ == "__main__":
    run_command(main)
