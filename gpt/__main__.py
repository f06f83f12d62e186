"""python -m gpt VERB: what is done with runs and datasets besides training and sampling.

usage: python -m gpt evaluate RUN [--text FILE]   loss and bits per byte on the run's validation
                                                  split, or on a text of your own
       python -m gpt verify FOLDER                compare every file of a dataset, a run or a
                                                  checkpoint with its recorded SHA-256
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt import checkpoint
from gpt.batches.text import TokenizedText
from gpt.batches.windows import EvaluationWindows
from gpt.errors import EXIT_FAILED, UserError, run_command
from gpt.evaluate import evaluate
from gpt.language_model import LanguageModel, load
from gpt.runtime import choose_machine
from gpt.shards import Dataset, TokenStream, is_dataset, verify_dataset
from gpt.strict_yaml import load_file

BATCH_SIZE = 8


def main(argv: list[str]) -> None:
    """Find the verb and do it."""
    parser = argparse.ArgumentParser(prog="python -m gpt", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    evaluating = verbs.add_parser("evaluate")
    evaluating.add_argument("run", metavar="RUN")
    evaluating.add_argument("--text", metavar="FILE")
    verbs.add_parser("verify").add_argument("folder", metavar="FOLDER")
    options = parser.parse_args(argv)
    if options.verb == "verify":
        verify(Path(options.folder))
    else:
        evaluate_run(options.run, options.text)


def evaluate_run(run: str, text: str | None) -> None:
    """Print a run's score, and which weights it belongs to."""
    path = checkpoint.find(run)
    lm = load(str(path), dtype="float32")  # and products as in training: see Machine.autocast
    data = _data_section(path)
    tokens = _text(lm, Path(text)) if text else _validation_split(lm, path, data)
    windows = EvaluationWindows(tokens, lm.model.config.block_size, BATCH_SIZE,
                                isolate=data.get("isolate_documents", False))
    score = evaluate(lm.model, windows, torch.from_numpy(lm.tokenizer.byte_lengths()),
                     choose_machine())
    print(f"{path}: weights {checkpoint.weight_hash(path)[:16]}")
    print(f"{score.loss:.4f} nats per token, {score.bits_per_byte:.4f} bits per byte, over "
          f"{score.tokens:,} tokens")


def _data_section(path: Path) -> dict[str, Any]:
    """What the run of a checkpoint was configured to read; empty if that is not known."""
    config = path.parent.parent / "config.yaml"
    values = load_file(config).values if config.is_file() else {}
    section: dict[str, Any] = values.get("data", {})
    return section


def _text(lm: LanguageModel, file: Path) -> TokenizedText:
    try:
        tokens = lm.tokenizer.encode_bytes(file.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if not tokens:
        raise UserError(f"{file} is empty: there is nothing to score")
    return TokenizedText(TokenStream([np.asarray(tokens)]), lm.tokenizer.vocab_size,
                         lm.tokenizer.end_of_text, str(file))


def _validation_split(lm: LanguageModel, path: Path, data: dict[str, Any]) -> TokenizedText:
    name = data.get("dataset", "")
    folder = Path(name)
    if folder.suffix in (".yaml", ".yml") and folder.is_file():
        folder = Path(load_file(folder).values.get("out", f"data/{folder.stem}"))
    if not is_dataset(folder):
        raise UserError(f"{path}: its dataset ({name or 'none'}) is not here; give --text FILE")
    dataset = Dataset(folder)
    if dataset.tokenizer.fingerprint != lm.tokenizer.fingerprint:
        raise UserError(f"{folder} was made with another tokenizer than {path}; give --text FILE")
    return TokenizedText.validation(dataset)


def verify(folder: Path) -> None:
    """Say whether all files are what they were; exit code 1 if not."""
    if is_dataset(folder):
        found = {str(folder): verify_dataset(folder)}
    elif (folder / "manifest.json").is_file():
        found = {str(folder): checkpoint.damage(folder)}
    else:
        found = {str(path): checkpoint.damage(path)
                 for path in checkpoint.steps_in(folder / "checkpoints").values()}
    if not found:
        raise UserError(f"{folder} is no dataset, run or checkpoint")
    for name, problems in found.items():
        print(f"{name}: {'sound' if not problems else '; '.join(problems)}")
    if any(found.values()):
        raise SystemExit(EXIT_FAILED)


if __name__ == "__main__":
    run_command(main)
