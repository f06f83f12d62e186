"""Pictures of learning, and of writing."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.patches import Rectangle

from gpt.configuration import SamplingConfig
from gpt.language_model import LanguageModel
from lesson.material import (
    BLUE,
    INK,
    ORANGE,
    QUIET,
    SHARE,
    WIDE,
    Material,
    lettered,
    panels,
    shown,
)

PROMPT, WRITTEN, CANDIDATES = "ROMEO:\n", 48, 6
SPEAKERS = ("ROMEO:", "First Lord:", "Nurse:")
MEASURED = 8192  # characters


def pretraining(material: Material) -> Any:
    """The loss, and what was written on the way."""
    events = [json.loads(line) for line in
              (material.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [event for event in events if event["event"] == "train"]
    tested = [event for event in events if event["event"] == "eval"]
    figure, (left, right) = panels(2, 3.6, width_ratios=(1, 1.1))
    left.plot([e["step"] for e in steps], [e["loss"] for e in steps], color=BLUE, alpha=0.5,
              linewidth=0.8, label="the batch that is learned from")
    left.plot([e["step"] for e in tested], [e["val_loss"] for e in tested], "o-", color=ORANGE,
              markersize=4, label="held-out text")
    uniform, counted = math.log(material.lm.model.vocab_size), frequencies(material.held)
    for value, what in ((uniform, "every token alike"), (counted, "by frequency alone")):
        left.axhline(value, color=QUIET, linewidth=0.7, linestyle=":")
        left.text(steps[-1]["step"], value + 0.06, what, ha="right", fontsize=8, color=QUIET)
    left.set(xlabel="step", ylabel="nats per character", ylim=(1, None))
    left.legend(loc="upper right", bbox_to_anchor=(1, 0.9), fontsize=8)
    left.set_title("loss", loc="left")
    samples = [json.loads(line) for line in
               (material.run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    right.axis("off")
    right.set_title(f"what follows {samples[0]['prompt'].strip()!r}", loc="left")
    chosen = samples[::max(1, len(samples) // 3)][:2] + samples[-1:]
    for place, sample in zip((0.98, 0.65, 0.32), chosen, strict=False):
        right.text(0, place, f"after {sample['step']} steps", color=ORANGE, va="top", fontsize=8.5)
        right.text(0, place - 0.07, excerpt(sample["text"], 4), va="top", family="monospace",
                   fontsize=7.5, linespacing=1.15)
    return figure


def frequencies(text: str) -> float:
    """The loss of one who knows how often each character occurs, and no more."""
    counts = np.unique([*text], return_counts=True)[1]
    return float(-(counts / counts.sum() * np.log(counts / counts.sum())).sum())


def excerpt(text: str, lines: int, width: int = 58) -> str:
    """Its first lines that are not empty."""
    found = [line[:width] for line in text.split("\n") if line.strip()][:lines]
    return "\n".join("".join(c if c.isprintable() else "·" for c in line) for line in found)


def finetuning(material: Material) -> Any:
    """The same prompts before and after, and what that costs elsewhere."""
    figure, (left, right) = panels(2, 3.3, width_ratios=(1.6, 1))
    left.axis("off")
    models = ((material.lm, "before", BLUE), (material.shouting, "after", ORANGE))
    place = 0.98
    for speaker in SPEAKERS:
        left.text(0, place, speaker, va="top", fontsize=9, weight="bold")
        for lm, when, colour in models:
            place -= 0.085
            written = lm.generate(speaker, max_new_tokens=60, temperature=0.5, seed=1)
            left.text(0, place, when, va="top", fontsize=8.5, color=colour)
            left.text(0.1, place, excerpt(written, 1, 54), va="top", family="monospace",
                      fontsize=8)
        place -= 0.15
    left.set_title("the first line that follows a speaker's name", loc="left")
    held = material.held[:MEASURED]
    losses = [[of_shouts(lm, material), -float(np.nanmean(lm.score(held)))] for lm, *_ in models]
    for shift, values, (_, when, colour) in zip((-0.2, 0.2), losses, models, strict=True):
        bars = right.bar(np.arange(2) + shift, values, 0.38, color=colour, label=when)
        right.bar_label(bars, fmt="{:.2f}", fontsize=8.5, padding=1)
    right.set(xticks=range(2), xticklabels=["shouted lines", "plain text"], yticks=[])
    right.margins(y=0.2)
    right.set_title("loss on held-out text", loc="left")
    right.legend(loc="upper right")
    return figure


def of_shouts(lm: LanguageModel, material: Material, count: int = 60) -> float:
    """Nats per character of held-out answers."""
    found: list[float] = []
    for shout in material.shouts[:count]:
        found += lm.score(shout["prompt"] + shout["completion"])[len(shout["prompt"]):]
    return -float(np.mean(found))


def generation(material: Material) -> Any:
    """Each step's likeliest characters; framed: the one that was drawn."""
    lm = material.lm
    config = SamplingConfig(max_new_tokens=WRITTEN, temperature=0.8, seed=3)
    asked = lm.request(lm.prompt_tokens(PROMPT), config, alternatives=CANDIDATES)
    made = [piece.new for _, piece in lm.write([asked])]
    chances = np.exp([[logprob for _, logprob in new.likeliest] for new in made]).T
    figure, axes = pyplot.subplots(figsize=(WIDE, 2.9))
    drawn = axes.imshow(chances, cmap=SHARE, vmin=0, vmax=1, aspect="auto")
    for at, new in enumerate(made):
        for row, (token, _) in enumerate(new.likeliest):
            axes.text(at, row, shown([lm.tokenizer.token_text(token)])[0][:2], ha="center",
                      va="center", fontsize=8, color="white" if chances[row, at] > 0.55 else INK)
            if token == new.token:
                axes.add_patch(Rectangle((at - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=ORANGE,
                                         linewidth=1.4))
    lettered(axes, "".join(lm.tokenizer.decode([new.token]) for new in made))
    axes.xaxis.tick_top()
    axes.set_ylim(CANDIDATES - 0.45, -0.55)
    axes.set_yticks(range(CANDIDATES), [f"{i + 1}." for i in range(CANDIDATES)])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"what was written behind {PROMPT.strip()!r} (top), one column per step: the "
                    f"{CANDIDATES} likeliest characters; orange frame: drawn")
    figure.colorbar(drawn, ax=axes, shrink=0.9, pad=0.01, label="probability")
    return figure
