"""docs/architecture.md says what is there: its tree, its drawing, and every name of its walks."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
SPEC = importlib.util.spec_from_file_location("draw_rooms", ROOT / "docs/draw_rooms.py")
draw_rooms = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(draw_rooms)


def section(heading: str, text: str = TEXT) -> str:
    """What stands below the headings that begin like this, up to the next other one."""
    parts = re.split(r"^## ", text, flags=re.M)
    return "\n".join(part for part in parts if part.startswith(heading))


# ----- The drawing

def package_of(folder: Path, **sources: str) -> Path:
    """A package whose rooms a, b, … hold these modules: {room}__{module}=source."""
    for name, source in sources.items():
        room, module = name.split("__")
        (folder / room).mkdir(parents=True, exist_ok=True)
        (folder / room / "__init__.py").touch()
        (folder / room / f"{module}.py").write_text(source)
    return folder


def test_the_page_has_the_drawing_and_the_table_that_the_script_draws_now():
    drawn = draw_rooms.drawing(draw_rooms.import_graph(ROOT / "gpt"))
    assert draw_rooms.with_drawing(TEXT, drawn) == TEXT
    assert {line.split()[0] for line in drawn.splitlines() if "-->" in line} >= {
        "training", "language_model", "generation"}


def test_an_import_more_or_less_would_change_the_page():
    graph = draw_rooms.import_graph(ROOT / "gpt")
    for changed in (graph | {"shards": graph["shards"] | {"model"}},
                    graph | {"batches": graph["batches"] - {"shards"}},
                    graph | {"cellar": set()}):
        assert draw_rooms.with_drawing(TEXT, draw_rooms.drawing(changed)) != TEXT


@pytest.mark.parametrize("source", [
    "from gpt.b import B", "from gpt import b", "import gpt.b.deep as d", "from ..b import B",
    "from .. import b", "def late():\n    from gpt.b import deep"])
def test_every_way_to_import_another_room_is_seen(tmp_path, source):
    package = package_of(tmp_path / "gpt", a__one=source, b__two="from gpt.b import x")
    (package / "c.py").write_text("from gpt.a import one\nimport torch.b")
    assert draw_rooms.import_graph(package) == {"a": {"b"}, "b": set(), "c": {"a"}}


def test_an_arrow_that_follows_from_others_is_not_drawn_but_stands_in_the_table():
    graph = {"a": {"b", "c", "errors"}, "b": {"c", "errors"}, "c": {"errors"}, "errors": set()}
    assert draw_rooms.drawing(graph).splitlines() == [
        "```mermaid", "flowchart TB", "    a --> b", "    b --> c", "```", "",
        "| room | imports |", "| --- | --- |",
        "| a | b, c, errors |", "| b | c, errors |", "| c | errors |", "| errors | none |"]


def test_the_script_prints_writes_and_refuses_what_it_does_not_know(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{draw_rooms.BEGIN}\nold\n{draw_rooms.END}\nbelow\n")
    monkeypatch.setattr(draw_rooms, "PAGE", page)
    draw_rooms.main(["--write"])
    written = page.read_text()
    draw_rooms.main([])
    assert written == (f"above\n{draw_rooms.BEGIN}\n\n{capsys.readouterr().out}\n"
                       f"{draw_rooms.END}\nbelow\n")
    draw_rooms.main(["--write"])
    assert page.read_text() == written
    with pytest.raises(SystemExit, match="unknown: --wirte"):
        draw_rooms.main(["--wirte"])


# ----- The tree

def listed(text: str) -> dict[str, str]:
    """Folders (gpt/model/) and files of the tree, and what is said of each."""
    found, folders = {}, []
    for line in section("The tree", text).split("```")[1].strip("\n").splitlines():
        name, about = line.split(maxsplit=1)
        depth = (len(line) - len(line.lstrip())) // 2
        path = "".join([*folders[:depth], name])
        found[path] = about
        if name.endswith("/"):
            folders[depth:] = [name]
    return found


def there() -> set[str]:
    """All modules of gpt/ and data/, and the parts of pages; a room's __init__.py is its folder."""
    found, kinds = set(), {".py", ".c", ".h", ".js", ".html", ".css"}
    for package in ("gpt", "data"):
        for path in (ROOT / package).rglob("*"):
            if path.suffix in kinds and (path.parent / "__init__.py").is_file():
                found.add(path.relative_to(ROOT).as_posix().removesuffix("__init__.py"))
    return found


def test_the_tree_names_every_module_of_gpt_and_data_and_nothing_else():
    assert listed(TEXT).keys() == there()
    assert all((ROOT / name).exists() for name in listed(TEXT))


def test_each_line_of_the_tree_says_in_a_few_words_what_it_is_about():
    assert {name: about for name, about in listed(TEXT).items() if len(about.split()) > 10} == {}
    assert len(listed(TEXT)) == len(section("The tree").split("```")[1].strip().splitlines())


@pytest.mark.parametrize(("old", "new"), [
    (r"\n    block\.py .*", ""), (r"(\n    block\.py) ", r"\1x "),
    (r"(\n  language_model\.py .*)", r"\1\n  cellar.py   what nobody needs"),
    (r"\n  model/ .*", ""), (r"\n      library\.py ", r"\n    library.py ")])
def test_a_tree_with_a_line_too_many_or_too_few_would_be_noticed(old, new):
    changed = re.sub(old, new, TEXT)
    assert changed != TEXT and listed(changed).keys() != there()


# ----- The walks

def walked(text: str) -> Iterator[tuple[str, str]]:
    """(file, name) for each name in the tables of the walks."""
    for line in section("A walk", text).splitlines():
        if line.startswith("| `"):
            _, file, names, *_ = line.split("|")
            yield from ((file.strip(" `"), name) for name in re.findall(r"`([^`]+)`", names))


def defined(path: Path) -> set[str]:
    """Functions, classes and methods of a file: `f`, `C` and `C.m`; of C its functions."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".c":
        return set(re.findall(r"^\w[\w *]* \*?(\w+)\(", source, re.M))
    kinds = (ast.FunctionDef, ast.ClassDef)
    top = [node for node in ast.parse(source).body if isinstance(node, kinds)]
    return {node.name for node in top} | {
        f"{owner.name}.{node.name}" for owner in top if isinstance(owner, ast.ClassDef)
        for node in owner.body if isinstance(node, kinds)}


def unknown(text: str) -> list[tuple[str, str]]:
    """Names of the walks that their files do not define."""
    return [(file, name) for file, name in walked(text)
            if not (ROOT / file).is_file() or name not in defined(ROOT / file)]


def test_every_name_of_the_walks_is_defined_in_the_file_beside_it():
    assert unknown(TEXT) == []
    names = {name for _, name in walked(TEXT)}
    assert names >= {"TokenStream", "Batches.step", "Trainer._step", "Step.gradients",
                     "GPT.hidden", "Attention.forward", "summed_cross_entropy", "Step.apply",
                     "Optimizer.step", "save", "Engine.step", "fastest", "KVCache", "choose",
                     "TextStream.push"}


def test_the_walks_name_code_in_those_two_columns_alone():
    rest = [re.sub(r"^\| `[^|]+\| `[^|]+\|", "", line) for line in section("A walk").splitlines()]
    assert [line for line in rest if "`" in line] == []


@pytest.mark.parametrize(("old", "new"), [
    ("`Trainer._step`", "`Trainer._steps`"), ("`Trainer._step`", "`Step._step`"),
    ("`Block.forward`", "`forward`"), ("`choose`", "`chose`"), ("`hidden`", "`hiden`"),
    ("| `gpt/model/block.py`", "| `gpt/model/attention.py`"),
    ("| `gpt/model/block.py`", "| `gpt/model/blocks.py`")])
def test_a_wrong_name_or_file_in_a_walk_would_be_noticed(old, new):
    assert len(unknown(TEXT.replace(old, new))) == 1
