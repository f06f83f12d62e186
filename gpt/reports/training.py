"""The page of one run, or of several over each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt.reports import differences
from gpt.reports.chart import Chart, spread_evenly
from gpt.reports.curves import charts, difference_chart, measures, said
from gpt.reports.facts import commands, environment, hashes, summary, told, trained
from gpt.reports.page import Html, Page, details, element, escaped, figure, table
from gpt.runs.history import History, number

MOST_ROWS = 200  # of evaluations and incidents
SAMPLES_BESIDE = 4  # others are folded away
MOST_SAMPLES = 40  # prompts, and steps of each


def training_page(runs: Sequence[History], refresh_seconds: int | None = None) -> Page:
    """All that is known of some runs; of several, with their differences to the first."""
    going_on = any(run.state == "running" for run in runs)
    page = Page(", ".join(run.name for run in runs), _subtitle(runs),
                refresh_seconds=refresh_seconds if going_on else None)
    page.section("Summary", _summary(runs), _problems(runs))
    for run in runs:
        page.section(_of("Trained", run, runs), table((), trained(run), "what, on what"),
                     _lines(told(run)), _hashes(run))
    page.section("Curves", *charts(runs))
    if len(runs) > 1:
        page.section(f"Differences to {runs[0].name}", difference_chart(runs),
                     table(("run", "training loss at the end", "95 % interval", "steps",
                            "validation loss"), difference_rows(runs), "nats per token more"),
                     Html(f'<p class="note">{_HOW_DIFFERENT}</p>'))
    for run in runs:
        page.section(_of("Evaluations", run, runs), _before_and_after(run), _evaluations(run),
                     _cores(run))
        page.section(_of("Samples", run, runs), *_samples(run))
        page.section(_of("Incidents", run, runs), _incidents(run))
    page.section("Settings that differ", table(
        ("setting", *(run.name for run in runs)), differences.settings(runs), "settings"))
    for run in runs:
        page.section(_of("To repeat it", run, runs), _lines("\n".join(commands(run))),
                     details("Environment", table((), environment(run).items(), "environment")),
                     details("Every setting", table((), run.settings.items(), "settings")))
    return page


def figures(runs: Sequence[History]) -> dict[str, Any]:
    """The numbers behind the page, for other programs."""
    return {"runs": [{"name": run.name, "path": str(run.path), **summary(run),
                      "evaluations": run.evaluations, "core": run.cores,
                      "hashes": hashes(run), "warnings": run.warnings,
                      "problems": run.problems, "settings": run.settings,
                      "environment": run.environment} for run in runs],
            "differences": [vars(found) | {"run": run.name, "to": runs[0].name}
                            for run in runs[1:]
                            if (found := differences.at_the_end(run, runs[0]))],
            "charts": [chart.as_json() for chart in drawn(runs)]}


def drawn(runs: Sequence[History]) -> list[Chart]:
    """Every chart of the page."""
    difference = difference_chart(runs)
    return charts(runs) + ([difference] if difference else [])


def _lines(text: str) -> Html | None:
    return element("pre", text) if text else None


def _of(heading: str, run: History, runs: Sequence[History]) -> str:
    return heading if len(runs) == 1 else f"{heading}: {run.name}"


def _subtitle(runs: Sequence[History]) -> str:
    return "; ".join(dict.fromkeys(f"{run.path}, {run.state}" for run in runs))


def _summary(runs: Sequence[History]) -> Html | None:
    facts = [summary(run) for run in runs]
    if len(runs) == 1:
        return element("dl", *(element("div", element("dt", name), element("dd", _text(value)))
                               for name, value in facts[0].items()), class_="tiles")
    names = dict.fromkeys(name for each in facts for name in each)
    return table(("", *(run.name for run in runs)),
                 [(name, *(each.get(name, "–") for each in facts)) for name in names], "summary")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else figure(value)


def _problems(runs: Sequence[History]) -> Html | None:
    found = [f"{run.path}: {problem}" for run in runs for problem in run.problems]
    return element("ul", *(element("li", one) for one in found),
                   class_="problems") if found else None


_HOW_DIFFERENT = escaped(
    "Training losses over the last tenth of the tokens that both have read; paired step by step "
    "where both read the same data in the same order. Intervals are from a bootstrap over blocks "
    "of steps: they say how certain the figures of these two runs are, not how seeds scatter.")


def difference_rows(runs: Sequence[History]) -> list[list[Any]]:
    """[run, difference, interval, steps, difference in validation] to the first run."""
    rows = []
    for run in runs[1:]:
        found, scored = (differences.at_the_end(run, runs[0]),
                         differences.validation(run, runs[0]))
        rows.append([
            run.name, f"{found.mean:+.4f}" if found else "–",
            f"{found.low:+.4f} to {found.high:+.4f}" if found
            else "too few steps in common" if differences.share(run, runs[0], "tokenizer")
            else "another tokenizer: compare bits per byte",
            f"{found.steps:,}{', paired' * found.paired}" if found else "–",
            f"{scored[1]:+.4f} at step {scored[0]:,}" if scored else "–"])
    return rows


def _hashes(run: History) -> Html | None:
    found = hashes(run)
    return details("SHA-256", table((), found.items(), "SHA-256")) if found else None


def _before_and_after(run: History) -> Html | None:
    """Of a run that was scored before it learned, what each measure was then and is now."""
    if len(run.evaluations) < 2 or run.evaluations[0].get("step") != 0:
        return None
    first, last, best = run.evaluations[0], run.evaluations[-1], run.best or {}
    rows = [[said(name), *(number(line.get(name)) for line in (first, last, best))]
            for name in measures(run)]
    return table(("measure", "before", f"after, step {last.get('step')}",
                  f"best, step {best.get('step')}"),
                 [["–" if cell is None else cell for cell in row] for row in rows],
                 "before and after")


def _evaluations(run: History) -> Html | None:
    names = measures(run)
    return table(("step", "tokens", *map(said, names)), [
        [line.get("step", "–"), line.get("tokens", "–"),
         *(line[name] if number(line.get(name)) is not None else "–" for name in names)]
        for line in spread_evenly(run.evaluations, MOST_ROWS)], "evaluations")


def _cores(run: History) -> Html | None:
    """The CORE metric over time, with every task."""
    tasks = list(dict.fromkeys(name for line in run.cores for name, value in line.items()
                               if name.startswith("core_") and number(value) is not None
                               and name not in ("core_low", "core_high")))
    return table(("step", "CORE", "95 % interval", *(name[len("core_"):] for name in tasks)), [
        [line.get("step", "–"), line.get("core", "–"),
         " to ".join(f"{bound:.4f}" for name in ("core_low", "core_high")
                     if (bound := number(line.get(name))) is not None),
         *(line.get(name, "–") for name in tasks)]
        for line in spread_evenly(run.cores, MOST_ROWS)], "CORE")


def _samples(run: History) -> list[Html]:
    """Of each prompt, what followed it over time, side by side."""
    found: dict[str, dict[Any, str]] = {}
    for line in run.samples:
        step = line["step"]
        texts = found.setdefault(line["prompt"], {})
        texts[step if isinstance(step, int) else str(step)] = line["text"]
    parts: list[Html] = []
    if len(found) > MOST_SAMPLES:
        parts.append(element("p", f"The first {MOST_SAMPLES} of {len(found):,} prompts.",
                             class_="note"))
    for prompt, texts in list(found.items())[:MOST_SAMPLES]:
        steps = spread_evenly(list(texts), MOST_SAMPLES)
        beside = spread_evenly(steps, SAMPLES_BESIDE)
        parts.append(_side_by_side(prompt, texts, beside))
        if others := [step for step in steps if step not in beside]:
            parts.append(details(f"{len(others)} more", _side_by_side(prompt, texts, others)))
    return parts


def _side_by_side(prompt: str, texts: dict[Any, str], steps: Sequence[Any]) -> Html:
    return element("div", *(element(
        "div", element("h3", f"step {step:,}" if isinstance(step, int) else f"step {step}"),
        element("pre", element("span", prompt, class_="given"), texts[step]))
        for step in steps), class_="beside")


def _incidents(run: History) -> Html | None:
    """Warnings, and where training was stopped and continued."""
    rows = [(line.get("step", "–"), line.get("message", "")) for line in run.warnings]
    rows += [(line.get("step", "–"), f"stopped by {line['stopped_by']}") for line in run.ends
             if "stopped_by" in line]
    rows += [(step, "continued from here") for step in run.resumed]
    rows.sort(key=lambda row: row[0] if isinstance(row[0], int) else -1)
    return table(("step", "what"), spread_evenly(rows, MOST_ROWS), "incidents")
