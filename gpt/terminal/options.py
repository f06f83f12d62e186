"""The command line of sample.py."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.configuration import WAYS, SamplingConfig, sampling_config
from gpt.errors import OneLineParser, UserError

_WHOLE = ("max_new_tokens", "min_new_tokens", "top_k", "beams", "seed")
_IDS = ("banned_tokens", "forced_tokens")


def parse(argv: list[str], description: str | None) -> argparse.Namespace:
    """All options; `config` is the SamplingConfig. Raises UserError."""
    parser = OneLineParser(prog="sample.py", description=description, allow_abbrev=False,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN",
                        help="run folder, checkpoint folder, Hugging Face folder or name")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="text to continue")
    prompts.add_argument("--prompt-file", metavar="FILE", help="file with the text; - is stdin")
    prompts.add_argument("--prompts", metavar="FILE",
                         help='many at once: a prompt per line or, in .jsonl, per {"prompt": …}')
    prompts.add_argument("--chat", action="store_true", help="a conversation, turn by turn")
    parser.add_argument("--system", metavar="TEXT", help="what a conversation begins with")
    for name, field in SamplingConfig.model_fields.items():
        parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS,
                            help=field.description, **_settings(name))
    parser.add_argument("--num-samples", type=int, default=1, metavar="N",
                        help="texts for each prompt; with --seed S they use S, S + 1, …")
    parser.add_argument("--draft", metavar="RUN",
                        help="guess tokens ahead, which changes none: a smaller model with the "
                             "same tokenizer, or prompt: what followed the same words before")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", default="auto",
                        help="auto, float32, bfloat16, float16 or int8 (weights alone)")
    parser.add_argument("--parallel", default="auto", choices=WAYS,
                        help="how the processes of a launcher hold the model: auto, replicate, "
                             "shard or tensor (docs/scale.md)")
    parser.add_argument("--logprobs", action="store_true",
                        help="list each token's log-probability below the text (--json always "
                             "has them)")
    parser.add_argument("--json", action="store_true", help="one JSON object per text")
    return _checked(parser.parse_args(argv))


def _settings(name: str) -> dict[str, Any]:
    """How a field of SamplingConfig is read."""
    if SamplingConfig.model_fields[name].annotation is bool:
        return {"action": "store_true"}
    if name == "stop":
        return {"action": "extend", "nargs": "+", "metavar": "TEXT"}
    if name == "logit_bias":
        return {"action": "extend", "nargs": "+", "metavar": "ID=X", "type": _bias}
    if name in _IDS:
        return {"action": "extend", "nargs": "+", "metavar": "ID", "type": int}
    if name in ("json_schema", "regex"):
        return {"metavar": "SCHEMA" if name == "json_schema" else "PATTERN"}
    whole = name in _WHOLE
    return {"type": int if whole else float, "metavar": "N" if whole else "X"}


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give ID=X, such as 42=-1.5") from error


def _checked(options: argparse.Namespace) -> argparse.Namespace:
    settings = {name: value for name, value in vars(options).items()
                if name in SamplingConfig.model_fields}
    settings["logit_bias"] = dict(settings.get("logit_bias", []))
    schema = settings.get("json_schema")
    if schema is not None and not (schema.lstrip().startswith("{")
                                   or schema.strip() in ("true", "false")):
        settings["json_schema"] = read_file(schema, "the schema").decode("utf-8", "replace")
    options.config = sampling_config(**settings)
    if options.num_samples < 1:
        raise UserError(f"--num-samples must be at least 1, not {options.num_samples}")
    if options.system is not None and not options.chat:
        raise UserError("--system is for --chat; put the text before the prompt")
    if options.config.begin and options.chat:
        raise UserError("--begin is not for --chat, whose format says how a conversation begins")
    several = options.num_samples > 1
    for name, given in (("json", options.json), ("logprobs", options.logprobs),
                        ("num-samples", several)):
        if options.chat and given:
            raise UserError(f"--{name} is not for --chat")
    for name, given in (("draft", options.draft is not None), ("num-samples", several)):
        if options.config.beams is not None and given:
            raise UserError(f"--{name} is not for --beams, which find one text, step by step")
    return options


def read_prompts(options: argparse.Namespace) -> list[str | bytes]:
    """The prompts from an argument, a file, or standard input (bytes: they need not be UTF-8)."""
    if options.prompt is not None:
        return [options.prompt]
    if options.prompts is not None:
        return list(_prompts_in(options.prompts))
    if options.prompt_file not in (None, "-"):
        return [read_file(options.prompt_file, "the prompt")]
    if options.prompt_file == "-" or not sys.stdin.isatty():
        return [sys.stdin.buffer.read()]
    return [""]


def _prompts_in(path: str) -> Iterator[str | bytes]:
    lines = read_file(path, "the prompts").splitlines()
    if not lines:
        raise UserError(f"{path} has no prompts: give one on each line")
    for number, line in enumerate(lines, 1):
        if not path.endswith(".jsonl"):
            yield line
            continue
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: give an object with a field prompt, such as "
                            '{"prompt": "The moon"}') from error
        if not isinstance(prompt, str):
            raise UserError(f"{path}, line {number}: prompt is to be a text, not {prompt!r}")
        yield prompt


def read_file(path: str, what: str) -> bytes:
    """Its bytes. Raises UserError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror}") from error
