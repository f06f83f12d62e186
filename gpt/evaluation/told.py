"""Measurements as lines for people, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt.evaluation.core import Bundle, Core
from gpt.evaluation.figures import Figures, Group
from gpt.evaluation.generated import Generated
from gpt.evaluation.intervals import DRAWS, Interval
from gpt.evaluation.measured import Difference, Measurement


@dataclass(frozen=True)
class Result:
    """lines: for people. values: for programs, with what they belong to."""

    lines: list[str]
    values: dict[str, Any]


def in_format(dtype: str) -> str:
    """What is said beside figures that another processor may not reproduce."""
    return "" if dtype == "float32" else f" (in {dtype})"


def lines(found: Measurement) -> Iterator[str]:
    """Of one model."""
    figures = found.figures
    yield f"{found.subject.name}: weights {found.subject.weights[:16]}"
    yield (f"{figures.loss:.4f} nats per token, {figures.bits_per_byte:.4f} bits per byte, over "
           f"{figures.tokens:,} tokens{in_format(found.dtype)}")
    yield f"of {found.data}, SHA-256 {found.data_sha256[:16]}"
    yield f"perplexity {figures.perplexity:,.3f}, accuracy {figures.accuracy:.4f}"
    yield _of_interval(figures)
    for title, groups in (("source", figures.by_source), ("tokens read", figures.by_position),
                          ("times in a million", figures.by_frequency)):
        yield from _table(title, groups)
    yield ""
    yield (f"calibration error {figures.calibration_error:.4f}: where the likeliest token had the "
           "probability, it came")
    for each in figures.calibration:
        yield f"  {each.confidence:.3f}  {each.accuracy:.3f}  ({each.tokens:,} tokens)"
    if found.generated is not None:
        yield ""
        yield from _written(found.generated)


def _of_interval(figures: Figures) -> str:
    if figures.loss_interval is None or figures.bits_interval is None:
        return f"no interval: there is one of {figures.units} alone"
    nats, bits = figures.loss_interval, figures.bits_interval
    return (f"95 of 100 draws of {figures.unit_count:,} {figures.units}: {nats.low:.4f} to "
            f"{nats.high:.4f} nats, {bits.low:.4f} to {bits.high:.4f} bits ({DRAWS:,} draws)")


def _table(title: str, groups: Sequence[Group]) -> Iterator[str]:
    if not groups:
        return
    width = max(len(title), *(len(each.name) for each in groups))
    has_bits = groups[0].bits_per_byte is not None
    yield ""
    yield f"{title:<{width}}  {'tokens':>12}  nats" + ("    bits/byte" if has_bits else "")
    for each in groups:
        bits = "" if each.bits_per_byte is None else f"  {each.bits_per_byte:.4f}"
        yield f"{each.name:<{width}}  {each.tokens:>12,}  {each.loss:.4f}{bits}"


def _written(made: Generated) -> Iterator[str]:
    for name, found in (("samples", made.samples), ("held-out text", made.real)):
        if found is not None:
            distinct = ", ".join(f"{n}: {share:.3f}" for n, share in found.distinct.items())
            yield f"{name}: distinct n-grams {distinct}; repeated 4-grams {found.repeated:.3f}"
    if made.memorisation is not None:
        known = made.memorisation
        for length, share in known.training.items():
            yield (f"the next {length} tokens exactly: {share:.3f} of {known.passages} passages it "
                   f"learned from, {known.heldout[length]:.3f} of held-out ones")


def difference_line(found: Difference) -> str:
    """Of two models."""
    bits = "" if found.bits_interval is None else f" ({_signed(found.bits_interval)})"
    loss = "" if found.loss is None else f", {found.loss:+.4f} nats per token" + (
        "" if found.loss_interval is None else f" ({_signed(found.loss_interval)})")
    return (f"{found.second} against {found.first}: {found.bits_per_byte:+.4f} bits per byte{bits}"
            f"{loss}; better on {found.better:.1%} of {found.unit_count:,} {found.units}")


def _signed(found: Interval) -> str:
    return f"{found.low:+.4f} to {found.high:+.4f}"


def as_json(found: Measurement | Difference) -> dict[str, Any]:
    """All of it, by the names of the fields."""
    values = dataclasses.asdict(found)
    if isinstance(found, Measurement):
        values["figures"] = {"perplexity": found.figures.perplexity, **values["figures"]}
    return values


def core_result(found: Core, bundle: Bundle, dtype: str) -> Result:
    """Of the CORE metric."""
    width = max(len(task.label) for task in found.tasks)
    lines = [f"{task.label:<{width}}  {task.accuracy:.4f}  centred {task.centred:+.4f}  "
             f"({task.questions:,} questions)" for task in found.tasks]
    return Result([*lines, f"CORE {found.core:.4f} ({found.interval}){in_format(dtype)}, of "
                           f"{bundle.folder}, SHA-256 {bundle.sha256[:16]}"],
                  {"data": str(bundle.folder), "data_sha256": bundle.sha256, "dtype": dtype,
                   **dataclasses.asdict(found)})
