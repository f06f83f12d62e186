"""The shell of every page: one HTML file that holds all it needs and asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from gpt.files import write_atomically
from gpt.reports.chart import Chart

ASSETS = Path(__file__).parent / "assets"
# Nothing is loaded or sent, and no other script runs, whatever a sample or a file's name contains.
POLICY = ("default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
          "style-src 'unsafe-inline'; script-src")


class Html(str):
    """Text that is HTML already; all other text is escaped where it enters a page."""

    __slots__ = ()


class Page:
    """A page that is put together section by section.

    scripts: of assets/, besides that of all pages. refresh_seconds: how often a browser reads the
    file again; None: never.
    """

    def __init__(self, title: str, subtitle: str = "", scripts: Sequence[str] = (),
                 refresh_seconds: int | None = None):
        self.title, self.charts = title, list[Chart]()
        self._subtitle, self._scripts, self._refresh = subtitle, scripts, refresh_seconds
        self._parts: list[str] = []
        self._data: dict[str, Any] = {}

    def section(self, heading: str, *parts: str | Chart | None) -> None:
        """A heading and what stands under it, charts in a grid; left out if nothing does."""
        shown = ""
        for are_charts, group in groupby(filter(None, parts), lambda part: isinstance(part, Chart)):
            inside = [self._chart(part) if isinstance(part, Chart) else part if
                      isinstance(part, Html) else element("p", part) for part in group]
            shown += element("div", *inside, class_="charts") if are_charts else "".join(inside)
        if shown:
            self._parts.append(f"<section><h2>{escaped(heading)}</h2>{shown}</section>\n")

    def data(self, name: str, value: Any) -> None:
        """What a script of the page reads."""
        self._data[name] = value

    def html(self) -> str:
        """The whole file."""
        data = {"charts": [chart.as_json() for chart in self.charts], **self._data}
        scripts = [asset("uplot/uPlot.iife.min.js")] * bool(self.charts)
        scripts += [asset(name) for name in ("page.js", *self._scripts)]
        policy = " ".join([POLICY, *map(_hash, scripts)])
        refresh = (f'<meta http-equiv="refresh" content="{self._refresh}">\n'
                   if self._refresh is not None else "")
        return _SHELL.format(
            title=escaped(self.title), subtitle=escaped(self._subtitle), refresh=refresh,
            policy=policy, style=asset("uplot/uPlot.min.css") + asset("page.css"),
            body="".join(self._parts), data=_inside_script(json.dumps(data, separators=(",", ":"))),
            scripts="\n".join(f"<script>{script}</script>" for script in scripts))

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomically(path, self.html().encode("utf-8", "replace"))

    def _repr_html_(self) -> str:
        """As a notebook shows it: in a frame of its own, which nothing leaves."""
        return (f'<iframe srcdoc="{html.escape(self.html())}" title="{escaped(self.title)}" '
                'sandbox="allow-scripts" style="width:100%;height:50rem;border:0"></iframe>')

    def _chart(self, chart: Chart) -> Html:
        """Where the page's script draws it."""
        self.charts.append(chart)
        said = "; ".join(filter(None, [chart.unit, chart.note]))
        caption = element("figcaption", chart.title, element("span", said))
        return element("figure", caption, class_="chart", data_chart=len(self.charts) - 1)


def escaped(value: object) -> str:
    """A value as HTML shows it."""
    return value if isinstance(value, Html) else html.escape(str(value))


def table(header: Sequence[object], rows: Iterable[Sequence[object]], label: str) -> Html | None:
    """A table, whose first column names its rows; None if it has none. Numbers stand right.

    label: what it is, for those who cannot see it.
    """
    rows = list(rows)
    if not rows:
        return None
    numbers = [any(map(_is_number, column)) for column in zip(*rows, strict=True)]
    names = [element("th", name, scope="col", **{"class_": "number"} if number else {})
             for name, number in zip(header, numbers, strict=bool(header))]
    head = [element("thead", element("tr", *names))] if header else []
    body = element("tbody", *(element("tr", element("th", row[0], scope="row"),
                                      *map(_cell, row[1:])) for row in rows))
    return element("div", element("table", *head, body), class_="wide", tabindex=0, role="group",
                   aria_label=label)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> Html:
    return element("td", figure(value), class_="number") if _is_number(value) else element(
        "td", value)


def figure(value: Any) -> str:
    """A number for people: 1,234,567 or 0.01234 or 1.234e+15."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def element(tag: str, *inside: object, **attributes: object) -> Html:
    """One element; `class_` is its class."""
    written = "".join(f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
                      for name, value in attributes.items())
    return Html(f"<{tag}{written}>{''.join(map(escaped, inside))}</{tag}>")


def details(summary: str, *inside: object) -> Html:
    """What is shown once somebody asks for it."""
    return element("details", element("summary", summary), *inside)


@cache
def asset(name: str) -> str:
    """A file that every page brings along."""
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """A script as a policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _inside_script(text: str) -> str:
    """JSON that cannot end the element that it stands in."""
    return text.replace("<", "\\u003c")


_SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
{refresh}<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header><div><h1>{title}</h1><p class="note">{subtitle}</p></div>
<button id="theme" type="button">Theme: auto</button></header>
<main>
{body}</main>
<script type="application/json" id="data">{data}</script>
{scripts}
</body>
</html>
"""
