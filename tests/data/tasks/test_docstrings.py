"""The quick start's task: pairs of signature and docstring, and which are held out."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from data.documents.corpus import Corpus
from data.documents.split import SplitPlan
from data.recipe import Source, read_recipe
from data.sources.bad_text import BadText
from data.sources.files import list_files
from data.tasks import docstrings, returns
from data.tasks.library_functions import functions_in, make_task, write_task
from gpt.errors import UserError

SOURCE = b'''
def plain(a, b: int = 3, *rest, c=None, **more) -> dict[str, int]:
    """Say what it does.

    And more.
    """

class Kept:
    """No function."""

    async def method(self):
        """
        Start on the second line,
        continue on the third.
        """

        def inner(): "  One word.  "

    def undocumented(self):
        return "text"

    def blank(self):
        """   """

def \xc3\xa9t\xc3\xa9(): "\xc3\x87a va."
'''


def main(argv: list[str]) -> None:
    """The command of the docstring task."""
    make_task(argv, docstrings.__doc__ or "", "data/docstrings", docstrings.pair)


def make_pairs(out: Path, recipe: Path) -> None:
    """The docstring task in a folder."""
    write_task(out, recipe, docstrings.pair)


def pairs_in(source: bytes) -> list[tuple[str, str]]:
    """Prompts and completions of a module."""
    return [tuple(docstrings.pair(function).values()) for function in functions_in(source)]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_pair_is_a_signature_and_the_first_line_of_its_docstring():
    assert set(pairs_in(SOURCE)) == {
        ('def plain(a, b: int=3, *rest, c=None, **more) -> dict[str, int]:\n    """',
         "Say what it does."),
        ('def method(self):\n    """', "Start on the second line,"),
        ('def inner():\n    """', "One word."),
        ('def été():\n    """', "Ça va.")}


def test_prompt_and_completion_make_a_function_that_parses():
    for prompt, completion in pairs_in(SOURCE):
        [function] = ast.parse(f'{prompt}{completion}"""').body
        assert ast.get_docstring(function) == completion


@pytest.mark.parametrize("source", [b"def broken(:", b"\xff\xfe", b"a\0b", b"", b"x = 1"])
def test_source_that_does_not_parse_or_has_no_functions_has_no_pairs(source):
    assert list(pairs_in(source)) == []


@pytest.mark.parametrize("source", [b"x = " + b"1+" * 100_000 + b"1", b"x = " + b"-" * 100_000])
def test_source_that_nests_too_deeply_has_no_pairs(source):
    assert list(pairs_in(source)) == []


def corpus(count: int = 40) -> Path:
    """Modules with one function of their own and one that many share, and a recipe for them."""
    Path("lib").mkdir()
    for i in range(count):
        Path(f"lib/m{i:02}.py").write_text(
            f'def own_{i}(): "Module {i}."\n\ndef shared_{i % 3}(): "Told by module {i}."\n')
    Path("lib/notes.txt").write_text('def not_python(): "No."')
    Path("lib.yaml").write_text("sources: [lib]\nval_fraction: 0.25\nsplit: documents\n")
    return Path("lib.yaml")


def records(split: str) -> dict[str, str]:
    """Prompts and completions that were written."""
    lines = Path(f"out/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    assert all(pair.keys() == {"prompt", "completion"} for pair in pairs)
    assert len({pair["prompt"] for pair in pairs}) == len(pairs)
    return {pair["prompt"]: pair["completion"] for pair in pairs}


def test_validation_pairs_come_from_the_modules_that_pretraining_holds_out():
    recipe = read_recipe(corpus())
    make_pairs(Path("out"), Path("lib.yaml"))
    python = recipe.model_copy(update={"sources": [Source(path="lib/*.py")]})
    corpus_of_python = Corpus(python, list_files(python.sources, Path("fetched")))
    plan, sides = SplitPlan(corpus_of_python), []
    for number, file in enumerate(corpus_of_python.files):
        own = f'def own_{int(file.name[1:3])}():\n    """'
        [piece, _] = plan.pieces(number, BadText("error"))
        sides.append(piece.split)
        assert (own in records("val")) == (piece.split == "val")
        assert (own in records("train")) == (piece.split == "train")
    assert 0 < sides.count("val") < len(sides) == 40


def test_no_prompt_stands_in_both_files():
    make_pairs(Path("out"), corpus())
    train, val = records("train"), records("val")
    assert not train.keys() & val.keys()
    assert sum("shared" in prompt for prompt in train) == 3
    assert len(train) + len(val) == 43
    assert not any("not_python" in prompt for prompt in train | val)


def test_files_that_are_there_are_kept(capsys):
    corpus()
    main(["out=out", "recipe=lib.yaml"])
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    assert "out/val.jsonl: " in capsys.readouterr().out
    main(["--out", "out", "--recipe=lib.yaml"])
    assert {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()} == before
    assert capsys.readouterr().out == "out is already there\n"


def test_a_missing_file_of_the_two_is_made_again():
    corpus()
    make_pairs(Path("out"), Path("lib.yaml"))
    whole = Path("out/val.jsonl").read_bytes()
    Path("out/val.jsonl").unlink()
    make_pairs(Path("out"), Path("lib.yaml"))
    assert Path("out/val.jsonl").read_bytes() == whole


def test_help_is_printed_and_nothing_made(capsys):
    main(["--help"])
    assert "usage: python data/tasks/docstrings.py" in capsys.readouterr().out
    assert not list(Path().iterdir())


@pytest.mark.parametrize(("argv", "message"), [
    (["words"], "words is no setting of this command; it takes out= and recipe="),
    (["seed=3"], "seed is no setting of this command; it takes out= and recipe="),
    (["recipe=none.yaml"], "cannot read the configuration none.yaml: No such file or directory")])
def test_a_wrong_command_line_is_one_line(argv, message):
    with pytest.raises(UserError) as caught:
        main(argv)
    assert str(caught.value) == message
    assert not list(Path().iterdir())


@pytest.mark.parametrize("out", ["out=5", "out="])
def test_an_out_that_is_no_text_is_a_folder_of_that_name_or_refused(out):
    corpus()
    try:
        main([out, "recipe=lib.yaml"])
    except UserError:
        assert not Path("5").exists()


def test_sources_without_functions_are_refused():
    Path("prose.txt").write_text("Once upon a time.")
    Path("prose.yaml").write_text("sources: [prose.txt]\n")
    with pytest.raises(UserError):
        make_pairs(Path("out"), Path("prose.yaml"))


@pytest.mark.parametrize(("body", "label"), [
    ("return x", "value"), ("return", "nothing"), ("return None", "nothing"), ("pass", "nothing"),
    ("yield x", "generator"), ("return (yield from x)", "generator"),
    ("if x:\n        return\n    return 0", "value"),
    ("def inner(): return 1", "nothing"), ("f = lambda: (yield)", "nothing"),
    ("class A:\n        def b(self): yield", "nothing"),
    ("for i in x:\n        yield i", "generator")])
def test_a_label_says_what_a_functions_own_code_gives_back(body, label):
    source = f'def f(x):\n    """Do it.\n\n    More."""\n    {body}\n'
    found = [returns.labelled(function) for function in functions_in(source.encode())]
    assert found == [{"text": 'def f(x):\n    """Do it."""\n    # returns ', "label": label}]
