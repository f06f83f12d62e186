"""Generate text from a trained run.

usage: python sample.py RUN [--prompt TEXT | --prompt-file FILE] [options]

RUN is a run folder (its newest sound checkpoint), one checkpoint folder, a Hugging Face folder, or
the name of one on its Hub. Without a prompt, text piped into standard input is continued; without
that, the start of a document.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from gpt.errors import OneLineParser, UserError, run_command
from gpt.generation import Generation, SamplingConfig
from gpt.language_model import LanguageModel, load, sampling_config


def main(argv: list[str]) -> None:
    """Parse, load, generate."""
    options = parse(argv)
    config = sampling_config(**{name: getattr(options, name)
                                for name in SamplingConfig.model_fields})
    prompt = read_prompt(options)
    lm = load(options.run, options.device, options.dtype)
    tokens = lm.prompt_tokens(prompt)
    for number in range(options.num_samples):
        seed = None if config.seed is None else config.seed + number
        one = config.model_copy(update={"seed": seed})
        if options.json:
            print(json.dumps(as_record(lm, tokens, one, options), ensure_ascii=False), flush=True)
        else:
            if number:
                print("---------------")
            show(lm, tokens, one, options.logprobs)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; options of SamplingConfig take its descriptions and defaults."""
    parser = OneLineParser(prog="sample.py", description=__doc__, allow_abbrev=False,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN",
                        help="run folder, checkpoint folder, Hugging Face folder or name")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", help="text to continue")
    prompts.add_argument("--prompt-file", metavar="FILE", help="file with the text; - is stdin")
    for name, field in SamplingConfig.model_fields.items():
        settings: dict[str, Any] = {"help": field.description, "default": field.default}
        if name == "slide":
            settings["action"] = "store_true"
        elif name == "stop":
            settings |= {"action": "extend", "nargs": "+", "metavar": "TEXT"}
        else:
            whole = name in ("max_new_tokens", "top_k", "seed")
            settings |= {"type": int if whole else float, "metavar": "N" if whole else "X"}
        parser.add_argument("--" + name.replace("_", "-"), **settings)
    parser.add_argument("--num-samples", type=int, default=1, metavar="N",
                        help="texts to generate; with --seed S they use S, S + 1, …")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--logprobs", action="store_true",
                        help="also give each token's log-probability")
    parser.add_argument("--json", action="store_true", help="one JSON object per sample")
    options = parser.parse_args(argv)
    if options.num_samples < 1:
        raise UserError(f"--num-samples must be at least 1, not {options.num_samples}")
    return options


def read_prompt(options: argparse.Namespace) -> str | bytes:
    """The prompt from its argument, a file, or standard input (bytes: they need not be UTF-8)."""
    if options.prompt is not None:
        return str(options.prompt)
    if options.prompt_file not in (None, "-"):
        try:
            return Path(options.prompt_file).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the prompt {options.prompt_file}: "
                            f"{error.strerror}") from error
    if options.prompt_file == "-" or not sys.stdin.isatty():
        return sys.stdin.buffer.read()
    return ""


def show(lm: LanguageModel, prompt: list[int], config: SamplingConfig, logprobs: bool) -> None:
    """Print prompt and continuation as it grows, then speed on standard error."""
    made: list[Generation] = []
    start = time.monotonic()
    if prompt != [lm.tokenizer.end_of_text]:
        write(lm.tokenizer.decode(prompt))
    for text in lm.stream_from(prompt, config, made.append):
        write(text)
    write("\n")
    seconds = time.monotonic() - start
    for new in made if logprobs else ():
        write(f"{new.logprob:9.4f}  {lm.tokenizer.decode([new.token])!r}\n")
    print(f"({len(made)} tokens, {len(made) / seconds:.0f} per second)", file=sys.stderr)


def write(text: str) -> None:
    """Text to standard output at once, whatever encoding the terminal has."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)


def as_record(lm: LanguageModel, prompt: list[int], config: SamplingConfig,
              options: argparse.Namespace) -> dict[str, Any]:
    """One sample for other programs."""
    made: list[Generation] = []
    start = time.monotonic()
    completion = "".join(lm.stream_from(prompt, config, made.append))
    record = {"prompt": lm.tokenizer.decode(prompt), "completion": completion,
              "tokens": [new.token for new in made], "seed": config.seed,
              "seconds": round(time.monotonic() - start, 4)}
    return record | ({"logprobs": [new.logprob for new in made]} if options.logprobs else {})


if __name__ == "__main__":
    run_command(main)
