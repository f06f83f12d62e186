"""What is said leads on: to the right command, to another command than the one that failed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import finetune
import gpt
import sample
import train
from data import prepare
from gpt import __main__ as verbs
from gpt.language_model import LanguageModel
from gpt.runs import checkpoint
from tests.tiny import CPU, call_main, tiny_gpt

SMALL = ["data.dataset=data", "model.n_layer=1", "model.n_head=2", "model.n_embd=32",
         "model.block_size=48", "train.batch_size=4", "run.dtype=float32",
         "eval.every_steps=null", "optim.warmup_steps=1"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    prepare.main(["text.txt", "tokenizer=byte", "out=data"])
    Path("pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i} and {i} ", "completion": str(2 * i)}) + "\n"
                for i in range(20)))
    return tmp_path


@pytest.fixture
def call(folder, monkeypatch, capsys):
    def called(script, *words):
        return call_main(script, *words, monkeypatch=monkeypatch, capsys=capsys)
    return called


@pytest.fixture
def lm() -> LanguageModel:
    from gpt.tokenizer import build_tokenizer
    return LanguageModel(tiny_gpt(vocab_size=257, block_size=48), build_tokenizer("byte"), CPU)


def test_a_configuration_of_another_command_names_that_command(call):
    Path("tune.yaml").write_text("finetune:\n  from: runs/a\n  data: pairs.jsonl\n")
    Path("pretrain.yaml").write_text("data:\n  dataset: data\n")
    Path("text.yaml").write_text("name: text\nsources: [text.txt]\n")
    for script, file, named in (
            (train, "tune.yaml", "finetune.py"), (finetune, "pretrain.yaml", "train.py"),
            (train, "text.yaml", "data/prepare.py"), (prepare, "pretrain.yaml", "train.py"),
            (prepare, "tune.yaml", "finetune.py"), (finetune, "text.yaml", "data/prepare.py")):
        code, _, err = call(script, file)
        assert code == 2 and f"is for another command: python {named} {file}" in err, err
    assert "python finetune.py …" in call(train, "finetune.from=x")[2]
    both = call(train, "pretrain.yaml", "lora.rank=2", "train.steps=1")[2]
    assert "there is no field lora" in both


def test_a_file_whose_name_is_no_runs_name_says_what_to_give(call):
    Path("my cfg.yaml").write_text("data:\n  dataset: data\n")
    assert call(train, "my cfg.yaml")[2].rstrip().endswith("give run.name=NAME (given: 'my cfg')")


def test_python_m_gpt_lists_its_verbs(call):
    code, _, err = call(verbs)
    assert code == 2
    assert err.startswith("error: give a verb: evaluate, plan, sweep, import, export, report, "
                          "look, runs, curves, serve, verify, replay, env; ")


def test_differences_of_hashes_say_what_they_are_of(call):
    assert call(train, *SMALL, "train.steps=1", "run.name=a")[0] == 0
    Path("text.txt").write_text("some other text\n" * 400)
    prepare.main(["text.txt", "tokenizer=byte", "out=other"])
    code, _, err = call(train, *SMALL, "train.steps=1", "run.name=a", "data.dataset=other")
    assert code == 2 and "data: a dataset whose files have SHA-256 " in err and "… there, a " in err


def test_after_a_loss_that_is_not_finite_another_command_is_given(call, monkeypatch):
    """The advice is what was given, with half of the learning rates in its place."""
    from gpt.training import step
    real = step.Step.gradients
    calls = []

    def gradients(self, *args):
        calls.append(1)
        loss, norm = real(self, *args)
        return (loss * math.nan if len(calls) == 4 else loss), norm

    monkeypatch.setattr(step.Step, "gradients", gradients)
    words = [*SMALL, "train.steps=6", "run.name=n", "optim.name=adamw", "--optim.lr",
             "0.04"]
    code, _, err = call(train, *words, "checkpoint.every_steps=null")
    assert code == 1 and "go on from the start, since nothing is saved," in err
    assert "0.04" not in err and err.rstrip().endswith(
        "python command " + " ".join(words[:-2]) + " checkpoint.every_steps=null optim.lr=0.02")
    calls.clear()
    code, _, err = call(train, *words, "checkpoint.every_steps=2", "run.name=m", "optim.name=muon")
    assert "go on from step-00000002 at lower" in err
    assert "optim.muon_lr=0.01" in err and "optim.lr=0.02" in err


def test_beams_of_one_draw_nothing(lm):
    first = lm.generate("the", max_new_tokens=20, beams=1)
    assert all(lm.generate("the", max_new_tokens=20, beams=1) == first for _ in range(3))
    assert lm.generate("the", max_new_tokens=20, seed=1) != first
    with pytest.raises(gpt.UserError, match="leave out seed"):
        lm.generate("the", beams=1, seed=3)


def test_no_choice_of_the_likeliest_tokens_can_be_asked_for(lm):
    settings = {"max_new_tokens": 20, "seed": 1}
    assert lm.generate("a", top_k=0, **settings) == lm.generate("a", **settings)
    assert lm.generate("a", top_k=1, **settings) != lm.generate("a", **settings)


@pytest.mark.parametrize("wrong", [None, 5, ["a", None], [3], {"a": 1}])
def test_what_is_no_text_is_refused(wrong, lm):
    for verb in (lm.generate, lm.score, lambda prompt: list(lm.stream(prompt))):
        if verb == lm.generate or not isinstance(wrong, list):
            with pytest.raises(gpt.UserError, match="a prompt is a text"):
                verb(wrong)


@pytest.mark.parametrize("stop", ["", ["a", ""]])
def test_an_empty_stop_text_is_refused(stop, lm):
    with pytest.raises(gpt.UserError, match="stop: "):
        lm.generate("a", stop=stop)


@pytest.mark.parametrize("begin", [False, True])
def test_samples_score_as_they_were_drawn(begin, lm):
    """With the same `begin`, log-probabilities of scoring are those of generating."""
    from gpt.configuration import SamplingConfig
    for seed in range(200):  # until the bytes are a text
        config = {"max_new_tokens": 4, "seed": seed, "begin": begin}
        request = lm.request(lm.prompt_tokens("the", begin), SamplingConfig(**config))
        made = [piece.new for _, piece in lm.write([request])]
        drawn, tokens = [new.logprob for new in made], [new.token for new in made]
        text = lm.tokenizer.decode([*lm.tokenizer.encode("the"), *tokens])
        if lm.tokenizer.encode(text)[3:] == tokens and len(tokens) == 4:
            break
    scores = lm.score(text, begin=begin)
    assert scores[3:] == pytest.approx(drawn, abs=1e-4)
    assert math.isnan(scores[0]) == (not begin) and len(scores) == 7
    other = lm.score(text, begin=not begin)
    assert max(abs(a - b) for a, b in zip(scores[3:], other[3:], strict=True)) > 1e-3
    assert lm.generate("the", **config) == lm.tokenizer.decode(tokens)


def test_an_answer_cut_off_before_its_schema_is_complete_is_a_failure(call, folder):
    pytest.importorskip("llguidance")
    from gpt.tokenizer import build_tokenizer
    checkpoint.save_model(folder / "m", tiny_gpt(vocab_size=257), build_tokenizer("byte"), "test")
    asked = ["m", "--prompt", "a", "--regex", "x{9}", "--seed", "1"]
    for more in ([], ["--json"]):
        code, out, err = call(sample, *asked, "--max-new-tokens", "4", *more)
        assert code == 1 and "xxxx" in out and "1 of 1 texts were cut off before" in err
        code, out, err = call(sample, *asked, "--max-new-tokens", "12", *more)
        assert code == 0 and "xxxxxxxxx" in out and "failed" not in err


@pytest.mark.parametrize(("setting", "told"), [
    ({"regex": "(a"}, "regex: (a: unclosed group"),
    ({"regex": "(?<=a)b"}, "regex: (?<=a)b: look-around, including look-ahead and look-behind, is "
                           "not supported"),
    ({"json_schema": '{"type": "string", "pattern": "(?<=a)b"}'},
     "json_schema: (?<=a)b: look-around, including look-ahead and look-behind, is not supported"),
    ({"json_schema": '{"type": "objekt"}'}, "json_schema: Invalid type: objekt")])
def test_a_grammars_error_is_whole(setting, told, lm):
    pytest.importorskip("llguidance")
    with pytest.raises(gpt.UserError) as caught:
        lm.generate("a", **setting)
    assert str(caught.value) == told


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fine_tuning_without_validation_is_asked_for_by_a_fraction_of_none(method, call):
    assert call(train, *SMALL, "train.steps=2", "run.name=base")[0] == 0
    words = ["finetune.from=runs/base", "finetune.data=pairs.jsonl", "finetune.val_fraction=0",
             f"finetune.method={method}", "run.name=tuned", "train.epochs=1", "eval.every_steps=2",
             "train.batch_size=5", "run.dtype=float32"]
    code, out, err = call(finetune, *words, "--dry-run")
    assert code == 0, err
    code, out, err = call(finetune, *words)
    assert code == 0 and "validation: none" in out and "training: 20 rows" in out, err
    events = [json.loads(line)["event"]
              for line in Path("runs/tuned/metrics.jsonl").read_text().splitlines()]
    assert events.count("train") == 4 and "eval" not in events and events[-1] == "end"
    assert "is complete" in call(finetune, *words)[1]
    code, _, err = call(finetune, *words, "eval.patience=2")
    assert code == 2 and "eval.patience needs validation data" in err
