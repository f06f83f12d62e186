"""Adapters of ours leave as PEFT's folders, and such folders are models like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune
import gpt
import sample
from gpt import __main__ as verbs
from gpt.chat import saved_format
from gpt.runs import checkpoint
from gpt.runs.saved_model import find_model
from tests.finetuning.conversations import BYTES
from tests.tiny import call_main, tiny_gpt

TOKENS = torch.arange(24).unsqueeze(0)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Any of the commands, in a folder with a base model and a run of adapters."""
    monkeypatch.chdir(tmp_path)

    def run(module: Any, *arguments: object) -> tuple[int, str, str]:
        return call_main(module, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    checkpoint.save_model(Path("ours"), tiny_gpt(vocab_size=257, block_size=48), BYTES, "a test")
    assert run(verbs, "export", "ours", "base", "--format", "hf")[0] == 0
    Path("task.jsonl").write_text("".join(
        json.dumps({"prompt": f"{i} and ", "completion": f"{i}."}) + "\n" for i in range(20)))
    code, _, errors = run(finetune, "finetune.from=base", "finetune.data=task.jsonl", "run.name=a",
                          "finetune.method=dora", "optim.lr=0.02", "train.steps=3",
                          "optim.warmup_steps=0", "finetune.answers=0", "run.dtype=float32")
    assert code == 0, errors
    return run


@pytest.mark.auto
def test_adapters_go_out_and_come_back_as_the_same_model(call):
    code, _, errors = call(verbs, "export", "runs/a", "adapters", "--format", "peft",
                                "--base", "base")
    assert code == 0, errors
    assert {path.name for path in Path("adapters").iterdir()} >= {"adapter_config.json",
                                                                  "adapter_model.safetensors"}
    ours, again, base = (gpt.load(name).model(TOKENS) for name in ("runs/a", "adapters", "base"))
    torch.testing.assert_close(again, ours, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, base, atol=1e-2)
    assert call(sample, "adapters", "--prompt", "1", "--max-new-tokens", 2)[0] == 0
    code, _, errors = call(finetune, "finetune.from=adapters", "finetune.data=task.jsonl",
                           "run.name=further", "train.steps=1", "finetune.answers=0")
    assert code == 0, errors


@pytest.mark.auto
def test_peft_opens_what_we_write(call):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM
    assert call(verbs, "export", "runs/a", "adapters", "--format", "peft", "--base", "base")[0] == 0
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"),
                                            "adapters")
    ours = gpt.load("runs/a", dtype="float32").model
    torch.testing.assert_close(theirs(TOKENS).logits, ours(TOKENS), rtol=1e-4, atol=1e-4)


def test_the_tokenizer_lies_beside_the_adapters(call):
    from transformers import AutoTokenizer
    assert call(verbs, "export", "runs/a", "adapters", "--format", "peft", "--base", "base")[0] == 0
    theirs = AutoTokenizer.from_pretrained("adapters", local_files_only=True)
    text = "1 plus 1 is é"
    assert theirs(text, add_special_tokens=False)["input_ids"] == gpt.load(
        "runs/a").tokenizer.encode(text)


def test_a_model_with_adapters_has_a_hash_of_its_own(call):
    assert call(verbs, "export", "runs/a", "adapters", "--format", "peft", "--base", "base")[0] == 0
    hashes = {find_model(name).weight_hash() for name in ("base", "adapters")}
    assert len(hashes) == 2


def test_a_base_that_lies_beside_the_adapters_is_found(call):
    assert call(verbs, "export", "runs/a", "adapters", "--format", "peft", "--base", "base")[0] == 0
    Path("elsewhere").mkdir()
    shutil.move("adapters", "elsewhere/adapters")
    shutil.move("base", "elsewhere/adapters/base")
    assert gpt.load("elsewhere/adapters").model.config.n_embd == 32


@pytest.mark.parametrize(("arguments", "message"), [
    (["ours", "--format", "peft", "--base", "base"], "ours has no adapters"),
    (["runs/a", "--format", "peft"], "export it with python -m gpt export runs/a/base FOLDER"),
    (["runs/a", "--format", "hf", "--base", "base"], "--base is for --format peft"),
    (["runs/a", "--format", "peft", "--base", "base", "--dtype", "bfloat16"],
     "are for whole models")])
def test_what_cannot_be_exported_is_said(arguments, message, call):
    code, _, errors = call(verbs, "export", arguments[0], "out", *arguments[1:])
    assert code == 2 and message in errors and not Path("out").exists()


def test_a_folder_that_names_no_base_is_refused(call):
    Path("adapters").mkdir()
    Path("adapters/adapter_config.json").write_text("{}")
    code, _, errors = call(sample, "adapters", "--prompt", "1")
    assert code == 2 and "does not say which model its adapters change" in errors
    Path("adapters/adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "x" * 5000}))
    code, _, errors = call(sample, "adapters", "--prompt", "1")
    assert code == 2 and "neither a folder nor a name" in errors and len(errors) < 500


def test_a_model_that_reads_prompts_both_ways_is_not_exported(call):
    assert call(finetune, "finetune.from=base", "finetune.data=task.jsonl", "run.name=b",
                "finetune.prefix=bidirectional", "train.steps=1", "finetune.answers=0")[0] == 0
    for form in ("hf", "gguf"):
        code, _, errors = call(verbs, "export", "runs/b", "out", "--format", form)
        assert code == 2 and "in both directions" in errors and not Path("out").exists()


def test_a_base_that_is_another_model_is_refused_and_one_that_is_not_here_is_said(call):
    for parts, name in ((("--base", "base"), "a"), (("--base", "me/base"), "b")):
        code, out, _ = call(verbs, "export", "runs/a", name, "--format", "peft", *parts)
        assert code == 0
        assert ("is the one of training" if name == "a" else "me/base is not here, and was not"
                ) in out
    checkpoint.save_model(Path("other"), tiny_gpt(1, vocab_size=257, block_size=48), BYTES, "test")
    assert call(verbs, "export", "other", "otherbase", "--format", "hf")[0] == 0
    code, _, errors = call(verbs, "export", "runs/a", "c", "--format", "peft", "--base",
                           "otherbase")
    assert code == 2 and "otherbase is not the model that the adapters were trained on" in errors
    assert not Path("c").exists()


def test_a_base_in_eight_bits_is_said_to_differ(call):
    code, _, errors = call(finetune, "finetune.from=base", "finetune.data=task.jsonl",
                           "run.name=i", "finetune.method=lora", "lora.base=int8", "train.steps=1",
                           "finetune.answers=0", "run.dtype=float32")
    assert code == 0, errors
    code, out, _ = call(verbs, "export", "runs/i", "d", "--format", "peft", "--base", "base")
    assert code == 0 and "not rounded to int8 as in training, logits differ by up to" in out


@pytest.mark.parametrize("kind", ["hf", "peft"])
def test_an_export_keeps_the_chat_format(kind, call):
    Path("mine.yaml").write_text('user: {before: "Q> ", after: "\\n"}\n'
                                 'assistant: {before: "A> "}\n')
    code, _, errors = call(finetune, "finetune.from=base", "finetune.data=task.jsonl",
                           "run.name=m", "finetune.method=lora", "train.steps=1",
                           "finetune.chat=mine.yaml", "finetune.answers=0", "run.dtype=float32")
    assert code == 0, errors
    base = ["--base", "base"] if kind == "peft" else []
    assert call(verbs, "export", "runs/m", "out", "--format", kind, *base)[0] == 0
    form = saved_format(find_model("out").tokenizer())
    assert form == saved_format(find_model("runs/m").tokenizer())
    assert form.user.before == "Q> " and find_model("base").tokenizer().chat_format is None


@pytest.mark.parametrize("kind", ["hf", "peft"])
def test_an_export_keeps_the_chat_template(kind, call):
    text = "{% for m in messages %}{{ m.role[0] ~ '> ' ~ m.content ~ eos_token }}{% endfor %}"
    Path("mine.jinja").write_text(text)
    code, _, errors = call(finetune, "finetune.from=base", "finetune.data=task.jsonl",
                           "run.name=m", "finetune.method=lora", "train.steps=1",
                           "finetune.chat=mine.jinja", "finetune.answers=0", "run.dtype=float32")
    assert code == 0, errors
    base = ["--base", "base"] if kind == "peft" else []
    assert call(verbs, "export", "runs/m", "out", "--format", kind, *base)[0] == 0
    assert find_model("out").tokenizer().chat_template == text
    assert find_model("out").tokenizer().template_source == "out/chat_template.jinja"
    assert find_model("base").tokenizer().chat_template is None
