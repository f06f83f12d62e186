"""Tiny Shakespeare by characters: the default recipe on at most 600,000 training tokens.

usage: python benchmarks/shakespeare.py PATH/tinyshakespeare.txt

The shape is the field's usual CPU example (4 layers of width 128, context 64, batch 12); the public
reference reaches a validation loss of 1.8857 after 1.54 million tokens. Three seeds, whole
validation split (the last tenth); writes benchmarks/results/shakespeare.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpt.errors import UserError, run_command  # noqa: E402
from gpt.files import read_json, write_json  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "shakespeare.json"
REFERENCE_LOSS = 1.8857
SEEDS = (1337, 1, 2)


def main(argv: list[str]) -> None:
    """Prepare, train three times, report."""
    text = Path(argv[0]) if argv else ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
    if not text.is_file():
        raise UserError(f"{text} is not there; give the path of tinyshakespeare.txt")
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        run(folder, "data/prepare.py", text.resolve(), "tokenizer=char", "out=text")
        for seed in SEEDS:
            run(folder, "train.py", ROOT / "configs/shakespeare-char.yaml", "data.dataset=text",
                f"run.seed={seed}", f"run.name=seed-{seed}")
            lines = (Path(folder) / f"runs/seed-{seed}/metrics.jsonl").read_text().splitlines()
            last = [json.loads(line) for line in lines if '"eval"' in line][-1]
            losses.append(last["val_loss"])
            print(f"seed {seed:5}  {last['tokens']:,} tokens  {last['elapsed_seconds']:5.0f} s  "
                  f"validation loss {last['val_loss']:.4f}  (reference {REFERENCE_LOSS})")
        hardware = read_json(Path(folder) / f"runs/seed-{SEEDS[0]}/environment.json")["hardware"]
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, {"hardware": hardware, "tokens": last["tokens"],
                         "seconds": last["elapsed_seconds"],
                         "validation_loss": dict(zip(map(str, SEEDS), losses, strict=True)),
                         "reference": {"loss": REFERENCE_LOSS, "tokens": 1_536_000}})


def run(folder: str, script: str, *arguments: object) -> None:
    """Run one of the root scripts in a folder."""
    subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=folder,
                   check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    run_command(main)
