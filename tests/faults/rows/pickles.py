"""Row 6: hostile pickles wherever a file of ours, or one that we read, could be one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.faults.rows import hostile, runs
from tests.faults.tally import Tally
from tests.faults.warm import command

Words = tuple[object, ...]
OF_A_RUN: tuple[Words, ...] = (
    ("sample.py", "runs/run", "--max-new-tokens", 1), ("train.py", *runs.words("run", 4)),
    ("gpt", "evaluate", "runs/run"), ("gpt", "verify", "runs/run"),
    ("gpt", "export", "runs/run", "out", "--format", "hf"),
    ("finetune.py", *hostile.finetuning("tuned")), ("gpt", "report", "runs/run"), ("gpt", "runs"))
OF_ADAPTERS: tuple[Words, ...] = (
    ("sample.py", "runs/adapted", "--max-new-tokens", 1),
    ("gpt", "export", "runs/adapted", "out", "--format", "hf"),
    ("finetune.py", *hostile.finetuning("adapted"), "finetune.method=lora", "train.epochs=2"))
OF_PEFT: tuple[Words, ...] = (("sample.py", "peft", "--max-new-tokens", 1),)
OF_HF: tuple[Words, ...] = (
    ("gpt", "import", "hf", "imported"), ("sample.py", "hf", "--max-new-tokens", 1),
    ("gpt", "evaluate", "hf", "--text", "some.txt"))
OF_DATA: tuple[Words, ...] = (
    ("train.py", *runs.words("other", 2)), ("gpt", "verify", "data"), ("gpt", "report", "data"))
OF_SOURCES: tuple[Words, ...] = (("data/prepare.py", "{file}", "tokenizer=char", "out=made"),)


def run(short: bool, folder: Path) -> Tally:
    """Every file of every kind of folder as every kind of pickle; short: each fifteenth command."""
    tally = Tally()
    world = hostile.world()
    canary = folder / "canary"
    number = 0
    for kind, content in hostile.pickles(canary, folder).items():
        for path, words in _places(world):
            number += 1
            if short and number % 15:
                continue
            copy = hostile.copied(folder / "copy")
            target = copy / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            _seal(copy, path)
            done = command(*(str(word).format(file=path) for word in words), folder=copy)
            problem = "the canary ran" if canary.exists() else (
                None if done.code == 0 or done.is_one_line else
                f"code {done.code}: {done.err[-300:]!r}")
            canary.unlink(missing_ok=True)
            tally.expect(problem and f"{kind} as {path}, {' '.join(map(str, words))}: {problem}")
    return tally


def _places(world: Path) -> Iterator[tuple[Path, Words]]:
    """(a file, a command that reads what it belongs to)"""
    step = hostile.checkpoint_of(world / "runs" / "run")
    adapted = hostile.checkpoint_of(world / "runs" / "adapted")
    places = [(path, OF_A_RUN) for path in _files(step) if path.name != "manifest.json"]
    places += [(step / name, OF_A_RUN[:2]) for name in ("pytorch_model.bin", "model.pt")]
    places += [(path, OF_ADAPTERS) for path in _files(adapted) if path.suffix == ".safetensors"]
    places += [(world / "runs" / "adapted" / "base" / "model.safetensors", OF_ADAPTERS)]
    places += [(world / "peft" / name, OF_PEFT) for name in (
        "adapter_model.safetensors", "adapter_model.bin", "adapter_config.json")]
    places += [(path, OF_HF) for path in _files(world / "hf")]
    places += [(world / "hf" / "pytorch_model.bin", OF_HF)]
    places += [(path, OF_DATA) for path in _files(world / "data") if path.name != "dataset.json"]
    places += [(world / f"source{ending}", OF_SOURCES) for ending in (
        ".pt", ".npy", ".pkl", ".txt", ".jsonl", ".parquet", ".json.gz")]
    for path, commands in places:
        for words in commands:
            yield path.relative_to(world), words


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _seal(copy: Path, path: Path) -> None:
    """Let the hashes fit, and no safer file stand beside a pickle."""
    if path.name == "pytorch_model.bin" and path.parts[0] == "hf":
        for safer in (copy / "hf").glob("*.safetensors*"):
            safer.unlink()
    if path.name == "adapter_model.bin":
        (copy / "peft" / "adapter_model.safetensors").unlink()
    if "checkpoints" in path.parts:
        hostile.seal(copy / Path(*path.parts[:4]))
    elif "base" in path.parts:
        hostile.seal(copy / Path(*path.parts[:3]))
    elif path.parts[0] == "data":
        hostile.seal_dataset(copy / "data")
