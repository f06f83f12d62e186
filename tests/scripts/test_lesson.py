"""docs/transformer.md: what it quotes is code, what it shows is drawn, its figures are measured."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import textwrap
from collections.abc import Iterator

import pytest

from benchmarks import without
from benchmarks.runs import choose
from gpt.errors import UserError
from gpt.language_model import LanguageModel
from gpt.tokenizer import build_tokenizer
from tests.tiny import ARCHITECTURES, CPU, ROOT, tiny_gpt

SPEC = importlib.util.spec_from_file_location("draw_lesson", ROOT / "docs/draw_lesson.py")
draw_lesson = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(draw_lesson)
TEXT = draw_lesson.PAGE.read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", TEXT, flags=re.M)[1:]}
QUOTED = re.compile(r"```python\n# ([\w/]+\.py), ([\w.]+)\n(.*?)\n```", re.S)


# ----- What is quoted

def source_of(path: str, name: str) -> list[str]:
    """The lines of a function or method of a file."""
    source = (ROOT / path).read_text(encoding="utf-8")
    found: ast.AST = ast.parse(source)
    for part in name.split("."):
        found = next(node for node in found.body  # type: ignore[attr-defined]
                     if getattr(node, "name", None) == part)
    return source.splitlines()[found.lineno - 1:found.end_lineno]


def quoted_parts(block: str) -> Iterator[list[str]]:
    """What stands between the … of a block, without what it is indented by."""
    for part in re.split(r"^ *…$", block, flags=re.M):
        yield textwrap.dedent(part).strip("\n").splitlines()


def stands_in(part: list[str], source: list[str]) -> bool:
    """Whether these lines stand in the source one after the other, however far indented."""
    for i in range(len(source) - len(part) + 1):
        here = source[i:i + len(part)]
        if textwrap.dedent("\n".join(here)).splitlines() == part:
            return True
    return False


def stale(text: str) -> list[str]:
    """Quotations that are not in the function that the page names."""
    return [name for path, name, block in QUOTED.findall(text)
            for part in quoted_parts(block) if not stands_in(part, source_of(path, name))]


def test_every_line_that_is_quoted_stands_in_the_function_that_is_named():
    assert len(QUOTED.findall(TEXT)) == TEXT.count("```python") >= 14
    assert stale(TEXT) == []


@pytest.mark.parametrize(("old", "new"), [
    ("tril(S - T)", "tril(S - T + 1)"), ("after = x.add", "x = x.add"),
    ("targets[i, here] =", "targets[here, i] ="), ("    x = block(x,", "    x = Block(x,")])
def test_a_line_that_has_become_another_would_be_noticed(old, new):
    assert old in TEXT and len(stale(TEXT.replace(old, new))) == 1


def test_every_idea_has_its_code_a_picture_and_something_to_run():
    ideas = {name: part for name, part in SECTIONS.items() if name != "What each part is worth"}
    assert len(ideas) == 14
    for name, part in ideas.items():
        assert QUOTED.search(part) and "```sh\n" in part, name
        assert "](transformer/" in part or "](lstm/" in part, name
    assert TEXT.count("\n") <= 400  # half an hour


# ----- What is run

def test_the_commands_of_the_benchmark_are_understood_and_take_away_each_part_once():
    shown = re.findall(r"^python benchmarks/without\.py (.*)$", TEXT, re.M)
    chosen = [choose(shlex.split(words), list(without.ARMS), without.ROUNDS) for words in shown]
    assert sorted(arm for each in chosen for arm in each.arms) == sorted(
        without.ARMS.keys() - {"all of it"})
    assert {(each.rounds, *each.rest) for each in chosen} == {
        (1, "data/fetched/tinyshakespeare.txt")}
    recipe = (ROOT / "configs/data/shakespeare.yaml").read_text()
    assert "path: data/fetched/tinyshakespeare.txt" in recipe


def test_what_is_fine_tuned_and_drawn_lies_where_the_page_says(monkeypatch, tmp_path):
    calls, drawn = [], []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(draw_lesson, "call", lambda *words: calls.append(words))
    monkeypatch.setattr(draw_lesson, "draw", lambda *given: drawn.append(given[:2]))
    monkeypatch.setattr(draw_lesson, "text_of", lambda dataset, split: PLAY * 20)
    draw_lesson.main([])
    draw_lesson.main(["runs/other"])
    assert [words[0] for words in calls] == ["train.py", "finetune.py", "finetune.py"]
    assert [[str(path) for path in each] for each in drawn] == [
        ["runs/lesson", "runs/lesson-shout"], ["runs/other", "runs/other-shout"]]
    assert f"finetune.data={draw_lesson.TASK}" in TEXT and "finetune.from=runs/lesson " in TEXT
    rows = [json.loads(line) for line in draw_lesson.TASK.read_text().splitlines()]
    assert rows[0] == {"prompt": "First Lord:", "completion": "\nO FOR A MUSE OF FIRE, MY LORD."}


def test_the_script_refuses_what_it_does_not_know():
    for words in (["--figure"], ["runs/a", "runs/b"]):
        with pytest.raises(UserError, match=r"unknown: .*give a run, --figures, or nothing"):
            draw_lesson.main(words)


# ----- What is drawn

PLAY = """Who's there?

First Lord:
O for a muse of fire, my lord.
But pardon, gentles all.

Nurse:
Good morrow, neighbour; all is well? Zounds! Exit, quickly - Jove's: begin;

"""


@pytest.fixture
def material(tmp_path, monkeypatch):
    import lesson
    monkeypatch.setattr(lesson, "DOTS", 20)
    monkeypatch.setitem(lesson.STYLE, "figure.constrained_layout.use", False)  # takes seconds
    lm = LanguageModel(tiny_gpt(**{**ARCHITECTURES["vaswani"], "mlp": "relu", "vocab_size": 257,
                                   "block_size": 64, "tie_embeddings": True}),
                       build_tokenizer("char", [PLAY]), CPU)
    events = [{"event": "train", "step": 1, "loss": 5.5}, {"event": "eval", "step": 1,
                                                           "val_loss": 5.0}]
    samples = [{"step": 1, "prompt": "ROMEO:\n", "text": "O\n\nwell $ met"}] * 4
    for name, lines in (("metrics.jsonl", events), ("samples.jsonl", samples)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = PLAY * 8
    return lesson.Material(tmp_path, lm, lm, text, list(draw_lesson.shouted(text))[:1])


def test_the_pictures_of_the_page_are_those_that_the_script_draws(material, tmp_path):
    import lesson
    lesson.draw_all(material, tmp_path / "drawn")
    drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert drawn == {f"{name}.png" for name in lesson.PICTURES}
    assert drawn == {path.name for path in draw_lesson.PICTURES.iterdir()}
    assert drawn == set(re.findall(r"!\[.+\]\(transformer/(\w+\.png)\)", TEXT))
    for path in draw_lesson.PICTURES.iterdir():
        assert path.stat().st_size <= 60_000, path.name


def test_scores_give_the_shares_that_the_model_itself_computes(material):
    """Eight sums of some ten numbers of size 1 in float32."""
    import numpy as np
    import torch
    from lesson.attention import scores_of
    layer = material.layers("Good morrow")[1]
    ours = torch.tensor(scores_of(layer, 2)).masked_fill(~torch.ones(11, 11).tril().bool(),
                                                         -torch.inf).softmax(dim=-1)
    np.testing.assert_allclose(ours, layer.weights()[0, 2], atol=1e-6)


# ----- What is measured

RESULTS = {"arms": {"all of it": {"loss": 1.5, "losses": [1.4, 1.6]},
                    "no mask": {"loss": 6.0, "losses": [6.0], "loss_with_what_follows": 0.02}}}


def test_figures_are_put_where_they_belong():
    page = (f"a\n{draw_lesson.BEGIN}\nold\n{draw_lesson.END}\nb `no mask`: 1.2 → 3.4, and\n"
            "`no mask` as it reads: 1.0 → 2.0.")
    written = draw_lesson.with_figures(page, RESULTS)
    assert written.splitlines()[-2:] == [
        "b `no mask`: 1.500 → 6.000, and", "`no mask` as it reads: 1.500 → 0.020."]
    assert "| no mask | 6.000 | 6.000 | +4.500 |\n" in written and "old" not in written
    assert "| no mask, as it reads | 0.020 | | −1.480 |\n" in written
    assert draw_lesson.with_figures(written, RESULTS) == written
    with pytest.raises(UserError, match="no arm 'no masks'"):
        draw_lesson.with_figures(page.replace("no mask`:", "no masks`:"), RESULTS)


def test_the_page_has_the_figures_that_were_measured():
    results = json.loads(draw_lesson.RESULTS.read_text())
    assert draw_lesson.with_figures(TEXT, results) == TEXT
    assert {arm for arm in results["arms"] if f"`{arm}`" in TEXT} == (
        results["arms"].keys() - {"all of it"})
    results["arms"]["one head"]["loss"] += 0.002
    assert draw_lesson.with_figures(TEXT, results) != TEXT


def test_the_table_of_the_lstm_is_what_was_measured():
    parts = json.loads((ROOT / "benchmarks/results/lstm.json").read_text())["parts"]

    def middle(values):
        return sum(values) / len(values)  # of two seeds

    def at(part, **wanted):
        [row] = [row for row in parts[part]["records"] if wanted.items() <= row.items()]
        return middle(next(row[name] for name in ("tokens_per_second", "accuracy",
                                                  "seconds_per_token") if name in row))

    ends = {kind: middle([seed[-1]["value"] for seed in curves])
            for kind, curves in parts["loss"]["curves"].items()}
    equal = {kind: middle(losses) for kind, losses in parts["loss"]["at_equal_steps"].items()}
    speed = {(kind, context): at("context", kind=kind, context=context, threads=2)
             for kind in ("transformer", "lstm") for context in (32, 2048)}
    time = {(arm, length): 1000 * at("decoding", arm=arm, length=length)
            for arm in ("transformer", "engine", "lstm") for length in (32, 8192)}
    back = {kind: middle([norms[127] / norms[0] for norms in seeds])
            for kind, seeds in parts["gradients"]["norms"].items()}
    recalled = {(kind, pairs): at("recall", kind=kind, pairs=pairs, distance=256)
                for kind in ("transformer", "lstm") for pairs in (1, 4)}
    for line in (
            f"| {ends['transformer']:.2f} (by Muon, as `train.py` trains: {ends['muon']:.2f}) | "
            f"**{ends['lstm']:.2f}** |",
            f"| {equal['transformer']:.2f} | **{equal['lstm']:.2f}** |",
            f"| {speed['transformer', 32]:,.0f} and {speed['transformer', 2048]:,.0f} | "
            f"**{speed['lstm', 32]:,.0f}** and **{speed['lstm', 2048]:,.0f}** |",
            f"| **{back['transformer']:.2f}** | {back['lstm']:.5f} |",
            f"**{recalled['transformer', 4]:.0%}** | {recalled['lstm', 1]:.0%}, "
            f"{recalled['lstm', 4]:.0%} |".replace("%", " %"),
            f"| {time['transformer', 32]:.2f} and {time['transformer', 8192]:.2f} (engine in C: "
            f"**{time['engine', 32]:.2f}** and {time['engine', 8192]:.2f}) | "
            f"{time['lstm', 32]:.2f} and **{time['lstm', 8192]:.2f}** |"):
        assert line in TEXT, line
