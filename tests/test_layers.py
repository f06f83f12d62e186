"""Who may import whom: downwards only."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"train", "finetune", "sample"}

# Lowest first. A room imports only rooms that stand in a line above its own.
ROOMS = [
    ["launcher"],
    ["streams"],
    ["errors"],
    ["configuration", "files"],
    ["machine", "tokenizer"],
    ["shards", "model", "chat"],
    ["batches", "optim", "interop"],
    ["parallel"],
    ["generation", "inspection", "runs"],
    ["language_model"],
    ["evaluation"],
    ["training"],
    ["finetuning", "planning", "terminal", "serve", "reports"],
    ["verbs"],
    ["__init__", "__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
DATA_ROOMS = ["recipe", "sources", "documents", "sharding", "preparation", "prepare", "tasks"]


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


def room_of(name: str) -> str:
    """The room of gpt that a dotted name lies in: model for gpt.model.block and gpt.model.GPT."""
    room = name.split(".")[1] if "." in name else "__init__"
    return room if room in LEVEL else "__init__"


def sources(*packages: str) -> dict[str, str]:
    """The text of every module, by dotted name."""
    return {name: path.read_text(encoding="utf-8")
            for package in packages for name, path in modules(package).items()}


def found_in(check: Callable[[str, str], list[str]], texts: dict[str, str]) -> dict[str, list[str]]:
    """What a check finds in each module, where it finds anything."""
    return {name: found for name, text in texts.items() if (found := check(name, text))}


def violations(module: str, source: str) -> list[str]:
    """Imports of a gpt module that do not go down."""
    own = room_of(module)
    package = module.rpartition(".")[0]
    return [f"{module} imports {name}" for name in imported_modules(source, package)
            if name.split(".")[0] == "gpt" and room_of(name) != own
            and LEVEL[room_of(name)] >= LEVEL[own]]


def test_every_room_of_gpt_has_its_layer():
    parts = {name.split(".")[1] for name in modules("gpt")}
    assert parts == LEVEL.keys()


def test_imports_inside_gpt_go_down():
    assert found_in(violations, sources("gpt")) == {}


@pytest.mark.parametrize(("module", "source"), [
    ("gpt.tokenizer", "from gpt.shards.reading import Dataset"),
    ("gpt.tokenizer", "from gpt import shards"),
    ("gpt.tokenizer", "import gpt.shards.reading as s"),
    ("gpt.tokenizer", "from . import shards"),
    ("gpt.model.block", "from ..training.loop import Trainer"),
    ("gpt.model.block", "def late():\n    from gpt.runs import checkpoint"),
    ("gpt.language_model", "from gpt.training.loop import Trainer"),
    ("gpt.training.loop", "from gpt.finetuning import TaskRows"),
    ("gpt.chat.format", "from gpt.batches import Order"),
    ("gpt.configuration.sections", "import gpt")])
def test_an_import_upwards_or_sideways_would_be_seen(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(("module", "source"), [
    ("gpt.training.loop", "from gpt.runs import checkpoint"),
    ("gpt.model.block", "from .cache import KVCache"),
    ("gpt.model.block", "from gpt.model.cache import KVCache"),
    ("gpt.training.loop", "import torch.nn")])
def test_imports_downwards_and_inside_a_room_are_fine(module, source):
    assert violations(module, source) == []


@functools.cache
def handed_out(package: str, room: str) -> set[str] | None:
    """The names and modules in a room's __all__; None for a module that is no room."""
    init = ROOT / package / room / "__init__.py"
    if not init.is_file():
        return None
    lists = [ast.literal_eval(node.value) for node in ast.parse(init.read_text("utf-8")).body
             if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    return set(*lists)


def private_imports(module: str, source: str) -> list[str]:
    """What a module imports from rooms that do not hand it out."""
    found = []
    for name in imported_modules(source, module.rpartition(".")[0]):
        package, room, part = [*name.split(".", 3), "", ""][:3]
        if package not in ("gpt", "data") or module.startswith(f"{package}.{room}."):
            continue
        public = handed_out(package, room) if room else None
        if public is not None and part not in public:
            found.append(name)
    return found


def test_nothing_outside_a_room_imports_its_private_parts():
    scripts = {name: (ROOT / f"{name}.py").read_text(encoding="utf-8") for name in SCRIPTS}
    assert found_in(private_imports, sources("gpt", "data") | scripts) == {}


def test_a_private_import_would_be_seen():
    assert private_imports("gpt.training.loop", "from gpt.model.feedforward import FeedForward")
    assert private_imports("train", "from data.sharding.encode import encode_in_order")
    assert private_imports("gpt.training.loop", "from gpt.model import FeedForward")
    assert not private_imports("gpt.training.loop", "from gpt.model import GPT, lora")
    assert not private_imports("gpt.training.loop", "from gpt.model.lora import adapt")
    assert not private_imports("gpt.model.block", "from gpt.model.attention import Attention")


@pytest.mark.parametrize("package", ["gpt", "data"])
def test_what_a_room_hands_out_is_there(package):
    for init in sorted((ROOT / package).glob("*/__init__.py")):
        room, module = init.parent, importlib.import_module(f"{package}.{init.parent.name}")
        for name in handed_out(package, room.name) or ():
            assert (hasattr(module, name) or (room / f"{name}.py").is_file()
                    or (room / name).is_dir()), f"{module.__name__}.{name}"
        assert module.__doc__


def test_the_tests_mirror_the_rooms():
    tests = ROOT / "tests"
    about_the_tree = {"test_architecture.py", "test_docs.py", "test_layers.py"}
    assert {path.name for path in tests.glob("test_*.py")} <= about_the_tree
    rooms = {room for row in ROOMS for room in row}
    others = {"as_if_bfloat16", "cuda", "data", "faults", "fuzz", "scripts"}
    folders = {path.name for path in tests.iterdir() if any(path.glob("**/*.py"))}
    assert folders - others <= rooms
    assert {path.name for path in (tests / "data").iterdir() if any(path.glob("**/*.py"))
            } <= set(DATA_ROOMS)


def cycle(texts: dict[str, str]) -> set[str]:
    """Modules that import each other in a circle, or stand above such a circle."""
    needs = {name: {max((other for other in texts if f"{found}.".startswith(f"{other}.")),
                        key=len, default=name)
                    for found in imported_modules(text, name)} - {name}
             for name, text in texts.items()}
    left = set(needs)
    while ready := {name for name in left if not needs[name] & left}:
        left -= ready
    return left


@pytest.mark.parametrize("package", ["gpt", "data"])
def test_no_modules_import_each_other_in_a_circle(package):
    assert cycle({name.removesuffix(".__init__"): text
                  for name, text in sources(package).items()}) == set()
    assert cycle({"gpt.a": "import gpt.b", "gpt.b": "from gpt.a import x", "gpt.c": ""}) == {
        "gpt.a", "gpt.b"}


def scripts_imported(module: str, source: str) -> list[str]:
    """What a module imports that stands above the library: scripts, and data for gpt."""
    above = SCRIPTS | ({"data"} if module.startswith("gpt") else set())
    return [name for name in imported_modules(source, module.rpartition(".")[0])
            if name.split(".")[0] in above]


def test_gpt_never_imports_data_and_nothing_imports_the_scripts():
    assert found_in(scripts_imported, sources("gpt", "data")) == {}
    assert scripts_imported("gpt.model.gpt", "from data import recipe") == ["data.recipe"]
    assert scripts_imported("data.recipe", "import train") == ["train"]


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_scripts_do_not_import_each_other(script):
    source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    found = {name.split(".")[0] for name in imported_modules(source)}
    assert "gpt" in found and not found & SCRIPTS


def data_violations(module: str, source: str) -> list[str]:
    """Imports of a data module that do not go down."""
    own = module.split(".")[1]
    rooms = [name.split(".")[1] for name in imported_modules(source, "data")
             if name.startswith("data.")]
    return [room for room in rooms
            if room != own and DATA_ROOMS.index(room) >= DATA_ROOMS.index(own)]


def test_imports_inside_data_go_down():
    texts = {name: text for name, text in sources("data").items() if name != "data.__init__"}
    assert found_in(data_violations, texts) == {}
    assert data_violations("data.sources.files", "from data.sharding import making") == ["sharding"]


def builds_a_model(source: str) -> bool:
    """Whether a module calls GPT(…) itself."""
    return any(isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "GPT"
               for node in ast.walk(ast.parse(source)))


@pytest.mark.parametrize("place", ["gpt.training.loop", "gpt.training.evaluate", "gpt.finetuning",
                                   "gpt.generation"])
def test_loop_evaluation_and_generation_are_handed_a_model_and_never_build_one(place):
    chosen = [path for name, path in modules("gpt").items()
              if f"{name}.".startswith(f"{place}.") and ".native." not in name]
    assert chosen
    assert not any(builds_a_model(path.read_text(encoding="utf-8")) for path in chosen)
    assert builds_a_model((ROOT / "gpt/training/pretraining.py").read_text(encoding="utf-8"))


def test_optional_and_heavy_libraries_are_imported_where_they_are_used():
    """wandb and tokenizers are needed by few runs; importing gpt does not load them."""
    for module, path in (modules("gpt") | modules("data")).items():
        top = [node for node in ast.parse(path.read_text(encoding="utf-8")).body
               if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {name.split(".")[0] for node in top
                 for name in imported_modules(ast.unparse(node), module)}
        assert not names & {"wandb", "tokenizers", "transformers"}, module


def long_parts(source: str) -> list[str]:
    """What nobody reads in one sitting: files over 350 lines, functions over 60."""
    functions = [node for node in ast.walk(ast.parse(source))
                 if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    found = [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60]
    return [*found, *(["the file"] if source.count("\n") > 350 else [])]


def test_files_and_functions_are_short_enough_to_be_read():
    paths = [path for folder in ("gpt", "data", "benchmarks", "docs")
             for path in (ROOT / folder).rglob("*.py")]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    assert found_in(lambda _, text: long_parts(text), texts) == {}


def test_a_long_file_and_a_long_function_would_be_seen():
    assert long_parts("def long():\n" + "    x = 1\n" * 60) == ["long"]
    assert long_parts("x = 1\n" * 351) == ["the file"]
    assert long_parts("def short():\n" + "    x = 1\n" * 59) == []


def missing_imports(source: str) -> list[str]:
    """What a script imports of the project, anywhere in it, that is not there."""
    missing = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or str(node.module).split(".")[0] not in (
                "gpt", "data", "train", "finetune", "sample"):
            continue
        try:
            module = importlib.import_module(str(node.module))
        except ImportError:
            missing.append(str(node.module))
            continue
        for alias in node.names:
            if not hasattr(module, alias.name) and not importlib.util.find_spec(
                    f"{node.module}.{alias.name}"):
                missing.append(f"{node.module}.{alias.name}")
    return missing


def test_what_benchmarks_and_tests_import_is_there():
    """Also inside functions, and in tests that are skipped here."""
    paths = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").rglob("test_*.py")]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    assert found_in(lambda _, text: missing_imports(text), texts) == {}


def test_an_import_of_what_is_not_there_would_be_seen():
    assert missing_imports("def late():\n    from gpt.runtime import Machine") == ["gpt.runtime"]
    assert missing_imports("from gpt.model import GTP") == ["gpt.model.GTP"]
    assert missing_imports("from gpt.model import GPT, lora") == []
