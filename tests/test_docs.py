"""What README and docs show is there: commands parse, files and names exist."""

from __future__ import annotations

import importlib
import re
import shlex

import pytest
import yaml

import finetune
from data.recipe import Recipe
from gpt.__main__ import VERBS
from gpt.configuration import (
    FinetuneConfig,
    PretrainConfig,
    parse_command_line,
    split_arguments,
    validate,
)
from gpt.errors import OneLineParser, UserError
from gpt.terminal import options
from tests.tiny import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def commands() -> list[str]:
    shown = re.compile(r"^(?:#   |echo .*\| )?(python [\w/.-]+\.py(?: .*?)?)(?:  +#.*)?$", re.M)
    return [command for page in [*PAGES, *CONFIGS] for command in shown.findall(page.read_text())]


def test_the_pages_show_commands_of_every_script():
    assert {shlex.split(c)[1] for c in commands()} >= {
        "train.py", "finetune.py", "sample.py", "data/prepare.py", "data/tasks/docstrings.py",
        "data/tasks/returns.py"}


@pytest.mark.parametrize("command", commands())
def test_a_command_that_is_shown_is_understood(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    script, *words = shlex.split(command)[1:]
    assert (ROOT / script).is_file()
    if script == "sample.py":
        options.parse(words, "")
    elif script == "data/prepare.py" and not words[0].endswith(".yaml"):
        sources, fields = split_arguments(words)
        validate(Recipe, {"sources": sources, **fields}, {})
    elif script in ("train.py", "finetune.py") and "--help" not in words:
        words = [word for word in words if not word.startswith("runs/")]
        words = words if script == "train.py" else finetune.take_preview(words)[0]
        schema = PretrainConfig if script == "train.py" else FinetuneConfig
        parse_command_line(schema, words or ["data.dataset=x"], "")


def verbs() -> list[str]:
    shown = re.compile(r"^python -m gpt (\w+.*?)(?:  +#.*)?$", re.M)
    return [command for page in PAGES for command in shown.findall(page.read_text())]


@pytest.mark.parametrize("command", verbs())
def test_a_verb_that_is_shown_is_understood(command):
    verb, *words = shlex.split(command)
    module = importlib.import_module(f"gpt.verbs.{VERBS[verb][0]}")
    parser = OneLineParser()
    module.add_arguments(parser)
    parser.parse_args(words)


def test_the_pages_show_every_verb():
    assert {shlex.split(command)[0] for command in verbs()} == VERBS.keys()


def test_a_wrong_command_would_have_been_noticed(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError):
        parse_command_line(PretrainConfig, ["configs/quickstart.yaml", "model.n_embed=1"], "")


def test_files_that_are_named_exist():
    made = {"metrics.jsonl", "train.log", "samples.jsonl", "config.yaml", "environment.json",
            "identity.json", "dataset.json", "encoding.json", "ranks.tiktoken", "task.jsonl",
            "bad_text.jsonl", "rows.jsonl", "overlap.json", "config.json", "generation_config.json",
            "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
            "convert_hf_to_gguf.py", "adapter_config.json", "chat_format.json", "core.yaml",
            "mine.yaml", "plan-notes.yaml", "law.json"}
    for page in PAGES:
        for name in re.findall(r"`([\w/.-]+\.(?:py|yaml|json|md|txt|jsonl|log|tiktoken))`",
                               page.read_text()):
            assert name in made or (ROOT / name).exists(), f"{page.name}: {name}"


def test_tests_that_are_named_exist():
    there = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = {name for page in PAGES for name in re.findall(r"\btest_\w+\b", page.read_text())}
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")} | {"test_NAME"}
    assert named and {name for name in named - files if f"def {name}(" not in there} == set()


def test_the_map_in_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("## The map"):text.index("Start with `gpt/model/gpt.py`")]
    assert len(tree.split("```")[1].strip().splitlines()) <= 25
    for path in [*(ROOT / "gpt").iterdir(), *(ROOT / "data").iterdir()]:
        if path.suffix == ".py" and not path.name.startswith("_") and path.stem != "errors":
            assert path.name in tree, path
        if (path / "__init__.py").is_file():
            assert f"{path.name}/" in tree, path


def test_names_of_code_in_the_concept_table_exist():
    source = "".join(p.read_text() for p in (ROOT / "gpt").rglob("*.py"))
    table = [line for line in (ROOT / "docs/model.md").read_text().splitlines()
             if line.startswith("| ")][1:]
    for line in table:
        where = line.split("|")[3]
        for name in re.findall(r"`([A-Za-z_]+)(?:\.[a-z_]+)?`", where):
            assert re.search(rf"\b{name}\b", source), name
    fields = set(re.findall(r"`model\.(\w+)", "".join(table)))
    from gpt.configuration import ModelConfig
    assert fields and fields <= set(ModelConfig.model_fields)


def test_the_schema_that_editors_use_is_up_to_date():
    import json

    from gpt.configuration import json_schema
    assert json.loads((ROOT / "configs/schema.json").read_text()) == json_schema()


def test_the_hosted_checks_are_those_of_ci_run_for_every_python_that_is_admitted():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["check"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    least = re.search(r'requires-python = ">=(3\.\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert job["strategy"]["matrix"]["python"][0] == least


def test_a_commit_is_checked_as_make_lint_checks():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]] == ["make lint"]
