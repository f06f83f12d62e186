"""What `make quickstart` learned, against compressors on the same validation bytes.

usage: python benchmarks/quickstart.py [--write]

Prints ours, gzip -9 and xz -9 in bits per byte, and the fine-tuning loss before and after; --write
also puts them into benchmarks/results/quickstart.json, with the hardware's name.
"""

from __future__ import annotations

import gzip
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.preparation import open_or_prepare
from gpt.errors import UserError, run_command
from gpt.files import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "quickstart.json"


def main(argv: list[str]) -> None:
    """Compare and write down."""
    run, tuned = Path("runs/quickstart"), Path("runs/quickstart-docstrings")
    config = yaml.safe_load((run / "config.yaml").read_text())
    text = validation_bytes(config["data"]["dataset"])
    pretraining, finetuning = metrics(run), metrics(tuned)
    environment = read_json(run / "environment.json")
    result = {
        "hardware": environment["hardware"],
        "validation_bytes": len(text),
        "bits_per_byte": {"ours": evaluations(pretraining)[-1]["val_bits_per_byte"],
                          "gzip -9": compressed_bits(gzip.compress(text, 9), text),
                          "xz -9": compressed_bits(lzma.compress(text, preset=9), text)},
        "pretraining": summary(pretraining),
        "finetuning": summary(finetuning) | {
            "loss_before": evaluations(finetuning)[0]["val_loss"],
            "loss_after": evaluations(finetuning)[-1]["val_loss"]}}
    report(result)
    if "--write" in argv:
        RESULTS.parent.mkdir(exist_ok=True)
        write_json(RESULTS, result)


def validation_bytes(dataset: str) -> bytes:
    """The text of the validation split, from its tokens."""
    opened = open_or_prepare(dataset)
    return opened.tokenizer.decode_bytes(
        token for token in opened.val.read(0, len(opened.val)).tolist()
        if token != opened.tokenizer.end_of_text)


def compressed_bits(compressed: bytes, text: bytes) -> float:
    """Bits that a compressor needs per byte of text."""
    return 8 * len(compressed) / len(text)


def metrics(run: Path) -> list[dict[str, Any]]:
    """A run's metrics.jsonl. Raises UserError if it is not complete."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not lines or lines[-1]["event"] != "end":
        raise UserError(f"{run} is not a finished run; make quickstart trains it")
    return lines


def evaluations(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations of a run, in order."""
    return [line for line in lines if line["event"] == "eval"]


def summary(lines: list[dict[str, Any]]) -> dict[str, float]:
    """How long, how much, how fast."""
    train, end = [line for line in lines if line["event"] == "train"], lines[-1]
    rates = sorted(line["tokens_per_second"] for line in train)
    return {"steps": end["step"], "tokens": end["tokens"],
            "minutes": round(end["elapsed_seconds"] / 60, 2),
            "median_tokens_per_second": round(rates[len(rates) // 2]),
            "median_utilisation": sorted(line["mfu"] for line in train)[len(train) // 2]}


def report(result: dict[str, Any]) -> None:
    """One line per figure."""
    print(f"hardware                      {result['hardware']}")
    ours = result["bits_per_byte"]["ours"]
    for name, bits in result["bits_per_byte"].items():
        print(f"validation bits per byte      {bits:.3f}  {name:8} "
              f"(ours / this: {ours / bits:.3f})")
    tuned = result["finetuning"]
    print(f"fine-tuning loss, held out    {tuned['loss_before']:.3f} before, "
          f"{tuned['loss_after']:.3f} after")


if __name__ == "__main__":
    run_command(main)
