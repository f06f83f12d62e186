"""Every command with every method, data format, optimizer and kind of base: a table, so that no
combination is left to be tried by a user first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import finetune
import sample
import train
from data import prepare
from gpt import __main__ as verbs
from gpt.configuration import FinetuneSection, OptimConfig
from gpt.finetuning.formats import FORMATS
from tests.tiny import call_main

Call = Callable[..., str]
ROWS = 20
SMALL = ("run.dtype=float32", "run.device=cpu", "train.batch_size=4", "eval.every_steps=null",
         "checkpoint.every_steps=null")
SHAPE = ("model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.block_size=96")


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def records(format: str, i: int) -> dict[str, Any]:
    """The i-th of a task in this format."""
    asked, told = f"{i} plus {i} is ", f"{2 * i}."
    return {
        "text": {"text": asked + told}, "completion": {"prompt": asked, "completion": told},
        "alpaca": {"instruction": "Add.", "input": asked, "output": told},
        "messages": {"messages": [message("system", "Be brief."), message("user", asked),
                                  message("assistant", told), message("user", "Why?"),
                                  message("assistant", "So.")]},
        "sharegpt": {"conversations": [{"from": "human", "value": asked},
                                       {"from": "gpt", "value": told}]},
        "classification": {"text": asked, "label": "odd" if i % 2 else "even"},
        "preference": {"prompt": asked, "chosen": told, "rejected": "No."}}[format]


@pytest.fixture(scope="module", autouse=True)
def in_little_time() -> Iterator[None]:
    """What is measured of this machine, or by a large library, or kept through a power cut, has
    tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.training.plan.TIMED_STEPS", 1)
        patch.setattr("gpt.training.plan.TIMED_SECONDS", 0.0)
        patch.setattr("gpt.machine.device.measure_matmul_flops", lambda *arguments: 1e11)
        patch.setattr("gpt.interop.proof.has_transformers", lambda: False)
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, in_little_time) -> Path:
    """A run `runs/base`, the same for transformers in `theirs`, adapters of it as a run and for
    PEFT, and a task of every format."""
    folder = tmp_path_factory.mktemp("methods")
    for format in FORMATS:
        (folder / f"{format}.jsonl").write_text("".join(
            json.dumps(records(format, i)) + "\n" for i in range(ROWS)))
    (folder / "corpus").mkdir()
    for i in range(30):
        (folder / f"corpus/{i}.txt").write_text(f"{i} plus {i} is {2 * i}. " * (i % 5 + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare.main(["corpus", "tokenizer=byte", "out=data"])
        train.main(["data.dataset=data", "run.name=base", "train.steps=12", *SMALL, *SHAPE])
        finetune.main(["finetune.from=runs/base", "finetune.data=completion.jsonl",
                       "run.name=adapted", "finetune.method=lora", "train.steps=1", *SMALL])
        verbs.main(["export", "runs/base", "theirs", "--format", "hf"])
        verbs.main(["export", "runs/adapted", "adapters", "--format", "peft", "--base", "theirs"])
    return folder


@pytest.fixture
def call(workplace, monkeypatch, capsys) -> Call:
    """A command in this process, which is expected to be done; what it printed."""
    monkeypatch.chdir(workplace)

    def run(module: Any, *arguments: object, code: int = 0) -> str:
        found, out, err = call_main(module, *arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert found == code, f"{module.__name__} {arguments}: exit code {found}: {out}{err}"
        return out + err
    return run


def files() -> set[Path]:
    return set(Path.cwd().rglob("*"))


def looked_at(call: Call, script: Any, *words: str) -> None:
    """What prints and stops leaves nothing, and what it prints of a configuration is one."""
    before = files()
    assert "peak memory" in call(script, *words, "--dry-run")
    shown = call(script, *words, "--print-config")
    assert files() == before
    Path("shown.yaml").write_text(shown)
    again = call(script, "shown.yaml", "--print-config")
    Path("shown.yaml").unlink()
    without_origins = [[line.partition("  #")[0] for line in text.splitlines()]
                       for text in (shown, again)]
    assert without_origins[0] == without_origins[1]


def lived_through(call: Call, script: Any, name: str, *words: str) -> None:
    """A run of a step, which is then done, goes on for another, and is what verbs and samples
    take."""
    run = f"runs/{name}"
    words = (f"run.name={name}", *words)
    assert f"done; sample from it with: python sample.py {run}" in call(
        script, *words, "train.steps=1")
    assert "is complete at step 1" in call(script, *words, "train.steps=1")
    assert f"continuing from {run}/checkpoints/step-00000001" in call(
        script, *words, "train.steps=2")
    assert "is complete at step 2" in call(script, f"{run}/config.yaml")
    assert "sound" in call(verbs, "verify", run)
    assert "nats per token" in call(verbs, "evaluate", run, "--text", "corpus/1.txt")
    call(sample, run, "--prompt", "1 plus", "--max-new-tokens", 2, "--dtype", "float32")


# ----- Fine-tuning

METHODS: dict[str, tuple[str, ...]] = {
    "full": (), "lora": ("finetune.method=lora",), "dora": ("finetune.method=dora",)}
# What else there is, with one format each: (format, settings).
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "frozen": ("alpaca", ("finetune.freeze=[embedding.*]",)),
    "frozen preferences": ("preference", ("finetune.freeze=[blocks.0.*]",)),
    "muon": ("messages", ("optim.name=muon",)),
    "averaged": ("completion", ("optim.ema_half_life=100",)),
    "averaged dora": ("sharegpt", ("finetune.method=dora", "optim.ema_half_life=100")),
    "int8": ("completion", ("finetune.method=lora", "lora.base=int8")),
    "int8 dora": ("messages", ("finetune.method=dora", "lora.base=int8")),
    "int8 preferences": ("preference", ("finetune.method=lora", "lora.base=int8")),
    "few matrices": ("text", ("finetune.method=lora", "lora.targets=[q_proj, attention]",
                              "lora.rslora=true", "lora.dropout=0.1")),
    "lora alpaca": ("alpaca", ("finetune.method=lora",)),
    "packed": ("alpaca", ("finetune.packing=true",)),
    "packed dora": ("text", ("finetune.method=dora", "finetune.packing=true")),
    "both ways": ("classification", ("finetune.prefix=bidirectional",)),
    "both ways lora": ("completion", ("finetune.method=lora", "finetune.prefix=bidirectional")),
    "mixed": ("sharegpt", ("finetune.pretrain_data=data",)),
    "mixed lora": ("classification", ("finetune.method=lora", "finetune.pretrain_data=data")),
    "validated": ("completion", ("finetune.val_data=alpaca.jsonl", "eval.patience=1")),
    "not validated": ("messages", ("finetune.val_fraction=0",)),
    "not validated lora": ("text", ("finetune.method=lora", "finetune.val_fraction=0")),
    "not validated preferences": ("preference", ("finetune.val_fraction=0",)),
    "not validated labels": ("classification", ("finetune.val_fraction=0",)),
    "smoothed": ("preference", ("preference.label_smoothing=0.1", "preference.beta=0.5")),
    "recomputed": ("completion", ("finetune.method=lora", "train.recompute_activations=true")),
    "recomputed labels": ("classification", ("train.recompute_activations=true",)),
    "recomputed preferences": ("preference", ("train.recompute_activations=true",)),
    "sampled": ("preference", ("finetune.method=lora", "log.samples_every_steps=1")),
    "chat": ("completion", ("finetune.chat=turns", "finetune.method=dora"))}
TABLE = {**{f"{method} {format}": (format, settings) for method, settings in METHODS.items()
            for format in (FORMATS if method == "full" else ("completion", "preference"))},
         **VARIANTS}


def test_the_table_has_every_method_format_and_optimizer():
    assert {*METHODS} == {*get_args(FinetuneSection.model_fields["method"].annotation)}
    assert {format for format, _ in TABLE.values()} == {*FORMATS}
    adapted = {format for format, settings in TABLE.values()
               if any(setting.startswith("finetune.method") for setting in settings)}
    assert adapted == {*FORMATS}
    named = {setting for _, settings in VARIANTS.values() for setting in settings}
    for optimizer in {*get_args(OptimConfig.model_fields["name"].annotation)} - {"auto", "adamw"}:
        assert f"optim.name={optimizer}" in named and optimizer in OPTIMIZERS


@pytest.mark.parametrize("name", TABLE)
def test_a_fine_tuning_goes_through_every_command(name, call):
    format, settings = TABLE[name]
    run = name.replace(" ", "-")
    words = ("finetune.from=runs/base", f"finetune.data={format}.jsonl", "finetune.answers=1",
             *SMALL, *settings)
    before = files()
    assert f"{format}.jsonl, line" in call(finetune, *words, "--preview", "1")
    assert files() == before
    looked_at(call, finetune, *words)
    lived_through(call, finetune, run, *words)
    said = {"preference": "which are scored against", "text": "tokens of answers"}
    assert said.get(format, "exact match") in call(
        verbs, "evaluate", f"runs/{run}", "--data", f"{format}.jsonl",
        code=2 if format == "preference" else 0)
    if name in VARIANTS or format in ("completion", "messages"):
        exported(call, run, settings)


def exported(call: Call, run: str, settings: tuple[str, ...]) -> None:
    """As GGUF and, if it is made of adapters, for PEFT; or refused."""
    adapted = any(setting.startswith("finetune.method") for setting in settings)
    both_ways = "finetune.prefix=bidirectional" in settings
    for format, more, possible in (
            ("gguf", (), not both_ways),
            ("peft", ("--base", "theirs"), adapted and not both_ways)):
        out = Path(f"{format}-{run}")
        call(verbs, "export", f"runs/{run}", out, "--format", format, *more,
             code=0 if possible else 2)
        assert out.is_dir() == possible


@pytest.mark.parametrize(("base", "method"), [
    *(("runs/adapted", method) for method in METHODS), ("theirs", "full"), ("theirs", "dora"),
    ("adapters", "lora"), ("runs/base/checkpoints/step-00000012", "full")])
def test_every_kind_of_base_is_fine_tuned(base, method, call):
    words = (f"finetune.from={base}", "finetune.data=messages.jsonl", "finetune.answers=1", *SMALL,
             *METHODS[method])
    looked_at(call, finetune, *words)
    run = f"{method}-of-{Path(base).name}"
    lived_through(call, finetune, run, *words)
    call(verbs, "export", f"runs/{run}", f"hf-{run}", "--format", "hf")
    call(sample, f"hf-{run}", "--prompt", "1 plus", "--max-new-tokens", 2, "--dtype", "float32")


# ----- Pretraining

OPTIMIZERS = ("adamw", "muon")
PRETRAINING: dict[str, tuple[str, ...]] = {
    **{f"{optimizer} {packing}": (f"optim.name={optimizer}", f"data.packing={packing}")
       for optimizer in OPTIMIZERS for packing in ("windows", "documents")},
    "isolated": ("data.packing=documents", "data.isolate_documents=true"),
    "averaged muon": ("optim.name=muon", "optim.ema_half_life=100"),
    "recomputed": ("train.recompute_activations=true", "optim.schedule=cosine"),
    "gpt2": ("model.preset=gpt2", "model.n_kv_head=2"),
    "llama-15m": ("model.preset=llama-15m", "model.n_kv_head=1", "model.n_inner=64"),
    "qwen3-15m": ("model.preset=qwen3-15m", "model.n_kv_head=1", "model.n_inner=64",
                  "model.head_dim=16"),
    "window": ("model.window=8", "model.window_pattern=SF"),
    "sampled": ("log.samples_every_steps=1",)}


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_pretraining_goes_through_every_command(name, call):
    words = ("data.dataset=data", *SMALL, *SHAPE, *PRETRAINING[name])
    looked_at(call, train, *words)
    run = f"pretrained-{name.replace(' ', '-')}"
    lived_through(call, train, run, *words)
    assert "nats per token" in call(verbs, "evaluate", f"runs/{run}")
