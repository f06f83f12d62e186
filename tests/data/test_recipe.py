"""Recipes: what a YAML file or a command line asks for, and which recipe a run means."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import recipe as recipe_module
from data.preparation import open_or_prepare
from data.prepare import main, recipe_from
from data.recipe import Recipe, Source, build_recipe, find_recipe, read_recipe
from gpt.configuration.command_line import field_paths
from gpt.errors import UserError
from tests.data.sources.sample_files import refusal

HASH = "0" * 64


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    for i in range(12):
        (Path("corpus") / f"{i:02}.txt").write_text(f"document {i}\n")


def paths(recipe: Recipe) -> list[str]:
    return [source.path for source in recipe.sources]


def recipe_of(text: str, *argv: str) -> Recipe:
    Path("mine.yaml").write_text(text)
    return recipe_from(["mine.yaml", *argv])


def test_a_recipe_file_names_its_dataset_and_the_command_line_overrides_it():
    Path("mine.yaml").write_text("sources: [corpus]\ntokenizer: byte\n")
    read = read_recipe(Path("mine.yaml"))
    assert (read.name, read.out, read.tokenizer) == ("mine", "data/mine", "byte")
    changed = recipe_from(["mine.yaml", "--tokenizer", "char", "name=other", "--seed=3"])
    assert (changed.name, changed.out, changed.tokenizer, changed.seed) == (
        "other", "data/other", "char", 3)


def test_sources_named_directly_make_a_recipe_called_after_the_first():
    made = recipe_from(["corpus/00.txt", "corpus/01.txt", "out=here"])
    assert paths(made) == ["corpus/00.txt", "corpus/01.txt"]
    assert (made.name, made.out, made.tokenizer) == ("00", "here", "bpe:4096")
    assert recipe_from(["corpus/"]).name == "corpus"
    assert recipe_from(["-"]).name == "stdin"


@pytest.mark.parametrize("source", ["my corpus.txt", "https://host/a.txt?x=1&y=2", "s3://b/k=v/*",
                                    "corpus/*.txt", "-", "python-library"])
def test_a_source_may_be_any_word(source):
    assert paths(recipe_from([source, "corpus"])) == [source, "corpus"]


def test_sources_may_come_from_the_command_line_alone():
    assert paths(recipe_of("tokenizer: byte\n", "sources=[corpus]")) == ["corpus"]
    assert paths(recipe_of("sources: [x]\n", "sources=[{path: corpus, weight: 2}]")) == ["corpus"]


def test_sources_are_paths_or_mappings():
    made = recipe_of("sources:\n- a\n- path: b\n  format: csv\n  weight: 2\n", "sources.0.weight=1")
    assert made.sources == [Source(path="a", weight=1), Source(path="b", format="csv", weight=2)]
    assert made.is_mixture and not recipe_of("sources: [a]\n").is_mixture


def test_what_a_source_does_not_say_comes_from_the_recipe():
    made = recipe_of("format: jsonl\ntext_field: body\nsources:\n- a\n- path: b\n  format: csv\n"
                     "- path: c\n  text_field: '{x}'\n")
    assert [(source.format, source.text_field) for source in made.sources] == [
        ("jsonl", "body"), ("csv", "body"), ("jsonl", "{x}")]
    assert [(source.format, source.text_field) for source in recipe_of(
        "sources: [a]\n", "text_field=t").sources] == [("auto", "t")]
    copied = Recipe(**made.model_dump())
    assert copied == made and Recipe(sources=made.sources).sources == made.sources


def test_an_encoding_is_said_for_all_sources_or_for_one_by_any_of_its_names():
    made = recipe_of("encoding: Latin-1\nsources:\n- a\n- path: b\n  encoding: UTF8\n")
    assert [source.encoding for source in made.sources] == ["iso8859-1", "utf-8"]
    for name in ("latin1", "L1", "iso_8859-1", "ISO8859-1"):
        assert recipe_from(["a", f"encoding={name}"]).identity == recipe_from(
            ["a", "sources.0.encoding=latin-1"]).identity
    assert Recipe(sources=["a"], encoding="utf-8-sig").identity == Recipe(sources=["a"]).identity
    assert Recipe(sources=["a"], encoding="gb18030").sources[0].identity == {
        "path": "a", "encoding": "gb18030"}


@pytest.mark.parametrize(("name", "near"), [
    ("latin-99", "there is no such encoding; near are latin9, "),
    ("utf-61", "there is no such encoding; near are utf-16, "),
    ("windows1253x", "there is no such encoding; near are windows-125"),
    ("", "there is no such encoding; some are utf-8, latin-1, cp1252, utf-16"),
    ("a\0b", "there is no such encoding; "), ("../utf-8x", "there is no such encoding; near are "),
    ("rot13", "there is no such encoding; "), ("base64", "there is no such encoding; "),
    ("idna", "there is no such encoding; "), ("unicode_escape", "there is no such encoding; ")])
def test_an_unknown_encoding_is_one_line_with_the_nearest_names(name, near):
    assert near in refusal(build_recipe, {"sources": ["a"]}, {"encoding": name})
    assert near in refusal(build_recipe, {"sources": [{"path": "a", "encoding": name}]}, {})


@pytest.mark.parametrize("form", ["parquet", "datasets"])
def test_an_encoding_of_what_has_its_own_is_refused(form):
    told = refusal(build_recipe, {"sources": ["a"]}, {"format": form, "encoding": "latin-1"})
    assert "encoding goes with text, jsonl, json and csv, in the source that has it; " in told
    assert Recipe(sources=[{"path": "a", "format": form, "encoding": "utf-8"}],
                  encoding="latin-1").sources[0].encoding == "utf-8"


def test_fields_of_sources_are_set_from_the_command_line():
    text = "sources:\n- a\n- path: b\n  text_field: t\n"
    made = recipe_of(text, "sources.0.path=https://h/x?y=z", "--sources.1.text_field", "body",
                     "--sources.0.max_tokens=10")
    assert made.sources == [Source(path="https://h/x?y=z", max_tokens=10),
                            Source(path="b", text_field="body")]
    assert recipe_from(["a", "b", "sources.1.format=text"]).sources[1].format == "text"


@pytest.mark.parametrize(("word", "line"), [
    ("sources.2.path=x", "sources.2.path: there is no source 2; they count from 0"),
    ("sources.0.formatt=csv",
     "command line: there is no field sources.0.formatt; did you mean sources.0.format?"),
    ("sources.0.format=cvs", "command line: sources.0.format: input should be 'auto', 'text', "
                             "'jsonl', 'json', 'csv', 'parquet' or 'datasets' (given: 'cvs')"),
    ("sources.0.weight=0",
     "command line: sources.0.weight: input should be greater than 0 (given: 0)"),
    ("sources.0.path=5",
     "command line: sources.0.path: input should be a valid string (given: 5)")])
def test_a_wrong_field_of_a_source_on_the_command_line_is_one_line(word, line):
    assert refusal(recipe_of, "sources: [a, b]\n", word) == line


def test_there_is_no_source_to_set_where_there_are_none():
    assert refusal(build_recipe, {}, {"sources.0.path": "x"}) == (
        "sources.0.path: there is no source 0; they count from 0")


@pytest.mark.parametrize(("text", "line"), [
    ("sources: [corpus]\ntokeniser: byte\n",
     "mine.yaml, line 2: there is no field tokeniser; did you mean tokenizer?"),
    ("tokenizer: byte\n", "sources is missing: give sources=VALUE, or set it in the YAML file"),
    ("sources: []\n", "mine.yaml, line 1: sources: list should have at least 1 item after "
                      "validation, not 0 (given: [])"),
    ("sources: corpus\n", "mine.yaml, line 1: sources: input should be a valid list; "
                          "write [corpus] (given: 'corpus')"),
    ("sources:\n- corpus\n- 2024\n", "mine.yaml, line 3: sources.1: input should be a valid "
                                     "dictionary or instance of Source (given: 2024)"),
    ("sources:\n- path: a\n  formatt: csv\n",
     "mine.yaml, line 3: there is no field sources.0.formatt; did you mean sources.0.format?"),
    ("sources:\n- a\n- path: b\n  sha256: xyz\n", None),
    ("sources:\n- format: csv\n",
     "sources.0.path is missing: give sources.0.path=VALUE, or set it in the YAML file"),
    ("sources:\n- path: ''\n", None),
    ("sources:\n- a\nformat: cvs\n",
     "mine.yaml, line 3: format: input should be 'auto', 'text', 'jsonl', 'json', 'csv', "
     "'parquet' or 'datasets' (given: 'cvs')"),
    ("sources: [corpus]\ntext_field: 5\n",
     "mine.yaml, line 2: text_field: input should be a valid string (given: 5)"),
    ("sources:\n- path: a\n  weight: .nan\n", None),
    ("sources:\n- path: a\n  weight: true\n", None),
    ("sources: [corpus]\nval_fraction: 1\n",
     "mine.yaml, line 2: val_fraction: input should be less than 1 (given: 1)"),
    ("sources: [corpus]\nout: .\n",
     "mine.yaml, line 1: the configuration: out must name a folder of its own"),
    ("sources:\n- path: a\n  weight: 1\n- b\n",
     "mine.yaml, line 1: the configuration: give every source a weight, or none"),
    ("sources: [a]\nmin_characters: 5\nmax_characters: 4\n",
     "mine.yaml, line 1: the configuration: max_characters is below min_characters"),
    ("sources: ['-', a, '-']\n",
     "mine.yaml, line 1: the configuration: standard input can be read once: give - as one source"),
    ("- corpus\n",
     "mine.yaml: a recipe is made of fields such as 'sources:' and 'tokenizer:'"),
    ("", "mine.yaml: a recipe is made of fields such as 'sources:' and 'tokenizer:'")])
def test_a_wrong_recipe_is_one_line(text, line):
    told = refusal(recipe_of, text)
    assert told == line if line is not None else told.startswith("mine.yaml, line ")
    assert not Path("data").exists()


def test_a_file_name_that_is_no_name_for_a_dataset_is_blamed():
    Path("my corpus.yaml").write_text("sources: [corpus]\n")
    assert refusal(recipe_from, ["my corpus.yaml"]).startswith("the name of my corpus.yaml: name: ")
    assert recipe_from(["my corpus.yaml", "name=mine"]).name == "mine"


@pytest.mark.parametrize(("source", "problem"), [
    ({"path": "-", "url": "http://h/a"}, "url goes with a path on this machine"),
    ({"path": "http://h/a", "url": "http://h/a"}, "url goes with a path on this machine"),
    ({"path": "python-library", "url": "http://h/a"}, "url goes with a path on this machine"),
    ({"path": "python-library", "sha256": HASH}, "sha256 goes with a file on this machine"),
    ({"path": "s3://b/a", "sha256": HASH}, "sha256 goes with a file on this machine"),
    ({"path": "o/n", "format": "datasets", "sha256": HASH}, "sha256 goes with a file"),
    ({"path": "a.txt", "subset": "en"}, "subset, subset_split and revision go with format="),
    ({"path": "a.txt", "subset_split": "test"}, "subset, subset_split and revision go with"),
    ({"path": "a.txt", "revision": "v1"}, "subset, subset_split and revision go with format=")])
def test_what_a_source_would_silently_pass_over_is_refused(source, problem):
    told = refusal(build_recipe, {"sources": [source]}, {}, {"sources.0.path": "mine.yaml, line 2"})
    assert told.startswith(f"mine.yaml, line 2: sources.0: {problem}")


@pytest.mark.parametrize("source", [
    {"path": "-", "sha256": HASH}, {"path": "http://h/a", "sha256": HASH},
    {"path": "HTTPS://h/a", "sha256": HASH},
    {"path": "a.txt", "sha256": HASH, "url": "http://h/a"},
    {"path": "o/n", "format": "datasets", "subset": "en", "subset_split": "x", "revision": "v"}])
def test_what_a_source_heeds_is_accepted(source):
    assert Recipe(sources=[source]).sources[0].model_dump(exclude_defaults=True) == source


def test_the_identity_of_a_recipe_is_what_decides_the_text():
    plain = Recipe(sources=["a"])
    assert plain.identity["sources"] == ["a"]
    for change in ({"workers": 3}, {"out": "x"}, {"name": "y"}):
        assert Recipe(sources=["a"], **change).identity == plain.identity
    for change in ({"seed": 1}, {"text_field": "t"}, {"format": "csv"}, {"normalize": "NFC"},
                   {"sources": [{"path": "a", "max_tokens": 5}]}, {"on_bad_text": "skip"},
                   {"encoding": "latin-1"}, {"sources": [{"path": "a", "encoding": "cp1252"}]}):
        assert Recipe(**{"sources": ["a"], **change}).identity != plain.identity
    with_hash = [{"path": path, "url": url, "sha256": HASH} for path, url in (
        ("a", "http://x/a"), ("elsewhere/b", "http://y/b"))]
    assert Recipe(sources=with_hash[:1]).identity == Recipe(sources=with_hash[1:]).identity


@pytest.mark.parametrize(("argv", "line"), [
    (["a.yaml", "corpus"], "give one recipe or a list of sources, not both: a.yaml corpus"),
    (["tokenizer=byte"], "sources is missing: give sources=VALUE, or set it in the YAML file"),
    (["corpus", "on_bad_text=ignore"], "command line: on_bad_text: input should be 'error', "
                                       "'replace' or 'skip' (given: 'ignore')"),
    (["corpus", "tokenizr=byte"],
     "command line: there is no field tokenizr; did you mean tokenizer?"),
    (["corpus", "--val-fraction", "0.2"],
     "command line: there is no field val-fraction; did you mean val_fraction?"),
    (["corpus", "--val-fraction=0.2"],
     "command line: there is no field val-fraction; did you mean val_fraction?"),
    (["none.yaml"], "cannot read the configuration none.yaml: No such file or directory")])
def test_a_wrong_command_line_is_one_line(argv, line):
    assert refusal(recipe_from, argv) == line


@pytest.mark.parametrize("argv", [[], ["-h"], ["corpus", "--help"]])
def test_help_lists_every_field_of_a_recipe_and_of_its_sources(argv, capsys):
    main(argv)
    told = capsys.readouterr().out
    assert told.startswith("Prepare a dataset") and "usage: python data/prepare.py" in told
    for path, info in field_paths(Recipe).items():
        assert f"\n  {path} " in told and info.description in told
    assert "\n  sources.N.path " in told and "\n  sources.N.text_field " in told
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


@pytest.mark.parametrize("path", sorted(recipe_module.RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_recipes_that_come_with_the_toolkit_are_sound(path):
    assert read_recipe(path).name == path.stem
