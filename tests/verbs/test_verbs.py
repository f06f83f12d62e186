"""The list of verbs is what there is."""

from __future__ import annotations

from gpt.__main__ import VERBS
from tests.tiny import ROOT


def test_every_module_is_a_verb():
    modules = {path.stem for path in (ROOT / "gpt/verbs").glob("[!_]*.py")}
    assert {module for module, _ in VERBS.values()} == modules
