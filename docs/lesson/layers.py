"""Pictures of what the layers add to the stream, and of what it says between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.patches import Rectangle

from gpt.inspection import Look
from lesson.material import (
    BLUE,
    GREEN,
    HIDDEN,
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

NEURONS = 14


def feedforward(material: Material) -> Any:
    """Where the strongest neurons are active, and which characters they make likelier."""
    look, tokenizer = material.look, material.lm.tokenizer
    neurons = sorted(look.neurons[:NEURONS], key=lambda neuron: (neuron.layer, neuron.index))
    active = np.stack([np.abs(neuron.activations) / np.abs(neuron.activations).max()
                       for neuron in neurons])
    figure, axes = pyplot.subplots(figsize=(WIDE, 3.7))
    drawn = axes.imshow(active, cmap=SHARE, vmin=0, vmax=1, aspect="auto")
    lettered(axes, material.line)
    axes.set_yticks(range(len(neurons)), [f"layer {n.layer + 1}, neuron {n.index}"
                                          for n in neurons], fontsize=8)
    axes.tick_params(axis="y", length=0)
    for row, neuron in enumerate(neurons):
        likelier = " ".join(shown([tokenizer.token_text(int(i)) for i in neuron.tokens
                                   if tokenizer.token_text(int(i)) in material.held][:3]))
        axes.text(len(material.line) - 0.2, row, likelier, va="center", family="monospace",
                  color=ORANGE, fontsize=9)
    axes.text(len(material.line) - 0.2, -0.9, "makes likelier", color=ORANGE, fontsize=9)
    axes.set_title("activation of each neuron, as a share of its largest", loc="left")
    figure.colorbar(drawn, ax=axes, shrink=0.7, pad=0.09)
    return figure


def residual(material: Material) -> Any:
    """How long the stream's vectors are, and what each part adds."""
    look = material.look
    L = len(look.attention_norms)
    figure, (left, right) = panels(2, 2.9, width_ratios=(1, 1.15))
    stream = look.residual_norms
    left.fill_between(range(L + 1), stream.min(axis=1), stream.max(axis=1), color=BLUE, alpha=0.15,
                      linewidth=0)
    left.plot(range(L + 1), stream.mean(axis=1), "o-", color=BLUE)
    left.set(xticks=range(L + 1), ylim=(0, None), ylabel="length of the vector",
             xticklabels=["start", *(f"after {i + 1}" for i in range(L))])
    left.set_title("the stream: mean, least and largest", loc="left")
    width = 0.38
    for shift, added, colour, name in ((-width / 2, look.attention_norms, ORANGE, "attention"),
                                       (width / 2, look.feedforward_norms, GREEN, "feed-forward")):
        bars = right.bar(np.arange(L) + shift, (added / stream[:-1]).mean(axis=1), width,
                         color=colour, label=name)
        right.bar_label(bars, fmt="{:.0%}", fontsize=8, color=QUIET, padding=1)
    right.set(xticks=range(L), xticklabels=[f"layer {i + 1}" for i in range(L)], yticks=[])
    right.margins(y=0.25)
    right.set_title("what is added, as a share of the stream before", loc="left")
    right.legend(ncols=2, loc="upper right")
    return figure


def norms(material: Material) -> Any:
    """How long the stream's vectors are, before a layer's norm and behind it."""
    blocks: Any = material.lm.model.blocks
    streams = [layer.x[0] for layer in material.layers(material.line)]
    with torch.inference_mode():
        normed = [block.attention_norm(x) for x, block in zip(streams, blocks, strict=True)]
    figure, both = panels(2, 2.8, sharey=True)
    for axes, vectors, colour in ((both[0], streams, ORANGE), (both[1], normed, BLUE)):
        lengths = [torch.linalg.vector_norm(x, dim=-1).numpy() for x in vectors]
        for at, values in enumerate(lengths):
            axes.plot(at + np.linspace(-0.25, 0.25, len(values)), values, ".", color=colour,
                      markersize=4, alpha=0.7)
            axes.plot([at - 0.3, at + 0.3], [values.mean()] * 2, color=INK, linewidth=1)
        axes.set(xticks=range(len(lengths)), ylim=(0, None), xticklabels=[
            f"layer {at + 1}\n± {values.std() / values.mean():.0%}"
            for at, values in enumerate(lengths)])
    both[0].set_ylabel("length of the vector")
    both[0].set_title("a dot per character: the stream before a layer", loc="left")
    both[1].set_title("what the layer's attention reads, behind its norm", loc="left")
    return figure


def lens(material: Material) -> Any:
    """What each layer would say next."""
    look: Look = material.look
    text, tokenizer = material.line, material.lm.tokenizer
    likeliest, chance = look.lens_tokens[..., 0], look.lens_probabilities[..., 0]
    figure, axes = pyplot.subplots(figsize=(WIDE, 2.6))
    drawn = axes.imshow(chance, cmap=SHARE, vmin=0, vmax=1, aspect="auto")
    for (layer, at), token in np.ndenumerate(likeliest):
        letter = shown([tokenizer.token_text(int(token))])[0]
        axes.text(at, layer, letter[:2], ha="center", va="center", fontsize=8,
                  color="white" if chance[layer, at] > 0.55 else INK)
        if at + 1 < len(text) and token == look.tokens[at + 1]:
            axes.add_patch(Rectangle((at - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=GREEN,
                                     linewidth=1.4))
    lettered(axes, text)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(chance)), ["start", *(f"after layer {i + 1}"
                                                    for i in range(len(chance) - 1))], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("read so far (top) and the likeliest next character; green frame: it is right")
    figure.colorbar(drawn, ax=axes, shrink=0.9, pad=0.01, label="probability")
    axes.set_facecolor(HIDDEN)
    return figure
