"""Draw which rooms of gpt/ import which, for docs/architecture.md.

usage: python docs/draw_rooms.py           print the drawing
       python docs/draw_rooms.py --write   put it into the page, between its two markers

Rooms are the packages of gpt/ and the modules beside them. What is drawn is read from the code.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

Graph = Mapping[str, set[str]]  # what each room imports

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: drawn by docs/draw_rooms.py -->", "<!-- end of rooms -->"
EVERYWHERE = "errors"  # imported by nearly every room, so that its arrows would say little


def rooms(package: Path) -> dict[str, list[Path]]:
    """The files of each room; what begins with _, such as __main__.py, is none."""
    found = {path.stem: [path] for path in package.glob("[!_]*.py")}
    for init in package.glob("*/__init__.py"):
        found[init.parent.name] = sorted(init.parent.rglob("*.py"))
    return found


def imported_names(path: Path, package: Path) -> Iterator[str]:
    """Full names of all that a file imports, wherever in it the import stands."""
    own = [package.name, *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = own[:len(own) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_graph(package: Path) -> Graph:
    """Which other rooms each room imports."""
    graph = {}
    for room, paths in rooms(package).items():
        parts = [name.split(".") for path in paths for name in imported_names(path, package)]
        graph[room] = {part[1] for part in parts if part[0] == package.name and len(part) > 1
                       } & rooms(package).keys() - {room}
    return graph


def levels(graph: Graph) -> dict[str, int]:
    """How many rooms stand below each, on the longest way down. Imports never go in a circle."""
    found: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        found[room] = max((found[other] + 1 for other in graph[room]), default=0)
    return found


def reduced(graph: Graph) -> Graph:
    """Without the imports that follow from others: the fewest arrows with the same paths."""
    below: dict[str, set[str]] = {}  # all that a room imports, directly or by way of others
    for room in TopologicalSorter(graph).static_order():
        below[room] = set().union(graph[room], *(below[other] for other in graph[room]))
    return {room: others - set().union(*(below[other] for other in others))
            for room, others in graph.items()}


def drawing(graph: Graph) -> str:
    """A Mermaid flowchart of the imports that do not follow from others, and a table of all."""
    height = levels(graph)
    highest_first = sorted(graph, key=lambda room: (-height[room], room))
    arrows = {room: sorted(others - {EVERYWHERE}) for room, others in reduced(graph).items()}
    lines = [f"    {room} --> {' & '.join(arrows[room])}" for room in highest_first if arrows[room]]
    table = [f"| {room} | {', '.join(sorted(graph[room])) or 'none'} |" for room in highest_first]
    return "\n".join(["```mermaid", "flowchart TB", *lines, "```", "",
                      "| room | imports |", "| --- | --- |", *table])


def with_drawing(page: str, drawn: str) -> str:
    """The page with what is drawn between its markers."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{drawn}\n\n{END}{after}"


def main(argv: list[str]) -> None:
    """Print, or write."""
    drawn = drawing(import_graph(ROOT / "gpt"))
    if argv == ["--write"]:
        PAGE.write_text(with_drawing(PAGE.read_text(encoding="utf-8"), drawn), encoding="utf-8")
    elif argv:
        sys.exit(f"unknown: {' '.join(argv)}; give --write, or nothing")
    else:
        print(drawn)


if __name__ == "__main__":
    main(sys.argv[1:])
