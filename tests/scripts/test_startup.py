"""Help and mistakes answer at once: what needs torch is imported after the command line is read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.tiny import ROOT

ANSWER = """
import runpy, sys
sys.argv = {words!r}
try:
    runpy.run_path({script!r}, run_name="__main__")
    print("left with 0")
except SystemExit as left:
    print("left with", left.code)
print("torch" in sys.modules)
"""


def answers(script: str, *words: str) -> list[str]:
    """What the command leaves with, and whether it has imported torch."""
    program = ANSWER.format(words=[script, *words], script=str(ROOT / script))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.splitlines()[-2:]


@pytest.mark.parametrize(("script", "words", "code"), [
    ("train.py", ["--help"], 0), ("finetune.py", ["--help"], 0), ("sample.py", ["--help"], 0),
    ("train.py", ["configs/quickstart.yaml", "model.n_embed=64"], 2),
    ("train.py", ["configs/quickstart.yaml", "--print-config"], 0),
    ("finetune.py", ["finetune.from=x", "finetune.data=y", "finetune.metod=lora"], 2),
    ("finetune.py", ["--preview"], 2),
    ("sample.py", ["runs/x", "--top-q", "5"], 2), ("sample.py", ["runs/x", "--top-p", "5"], 2)])
def test_help_and_mistakes_do_not_wait_for_torch(script, words, code):
    assert answers(script, *words) == [f"left with {code}", "False"]


def test_what_goes_on_to_a_model_would_have_been_seen_to_import_torch():
    assert answers("sample.py", "runs/there is none") == ["left with 2", "True"]
