"""A figure that is quoted does not depend on the processor: training and `evaluate` compute it in
float32, whatever `auto` means here, and agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gpt.__main__
import train
from data import prepare
from gpt.errors import UserError
from tests.evaluation.bundles import write_bundle
from tests.tiny import ROOT

pytestmark = pytest.mark.auto
SMALL = ["model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.block_size=32",
         "train.batch_size=4", "train.steps=8", "eval.every_steps=null", "optim.lr=0.01",
         "optim.warmup_steps=0"]


@pytest.fixture
def corpus(tmp_path, monkeypatch, capsys) -> Path:
    """A small dataset in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text((ROOT / "README.md").read_text())
    prepare.main(["text.txt", "tokenizer=byte", "out=data"])
    return tmp_path


def trained(name: str, *settings: str) -> dict[str, Any]:
    """Its last evaluation."""
    train.main(["data.dataset=data", f"run.name={name}", *SMALL, *settings])
    lines = Path("runs", name, "metrics.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == "eval"][-1]


def evaluated(capsys, name: str, *words: str) -> str:
    capsys.readouterr()
    gpt.__main__.main(["evaluate", f"runs/{name}", *words])
    return capsys.readouterr().out.splitlines()[1]


def test_all_figures_of_a_run_are_told_and_come_as_json(corpus, capsys):
    logged = trained("run")
    capsys.readouterr()
    gpt.__main__.main(["evaluate", "runs/run", "--samples", "3"])
    told = capsys.readouterr().out
    gpt.__main__.main(["evaluate", "runs/run", "--samples", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["loss"] == pytest.approx(logged["val_loss"], rel=1e-6)
    assert f"{found['figures']['perplexity']:,.3f}" in told
    assert found["generated"]["memorisation"] is None  # a context of 32 tokens is too short
    assert found["subject"]["weights"][:16] in told and found["data_sha256"][:16] in told
    assert json.loads(Path("data/dataset.json").read_text())["splits"]["val"]["tokens"] == (
        found["figures"]["tokens"])
    gpt.__main__.main(["evaluate", "runs/run", "--samples", "0"])
    assert "samples" not in capsys.readouterr().out


def test_models_are_compared_on_the_first_ones_text_whatever_their_tokens(corpus, capsys):
    trained("one")
    prepare.main(["text.txt", "tokenizer=bpe:300", "out=other"])
    train.main(["data.dataset=other", "run.name=two", *SMALL])
    capsys.readouterr()
    gpt.__main__.main(["evaluate", "--compare", "runs/one", "runs/two", "--samples", "0", "--json"])
    found = json.loads(capsys.readouterr().out)
    (other,), (one, two) = found["differences"], found["models"]
    assert one["data"] == two["data"] == "data: the validation split"
    assert one["figures"]["text_bytes"] == two["figures"]["text_bytes"]
    assert other["bits_per_byte"] == pytest.approx(
        two["figures"]["bits_per_byte"] - one["figures"]["bits_per_byte"], abs=1e-6)
    assert other["loss"] is None
    gpt.__main__.main(["evaluate", "runs/one", "--compare", "runs/two", "--samples", "0"])
    assert capsys.readouterr().out.splitlines()[-1].startswith(
        f"{two['subject']['name']} against {one['subject']['name']}: {other['bits_per_byte']:+.4f}")


def test_questions_with_choices_and_core_are_asked(corpus, capsys):
    trained("run")
    Path("q.jsonl").write_text("".join(json.dumps(
        {"context": f"{n} is", "choices": ["odd", "even"], "answer": 1 - n % 2}) + "\n"
        for n in range(12)))
    write_bundle(Path("eval_bundle"))
    found = {}
    for words in (["--data", "q.jsonl"], ["--core", "eval_bundle", "--core-questions", "3"]):
        capsys.readouterr()
        gpt.__main__.main(["evaluate", "runs/run", *words])
        told = capsys.readouterr().out
        gpt.__main__.main(["evaluate", "runs/run", *words, "--json"])
        values = json.loads(capsys.readouterr().out)
        assert values["subject"]["weights"][:16] in told and values["data_sha256"][:16] in told
        found[words[1]] = told, values
    told, values = found["q.jsonl"]
    assert values["questions"] == 12 and values["chance"] == 0.5
    assert f"12 questions: the right choice is the likeliest per byte in {values['accuracy']:.4f}" \
        in told
    told, values = found["eval_bundle"]
    assert f"CORE {values['core']:.4f} (" in told and "winograd" in told
    assert [task["questions"] for task in values["tasks"]] == [3, 3, 3, 3]


@pytest.mark.parametrize(("words", "message"), [
    ([], "give RUN, the model that is to be evaluated"),
    (["--compare", "runs/run"], "--compare takes two models: two names, or one beside RUN"),
    (["runs/run", "--samples=-1"], "--samples -1: it must be 0 or more"),
    (["runs/run", "--data", "x.jsonl", "--text", "x"], "give --text or --data, not both"),
    (["runs/run", "--data", "x.jsonl", "--core", "x"], "give --data or --core, not both"),
    (["runs/run", "--data", "x.jsonl", "--compare", "runs/run"], "give --compare or --data, not"),
    (["runs/run", "--core-questions=5"], "--core-questions is for --core: give that, too"),
    (["runs/run", "--data", "x.jsonl", "--limit=5"], "--limit is for --tasks: give that, too"),
    (["runs/run", "--num-fewshot=0"], "--num-fewshot is for --tasks: give that, too"),
    (["runs/run", "--core", "text.txt"], "text.txt is no bundle of CORE"),
    (["runs/run", "--core", "x", "--core-questions=0"], "--core-questions 0: it must be 1 or more"),
    (["runs/run", "--compare", "runs/none"], "there is no run runs/none")])
def test_mistakes_are_told_before_anything_is_measured(words, message, corpus):
    trained("run")
    with pytest.raises(UserError, match=message):
        gpt.__main__.main(["evaluate", *words])


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_the_loss_of_a_run_is_the_same_while_training_and_afterwards(dtype, corpus, capsys):
    logged = trained("run", f"run.dtype={dtype}")
    line = evaluated(capsys, "run")
    assert line.startswith(f"{logged['val_loss']:.4f} nats per token") and "(in" not in line
    assert logged["dtype"] == "float32"
    assert evaluated(capsys, "run", "--dtype", "bfloat16").endswith("tokens (in bfloat16)")


def test_an_evaluation_in_another_format_says_so_and_agrees_with_training(corpus, capsys):
    logged = trained("run", "eval.dtype=bfloat16", "run.dtype=float32")
    shown = capsys.readouterr().out
    line = evaluated(capsys, "run")
    assert line.startswith(f"{logged['val_loss']:.4f} nats") and line.endswith("(in bfloat16)")
    assert "bits per byte (in bfloat16)" in shown and logged["dtype"] == "bfloat16"
    exact = trained("exact", "run.dtype=float32")["val_loss"]
    assert exact != logged["val_loss"] and exact == pytest.approx(logged["val_loss"], abs=0.05)


def test_figures_are_computed_in_all_bits_of_float32_whatever_the_process_allows(
        corpus, capsys, monkeypatch):
    logged, found = trained("run"), []
    real = torch.Tensor.logsumexp
    monkeypatch.setattr(torch.Tensor, "logsumexp", lambda *given: found.append(
        torch.get_float32_matmul_precision()) or real(*given))
    torch.set_float32_matmul_precision("medium")
    try:
        evaluated(capsys, "run")
        assert set(found) == {"highest"} and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert logged["val_loss"] > 0


def test_a_number_format_that_somebody_has_written_into_the_run_is_one_line(corpus, capsys):
    trained("run")
    config = Path("runs/run/config.yaml")
    config.write_text(config.read_text().replace("  dtype: float32\n", "  dtype: int3\n"))
    with pytest.raises(UserError, match=r"asks for eval\.dtype=int3; give --dtype, one of float32"):
        evaluated(capsys, "run")
