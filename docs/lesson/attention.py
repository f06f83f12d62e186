"""Pictures of what goes into the stream, and of attention.

Shape letters as in gpt/model: T tokens, C n_embd, H heads, D head width; L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.colors import LinearSegmentedColormap

from gpt.inspection import position_encoding
from gpt.inspection.recording import Layer
from gpt.model.visibility import visible_within
from lesson.material import (
    BLUE,
    HEADS,
    HIDDEN,
    INK,
    ORANGE,
    QUIET,
    SHARE,
    SHORT,
    SIGNED,
    WIDE,
    Material,
    hide_what_follows,
    lettered,
    panels,
    shown,
)

GROUPS = {"vowels": "aeiou", "consonants": "bcdfghjklmnpqrstvwxyz", "capital vowels": "AEIOU",
          "capital consonants": "BCDFGHJKLMNPQRSTVWXYZ", "marks": "\n !',-.:;?"}


# ----- What goes in


def tokens(material: Material) -> Any:
    """How alike the vectors of characters are."""
    characters = "".join(GROUPS.values())
    ids = [material.lm.tokenizer.encode(c)[0] for c in characters]
    table = material.lm.model.embedding.token_embedding.weight.detach().float()[ids]
    units = torch.nn.functional.normalize(table - table.mean(dim=0), dim=1)
    alike = (units @ units.T).numpy()
    figure, (left, right) = panels(2, 4.6, width_ratios=(1.12, 1))
    drawn = left.imshow(alike, cmap=SIGNED, vmin=-0.8, vmax=0.8)
    lettered(left, characters, characters)
    left.tick_params(labelsize=5.5)
    for end in np.cumsum([len(group) for group in GROUPS.values()])[:-1] - 0.5:
        left.axhline(end, color=INK, linewidth=0.5)
        left.axvline(end, color=INK, linewidth=0.5)
    left.set_title("cosine between the vectors of two characters")
    figure.colorbar(drawn, ax=left, shrink=0.6, pad=0.02)
    centred = units - units.mean(dim=0)
    places = (centred @ torch.linalg.svd(centred).Vh[:2].T).numpy()
    start = 0
    for (name, group), colour in zip(GROUPS.items(), (*HEADS, QUIET), strict=True):
        for (x, y), c in zip(places[start:start + len(group)], shown(group), strict=True):
            right.text(x, y, c, color=colour, ha="center", va="center", fontsize=10)
        right.plot([], [], "s", color=colour, label=name)
        start += len(group)
    right.set(xlim=(places[:, 0].min() - 0.1, places[:, 0].max() + 0.1),
              ylim=(places[:, 1].min() - 0.1, places[:, 1].max() + 0.25), xticks=[], yticks=[])
    right.spines[:].set_visible(False)
    right.set_title("the same, in the plane that keeps most of it")
    right.legend(loc="upper center", ncols=3, fontsize=7.5, handletextpad=0.1, columnspacing=0.8)
    return figure


def positions(material: Material) -> Any:
    """The waves that are added, and how they tell near from far."""
    table = position_encoding(material.lm.model, material.lm.block_size).table
    assert table is not None, "the lesson's model adds its positions"
    T, C = table.shape
    figure, (left, middle, right) = panels(3, 2.7)
    left.imshow(table[:T // 2], cmap=SIGNED, aspect="auto", vmin=-1, vmax=1,
                interpolation="nearest")
    left.set(xlabel="number of the vector", ylabel="place in the text")
    left.set_title("what is added at each place")
    for column, colour in zip((0, C // 8, C // 4, 3 * C // 8), HEADS, strict=True):
        middle.plot(table[:, column], color=colour, label=f"number {column}", linewidth=1.2)
    middle.set(xlabel="place in the text", ylim=(-1.1, 1.9), yticks=[-1, 0, 1])
    middle.set_title("four of its numbers")
    middle.legend(ncols=2, fontsize=8, loc="upper center")
    for place, colour in zip((T // 4, T // 2), HEADS, strict=False):
        right.plot(table @ table[place] / (C / 2), color=colour, linewidth=1.2,
                   label=f"place {place}")
    right.set(xlabel="place in the text", ylim=(-0.1, 1.35), yticks=[0, 0.5, 1])
    right.set_title("how alike two places are")
    right.legend(ncols=2, fontsize=8, loc="upper center")
    return figure


# ----- Attention


def furthest(layers: Sequence[Layer]) -> tuple[int, int]:
    """The layer and head whose queries choose most decidedly what is not beside them."""
    weights = torch.stack([layer.weights()[0] for layer in layers])            # (L, H, T, T)
    T = weights.size(-1)
    distance = torch.arange(T).unsqueeze(1) - torch.arange(T)
    far = ((distance >= 3) * weights).amax(dim=-1).mean(dim=-1)                # (L, H)
    return divmod(int(far.argmax()), far.size(1))


def scores_of(layer: Layer, head: int) -> np.ndarray:
    """q · k / √D before anything is hidden, without what a row has in common: (T, T).

    What is added to all scores of a row changes no share; the mean over what it may read goes.
    """
    k = layer.k.repeat_interleave(layer.q.size(1) // layer.k.size(1), dim=1)
    compared = (layer.q[0, head].float() @ k[0, head].float().T * layer.scale).numpy()
    visible = np.tri(len(compared))
    return compared - (compared * visible).sum(axis=1, keepdims=True) / visible.sum(1)[:, None]


def scores(material: Material) -> Any:
    """One query: its scores with each key, and the shares that they become."""
    layers = material.layers(SHORT)
    at, head = furthest(layers)
    query = len(SHORT) - 1
    compared, shares = scores_of(layers[at], head)[query], layers[at].weights()[0, head, query]
    figure, both = pyplot.subplots(2, 1, figsize=(WIDE, 3.4), sharex=True)
    for axes, values, colour in ((both[0], compared, ORANGE), (both[1], shares.numpy(), BLUE)):
        bars = axes.bar(range(len(SHORT)), values, color=colour, width=0.7)
        axes.bar_label(bars, [f"{v:+.1f}" if axes is both[0] else f"{v:.0%}" for v in values],
                       fontsize=7.5, color=QUIET, padding=1)
        axes.margins(y=0.2)
        axes.set(yticks=[], xlim=(-0.6, len(SHORT) - 0.4))
        lettered(axes, SHORT)
        axes.axhline(0, color=QUIET, linewidth=0.7)
    both[0].set_title(f"scores q · k / √D of the query at the last letter, less their mean "
                      f"(layer {at + 1}, head {head + 1})", loc="left")
    both[1].set_title("their softmax: how much of each value the head takes", loc="left")
    both[0].tick_params(labelbottom=False)
    return figure


def mask(material: Material) -> Any:
    """All queries of the same head: scores, what follows hidden, shares."""
    layers = material.layers(SHORT)
    at, head = furthest(layers)
    compared, visible = scores_of(layers[at], head), np.tri(len(SHORT), dtype=bool)
    top = float(np.abs(compared).max())
    figure, axes = panels(3, 2.9)
    for one, title in zip(axes, ("1. scores", "2. what follows, hidden",
                                 "3. shares, 1 a row"), strict=True):
        one.set_title(title)
    for one in axes[:2]:
        drawn = one.imshow(compared, cmap=SIGNED, vmin=-top, vmax=top)
    hide_what_follows(axes[1], visible)
    figure.colorbar(drawn, ax=axes[1], shrink=0.6, pad=0.02)
    drawn = axes[2].imshow(layers[at].weights()[0, head].numpy(), cmap=SHARE, vmin=0, vmax=1)
    hide_what_follows(axes[2], visible)
    figure.colorbar(drawn, ax=axes[2], shrink=0.6, pad=0.02)
    for one in axes:
        lettered(one, SHORT, SHORT)
        one.tick_params(labelsize=7)
    axes[0].set_ylabel("this character reads …")
    axes[1].set_xlabel("… these characters")
    return figure


def by_distance(weights: np.ndarray, far: int) -> np.ndarray:
    """How much later queries take of the key so many places back: (…, T, T) -> (…, far)"""
    T = weights.shape[-1]
    return np.stack([np.diagonal(weights, -d, -2, -1)[..., T // 2 - d:].mean(axis=-1)
                     for d in range(far)], axis=-1)


def heads(material: Material) -> Any:
    """The heads of the layer in which they differ most: over a line, and how far back each reads.
    """
    text = material.held[1000:1000 + material.lm.block_size]
    profiles = np.stack([by_distance(layer.weights()[0].numpy(), 16)
                         for layer in material.layers(text)])                   # (L, H, 16)
    at = int(profiles.var(axis=1).sum(axis=-1).argmax())
    attention = material.layers(SHORT)[at].weights()[0].numpy()
    figure = pyplot.figure(figsize=(WIDE, 4.5))
    above, beneath = figure.subfigures(2, 1, height_ratios=(1, 0.9))
    below = beneath.subplots()
    for head, axes in enumerate(above.subplots(1, len(attention))):
        colour = HEADS[head % len(HEADS)]
        axes.imshow(attention[head], cmap=SHARE, vmin=0, vmax=1)
        hide_what_follows(axes, np.tri(len(SHORT), dtype=bool))
        lettered(axes, SHORT, SHORT)
        axes.tick_params(labelsize=5.5, pad=1)
        axes.set_title(f"layer {at + 1}, head {head + 1}", color=colour)
        below.plot(profiles[at, head], "o-", color=colour, markersize=3, linewidth=1.2,
                   label=f"head {head + 1}")
    below.set(xlabel="characters back (0: the character itself)", ylabel="mean share",
              ylim=(0, None), xticks=range(0, 16, 2))
    below.set_title("how far back each of them reads, over a longer text", loc="left")
    below.legend()
    return figure


def reading(material: Material) -> Any:
    """What an encoder, a decoder and a prefix model let each token read."""
    prompt, answer = "ROMEO:", "\nAy me"
    segments = torch.zeros(1, len(prompt + answer), dtype=torch.int64)
    marks = {"encoder: everything": torch.ones_like(segments, dtype=torch.bool),
             "decoder: what came before": None,
             "prefix: a prompt both ways": torch.arange(segments.size(1))[None]
             < len(prompt)}
    figure, axes = panels(3, 3.1)
    for one, (title, prompts) in zip(axes, marks.items(), strict=True):
        visible = visible_within(segments, None, prompts)[0, 0].numpy()
        one.imshow(visible, vmin=0, vmax=1,
                   cmap=LinearSegmentedColormap.from_list("read", [HIDDEN, "#9dbdea"]))
        lettered(one, prompt + answer, prompt + answer)
        one.set_title(title)
        one.set_xticks(np.arange(len(visible)) - 0.5, minor=True)
        one.set_yticks(np.arange(len(visible)) - 0.5, minor=True)
        one.grid(which="minor", color="white", linewidth=1)
        one.tick_params(which="minor", length=0)
        if prompts is None or not prompts.all():
            one.axhline(len(prompt) - 0.5, color=ORANGE, linewidth=1.2)
    axes[0].set_ylabel("this character reads …")
    axes[1].set_xlabel("… the blue ones")
    return figure
