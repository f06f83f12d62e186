"""Models of other tools through the commands, as a user meets them."""

from __future__ import annotations

import functools
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import finetune
import gpt
import sample
from gpt import __main__ as verbs
from gpt.evaluation import measured
from gpt.interop import writing
from gpt.interop.gguf import writing as gguf_writing
from gpt.runs import checkpoint
from tests.interop.models import (
    VOCAB,
    change_config,
    change_weights,
    largest_difference,
    saved,
)
from tests.tiny import call_main, random_tokens, run_script, tiny_gpt


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """Models that transformers saved, what one was imported to, and what is wrong with others."""
    folder = tmp_path_factory.mktemp("interop")
    for name, kind in (("gpt2", "gpt2"), ("llama", "llama 3"), ("mistral", "mistral"),
                       ("pickled", "gpt2"), ("odd", "llama 3"), ("short", "gpt2"),
                       ("damaged", "gpt2"), ("softcap", "gpt2")):
        saved(kind, folder / name)
    (folder / "pickled/model.safetensors").rename(folder / "pickled/pytorch_model.bin")
    change_config(folder / "odd", rope_scaling={"type": "other", "factor": 2.0},
                  without=("rope_parameters",))
    change_config(folder / "short", vocab_size=99)
    (folder / "damaged/model.safetensors").write_bytes(b"\xff" * 64)
    pairs = [{"prompt": f"{i} plus {i} is ", "completion": str(2 * i)} for i in range(40)]
    (folder / "task.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    (folder / "text.txt").write_text("def read(path):\n    return path.open().read()\n")
    (folder / "empty.txt").write_text("")
    lm = gpt.load(folder / "gpt2")
    checkpoint.save_model(folder / "capped", tiny_gpt(vocab_size=VOCAB, logit_softcap=5.0),
                          lm.tokenizer, imported_from="nowhere")
    return folder


@pytest.fixture
def call(workplace, monkeypatch, capsys):
    """Run a script's main in this process; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(workplace)

    return functools.partial(call_main, monkeypatch=monkeypatch, capsys=capsys)


def test_an_imported_model_is_a_checkpoint_like_any_other(call, workplace, tmp_path):
    code, out, err = call(verbs, "import", "llama", tmp_path / "deep/er/ours")
    assert code == 0, err
    assert re.fullmatch(r".*ours: \d\d,\d{3} parameters, [\d,]+ FLOPs per token, 603 token ids; "
                        r"sample from it with: python sample.py .*ours\n", out), out
    ours = tmp_path / "deep/er/ours"
    assert checkpoint.damage(ours) == []
    assert json.loads((ours / "config.json").read_text())["imported_from"] == "llama"
    assert call(verbs, "verify", ours)[:2] == (0, f"{ours}: sound\n")
    theirs, back = gpt.load("llama", dtype="float32"), gpt.load(ours, dtype="float32")
    tokens = random_tokens(2, 30, vocab_size=VOCAB)
    assert largest_difference(back.model, lambda t: type("", (), {"logits": theirs.model(t)}),
                              tokens) == 0
    assert back.tokenizer.boundaries == theirs.tokenizer.boundaries
    assert back.tokenizer.encode("def é") == theirs.tokenizer.encode("def é")
    assert not list(tmp_path.rglob("*.tmp-*"))


@pytest.mark.auto
def test_all_commands_take_the_folder_itself(call, workplace, tmp_path):
    assert call(verbs, "import", "llama", tmp_path / "ours")[0] == 0
    greedy = ["--prompt", "def read", "--temperature=0", "--max-new-tokens=20", "--dtype=float32"]
    texts = {call(sample, name, *greedy)[1] for name in ("llama", tmp_path / "ours")}
    assert len(texts) == 1 and len(texts.pop()) > 20
    code, out, _ = call(verbs, "env", "llama")
    assert code == 0 and re.search(r"model +\d\d,\d{3} parameters, [\d,]+ FLOPs per token", out)


@pytest.mark.auto
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_folder_is_fine_tuned_sampled_and_exported_in_both_formats(name, call, workplace,
                                                                     tmp_path):
    code, out, err = call(finetune, f"finetune.from={name}", "finetune.data=task.jsonl",
                          f"run.out_dir={tmp_path}", "run.name=tuned", "train.steps=3",
                          "train.batch_size=4", "run.dtype=float32", "run.device=cpu",
                          "log.samples_every_steps=3", 'log.sample_prompts=["2 plus 2 is "]',
                          "optim.lr=1e-3")
    assert code == 0, err
    run = tmp_path / "tuned"
    assert (run / "samples.jsonl").read_text().count("\n") == 5
    before, after = gpt.load(name, dtype="float32"), gpt.load(run, dtype="float32")
    assert after.model.config == before.model.config
    assert not torch.equal(before.model.output_weight, after.model.output_weight)
    assert call(sample, run, "--prompt=2 plus 2 is ", "--max-new-tokens=5")[0] == 0
    code, out, err = call(verbs, "export", run, tmp_path / "hf", "--format=hf", "--licence=mit",
                          "--dtype=bfloat16", "--max-shard-gb=0.0001")
    assert code == 0 and out.startswith(f"{tmp_path / 'hf'}: read back by transformers"), err
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 1
    card = (tmp_path / "hf/README.md").read_text()
    assert "license: mit" in card and f"fine-tuned from `{name}` on `task.jsonl`" in card
    assert "# tuned" in card and "loss on its validation split: " in card
    code, out, err = call(verbs, "export", run, tmp_path / "gguf", "--format=gguf", "--dtype=q8_0")
    assert code == 0 and "rounded to q8_0" in out, err
    assert (tmp_path / "gguf/tuned-q8_0.gguf").is_file()


def test_a_folder_of_theirs_becomes_a_gguf_file(call, workplace, tmp_path):
    code, _, err = call(verbs, "export", "gpt2", tmp_path / "gguf", "--format=gguf")
    assert code == 0 and (tmp_path / "gguf/gpt2-float32.gguf").is_file(), err


@pytest.mark.auto
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_the_score_of_a_text_is_that_of_transformers(name, call, workplace, monkeypatch):
    from transformers import AutoModelForCausalLM
    theirs = AutoModelForCausalLM.from_pretrained(workplace / name, dtype=torch.float32)
    code, out, err = call(verbs, "evaluate", name, "--text=text.txt")
    assert code == 0, err
    tokenizer = gpt.load(name).tokenizer
    text = (workplace / "text.txt").read_text()
    ids = tokenizer.encode(text)
    begin = tokenizer.begin_of_text
    first = tokenizer.end_of_text if begin is None else begin
    with torch.no_grad():
        logits = theirs(torch.tensor([[first, *ids[:-1]]])).logits[0]
    loss = float(F.cross_entropy(logits, torch.tensor(ids)))
    found = re.search(r"([\d.]+) nats per token, ([\d.]+) bits per byte, over (\d+) tokens", out)
    assert float(found[1]) == pytest.approx(loss, abs=6e-5)  # four digits are printed
    assert float(found[2]) == pytest.approx(
        loss * len(ids) / 0.6931471806 / len(text.encode()), abs=6e-5) or name == "mistral"
    assert int(found[3]) == len(ids)
    assert f"{name}: weights {gpt.runs.saved_model.find_model(name).weight_hash()[:16]}" in out
    monkeypatch.setattr(measured, "LONGEST_WINDOW", 16)
    right, shapes = measured.EvaluationWindows, []
    monkeypatch.setattr(measured, "EvaluationWindows", lambda text, length, size, **more: (
        shapes.append((length, size)), right(text, length, size, **more))[1])
    code, out, err = call(verbs, "evaluate", name, "--text=text.txt")
    assert code == 0 and f"over {len(ids)} tokens" in out
    assert shapes == [(16, 512)]  # 8192 tokens at once
    assert "(scored in windows of 16 tokens; the model could read 128)" in err


def test_a_configuration_beside_a_foreign_folder_is_not_its_own(call, workplace, tmp_path):
    (workplace / "config.yaml").write_text("data: [not, a, section]\n")
    try:
        (workplace / "models").mkdir(exist_ok=True)
        for name in ("models/ours",):
            assert call(verbs, "import", "gpt2", name)[0] == 0
            assert call(verbs, "evaluate", name, "--text=text.txt")[0] == 0
            code, _, err = call(verbs, "evaluate", name)
            assert code == 2
            assert "was not trained on a dataset that is known here; give --text FILE" in err
    finally:
        (workplace / "config.yaml").unlink()


IMPORT = (verbs, "import")
EXPORT = (verbs, "export")
MISTAKES: dict[str, tuple[tuple[Any, ...], str]] = {
    "import of nothing": ((*IMPORT, "none", "OUT"), "there is no run none"),
    "import of ours": ((*IMPORT, "capped", "OUT"), "capped is a checkpoint of this toolkit"),
    "import over something": ((*IMPORT, "none", "llama"), "llama exists already; choose another"),
    "import over a file": ((*IMPORT, "gpt2", "text.txt"), r"text\.txt exists already"),
    "import of pickles": ((*IMPORT, "pickled", "OUT"), "holds pickled weights alone .*convert"),
    "import of another rope": ((*IMPORT, "odd", "OUT"), "rope_type='other' is not supported"),
    "import of damage": ((*IMPORT, "damaged", "OUT"), "is no sound safetensors file"),
    "import of two models": ((*IMPORT, "short", "OUT"), "601 ids, the model 99; they belong to"),
    "sample of pickles": ((sample, "pickled", "--prompt=x"), "holds pickled weights alone"),
    "sample of another rope": ((sample, "odd", "--prompt=x"), "rope_type='other'"),
    "tuning pickles": ((finetune, "finetune.from=pickled", "finetune.data=task.jsonl"),
                       "holds pickled weights alone"),
    "tuning two models": ((finetune, "finetune.from=short", "finetune.data=task.jsonl"), "601 ids"),
    "scoring pickles": ((verbs, "evaluate", "pickled", "--text=text.txt"), "pickled weights"),
    "scoring nothing": ((verbs, "evaluate", "gpt2"), "was not trained on a dataset that is known"),
    "scoring an empty text": ((verbs, "evaluate", "gpt2", "--text=empty.txt"), "is empty"),
    "scoring no text": ((verbs, "evaluate", "gpt2", "--text=no.txt"), "cannot read no.txt: No"),
    "export without a format": ((*EXPORT, "gpt2", "OUT"), "--format"),
    "export to a third": ((*EXPORT, "gpt2", "OUT", "--format=onnx"), "invalid choice: 'onnx'"),
    "export of 8 bits": ((*EXPORT, "gpt2", "OUT", "--format=hf", "--dtype=q8_0"),
                         "--dtype q8_0 is for --format gguf; choose float32, bfloat16, float16"),
    "export over something": ((*EXPORT, "none", "llama", "--format=hf"), "llama exists already"),
    "export of what is not there": ((*EXPORT, "runs/none", "OUT", "--format=hf"), "no run runs"),
    "export of a softcap": ((*EXPORT, "capped", "OUT", "--format=hf"), r"model\.logit_softcap=5.0"),
    "gguf of a softcap": ((*EXPORT, "capped", "OUT", "--format=gguf"), r"model\.logit_softcap=5.0"),
    "gguf of a window": ((*EXPORT, "mistral", "OUT", "--format=gguf"), r"model\.window=7"),
    "gguf in shards": ((*EXPORT, "gpt2", "OUT", "--format=gguf", "--max-shard-gb=1"),
                       "--max-shard-gb is for --format hf"),
    **{f"shards of {size}": ((*EXPORT, "gpt2", "OUT", "--format=hf", f"--max-shard-gb={size}"),
                             "--max-shard-gb must be a number above 0") for size in (
                                 "0", "-1", "nan", "inf")},
    "export to nowhere": ((*EXPORT, "gpt2", "..", "--format=hf"), "is no name for a new folder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_line_and_2_and_leaves_nothing(name, call, workplace):
    (module, *arguments), expected = MISTAKES[name]
    before = {p: p.stat().st_mtime_ns for p in workplace.rglob("*")}
    code, _, err = call(module, *arguments)
    said = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(said) == 1, err
    assert re.search(expected, said[0]), said[0]
    assert {p: p.stat().st_mtime_ns for p in workplace.rglob("*")} == before


@pytest.mark.parametrize("target", ["hf", "gguf"])
def test_a_failed_proof_gives_one_line_and_1_and_deletes_the_output(target, call, workplace,
                                                                    tmp_path, monkeypatch):
    right = writing.their_tensors

    def wrong(*given):
        tensors = right(*given)
        name = {"hf": "transformer.ln_f.bias", "gguf": "output_norm.bias"}[target]
        return tensors | {name: tensors[name] + 0.1}
    for module in (writing, gguf_writing):
        monkeypatch.setattr(module, "their_tensors", wrong)
    code, out, err = call(verbs, "export", "gpt2", tmp_path / "out", f"--format={target}")
    assert (code, out) == (1, "")
    assert err.startswith("failed: the export is wrong and was deleted: ") and err.count("\n") == 1
    assert ("final norm" if target == "hf" else "final_norm.bias") in err
    assert not list(tmp_path.iterdir())


def test_pickles_are_never_opened_by_any_command(call, workplace, tmp_path):
    canary = tmp_path / "canary"

    class Canary:
        def __reduce__(self):
            return Path.write_text, (canary, "sang")
    (workplace / "pickled/pytorch_model.bin").write_bytes(pickle.dumps(Canary()))
    for module, *arguments in (
            (sample, "pickled", "--prompt=x"), (*IMPORT, "pickled", tmp_path / "o"),
            (*EXPORT, "pickled", tmp_path / "o", "--format=hf"), (verbs, "evaluate", "pickled"),
            (finetune, "finetune.from=pickled", "finetune.data=task.jsonl")):
        assert call(module, *arguments)[0] == 2
    assert not canary.exists()


def test_weights_in_half_precision_are_imported_as_float32(call, workplace, tmp_path):
    _, folder = saved("llama 3", tmp_path / "half")
    change_weights(folder, lambda tensors: {k: v.bfloat16() for k, v in tensors.items()})
    assert call(verbs, "import", folder, tmp_path / "ours")[0] == 0
    assert {p.dtype for p in gpt.load(tmp_path / "ours", dtype="float32").model.parameters()} == {
        torch.float32}


def test_without_a_network_a_name_is_one_line(workplace):
    done = run_script("sample.py", "nobody/nothing", "--prompt=x", cwd=workplace,
                      HF_HUB_OFFLINE="1", HF_HOME=str(workplace / "cache"))
    assert done.returncode == 2 and "could not be fetched from the Hugging Face Hub" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
