"""The README's table of a GPU, from the files of its parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def table(folder: Path) -> str:
    """Markdown: a line per figure that is known; nothing is made up for one that is not."""
    parts = {path.stem.removeprefix("gpu-"): json.loads(path.read_text(encoding="utf-8"))
             for path in sorted(folder.glob("gpu-*.json"))}
    rows = [row for name, part in parts.items() for row in rows_of(name, part["figures"])]
    if not rows:
        return "no figures yet"
    cards = sorted({f"{part['card']}, torch {part['torch']}" for part in parts.values()})
    return "\n".join([f"| {'; '.join(cards)} | ours | best peer | ratio | of the limit |",
                      "| --- | --- | --- | --- | --- |", *rows])


def rows_of(part: str, figures: dict[str, Any]) -> list[str]:
    """The lines of one part."""
    kind, _, size = part.partition("-")
    if kind == "training":
        return training_rows(f"training {size.upper()}, tokens/s", figures)
    if kind == "decode":
        return decode_rows(size.upper(), figures)
    if kind == "lora":
        return training_rows("LoRA on 1.5B, tokens/s", figures)
    if kind == "run" and "run" in figures:
        run = figures["run"]
        return [f"| three minutes on the quick start's corpus, bits per byte | "
                f"{run['bits_per_byte']:.3f} | | | {run['mfu']:.0%} of the peak, idle "
                f"{run['idle_share']:.1%} |"]
    return []


def training_rows(what: str, figures: dict[str, Any]) -> list[str]:
    """Each arm of ours against the fastest peer."""
    rates = {arm: each["tokens_per_second"] for arm, each in figures.items()
             if "tokens_per_second" in each}
    peers = {arm: rate for arm, rate in rates.items() if not arm.startswith("ours")}
    peer = max(peers, key=lambda arm: peers[arm], default=None)
    rows = []
    for arm in (arm for arm in rates if arm.startswith("ours")):
        share = figures[arm].get("mfu")
        rows.append(f"| {what}: {arm} | {rates[arm]:,.0f} | "
                    + (f"{peers[peer]:,.0f} ({peer}) | {rates[arm] / peers[peer]:.2f}"
                       if peer else " | ")
                    + f" | {'' if share is None else f'{share:.1%} of the peak'} |")
    return rows


def decode_rows(size: str, figures: dict[str, Any]) -> list[str]:
    """Each number of texts against transformers."""
    rows = []
    for arm, each in figures.items():
        if not arm.startswith("ours, "):
            continue
        count, theirs = arm.removeprefix("ours, "), figures.get(arm.replace("ours", "transformers"))
        rate = each["tokens_per_second"]
        rows.append(f"| generating with {size}, {count} texts, tokens/s | {rate:,.0f} | "
                    + (f"{theirs['tokens_per_second']:,.0f} (transformers) | "
                       f"{rate / theirs['tokens_per_second']:.2f}" if theirs else " | ")
                    + f" | {each['of_bandwidth']:.0%} of a copy's bandwidth |")
    return rows
