"""Recipes: what a YAML file or a command line asks for, and which recipe a run means."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import recipe as recipe_module
from data.prepare import main, open_or_prepare, recipe_from
from data.recipe import Recipe, find_recipe, read_recipe
from gpt.cli import field_paths
from gpt.errors import UserError


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    for i in range(12):
        (Path("corpus") / f"{i:02}.txt").write_text(f"document {i}\n")


def test_a_recipe_file_names_its_dataset_and_the_command_line_overrides_it():
    Path("mine.yaml").write_text("sources: [corpus]\ntokenizer: byte\n")
    read = read_recipe(Path("mine.yaml"))
    assert (read.name, read.out, read.tokenizer) == ("mine", "data/mine", "byte")
    changed = recipe_from(["mine.yaml", "--tokenizer", "char", "name=other", "--seed=3"])
    assert (changed.name, changed.out, changed.tokenizer, changed.seed) == (
        "other", "data/other", "char", 3)


def test_sources_named_directly_make_a_recipe_called_after_the_first():
    made = recipe_from(["corpus/00.txt", "corpus/01.txt", "out=here"])
    assert made.sources == ["corpus/00.txt", "corpus/01.txt"]
    assert (made.name, made.out, made.tokenizer) == ("00", "here", "bpe:4096")
    assert recipe_from(["corpus/"]).name == "corpus"


def test_a_source_may_have_blanks_in_its_name():
    Path("my corpus.txt").write_text("text")
    assert recipe_from(["my corpus.txt"]).sources == ["my corpus.txt"]


def test_sources_may_come_from_the_command_line_alone():
    Path("mine.yaml").write_text("tokenizer: byte\n")
    assert recipe_from(["mine.yaml", "sources=[corpus]"]).sources == ["corpus"]


@pytest.mark.parametrize(("text", "line"), [
    ("sources: [corpus]\ntokeniser: byte\n",
     "mine.yaml, line 2: there is no field tokeniser; did you mean tokenizer?"),
    ("tokenizer: byte\n", "sources is missing: give sources=VALUE, or set it in the YAML file"),
    ("sources: []\n", "mine.yaml, line 1: sources: list should have at least 1 item after "
                      "validation, not 0 (given: [])"),
    ("sources: corpus\n", "mine.yaml, line 1: sources: input should be a valid list "
                          "(given: 'corpus')"),
    ("sources: [corpus]\nval_fraction: 1\n",
     "mine.yaml, line 2: val_fraction: input should be less than 1 (given: 1)"),
    ("sources: [corpus]\nout: .\n",
     "mine.yaml, line 1: the configuration: out must name a folder of its own"),
    ("- corpus\n",
     "mine.yaml: a recipe is made of fields such as 'sources:' and 'tokenizer:'"),
    ("", "mine.yaml: a recipe is made of fields such as 'sources:' and 'tokenizer:'")])
def test_a_wrong_recipe_is_one_line(text, line):
    Path("mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        recipe_from(["mine.yaml"])
    assert str(caught.value) == line


@pytest.mark.parametrize(("argv", "line"), [
    (["a.yaml", "corpus"], "give one recipe or a list of sources, not both: a.yaml corpus"),
    (["tokenizer=byte"], "sources is missing: give sources=VALUE, or set it in the YAML file"),
    (["corpus", "on_bad_text=ignore"], "command line: on_bad_text: input should be 'error', "
                                       "'replace' or 'skip' (given: 'ignore')"),
    (["corpus", "tokenizr=byte"],
     "command line: there is no field tokenizr; did you mean tokenizer?"),
    (["none.yaml"], "cannot read the configuration none.yaml: No such file or directory")])
def test_a_wrong_command_line_is_one_line(argv, line):
    with pytest.raises(UserError) as caught:
        recipe_from(argv)
    assert str(caught.value) == line


@pytest.mark.parametrize("argv", [[], ["-h"], ["corpus", "--help"]])
def test_help_lists_every_field_of_a_recipe(argv, capsys):
    main(argv)
    told = capsys.readouterr().out
    assert told.startswith("Prepare a dataset") and "usage: python data/prepare.py" in told
    for path, info in field_paths(Recipe).items():
        assert f"\n  {path} " in told and info.description in told
    assert not Path("data").exists()


def files_of(folder: str) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes())
            for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def recipes(monkeypatch):
    """A folder of recipes as configs/data is."""
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text("sources: [corpus]\ntokenizer: byte\n")
    monkeypatch.setattr(recipe_module, "RECIPES", Path("recipes"))


@pytest.mark.parametrize("dataset", ["recipes/mine.yaml", "data/mine"])
def test_a_run_may_name_a_recipe_or_the_folder_it_fills(dataset, recipes, capsys):
    first = open_or_prepare(dataset)
    assert first.folder == Path("data/mine")
    assert "data/mine is not there yet: preparing it as the recipe mine" in capsys.readouterr().out
    before = files_of("data/mine")
    assert open_or_prepare(dataset).manifest == first.manifest
    assert files_of("data/mine") == before


def test_a_run_is_not_given_a_dataset_that_its_recipe_no_longer_describes(recipes):
    open_or_prepare("recipes/mine.yaml")
    Path("recipes/mine.yaml").write_text("sources: [corpus]\ntokenizer: char\n")
    with pytest.raises(UserError, match=r"tokenizer \('byte' there, 'char' asked\)"):
        open_or_prepare("recipes/mine.yaml")


def test_a_folder_without_dataset_or_recipe_is_refused(recipes):
    assert find_recipe("data/other") is None and find_recipe("elsewhere/mine") is None
    with pytest.raises(UserError, match="there is no dataset in data/other"):
        open_or_prepare("data/other")
