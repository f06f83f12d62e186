"""The commands as a user runs them: the whole way once, then every mistake that a user can make."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import finetune
import gpt
import sample
import train
from data import prepare
from gpt.training import task as training
from tests.tiny import ROOT, call_main, run_script

SMALL = ["model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.block_size=48",
         "train.batch_size=8", "train.steps=8", "eval.every_steps=4", "run.dtype=float32"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder in which a dataset was prepared, a model pretrained and fine-tuned."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "corpus").mkdir()
    for i in range(30):
        (folder / f"corpus/{i}.txt").write_text(f"Document {i}: à la carte, {i * i}.\n" * 20)
    pairs = [{"prompt": f"{i} plus {i} is ", "completion": str(2 * i)} for i in range(40)]
    (folder / "task.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    for done in (
            run_script("data/prepare.py", "corpus", "tokenizer=bpe:300", "out=data/c", cwd=folder),
            run_script("train.py", "data.dataset=data/c", "run.name=base",
                       "log.samples_every_steps=4", *SMALL, cwd=folder),
            run_script("finetune.py", "finetune.from=runs/base", "finetune.data=task.jsonl",
                       "run.name=tuned", "train.epochs=2", "train.batch_size=4",
                       "run.dtype=float32", cwd=folder)):
        assert done.returncode == 0, done.stderr
    return folder


def test_a_run_folder_holds_what_the_design_promises(workplace):
    for run in ("base", "tuned"):
        folder = workplace / "runs" / run
        assert {"config.yaml", "environment.json", "metrics.jsonl", "train.log",
                "checkpoints"} <= {p.name for p in folder.iterdir()}
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for event, keys in (("train", {"loss", "lr", "grad_norm", "tokens_per_second", "mfu",
                                       "peak_memory_bytes", "tokens", "elapsed_seconds"}),
                            ("eval", {"val_loss", "val_bits_per_byte"}), ("save", set()),
                            ("end", set())):
            found = [line for line in lines if line["event"] == event]
            assert found and all(keys | {"step"} <= line.keys() for line in found), event
        elapsed = [line["elapsed_seconds"] for line in lines]
        assert elapsed == sorted(elapsed)
    assert (workplace / "runs/base/samples.jsonl").read_text().count("\n") == 2
    lines = (workplace / "runs/tuned/metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert (first["event"], first["step"]) == ("eval", 0)  # the loss before fine-tuning


def test_the_resolved_configuration_can_be_run_again(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    code, out, _ = call_main(train, "runs/base/config.yaml", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and "runs/base is complete at step 8" in out


def test_a_run_copied_elsewhere_samples_without_its_dataset(workplace, tmp_path):
    import shutil
    shutil.copytree(workplace / "runs/tuned", tmp_path / "copy")
    done = run_script("sample.py", "copy", "--prompt", "1 plus 1 is ", "--max-new-tokens", 5,
                      "--seed", 1, "--json", "--logprobs", "--num-samples", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["seed"] for r in records] == [1, 2]
    for record in records:
        assert record["prompt"] == "1 plus 1 is "
        assert len(record["tokens"]) == len(record["logprobs"]) <= 5


@pytest.mark.auto
def test_text_on_the_terminal_is_what_python_generates(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    prompt = "Document é"
    lm = gpt.load(workplace / "runs/base")
    settings = {"max_new_tokens": 12, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "seed": 3}
    expected = lm.generate(prompt, **settings)
    options = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
    (workplace / "prompt.txt").write_text(prompt)
    done = run_script("sample.py", "runs/base", *options, cwd=workplace, stdin=prompt)
    assert done.stdout == prompt + expected + "\n", done.stderr
    for given in (["--prompt", prompt], ["--prompt-file", "prompt.txt"], ["--prompt-file", "-"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(prompt.encode())))
        _, out, stderr = call_main(sample, "runs/base", *given, *options,
                                   monkeypatch=monkeypatch, capsys=capsys)
        assert out == prompt + expected + "\n", stderr
    assert "".join(lm.stream(prompt, **settings)) == expected
    assert lm.generate([prompt, "x"], **settings)[0] == expected


def test_a_stop_text_ends_the_sample(workplace):
    lm = gpt.load(workplace / "runs/base")
    text = lm.generate("Document", max_new_tokens=30, temperature=0)
    stop = text[8:11]
    ended = lm.generate("Document", max_new_tokens=30, temperature=0, stop=stop)
    assert ended == text[:text.index(stop)]


def test_scores_are_the_log_probabilities_of_the_text(workplace):
    import torch
    lm = gpt.load(workplace / "runs/base", dtype="float32")
    text = "Document 3: à la carte"
    tokens = lm.tokenizer.encode(text)
    with torch.no_grad():
        logits = lm.model(torch.tensor([[lm.tokenizer.end_of_text, *tokens[:-1]]]))
    expected = logits[0].log_softmax(-1)[range(len(tokens)), tokens]
    assert lm.score(text) == pytest.approx(expected.tolist(), abs=1e-5)
    assert len(lm.score(text * 20)) == len(lm.tokenizer.encode(text * 20)) > 48
    assert lm.score("") == []


def test_a_dry_run_measures_and_writes_nothing(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    code, out, _ = call_main(train, "data.dataset=data/c", "run.name=dry", *SMALL, "--dry-run",
                             monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and not (workplace / "runs/dry").exists()
    for word in ("parameters", "FLOPs per token", "tokens", "peak memory", "time  ",
                 "to evaluate and save"):
        assert word in out


def test_training_prepares_a_dataset_from_its_recipe_and_says_so(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    (workplace / "mine.yaml").write_text("sources: [corpus]\ntokenizer: byte\nout: data/auto\n")
    code, out, _ = call_main(train, "data.dataset=mine.yaml", "run.name=auto", *SMALL,
                             "train.steps=1", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and "data/auto is not there yet: preparing it" in out
    assert (workplace / "data/auto/dataset.json").is_file()


def snapshot(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


BASE = ["data.dataset=data/c", "run.name=base", *SMALL]
MISTAKES: dict[str, tuple[Any, list[str], str]] = {
    "unknown field": (train, [*BASE, "model.n_layr=2"], "did you mean model.n_layer"),
    "unknown section": (train, [*BASE, "modle.n_layer=2"], "there is no field modle"),
    "wrong type": (train, [*BASE, "train.steps=many"], "train.steps: .*given: 'many'"),
    "impossible shape": (train, [*BASE, "model.n_head=5"], "multiple of n_head"),
    "two budgets": (train, [*BASE, "train.tokens=9"], "one of steps, tokens"),
    "no such config": (train, ["configs/nope.yaml"], "no configuration file configs/nope.yaml"),
    "no dataset named": (train, [], "data"),
    "missing dataset": (train, ["data.dataset=data/none"], "no dataset in data/none"),
    "other optimizer": (train, [*BASE, "optim.name=adamw"], "optim.name: muon there, adamw asked"),
    "other average": (train, [*BASE, "optim.ema_half_life=500"],
                      r"different run .*optim\.ema_half_life"),
    "other tokenizer": (train, ["data.dataset=data/byte", *BASE[1:]], "different run .*tokenizer"),
    "other model": (train, [*BASE, "model.n_layer=3"], "model.n_layer: 2 there, 3 asked"),
    "other seed": (train, [*BASE, "run.seed=9"], "run.seed: 1337 there, 9 asked"),
    "short corpus": (train, [*BASE, "run.name=new", "model.block_size=9000"], "fewer than one"),
    "small vocabulary": (train, [*BASE, "model.vocab_size=10"], "smaller than the vocabulary"),
    "folder that is no run": (train, [*BASE, "run.out_dir=.", "run.name=corpus"], "holds no run"),
    "name that leads out": (train, [*BASE, "run.name=../x"], "run.name"),
    "unavailable device": (train, [*BASE, "run.device=cuda"], "device=cuda is not available"),
    "empty corpus": (prepare, ["empty.txt", "out=data/e"], "are empty"),
    "no corpus": (prepare, ["nowhere", "out=data/e"], "no file or folder"),
    "no sources": (prepare, ["out=data/e"], "sources is missing"),
    "unknown tokenizer": (prepare, ["corpus", "tokenizer=bpx", "out=data/e"], "unknown tokenizer"),
    "other recipe": (prepare, ["corpus", "tokenizer=byte", "out=data/c"], "another recipe"),
    "bad text": (prepare, ["latin.txt", "out=data/e"], "latin.txt, line 2: the text is not UTF-8"),
    "no run to tune": (finetune, ["finetune.from=runs/none", "finetune.data=task.jsonl"],
                       "there is no run runs/none"),
    "no records": (finetune, ["finetune.from=runs/base", "finetune.data=none.jsonl"],
                   "cannot read none.jsonl"),
    "no run to sample": (sample, ["runs/none", "--prompt", "x"], "there is no run runs/none"),
    "long prompt": (sample, ["runs/base", "--prompt", "Z" * 4000], "the model reads 48"),
    "bad temperature": (sample, ["runs/base", "--prompt", "x", "--temperature=-1"], "temperature"),
    "temperature not a number": (sample, ["runs/base", "--prompt=x", "--temperature=nan"],
                                 "temperature"),
    "infinite temperature": (sample, ["runs/base", "--prompt=x", "--temperature=inf"],
                             "temperature"),
    "unknown option": (sample, ["runs/base", "--prompt", "x", "--tmp", "1"], "unrecognized"),
    "no samples": (sample, ["runs/base", "--prompt", "x", "--num-samples=0"], "at least 1"),
    "no prompt file": (sample, ["runs/base", "--prompt-file", "none"], "cannot read the prompt"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_line_and_2_and_touches_nothing(name, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    (workplace / "empty.txt").write_text("")
    (workplace / "latin.txt").write_bytes(b"fine\nna\xefve\n" * 30)
    if not (workplace / "data/byte").exists():
        prepare.main(["corpus", "tokenizer=byte", "out=data/byte"])
    before = snapshot(workplace)
    module, arguments, expected = MISTAKES[name]

    code, _, stderr = call_main(module, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    said = [line for line in stderr.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert code == 2 and len(said) == 1, stderr
    import re
    assert re.search(expected, said[0]), said[0]
    assert snapshot(workplace) == before
    assert not list(workplace.rglob("*.tmp-*"))


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights(workplace, monkeypatch,
                                                                     capsys):
    import torch

    from gpt.training.objective import NextToken
    monkeypatch.chdir(workplace)
    real, calls = NextToken.summed_loss, []

    def poisoned(self, model, batch):
        calls.append(1)
        return real(self, model, batch) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(NextToken, "summed_loss", poisoned)
    arguments = ["data.dataset=data/c", "run.name=nan", *SMALL, "checkpoint.every_steps=1"]
    code, _, stderr = call_main(train, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "failed: step 3: the loss is nan" in stderr and "the weights were not changed" in stderr
    lm = gpt.load(workplace / "runs/nan")
    assert all(torch.isfinite(p).all() for p in lm.model.parameters())
    monkeypatch.setattr(NextToken, "summed_loss", real)
    assert call_main(train, *arguments, monkeypatch=monkeypatch, capsys=capsys)[0] == 0


def test_two_processes_never_train_in_one_folder(workplace, monkeypatch, capsys):
    import fcntl
    monkeypatch.chdir(workplace)
    with (workplace / "runs/base/lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, stderr = call_main(train, *BASE, "train.steps=12", monkeypatch=monkeypatch,
                                    capsys=capsys)
    assert code == 2 and "is in use by process" in stderr


def test_help_lists_every_command_and_field(monkeypatch, capsys):
    for module, word in ((train, "optim.lr"), (finetune, "finetune.from"),
                         (prepare, "on_bad_text"), (sample, "--top-p")):
        code, out, _ = call_main(module, "--help", monkeypatch=monkeypatch, capsys=capsys)
        assert code == 0 and word in out


def test_importing_gpt_from_elsewhere_needs_nothing_but_the_path(tmp_path):
    done = run_script("sample.py", "--help", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and "RUN" in done.stdout


def test_verify_names_the_damaged_file(workplace, tmp_path, monkeypatch, capsys):
    import shutil

    from gpt import __main__ as verbs
    monkeypatch.chdir(workplace)
    shutil.copytree("data/c", tmp_path / "c")
    for sound in ("data/c", "runs/base", str(tmp_path / "c")):
        code, out, _ = call_main(verbs, "verify", sound, monkeypatch=monkeypatch, capsys=capsys)
        assert code == 0 and "sound" in out
    shard = bytearray((tmp_path / "c/val-00000.bin").read_bytes())
    shard[3] ^= 1
    (tmp_path / "c/val-00000.bin").write_bytes(shard)
    code, out, _ = call_main(verbs, "verify", str(tmp_path / "c"), monkeypatch=monkeypatch,
                             capsys=capsys)
    assert code == 1 and "val-00000.bin" in out
    code, _, stderr = call_main(verbs, "verify", "corpus", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "is no dataset, run or checkpoint" in stderr


def test_evaluate_repeats_the_score_of_training(workplace, monkeypatch, capsys):
    from gpt import __main__ as verbs
    monkeypatch.chdir(workplace)
    lines = (workplace / "runs/base/metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if '"eval"' in line][-1]
    code, out, _ = call_main(verbs, "evaluate", "runs/base", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and f"{last['val_bits_per_byte']:.4f} bits per byte" in out
    code, out, _ = call_main(verbs, "evaluate", "runs/base", "--text", "corpus/3.txt",
                             monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and "nats per token" in out
    code, _, stderr = call_main(verbs, "evaluate", "runs/tuned", monkeypatch=monkeypatch,
                                capsys=capsys)
    assert code == 2 and "give --text FILE" in stderr


def test_changed_sources_are_noticed_and_the_dataset_is_kept(workplace, tmp_path, monkeypatch,
                                                             capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    for change, noted in ((None, False), (None, False), ("more text\n" * 60, True)):
        if change:
            (tmp_path / "a.txt").write_text(change)
        code, _, stderr = call_main(prepare, "a.txt", "tokenizer=byte", "out=d",
                                    monkeypatch=monkeypatch, capsys=capsys)
        assert code == 0 and ("note: files were added, removed or changed" in stderr) == noted
    (tmp_path / "a.txt").unlink()
    assert call_main(prepare, "a.txt", "tokenizer=byte", "out=d", monkeypatch=monkeypatch,
                     capsys=capsys)[0] == 0


def test_ids_that_stand_for_no_text_are_never_sampled():
    import torch

    from gpt.language_model import LanguageModel
    from gpt.tokenizer import build_tokenizer
    from tests.tiny import CPU, tiny_gpt
    lm = LanguageModel(tiny_gpt(vocab_size=2000), build_tokenizer("byte"), CPU)
    assert lm.never == list(range(257, 2000))
    for seed in range(5):  # 7 of 8 draws would fall among them
        lm.generate("a", max_new_tokens=20, seed=seed)
    with torch.no_grad():
        assert int(lm.model(torch.tensor([[97]]))[0, -1].argmax()) >= 257


def test_a_reader_that_leaves_does_not_end_training(workplace):
    import subprocess

    from tests.tiny import command_line, script_environment
    process = subprocess.Popen(
        command_line("train.py", "data.dataset=data/c", "run.name=unread", *SMALL),
        cwd=workplace, env=script_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert (workplace / "runs/unread/checkpoints/step-00000008").is_dir()


def test_a_terminal_without_the_characters_is_no_failure(workplace):
    done = run_script("sample.py", "runs/base", "--prompt", "日本 é", "--max-new-tokens=3",
                      "--json", cwd=workplace, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


def test_trouble_with_files_is_one_line(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    code, _, stderr = call_main(train, "data.dataset=data/c", "run.out_dir=task.jsonl", *SMALL,
                                monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1 and stderr.startswith("failed: task.jsonl")


def test_a_long_sample_prompt_is_refused_before_training(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    prompt = json.dumps(["Z" * 100])
    code, _, stderr = call_main(train, "data.dataset=data/c", "run.name=prompt", *SMALL,
                                "log.samples_every_steps=4", f"log.sample_prompts={prompt}",
                                monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "log.sample_prompts: a prompt has" in stderr
    assert not (workplace / "runs/prompt").exists()


def test_fine_tuning_refuses_another_validation_set_for_the_same_run(workplace, monkeypatch,
                                                                     capsys):
    monkeypatch.chdir(workplace)
    code, _, stderr = call_main(finetune, "finetune.from=runs/base", "finetune.data=task.jsonl",
                                "run.name=tuned", "train.epochs=2", "train.batch_size=4",
                                "finetune.val_fraction=0.3", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "finetune.val_fraction: 0.1 there, 0.3 asked" in stderr


def test_a_run_says_at_its_start_what_it_costs(workplace):
    log = (workplace / "runs/base/train.log").read_text()
    for said in ("parameters, ", "FLOPs per token", "memory in MiB, at most about: weights ",
                 "gradients ", "optimizer ", "activations ", "logits "):
        assert said in log


def test_a_fine_tuned_model_carries_its_chat_template(workplace):
    lm = gpt.load(str(workplace / "runs/tuned"))
    assert "message[" in lm.tokenizer.chat_template
    assert gpt.load(str(workplace / "runs/base")).tokenizer.chat_template is None


@pytest.mark.parametrize("fields", [
    ["model.preset=llama-1b", "model.n_head=2", "model.n_kv_head=1", "model.n_inner=64"],
    ["model.depth=1", "train.batch_size=4"],
    ["model.window=8", "model.window_pattern=SF", "model.head_dim=8"]], ids=lambda f: f[0])
def test_runs_with_other_shapes_train_continue_and_sample(fields, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    name = "shape-" + fields[0].split("=")[1]
    small = ["model.n_layer=2", "model.n_embd=32", "model.block_size=48", "run.dtype=float32",
             "eval.every_steps=null", "train.batch_size=4", f"run.name={name}"]
    first = call_main(train, "data.dataset=data/c", *small, *fields, "train.steps=2",
                      monkeypatch=monkeypatch, capsys=capsys)
    assert first[0] == 0, first
    resolved = f"runs/{name}/config.yaml"
    again = call_main(train, resolved, "train.steps=4", monkeypatch=monkeypatch, capsys=capsys)
    assert again[0] == 0 and "continuing from" in again[1] + again[2]
    made = gpt.load(f"runs/{name}").generate("Doc", max_new_tokens=30, min_new_tokens=30, seed=1)
    assert len(made) > 0


@pytest.mark.parametrize("recompute", [True, False])
def test_activations_are_recomputed_where_that_is_asked_and_the_loss_is_the_same(
        recompute, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    asked = []
    real = training.memory_line
    monkeypatch.setattr(training, "memory_line",
                        lambda model, *rest, **more: (
                            asked.append(model.recompute) or real(model, *rest, **more)))
    name = f"recompute-{recompute}"
    code, _, err = call_main(train, "data.dataset=data/c", f"run.name={name}", *SMALL,
                             f"train.recompute_activations={str(recompute).lower()}",
                             monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, err
    assert asked == [recompute]
    losses = [[json.loads(line)["loss"] for line in (workplace / "runs" / run / "metrics.jsonl")
               .read_text().splitlines() if '"train"' in line] for run in (name, "base")]
    assert losses[0] == losses[1]
