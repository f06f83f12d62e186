"""Whole fine-tuning runs: every method resumes to the same bits and leaves a folder of its own."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import finetune
import gpt
import sample
from data import prepare
from gpt import __main__ as verbs
from gpt.batches import IGNORE, Batches, Order
from gpt.configuration import FinetuneConfig
from gpt.finetuning import TaskRows
from gpt.finetuning.preferences import with_reference
from gpt.runs import checkpoint
from gpt.training.evaluate import Measured
from tests.finetuning.conversations import BYTES, with_controls
from tests.tiny import call_main, tiny_gpt

PAIRS = [{"prompt": f"{i} plus {i} is ", "completion": f"{2 * i}."} for i in range(24)]
QUIET = ("finetune.answers=0", "eval.every_steps=null", "checkpoint.every_steps=null")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A small base model in `base`, and tasks of several formats."""
    monkeypatch.chdir(tmp_path)
    model = tiny_gpt(vocab_size=257, block_size=48)
    checkpoint.save_model(tmp_path / "base", model, BYTES, "a test")
    write("pairs.jsonl", PAIRS)
    return tmp_path


def write(name: str, records: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def tune(folder, monkeypatch, capsys):
    """finetune.py with these arguments; (exit code, output, errors)"""
    def run(*arguments: str, data: str = "pairs.jsonl") -> tuple[int, str, str]:
        return call_main(finetune, "finetune.from=base", f"finetune.data={data}",
                         "run.dtype=float32", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    return run


def done(result: tuple[int, str, str]) -> str:
    assert result[0] == 0, result
    return result[1]


def events(name: str, kind: str) -> list[dict[str, Any]]:
    lines = Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def last_checkpoint(name: str) -> Path:
    return max(Path(f"runs/{name}/checkpoints").glob("step-*"))


def bits(name: str) -> dict[str, bytes]:
    """Weights, optimizer state, and what was logged."""
    files = {path.name: path.read_bytes() for path in last_checkpoint(name).glob("*.safetensors")}
    logged = [(e["step"], e["loss"], e["grad_norm"]) for e in events(name, "train")]
    return files | {"logged": repr(logged).encode()}


PREFERENCES = [{"prompt": f"{i}?", "chosen": "yes.", "rejected": "no!"} for i in range(20)]
METHODS = {"full": (), "frozen": ("finetune.freeze=[embedding.*]",),
           "lora": ("finetune.method=lora", "lora.dropout=0.1"),
           "dora": ("finetune.method=dora", "optim.ema_half_life=100"),
           "int8": ("finetune.method=lora", "lora.base=int8"),
           "mixed": ("finetune.pretrain_data=corpus", "finetune.pretrain_share=0.5",
                     "finetune.packing=true"),
           "mixed both ways": ("finetune.pretrain_data=corpus", "finetune.prefix=bidirectional"),
           "packed": ("finetune.packing=true",),
           "packed both ways": ("finetune.packing=true", "finetune.prefix=bidirectional")}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_in_the_same_bits(method, tune, monkeypatch, capsys):
    if method.startswith("mixed"):
        Path("text.txt").write_text("Some text to go on with.\n" * 200)
        assert call_main(prepare, "text.txt", "tokenizer=byte", "out=corpus",
                         monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    settings = (*METHODS[method], "train.steps=6", "train.batch_size=3", "eval.every_steps=null",
                "checkpoint.every_steps=2", "checkpoint.keep=9", "finetune.answers=0")
    done(tune("run.name=whole", *settings))
    shutil.copytree("runs/whole", "runs/again")
    for later in ("step-00000004", "step-00000006"):
        shutil.rmtree(f"runs/again/checkpoints/{later}")
    done(tune("run.name=again", *settings))
    assert bits("again") == bits("whole")
    assert len(events("again", "train")) == 6
    changed = tune("run.name=again", *settings, "finetune.val_fraction=0.3")
    assert changed[0] == 2 and "holds a different run" in changed[2]


@pytest.mark.parametrize("method", ["lora", "dora", "int8"])
def test_a_run_of_adapters_is_all_that_sampling_needs(method, tune, monkeypatch, capsys):
    done(tune("run.name=a", *METHODS[method], "optim.lr=0.01", "train.steps=4", *QUIET))
    names = {path.name for path in last_checkpoint("a").iterdir()}
    assert "adapter.safetensors" in names and "model.safetensors" not in names
    before = gpt.load("base", "cpu", "float32").model
    shutil.move("runs/a", "elsewhere")
    shutil.rmtree("base")
    tokens = torch.arange(20).unsqueeze(0)
    lm = gpt.load("elsewhere", "cpu", "float32")
    assert lm.model.adapter is None
    assert not torch.allclose(lm.model(tokens), before(tokens), atol=1e-4)
    assert call_main(sample, "elsewhere", "--prompt", "1 plus", "--max-new-tokens", 2,
                     monkeypatch=monkeypatch, capsys=capsys)[0] == 0


def test_adapters_without_what_they_adapt_are_refused(tune):
    done(tune("run.name=a", "finetune.method=lora", "train.steps=1", *QUIET))
    shutil.copytree(last_checkpoint("a"), "alone/checkpoints/step-00000001")
    with pytest.raises(ValueError, match=r"the model that they adapt cannot be used: .*copy the "
                                         r"whole run's folder"):
        gpt.load("alone")
    checkpoint.save_model(Path("alone/base"), tiny_gpt(seed=5, vocab_size=257, block_size=48),
                          BYTES, "a test")
    with pytest.raises(ValueError, match="is not the model that the adapters"):
        gpt.load("alone")


def test_a_run_of_adapters_has_a_hash_that_says_what_both_are(tune):
    for name, lr in (("a", 0.01), ("b", 0.02)):
        done(tune(f"run.name={name}", "finetune.method=lora", "train.steps=1", f"optim.lr={lr}",
                  *QUIET))
    hashes = {checkpoint.weight_hash(last_checkpoint(name)) for name in "ab"}
    assert len(hashes) == 2


def test_other_adapters_than_the_checkpoints_are_refused(tune):
    done(tune("run.name=a", "finetune.method=lora", "train.steps=1", *QUIET))
    code, _, stderr = tune("run.name=a", "finetune.method=lora", "lora.rank=4", "train.steps=2",
                           *QUIET)
    assert code == 2 and "finetune.lora" in stderr


@pytest.mark.parametrize("mistake", [("finetune.method=lora", "lora.targets=[embedding]"),
                                     ("finetune.freeze=[blok*]",)])
def test_a_mistake_leaves_no_folder_in_the_way(mistake, tune):
    assert tune("run.name=a", *mistake, "train.steps=1", *QUIET)[0] == 2
    assert not Path("runs").exists()


@pytest.mark.parametrize(("options", "message"), [
    (("lora.rank=4",), "lora.* is for finetune.method=lora and dora"),
    (("finetune.method=lora", "finetune.freeze=[embedding.*]"), "adapters freeze all"),
    (("finetune.pretrain_share=0.5",), "needs finetune.pretrain_data"),
    (("preference.beta=0.5",), "preference.* is for data with chosen and rejected answers")])
def test_options_without_a_use_are_refused(options, message, tune):
    code, _, stderr = tune(*options)
    assert code == 2 and message in stderr


def test_the_beginning_of_a_preference_is_not_cut(tune):
    write("prefer.jsonl", PREFERENCES)
    code, _, stderr = tune("finetune.long_rows=cut", data="prefer.jsonl")
    assert code == 2 and "is not for preferences" in stderr


def test_conversations_with_several_answers_are_not_read_in_both_directions(tune):
    talk = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    write("talk.jsonl", [{"messages": [{"role": "user", "content": f"Q{i}"}, *talk[1:]]}
                         for i in range(12)])
    code, _, stderr = tune("finetune.prefix=bidirectional", data="talk.jsonl")
    assert code == 2 and "talk.jsonl, line 1 has several answers" in stderr


def test_a_format_says_how_prompts_are_read_unless_the_run_does(tune):
    Path("form.yaml").write_text("prefix: bidirectional\n")
    for name, options in (("own", ()), ("other", ("finetune.prefix=causal",))):
        done(tune(f"run.name={name}", "finetune.chat=form.yaml", "train.steps=1", *QUIET, *options))
    found = [json.loads(checkpoint.load_tokenizer(last_checkpoint(name)).chat_format)["prefix"]
             for name in ("own", "other")]
    assert found == ["bidirectional", "causal"]


def test_a_label_that_no_training_example_has_is_refused(tune):
    write("labels.jsonl", [{"text": f"{i} is ", "label": "odd"} for i in range(20)])
    write("val.jsonl", [{"text": "a", "label": "odd"}, {"text": "b", "label": "even"}])
    code, _, stderr = tune("finetune.val_data=val.jsonl", data="labels.jsonl")
    assert code == 2 and "val.jsonl, line 2: no training example has the label even" in stderr


def test_the_default_share_that_is_held_out_may_be_said(tune):
    done(tune("run.name=a", "train.steps=1", *QUIET))
    assert "is complete" in done(tune("run.name=a", "train.steps=1", "finetune.val_fraction=0.1",
                                      *QUIET))


def test_with_texts_mixed_in_an_epoch_is_still_one_of_the_task(tune, monkeypatch, capsys):
    Path("text.txt").write_text("Some text to go on with.\n" * 2000)
    assert call_main(prepare, "text.txt", "tokenizer=byte", "out=corpus", monkeypatch=monkeypatch,
                     capsys=capsys)[0] == 0
    settings = ("train.epochs=4", "train.batch_size=2", *QUIET)
    done(tune("run.name=plain", *settings))
    done(tune("run.name=mixed", *settings, "finetune.pretrain_data=corpus",
              "finetune.pretrain_share=0.5"))
    plain, mixed = (events(name, "end")[0]["step"] for name in ("plain", "mixed"))
    learned = sum(len(pair["completion"]) + 1 for pair in PAIRS) / len(PAIRS)  # of a window, 48
    assert mixed == pytest.approx(plain * (1 + learned / 48), abs=2) and mixed > plain


def test_warm_up_is_a_tenth_of_a_short_run_unless_it_is_given(tune):
    for name, options in (("a", ()), ("b", ("optim.warmup_steps=12",))):
        done(tune(f"run.name={name}", "train.steps=20", "optim.schedule=constant",
                  "optim.lr=0.001", *options, *QUIET))
    rates = {name: [event["lr"] for event in events(name, "train")] for name in "ab"}
    assert rates["a"][0] == pytest.approx(0.001 / 3) and rates["a"][2:] == [0.001] * 18
    assert rates["b"][5] == pytest.approx(0.001 * 6 / 13)


@pytest.mark.auto
def test_the_reference_of_preferences_is_the_model_that_training_starts_from(tune):
    write("prefer.jsonl", PREFERENCES)
    done(tune("run.name=p", "finetune.method=lora", "lora.base=int8", "train.steps=1", *QUIET,
              data="prefer.jsonl"))
    assert events("p", "eval")[0]["val_margin"] == pytest.approx(0.0, abs=1e-6)
    assert "no!<|endoftext|>⟧" in done(tune("--preview=1", data="prefer.jsonl"))


def test_muon_for_adapters_is_refused(tune):
    code, _, stderr = tune("run.name=a", "finetune.method=lora", "optim.name=muon")
    assert code == 2 and "adapters (finetune.method=lora) learn with adamw" in stderr


def test_training_stops_when_validation_no_longer_improves(tune):
    done(tune("run.name=a", "train.steps=60", "train.batch_size=1", "optim.lr=0.05",
              "optim.schedule=constant", "eval.every_steps=3", "eval.patience=2",
              "finetune.answers=0"))
    evals = events("a", "eval")
    losses = {event["step"]: event["val_loss"] for event in evals if event["step"]}
    best = min(losses, key=losses.__getitem__)
    assert max(losses) == best + 6 < 60
    assert len({event["step"] for event in evals}) == len(evals)  # none is scored twice
    assert f"step-{best:08d}" in {p.name for p in Path("runs/a/checkpoints").iterdir()}
    assert f"no evaluation since step {best} found" in Path("runs/a/train.log").read_text()
    again = done(tune("run.name=a", "train.steps=60", "train.batch_size=1", "optim.lr=0.05",
                      "optim.schedule=constant", "eval.every_steps=3", "eval.patience=2",
                      "finetune.answers=0"))
    assert "is complete at step" in again


def test_a_preview_shows_what_is_learned_and_makes_nothing(tune):
    write("talk.jsonl", [{"messages": [{"role": "user", "content": f"Q{i}"},
                                       {"role": "assistant", "content": f"A{i}"}]}
                         for i in range(9)])
    output = done(tune("--preview", "2", data="talk.jsonl"))
    assert "User:\nQ" in output and "Assistant:\n⟦A" in output and "<|endoftext|>⟧" in output
    assert output.count("-----") == 3 and "tokens per row" in output
    assert not Path("runs").exists()
    for wrong in (("--preview",), ("--preview", "none"), ("--preview=0",)):
        code, _, stderr = tune(*wrong)
        assert code == 2 and "--preview needs a number" in stderr


def test_a_preview_names_what_is_left_out(tune):
    write("long.jsonl", [*PAIRS, {"prompt": "x" * 60, "completion": "y"}])
    output = done(tune("--preview=1", "finetune.val_data=pairs.jsonl", data="long.jsonl"))
    assert "left out: long.jsonl, line 25 has 62 tokens, more than 49" in output


def test_validation_data_that_are_trained_on_are_announced(tune):
    write("val.jsonl", [{"prompt": "new", "completion": "z"}, *PAIRS[:3]])
    assert "3 of them are training data" in done(tune("--preview=1", "finetune.val_data=val.jsonl"))
    assert "warning" not in done(tune("--preview=1"))  # held out by a hash of the prompt


@pytest.mark.auto
def test_preferences_are_learned_and_logged(tune):
    write("prefer.jsonl", PREFERENCES)
    done(tune("run.name=p", "train.steps=12", "train.batch_size=6", "optim.lr=0.003",
              "optim.warmup_steps=0", *QUIET, data="prefer.jsonl"))
    first, last = events("p", "eval")
    assert first["val_preference_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert last["val_preference_loss"] < 0.6 and last["val_preference_accuracy"] == 1.0
    assert {"val_win_rate", "val_margin"} <= last.keys()
    steps = events("p", "train")
    assert steps[-1]["margin"] > steps[0]["margin"]
    assert 0 <= steps[0]["preference_accuracy"] <= 1


def test_before_learning_held_out_preferences_have_no_margin_whatever_training_computes_in(tune):
    """Reference and measure are both in float32; in bfloat16 one would be off by 1e-3."""
    write("prefer.jsonl", PREFERENCES)
    done(tune("run.name=p", "train.steps=1", "run.dtype=bfloat16", *QUIET, data="prefer.jsonl"))
    first, last = events("p", "eval")
    assert abs(first["val_margin"]) < 1e-6 < abs(last["val_margin"])


def test_answers_are_measured_in_float32_whatever_training_computes_in(tune, monkeypatch):
    found = []
    monkeypatch.setattr("gpt.finetuning.run.figures", lambda *arguments: (
        found.append(arguments[-1].dtype) or Measured({}, [])))
    done(tune("train.steps=1", "run.dtype=bfloat16"))
    assert set(found) == {torch.float32}
    found.clear()
    done(tune("train.steps=1", "run.name=asked", "eval.dtype=bfloat16"))
    assert set(found) == {torch.bfloat16}


def test_the_best_of_preferences_is_where_their_own_loss_is_lowest(tune):
    write("prefer.jsonl", PREFERENCES)
    done(tune("run.name=p", "train.steps=8", "optim.lr=0.003", "eval.every_steps=4",
              "finetune.answers=0", data="prefer.jsonl"))
    losses = {e["step"]: e["val_preference_loss"] for e in events("p", "eval") if e["step"]}
    best = json.loads(Path("runs/p/checkpoints/best.json").read_text())
    assert best == {"step": min(losses, key=losses.__getitem__),
                    "val_loss": min(losses.values())}


@pytest.mark.parametrize(("settings", "rate"), [
    ((), 0.1 / 32), (("finetune.method=lora",), 0.5 / 32), (("optim.lr=0.002",), 0.002)])
def test_the_learning_rate_follows_method_and_width(settings, rate, tune):
    done(tune("run.name=a", "train.steps=1", *settings, *QUIET))
    assert f"adamw at {rate:.3g}, " in Path("runs/a/train.log").read_text()


def test_preferences_are_learned_at_a_tenth_of_the_rate(tune):
    write("prefer.jsonl", PREFERENCES)
    done(tune("run.name=p", "train.steps=1", *QUIET, data="prefer.jsonl"))
    assert f"adamw at {0.01 / 32:.3g}, " in Path("runs/p/train.log").read_text()


def test_preferences_are_not_packed(tune):
    write("prefer.jsonl", PREFERENCES)
    code, _, stderr = tune("finetune.packing=true", data="prefer.jsonl")
    assert code == 2 and "packing is not for preferences" in stderr


def test_preferences_are_not_mixed_with_texts(tune):
    write("prefer.jsonl", PREFERENCES)
    code, _, stderr = tune("finetune.pretrain_data=corpus", data="prefer.jsonl")
    assert code == 2 and "cannot be mixed with preferences" in stderr


@pytest.mark.auto
def test_labels_are_scored(tune):
    write("labels.jsonl", [{"text": f"{i} is ", "label": "odd" if i % 2 else "even"}
                           for i in range(30)])
    done(tune("run.name=c", "train.steps=2", *QUIET, data="labels.jsonl"))
    assert all(0 <= event["val_label_accuracy"] <= 1 for event in events("c", "eval"))


@pytest.mark.auto
def test_answers_are_counted_before_and_after(tune):
    done(tune("run.name=a", "train.steps=60", "train.batch_size=8", "finetune.answers=2",
              "eval.every_steps=null", "optim.lr=0.003",
              "finetune.val_data=pairs.jsonl"))
    first, last = events("a", "eval")
    assert first["val_format_rate"] < last["val_format_rate"] == 1.0
    assert {"val_exact_match"} <= first.keys()


def test_the_chat_format_travels_with_the_run(tune):
    write("talk.jsonl", [{"messages": [{"role": "user", "content": f"Q{i}"},
                                       {"role": "assistant", "content": f"A{i}"}]}
                         for i in range(12)])
    done(tune("run.name=t", "train.steps=1", *QUIET, data="talk.jsonl"))
    tokenizer = checkpoint.load_tokenizer(last_checkpoint("t"))
    assert json.loads(tokenizer.chat_format)["user"] == {"before": "User:\n", "after": "\n\n"}
    assert "User:" in tokenizer.chat_template


def test_a_corpus_of_another_tokenizer_is_not_mixed_in(tune, monkeypatch, capsys):
    Path("text.txt").write_text("Some text to go on with.\n" * 200)
    assert call_main(prepare, "text.txt", "tokenizer=char", "out=corpus", monkeypatch=monkeypatch,
                     capsys=capsys)[0] == 0
    code, _, stderr = tune("finetune.pretrain_data=corpus")
    assert code == 2 and "prepared with another tokenizer" in stderr


def test_answers_before_and_after_stand_in_the_log(tune):
    done(tune("run.name=a", "train.steps=3", "eval.every_steps=null"))
    samples = [json.loads(line) for line in Path("runs/a/samples.jsonl").read_text().splitlines()]
    assert [each["step"] for each in samples] == [0, 0, 3, 3]
    assert samples[0]["prompt"] in {pair["prompt"] for pair in PAIRS}
    assert "sample at step 0: " + samples[0]["prompt"] in Path("runs/a/train.log").read_text()


def test_the_share_of_pretraining_data_is_one_of_what_is_learned(tune, monkeypatch, capsys):
    Path("text.txt").write_text("Some text to go on with.\n" * 400)
    assert call_main(prepare, "text.txt", "tokenizer=byte", "out=corpus",
                     monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    config = FinetuneConfig(finetune={"from": "base", "data": "pairs.jsonl",
                                      "pretrain_data": "corpus", "pretrain_share": 0.25})
    source = TaskRows.load(config, BYTES, 48).source(config)
    batches = Batches(source, Order(64, 64))
    learned = np.array([[int((targets != IGNORE).sum()) for targets in batch.targets]
                        for step in range(64) for batch in batches.step(step)]).flatten()
    texts = learned[learned == 48].sum()  # windows are full of tokens to learn
    assert texts / learned.sum() == pytest.approx(0.25, abs=0.03)


def test_a_label_is_not_held_out_alone(tune):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(40)]
    write("rare.jsonl", [*rows, *({"text": f"r{i}", "label": f"rare{i}"} for i in range(8))])
    config = FinetuneConfig(finetune={"from": "base", "data": "rare.jsonl", "val_fraction": 0.5})
    task = TaskRows.load(config, BYTES, 48)
    assert {row.example.label for row in task.train.rows.rows} == {
        "a", "b", *(f"rare{i}" for i in range(8))}
    assert {row.example.label for row in task.val.rows.rows} == {"a", "b"}


def test_prompts_of_several_turns_are_conversations(tune):
    system = [{"system": "Be brief.", **pair} for pair in PAIRS]
    write("system.jsonl", system)
    out = done(tune("--preview", "1", data="system.jsonl"))
    assert "chat format: turns" in out and "User:\n" in out


def test_a_chat_models_format_stays_unless_another_is_asked_for(tune, monkeypatch, capsys):
    talks = [{"messages": [{"role": "user", "content": pair["prompt"]},
                           {"role": "assistant", "content": pair["completion"]}]}
             for pair in PAIRS]
    write("talks.jsonl", talks)
    out = done(tune("run.name=talks", "train.steps=1", *QUIET, data="talks.jsonl"))
    assert "python sample.py runs/talks --chat" in out
    again = ("finetune.from=runs/talks", "--preview", "1")
    assert "chat format: the base model's;" in done(tune(*again))
    assert "chat format: plain (instead of the base model's);" in done(
        tune(*again, "finetune.chat=plain"))
    Path("text.txt").write_text("A text of its own, as a document.\n")
    assert "chat format: plain (instead of the base model's);" in done(
        tune(*again, "finetune.val_data=text.txt", data="text.txt"))
    _, _, told = call_main(sample, "runs/talks", "--prompt", "1", "--max-new-tokens", 1,
                           monkeypatch=monkeypatch, capsys=capsys)
    assert "trained on conversations; --chat" in told
    _, _, told = call_main(sample, "base", "--prompt", "1", "--max-new-tokens", 1,
                           monkeypatch=monkeypatch, capsys=capsys)
    assert "conversations" not in told


def test_a_run_that_found_nothing_better_names_its_best_checkpoint(tune):
    out = done(tune("run.name=p", "train.steps=9", "eval.every_steps=1", "eval.patience=1",
                    "optim.lr=0.9", "optim.warmup_steps=0", "finetune.answers=0"))
    best = json.loads(Path("runs/p/checkpoints/best.json").read_text())["step"]
    assert events("p", "eval")[-1]["step"] > best
    assert f"kept in runs/p/checkpoints/step-{best:08}, and is what runs/p stands for" in out
    assert "python sample.py runs/p\n" in out


@pytest.mark.auto
def test_a_task_is_evaluated_as_it_is_while_training(tune, monkeypatch, capsys):
    write("held.jsonl", [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(7)])
    write("rows.jsonl", [{"text": f"s{i}", "label": "ab"[i % 2]} for i in range(20)])
    done(tune("run.name=c", "finetune.val_data=held.jsonl", "train.steps=3", "optim.lr=0.01",
              data="rows.jsonl"))
    last = events("c", "eval")[-1]
    code, out, errors = call_main(verbs, "evaluate", "runs/c", "--data", "held.jsonl",
                                  monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, errors
    assert f"{last['val_loss']:.4f} nats per token" in out
    for name in ("exact_match", "format_rate", "label_accuracy"):
        assert f"{name.replace('_', ' ')} {last[f'val_{name}']:.3f}" in out
    for words, problem in ((("--data", "held.jsonl", "--text", "x"), "not both"),
                           (("--data", "prefer.jsonl"), "preferences")):
        write("prefer.jsonl", PREFERENCES)
        code, _, errors = call_main(verbs, "evaluate", "runs/c", *words,
                                    monkeypatch=monkeypatch, capsys=capsys)
        assert code == 2 and problem in errors


def test_a_preview_shows_what_would_command_a_terminal(tune):
    write("escape.jsonl", [{"prompt": f"{i}\x1b]0;title\x07", "completion": "a\u202eb"}
                           for i in range(20)])
    out = done(tune("--preview", "1", data="escape.jsonl"))
    assert "\\x1b]0;title\\x07" in out and "\\u202e" in out and "\x1b" not in out


def test_a_signal_before_the_first_step_leaves_as_one_later_does(tune, monkeypatch):
    def interrupted(pairs, model, machine, *rest):
        machine.stop.signal_name = "SIGTERM"
        return with_reference(pairs, model, machine, *rest)

    write("prefer.jsonl", PREFERENCES)
    monkeypatch.setattr("gpt.finetuning.task_rows.with_reference", interrupted)
    code, _, stderr = tune("run.name=p", "train.steps=2", *QUIET, data="prefer.jsonl")
    assert code == 75 and "before the first step; to begin again: python" in stderr


@pytest.mark.parametrize("method", ["lora", "int8"])
def test_a_dry_run_of_adapters_is_a_plan_and_leaves_nothing(method, tune):
    before = sorted(Path.cwd().rglob("*"))
    out = done(tune("run.name=a", *METHODS[method], "train.steps=2", "--dry-run"))
    assert "peak memory" in out and sorted(Path.cwd().rglob("*")) == before


def test_a_dry_run_measures_as_the_run_does_without_dropout(tune, monkeypatch):
    trains = []
    monkeypatch.setattr("gpt.finetuning.run.figures", lambda model, *rest: (
        trains.append(model.training) or Measured({}, [])))
    done(tune("finetune.method=lora", "lora.dropout=0.1", "train.steps=2", "--dry-run"))
    assert trains == [False]


def test_a_signal_during_a_dry_run_is_one_line(tune, monkeypatch):
    def measured(*arguments):
        arguments[-1].stop.signal_name = "SIGINT"
        arguments[-1].stop.raise_if_asked()

    monkeypatch.setattr("gpt.finetuning.run.figures", measured)
    code, _, stderr = tune("train.steps=2", "--dry-run")
    assert code == 75 and "stopped by SIGINT before the first step" in stderr


def test_an_evaluation_ends_answers_where_the_chosen_format_does(tune, monkeypatch, capsys):
    model, tokenizer = tiny_gpt(vocab_size=262, block_size=48), with_controls()
    checkpoint.save_model(Path("chatml"), model, tokenizer, "a test")
    write("talk.jsonl", [{"messages": [{"role": "user", "content": "a"},
                                       {"role": "assistant", "content": "b"}]}])
    asked = []
    monkeypatch.setattr("gpt.language_model.LanguageModel.answers", lambda lm, prompts, most: (
        asked.append(lm.tokenizer.stop_tokens), [("b", True)])[1])
    code, _, errors = call_main(verbs, "evaluate", "chatml", "--data", "talk.jsonl",
                                monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, errors
    assert tokenizer.specials["<|im_end|>"] in asked[0]


CALL = {"name": "f", "arguments": {}}
TOOL_TALKS = [{"messages": [
    {"role": "user", "content": f"{i}"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "1"}, {"role": "assistant", "content": "2"}]} for i in range(20)]
WORDS = 'user: {before: "Q"}\ntools: {call: {before: "C"}, result: {before: "R"}}\n'


@pytest.mark.parametrize("options", [(), ("finetune.packing=true",)])
def test_calls_are_learned_sampled_and_evaluated_where_the_format_has_words(
        options, tune, monkeypatch, capsys):
    write("tools.jsonl", TOOL_TALKS)
    Path("mine.yaml").write_text(WORDS)
    chosen = ("finetune.chat=mine.yaml", "run.name=t", "train.steps=2", *options)
    shown = done(tune("--preview=1", *chosen, data="tools.jsonl"))
    assert 'Q0⟦C{"name": "f", "arguments": {}}<|endoftext|>⟧QR1⟦2<|endoftext|>⟧' in shown
    done(tune(*chosen, data="tools.jsonl"))
    assert "chat format: the base model's;" in done(
        tune("--preview=1", "finetune.from=runs/t", data="tools.jsonl"))
    code, out, errors = call_main(verbs, "evaluate", "runs/t", "--data", "tools.jsonl",
                                  monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and "20 examples" in out, errors
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    code, out, errors = call_main(sample, "runs/t", "--chat", "--max-new-tokens", 1,
                                  monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and "not trained to converse" not in errors, errors
    code, _, errors = tune("finetune.chat=turns", data="tools.jsonl")
    assert code == 2 and ("tools.jsonl, line 1: messages[1]: tool_calls cannot be written in the "
                          "chat format turns") in errors


def test_preferences_have_calls_in_prompts_and_answers_and_a_prompt_may_be_read_both_ways(tune):
    write("prefer.jsonl", [{"prompt": talk["messages"][:length], "chosen": answer,
                            "rejected": "no!"} for talk in TOOL_TALKS
                           for length, answer in ((1, talk["messages"][1:2]), (3, "yes"))])
    Path("mine.yaml").write_text(WORDS)
    chosen = ("finetune.chat=mine.yaml", "finetune.prefix=bidirectional")
    shown = done(tune("--preview=3", *chosen, data="prefer.jsonl"))
    assert 'Q0⟦C{"name": "f", "arguments": {}}<|endoftext|>⟧' in shown and "Q0⟦no!" in shown
    assert 'C{"name": "f", "arguments": {}}<|endoftext|>QR1⟦yes<|endoftext|>⟧' in shown
    done(tune(*chosen, "run.name=p", "train.steps=2", *QUIET, data="prefer.jsonl"))


def test_a_run_without_tools_rests_on_what_it_did_before_formats_had_words_for_them(folder):
    write("talk.jsonl", [{"messages": [talk["messages"][0], talk["messages"][3]]}
                         for talk in TOOL_TALKS])
    write("tools.jsonl", TOOL_TALKS)
    found = {}
    for data in ("talk.jsonl", "tools.jsonl"):
        config = FinetuneConfig(finetune={"from": "base", "data": data, "chat": "chatml"})
        task = TaskRows.load(config, with_controls(), 400)
        found[data] = task.identity(config)["finetune.chat"]
    assert found["talk.jsonl"] == {
        "system": {"before": "<|im_start|>system\n", "after": "<|im_end|>\n"},
        "user": {"before": "<|im_start|>user\n", "after": "<|im_end|>\n"},
        "assistant": {"before": "<|im_start|>assistant\n", "after": "\n"}, "stop": "<|im_end|>",
        "default_system": None, "prefix": "causal"}
    assert found["tools.jsonl"]["tools"]["call"]["before"] == "<tool_call>\n"
