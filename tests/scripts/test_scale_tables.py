"""The tables of docs/scale.md are what the calculator says now."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from gpt.parallel.auto import FILLED
from gpt.parallel.share import without_memory
from gpt.parallel.sizes import Sizes
from tests.tiny import ROOT

SPEC = importlib.util.spec_from_file_location("scale_tables", ROOT / "docs/scale_tables.py")
scale_tables = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = scale_tables  # where dataclasses look for their module
SPEC.loader.exec_module(scale_tables)
PAGE = (ROOT / "docs/scale.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tables():
    return scale_tables.tables()


def test_the_page_has_the_tables_that_are_calculated_now(tables):
    assert scale_tables.with_tables(PAGE, tables) == PAGE
    changed = tables | {"layouts": tables["layouts"].replace("49%", "94%")}
    assert scale_tables.with_tables(PAGE, changed) != PAGE


def test_every_size_of_model_is_there_on_every_number_of_devices(tables):
    cells = [line.split("|")[1:] for line in tables["layouts"].splitlines()[2:]]
    assert [(row[0].strip(), row[1].strip()) for row in cells] == [
        (name, devices) for name in ("124M", "1.5B", "7B", "70B")
        for devices in ("1", "8", "64", "512")]
    assert all(len(row) == 10 for row in cells)


@pytest.mark.parametrize(("name", "parameters"), [
    ("124M", 124_475_904), ("1.5B", 1_557_686_400), ("7B", 6_738_415_616),
    ("70B", 68_976_648_192)])
def test_the_shapes_are_those_that_were_published(name, parameters):
    """The last two to the parameter; GPT-2's with a vocabulary of 50,304."""
    model = without_memory(scale_tables.MODELS[name][0])
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_a_plan_fits_and_uses_the_memory_that_there_is():
    config, sequences = scale_tables.MODELS["124M"]
    plan = scale_tables.best(without_memory(config), sequences, 8)
    assert plan.sizes == Sizes(replicate=8) and not plan.work.recompute
    assert plan.bytes_each <= FILLED * scale_tables.H100.memory
    fixed = scale_tables.best(without_memory(config), sequences, 8, shard=4)
    assert fixed.sizes == Sizes(replicate=2, shard=4)


def test_what_does_not_fit_is_said():
    config, sequences = scale_tables.MODELS["70B"]
    plan = scale_tables.best(without_memory(config), sequences, 1)
    assert "| does not fit |" in scale_tables.row("70B", plan, sequences, 4096)


def test_the_script_refuses_what_it_does_not_know():
    with pytest.raises(SystemExit, match="unknown: --wirte"):
        scale_tables.main(["--wirte"])
