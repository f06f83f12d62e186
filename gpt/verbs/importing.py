"""python -m gpt import: a model of another tool becomes a checkpoint of ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpt.errors import UserError
from gpt.interop import long_context
from gpt.interop.new_folder import refuse_what_is_there
from gpt.model import flops_per_token, parameter_count
from gpt.runs import checkpoint
from gpt.runs.saved_model import find_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCE, OUT, and how long a text it reads."""
    parser.add_argument("source", metavar="SOURCE",
                        help="a folder with config.json and safetensors, a GGUF file, or a name on "
                             "the Hugging Face Hub such as openai-community/gpt2")
    parser.add_argument("out", metavar="OUT", help="the checkpoint folder to write")
    parser.add_argument("--block-size", type=int, metavar="N",
                        help="longest text that it is to read, in tokens; default: as it was first "
                             "trained. More is for models with longrope (Phi-3, Phi-4-mini), which "
                             "then go by their long factors")


def run(options: argparse.Namespace) -> None:
    """Read, write, say what it is."""
    out = Path(options.out)
    refuse_what_is_there(out)
    saved = find_model(options.source)
    if saved.is_ours:
        raise UserError(f"{options.source} is a checkpoint of this toolkit already; it needs no "
                        "import")
    tokenizer = saved.tokenizer()
    model = saved.model()
    if options.block_size is not None:
        model = long_context.with_block_size(model, options.block_size)
    elif (most := long_context.longest(model.config)) > model.config.block_size:
        print(f"note: it reads {model.config.block_size:,} tokens, as it was first trained; "
              f"--block-size N, up to {most}, reads more, by its long factors", file=sys.stderr)
    checkpoint.save_model(out, model, tokenizer, imported_from=options.source)
    print(f"{out}: {parameter_count(model):,} parameters, {flops_per_token(model):,} FLOPs per "
          f"token, {tokenizer.vocab_size:,} token ids; sample from it with: python sample.py {out}")
