"""Draw the pictures of docs/transformer.md from a model that has been trained.

usage: python docs/draw_lesson.py             train configs/lesson.yaml first: three minutes
       python docs/draw_lesson.py RUN         draw another run on the same text: one minute
       python docs/draw_lesson.py --figures   put benchmarks/results/without.json into the page

A copy of the run is fine-tuned to shout (RUN-shout; build/lesson/shout.jsonl is what it learns
from), and docs/transformer/*.png are written. Runs that are there already are kept. Needs
matplotlib: pip install 'gpt-toolkit[report]'.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from gpt.errors import UserError, run_command  # noqa: E402

PAGE = ROOT / "docs" / "transformer.md"
PICTURES = ROOT / "docs" / "transformer"
RESULTS = ROOT / "benchmarks" / "results" / "without.json"
BEGIN, END = "<!-- figures: by docs/draw_lesson.py -->", "<!-- end of figures -->"

DATASET, TASK = Path("data/shakespeare"), Path("build/lesson/shout.jsonl")
EXAMPLES = 400
LINE = range(15, 56)  # characters of a line that is to be shouted
SPEECH = re.compile(r"\n\n([A-Z][A-Za-z ]+):\n(.+)")


def main(argv: list[str]) -> None:
    """Train what is not there, draw; or write the figures."""
    if argv == ["--figures"]:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_figures(page, json.loads(RESULTS.read_text())), encoding="utf-8")
        return
    if len(argv) > 1 or any(word.startswith("-") for word in argv):
        raise UserError(f"unknown: {' '.join(argv)}; give a run, --figures, or nothing")
    run = Path(argv[0]) if argv else Path("runs/lesson")
    if not argv:
        call("train.py", str(ROOT / "configs/lesson.yaml"))
    draw(run, fine_tuned(run), DATASET, PICTURES)


def fine_tuned(run: Path) -> Path:
    """A copy of the run that has learned to shout."""
    TASK.parent.mkdir(parents=True, exist_ok=True)
    shouts = list(shouted(text_of(DATASET, "train")))[::10][:EXAMPLES]
    TASK.write_text("".join(json.dumps(shout) + "\n" for shout in shouts), encoding="utf-8")
    name = f"{run.name}-shout"
    call("finetune.py", f"finetune.from={run}", f"finetune.data={TASK}", f"run.name={name}",
         f"run.out_dir={run.parent}")
    return run.parent / name


def call(script: str, *words: str) -> None:
    """Run a script of the project; where it fails, end with its exit code."""
    code = subprocess.run([sys.executable, ROOT / script, *words], check=False).returncode
    if code:
        sys.exit(code)


def shouted(text: str) -> Iterator[dict[str, str]]:
    """Who speaks, and the first line of what is said, in capitals."""
    for speaker, line in SPEECH.findall(text):
        if len(line) in LINE:
            yield {"prompt": f"{speaker}:", "completion": f"\n{line.upper()}"}


def text_of(dataset: Path, split: str) -> str:
    """A split of a prepared dataset, decoded."""
    from gpt.shards import Dataset

    found = Dataset(dataset)
    stream = found.train if split == "train" else found.val
    return found.tokenizer.decode(stream.read(0, len(stream) - 1).tolist())  # without its end


def draw(run: Path, shouting: Path, dataset: Path, folder: Path) -> None:
    """Every picture, as a PNG."""
    import lesson  # imports torch and matplotlib

    import gpt
    held = text_of(dataset, "val")
    material = lesson.Material(
        run, gpt.load(str(run), dtype="float32"), gpt.load(str(shouting), dtype="float32"), held,
        list(shouted(held)))
    lesson.draw_all(material, folder)


# ----- The figures


def with_figures(page: str, results: Mapping[str, Any]) -> str:
    """The page with the table between its markers, and each `arm`: 1.234 → 5.678 as measured."""
    before, rest = page.split(BEGIN)
    page = f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{rest.split(END)[1]}"
    whole = results["arms"]["all of it"]["loss"]

    def measured(found: re.Match[str]) -> str:
        if found["arm"] not in results["arms"]:
            raise UserError(f"{RESULTS.name} has no arm {found['arm']!r}")
        arm = results["arms"][found["arm"]]
        loss = arm["loss_with_what_follows" if found["reads"] else "loss"]
        return f"{found['what']}: {whole:.3f} → {loss:.3f}"

    return re.sub(r"(?P<what>`(?P<arm>[a-z -]+)`(?P<reads> as it reads)?): [\d.]+ → [\d]+\.\d+",
                  measured, page)


def table(results: Mapping[str, Any]) -> str:
    """A line per arm: its loss, that of each seed, and what it is more than the whole's."""
    whole = results["arms"]["all of it"]["loss"]
    lines = ["| arm | loss | of each seed | difference |", "| --- | --- | --- | --- |"]
    for name, arm in results["arms"].items():
        seeds = ", ".join(f"{loss:.3f}" for loss in arm["losses"])
        lines.append(row(name, arm["loss"], seeds, whole))
        if "loss_with_what_follows" in arm:
            lines.append(row(f"{name}, as it reads", arm["loss_with_what_follows"], "", whole))
    return "\n".join(lines)


def row(name: str, loss: float, seeds: str, whole: float) -> str:
    """A line of the table."""
    more = f"{loss - whole:+.3f}".replace("-", "−") if loss != whole else ""
    return " ".join(f"| {name} | {loss:.3f} | {seeds} | {more} |".split())


if __name__ == "__main__":
    run_command(main)
