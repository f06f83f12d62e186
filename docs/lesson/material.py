"""What all pictures of the lesson share: the model they show, colours, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from gpt.inspection import Look
from gpt.inspection.recording import Layer, record
from gpt.language_model import LanguageModel

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.colors import LinearSegmentedColormap

BLUE, ORANGE, GREEN, PURPLE = "#1f5fbf", "#c2410c", "#15803d", "#9333a8"  # of the reports' pages
INK, QUIET, HIDDEN = "#1c1e21", "#5c6066", "#e7e4de"
HEADS = (BLUE, ORANGE, GREEN, PURPLE)
SHARE = LinearSegmentedColormap.from_list("share", ["#ffffff", "#9dbdea", BLUE, "#0b2a5c"])
SIGNED = LinearSegmentedColormap.from_list("signed", [ORANGE, "#ffffff", BLUE])
STYLE = {"font.size": 9, "axes.edgecolor": QUIET, "axes.labelcolor": INK, "text.color": INK,
         "xtick.color": INK, "ytick.color": INK, "axes.titlesize": 10, "axes.titleweight": "bold",
         "axes.linewidth": 0.7, "xtick.major.width": 0.7, "ytick.major.width": 0.7,
         "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
         "figure.constrained_layout.use": True}
DOTS = 150  # per inch
WIDE = 8.6  # inches

SHORT = "Good morrow, neighbour"


@dataclass(frozen=True)
class Material:
    """What is drawn: a run, its model, the same after fine-tuning, and held-out text.

    shouts: held-out examples of what was fine-tuned to.
    """

    run: Path
    lm: LanguageModel
    shouting: LanguageModel
    held: str
    shouts: Sequence[dict[str, str]]

    @cached_property
    def line(self) -> str:
        """The first lines of held-out text that begin with a speaker."""
        return self.held.split("\n\n")[1][:48]

    @cached_property
    def look(self) -> Look:
        """What happens inside the model while it reads them."""
        return self.lm.look(self.line)

    def layers(self, text: str) -> list[Layer]:
        """The same, with queries, keys and streams themselves."""
        return record(self.lm.model, [self.lm.tokenizer.encode(text)])[0]


def panels(count: int, height: float, **given: Any) -> tuple[Any, Any]:
    """A figure with so many panels beside each other."""
    return pyplot.subplots(1, count, figsize=(WIDE, height), **given)


def shown(text: Sequence[str]) -> list[str]:
    """Characters as labels: line breaks and spaces made visible, a dot for what prints nothing."""
    return [{"\n": "↵", " ": "␣"}.get(c, c if c.isprintable() else "·") for c in text]


def lettered(axes: Any, x: str = "", y: str = "") -> None:
    """A label per character."""
    size = 7.5 if max(len(x), len(y)) > 30 else 8.5
    for axis, text in ((axes.xaxis, x), (axes.yaxis, y)):
        if text:
            axis.set_ticks(range(len(text)), shown(text), fontsize=size)
            axis.set_tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def hide_what_follows(axes: Any, visible: np.ndarray) -> None:
    """Grey over what no query may read."""
    axes.imshow(np.ma.masked_where(visible, np.ones_like(visible, dtype=float)), vmin=0, vmax=1,
                cmap=LinearSegmentedColormap.from_list("hidden", [HIDDEN, HIDDEN]))
