"""Who may import whom: downwards only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"train", "finetune", "sample"}

# Lowest first. A part imports only what stands in a line above its own.
LAYERS = [
    ["errors", "section", "presets"],
    ["model_config", "adapter_config"],
    ["files", "strict_yaml", "config", "holdout", "allocator", "lock", "signals"],
    ["runtime", "tokenizer", "cli", "tensor_file"],
    ["shards", "model"],
    ["int8"],
    ["native"],
    ["lora"],
    ["batches", "optim", "telemetry", "shard_writer", "interop"],
    ["cross_entropy", "checkpoint"],
    ["evaluate", "generation", "budget"],
    ["finetuning"],
    ["saved_model", "step", "choices"],
    ["language_model", "loop", "plan", "run_folder"],
    ["training", "verbs", "terminal"],
    ["__init__", "__main__"],
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
DATA_LAYERS = [["bad_text", "recipe"], ["files"], ["streams"], ["text", "json_values"], ["records"],
               ["corpus"], ["parts", "split"], ["encode", "journal"], ["writing"], ["making"],
               ["overlap"], ["finishing", "library_functions"],
               ["prepare", "docstrings", "returns"]]
DATA_LEVEL = {part: level for level, parts in enumerate(DATA_LAYERS) for part in parts}


def imported_modules(source: str, package: str = "") -> Iterator[str]:
    """Full names of all that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def modules(folder: str) -> dict[str, Path]:
    """Modules of a package by dotted name."""
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path
            for path in sorted((ROOT / folder).rglob("*.py"))}


def part_of(name: str) -> str:
    """The part of gpt that a dotted name lies in: model for gpt.model.block and gpt.model.GPT."""
    part = name.split(".")[1] if "." in name else "__init__"
    return part if part in LEVEL else "__init__"


def violations(module: str, source: str) -> list[str]:
    """Imports of a gpt module that do not go down."""
    own = part_of(module)
    package = module.rpartition(".")[0]
    return [f"{module} imports {name}" for name in imported_modules(source, package)
            if name.split(".")[0] == "gpt" and part_of(name) != own
            and LEVEL[part_of(name)] >= LEVEL[own]]


def test_every_part_of_gpt_has_its_layer():
    parts = {name.split(".")[1] for name in modules("gpt")}
    assert parts == LEVEL.keys()


@pytest.mark.parametrize("module", modules("gpt"))
def test_imports_inside_gpt_go_down(module):
    assert violations(module, modules("gpt")[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(("module", "source"), [
    ("gpt.tokenizer", "from gpt.shards import Dataset"),
    ("gpt.tokenizer", "from gpt import shards"),
    ("gpt.tokenizer", "import gpt.shards as s"),
    ("gpt.tokenizer", "from . import shards"),
    ("gpt.model.block", "from ..loop import Trainer"),
    ("gpt.model.block", "def late():\n    from gpt import checkpoint"),
    ("gpt.loop", "from gpt.language_model import load"),
    ("gpt.config", "import gpt")])
def test_an_import_upwards_or_sideways_would_be_seen(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(("module", "source"), [
    ("gpt.loop", "from gpt import checkpoint"), ("gpt.model.block", "from .cache import KVCache"),
    ("gpt.model.block", "from gpt.model.cache import KVCache"), ("gpt.loop", "import torch.nn")])
def test_imports_downwards_and_inside_a_part_are_fine(module, source):
    assert violations(module, source) == []


def cycle(sources: dict[str, str]) -> set[str]:
    """Modules that import each other in a circle, or stand above such a circle."""
    needs = {name: {max((other for other in sources if f"{found}.".startswith(f"{other}.")),
                        key=len, default=name)
                    for found in imported_modules(source, name)} - {name}
             for name, source in sources.items()}
    left = set(needs)
    while ready := {name for name in left if not needs[name] & left}:
        left -= ready
    return left


def test_no_modules_import_each_other_in_a_circle():
    sources = {name.removesuffix(".__init__"): path.read_text(encoding="utf-8")
               for name, path in modules("gpt").items()}
    assert cycle(sources) == set()
    assert cycle({"gpt.a": "import gpt.b", "gpt.b": "from gpt.a import x", "gpt.c": ""}) == {
        "gpt.a", "gpt.b"}


@pytest.mark.parametrize("module", [*modules("gpt"), *modules("data")])
def test_gpt_never_imports_data_and_nothing_imports_the_scripts(module):
    path = (modules("gpt") | modules("data"))[module]
    found = {name.split(".")[0] for name in imported_modules(
        path.read_text(encoding="utf-8"), module.rpartition(".")[0])}
    assert not found & SCRIPTS
    if module.startswith("gpt"):
        assert "data" not in found


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_scripts_do_not_import_each_other(script):
    source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    found = {name.split(".")[0] for name in imported_modules(source)}
    assert "gpt" in found and not found & SCRIPTS


@pytest.mark.parametrize("module", [name for name in modules("data") if name != "data.__init__"])
def test_imports_inside_data_go_down(module):
    own = module.split(".")[1]
    for name in imported_modules(modules("data")[module].read_text(encoding="utf-8"), "data"):
        if name.split(".")[0] == "data":
            assert DATA_LEVEL[name.split(".")[1]] < DATA_LEVEL[own]


def builds_a_model(source: str) -> bool:
    """Whether a module calls GPT(…) itself."""
    return any(isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "GPT"
               for node in ast.walk(ast.parse(source)))


@pytest.mark.parametrize("part", ["loop", "evaluate", "finetuning", "generation"])
def test_loop_evaluation_and_generation_are_handed_a_model_and_never_build_one(part):
    chosen = [path for name, path in modules("gpt").items() if name.split(".")[1] == part]
    assert chosen
    assert not any(builds_a_model(path.read_text(encoding="utf-8")) for path in chosen)
    assert builds_a_model((ROOT / "train.py").read_text(encoding="utf-8"))


def test_optional_and_heavy_libraries_are_imported_where_they_are_used():
    """wandb and tokenizers are needed by few runs; importing gpt does not load them."""
    for module, path in (modules("gpt") | modules("data")).items():
        top = [node for node in ast.parse(path.read_text(encoding="utf-8")).body
               if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {name.split(".")[0] for node in top
                 for name in imported_modules(ast.unparse(node), module)}
        assert not names & {"wandb", "tokenizers", "transformers"}, module
