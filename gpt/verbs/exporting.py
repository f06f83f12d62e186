"""python -m gpt export: a run becomes a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from gpt.chat import saved_format
from gpt.errors import UserError
from gpt.interop.gguf.writing import DTYPES as GGUF_DTYPES
from gpt.interop.gguf.writing import export_gguf
from gpt.interop.model_card import about_checkpoint
from gpt.interop.new_folder import refuse_what_is_there
from gpt.interop.peft.writing import export_peft
from gpt.interop.writing import MAX_SHARD_BYTES, export_huggingface
from gpt.machine.device import DTYPES
from gpt.runs import checkpoint
from gpt.runs.saved_model import SavedModel, find_model
from gpt.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, OUT and the format."""
    parser.add_argument("run", metavar="RUN",
                        help="run folder, checkpoint, Hugging Face folder or GGUF file")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument("--format", choices=("hf", "gguf", "peft"), required=True,
                        help="hf: for transformers, vLLM, lm-eval; gguf: for llama.cpp and Ollama; "
                             "peft: a run's adapters alone, for PEFT")
    parser.add_argument("--base", metavar="NAME",
                        help="for --format peft: the Hugging Face folder or name of the model that "
                             "the adapters change")
    parser.add_argument("--dtype", choices=GGUF_DTYPES, default="float32",
                        help="how weights are stored; q8_0 and q4_0 (8 and 4 bits) in GGUF alone; "
                             "default float32")
    parser.add_argument("--licence", "--license", metavar="ID",
                        help="for the model card, an SPDX identifier such as apache-2.0")
    parser.add_argument("--max-shard-gb", type=float, metavar="X",
                        help="largest safetensors file, in 10^9 bytes; default "
                             f"{MAX_SHARD_BYTES / 1e9:g}")


def run(options: argparse.Namespace) -> None:
    """Read, write, prove."""
    out = Path(options.out)
    refuse_what_is_there(out)
    max_shard_bytes = _check(options)
    saved = find_model(options.run)
    about = about_checkpoint(saved.path, options.licence)
    if options.format == "peft":
        print(f"{out}: {export_adapters(saved, out, options.base)}")
        return
    model, tokenizer = saved.model(), saved.tokenizer()
    _refuse_other_attention(tokenizer)
    if options.format == "hf":
        proof = export_huggingface(model, tokenizer, out, about, DTYPES[options.dtype],
                                   max_shard_bytes)
    else:
        proof = export_gguf(model, tokenizer, out, about, options.dtype)
    print(f"{out}: {proof}")


def export_adapters(saved: SavedModel, out: Path, base: str | None) -> str:
    """A run's adapters as PEFT's folder."""
    model = saved.adapted_model()
    if model is None:
        raise UserError(f"{saved.path} has no adapters: it was not trained with "
                        "finetune.method=lora or dora; export the whole model with --format hf")
    if base is None:
        folder = checkpoint.base_folder(saved.path.parent.parent)
        raise UserError("PEFT has to find the model that the adapters change: export it with "
                        f"python -m gpt export {folder} FOLDER --format hf, then give --base "
                        "FOLDER, or its name on the Hub")
    tokenizer = saved.tokenizer()
    _refuse_other_attention(tokenizer)
    return export_peft(model, tokenizer, out, base)


def _refuse_other_attention(tokenizer: Tokenizer) -> None:
    form = saved_format(tokenizer)
    if form is not None and form.prefix == "bidirectional":
        raise UserError("the model reads prompts in both directions (finetune.prefix), which no "
                        "other tool can express; it cannot be exported")


def _check(options: argparse.Namespace) -> int:
    """What belongs to another format is refused; returns the largest size of a file."""
    if options.base is not None and options.format != "peft":
        raise UserError("--base is for --format peft")
    if options.format == "peft" and (options.dtype != "float32" or options.licence
                                     or options.max_shard_gb is not None):
        raise UserError("--dtype, --licence and --max-shard-gb are for whole models: adapters are "
                        "one small file in float32")
    if options.format == "hf" and options.dtype not in DTYPES:
        raise UserError(f"--dtype {options.dtype} is for --format gguf; choose {', '.join(DTYPES)}")
    if options.max_shard_gb is None:
        return MAX_SHARD_BYTES
    if options.format == "gguf":
        raise UserError("--max-shard-gb is for --format hf: a GGUF file is always one")
    if not 0 < options.max_shard_gb < math.inf:
        raise UserError(f"--max-shard-gb must be a number above 0, not {options.max_shard_gb:g}")
    return int(options.max_shard_gb * 1e9)
