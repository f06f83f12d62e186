"""Fine-tuning with all weights and with adapters: ours against transformers and peft, same job.

usage: python benchmarks/finetune.py [--rounds=N] [--arms=ARM,ARM]

A model of 6 layers of width 384 (Qwen3's architecture, random weights, bytes) learns the style
task (data/tasks/style.jsonl): 16 examples a step, float32, eager. The peers' arm is the plain loop
that peft's documentation shows: rows padded to the longest of each micro-batch of 8, labels masked,
torch's fused AdamW, gradients clipped. Arms take turns, each in a process of its own. Speed is
tokens of text per second, padding not counted.

"short" arms: a model with SmolLM2-135M's shape and context of 8,192 learns rows of about 40 tokens
with LoRA, 32 a step: ours with micro-batches by the rows that there are, ours a row at a time (as
they were when the context decided), peft in micro-batches of several sizes. Writes
benchmarks/results/finetune.json, and finetune-short.json of these, once all of their arms have run.
Needs peft and transformers.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.runs import arms_in_turn, choose, no_more  # noqa: E402
from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "finetune.json"
SHORT_RESULTS = RESULTS.with_name("finetune-short.json")
PEER = {"ours full": "transformers full", "ours lora": "peft lora",
        "ours lora, packed": "peft lora", "ours lora, int8": "peft lora", "ours dora": "peft dora"}
SHORT, ONE_BY_ONE, TOGETHER = "short: ours lora", "short: ours lora, row by row", (8, 16, 32)
SHORT_PEERS = tuple(f"short: peft lora, {size} together" for size in TOGETHER)
LONG_ARMS = (*PEER, "transformers full", "peft lora", "peft dora")
SHORT_ARMS = (SHORT, ONE_BY_ONE, *SHORT_PEERS)
ARMS = (*LONG_ARMS, *SHORT_ARMS)
ROUNDS, STEPS, EXAMPLES, MICRO_BATCH, CONTEXT = 5, 2, 16, 8, 512
SHORT_EXAMPLES, SHORT_ROWS, SHORT_GOAL = 32, 200, 1.6
SMOLLM2 = {"vocab_size": 49_152, "block_size": 8192, "n_layer": 30, "n_head": 9, "n_kv_head": 3,
           "n_embd": 576, "n_inner": 1536, "qk_norm": False, "tie_embeddings": True}
RANK, ALPHA, GOAL = 8, 16, 1.2


def main(argv: list[str]) -> None:
    """Every arm in turn, then the report. With --arm ARM FOLDER: that arm, in here."""
    if argv[:1] == ["--arm"]:
        print(json.dumps(measure(argv[1], Path(argv[2]))))
        return
    chosen = choose(argv, ARMS, ROUNDS)
    no_more(chosen)
    with tempfile.TemporaryDirectory() as folder:
        make_base(Path(folder), {"block_size": CONTEXT, "n_layer": 6, "n_head": 6, "n_embd": 384})
        if any(arm.startswith("short") for arm in chosen.arms):
            make_base(Path(folder) / "short", SMOLLM2)
            write_short_rows(Path(folder) / "short.jsonl")
        found = arms_in_turn(__file__, chosen.arms, folder, chosen.rounds)
    for path, arms in ((RESULTS, LONG_ARMS), (SHORT_RESULTS, SHORT_ARMS)):
        some = {arm: found[arm] for arm in arms if arm in found}
        if some:
            figures = report(some)
            if len(some) == len(arms):
                write_json(path, figures | {"rounds": chosen.rounds})


def report(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """A line per arm; all figures."""
    from gpt.machine.device import choose_machine
    medians = {arm: {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
               for arm, rounds in found.items()}
    ratios = {arm: medians[arm]["tokens_per_second"] / medians[peer]["tokens_per_second"]
              for arm, peer in PEER.items() if {arm, peer} <= medians.keys()}
    for arm, figures in medians.items():
        ratio = f"  {ratios[arm]:.2f} x {PEER[arm]} (goal {GOAL})" if arm in ratios else ""
        print(f"{arm:18} {figures['tokens_per_second']:7,.0f} tokens/s  "
              f"{figures['peak_bytes'] / 2**20:6,.0f} MiB  "
              f"{int(figures['trainable']):10,} weights learn{ratio}")
    best = max((arm for arm in SHORT_PEERS if arm in medians), default=None,
               key=lambda arm: medians[arm]["tokens_per_second"])
    for peer, goal in ((ONE_BY_ONE, SHORT_GOAL), (best, 1.0)):
        if peer is not None and {SHORT, peer} <= medians.keys():
            ratio = medians[SHORT]["tokens_per_second"] / medians[peer]["tokens_per_second"]
            ratios[f"{SHORT} / {peer}"] = ratio
            print(f"{SHORT}: {ratio:.2f} x {peer} (goal {goal})")
    return {"hardware": choose_machine(dtype="float32").describe(), "torch": torch.__version__,
            "goal": GOAL, "ratios": ratios, "medians": medians, "all": found}


def write_short_rows(path: Path) -> None:
    """Questions and answers of about 40 tokens, a byte each."""
    rows = [{"prompt": f"question {i:03}: ", "completion": "an answer of some words"[:18 + i % 5]}
            for i in range(SHORT_ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_base(folder: Path, shape: dict[str, Any]) -> None:
    """A model as our checkpoint and, with the same weights, as a Hugging Face folder."""
    from gpt.configuration import ModelConfig
    from gpt.interop.model_card import about_checkpoint
    from gpt.interop.writing import export_huggingface
    from gpt.model import GPT
    from gpt.runs import checkpoint
    from gpt.tokenizer import build_tokenizer
    torch.manual_seed(0)
    tokenizer = build_tokenizer("byte")
    model = GPT(ModelConfig(**{"vocab_size": tokenizer.vocab_size, **shape}))
    checkpoint.save_model(folder / "ours", model, tokenizer, "random weights")
    export_huggingface(model, tokenizer, folder / "theirs",
                       about_checkpoint(folder / "ours", None))


def measure(arm: str, folder: Path) -> dict[str, float]:
    """Steps of one arm; the first is not counted."""
    step, trainable = (ours if "ours" in arm else theirs)(arm, folder)
    step()
    start, tokens = time.monotonic(), 0
    for _ in range(STEPS):
        tokens += step()
    return {"tokens_per_second": tokens / (time.monotonic() - start), "trainable": trainable,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def task_of(arm: str, folder: Path) -> Any:
    """(configuration, rows): what finetune.py would read."""
    from gpt.configuration import FinetuneConfig
    from gpt.finetuning import TaskRows
    from gpt.runs.saved_model import find_model
    method = next(name for name in ("full", "lora", "dora") if name in arm)
    is_short = arm.startswith("short")
    task = folder / "short.jsonl" if is_short else ROOT / "data/tasks/style.jsonl"
    config = FinetuneConfig(
        finetune={"from": str(base_folder(arm, folder) / "ours"), "data": str(task),
                  "method": method, "max_long_share": 0.5, "packing": "packed" in arm},
        train={"batch_size": SHORT_EXAMPLES if is_short else EXAMPLES},
        lora={"rank": RANK, "alpha": ALPHA, "base": "int8" if "int8" in arm else "full"})
    base = find_model(config.finetune.base)
    return config, base, TaskRows.load(config, base.tokenizer(), base.config().block_size)


def base_folder(arm: str, folder: Path) -> Path:
    """Where an arm's base lies."""
    return folder / "short" if arm.startswith("short") else folder


def our_batches(arm: str, config: Any, base: Any, rows: Any, model: Any, machine: Any) -> Any:
    """As finetune.py cuts them in the short arm; in the others as the peers' micro-batches are."""
    from gpt.batches import Batches, Order
    from gpt.finetuning.run import finetuning
    from gpt.training.choices import choose_portion
    if arm == SHORT:
        task = finetuning(config, base, rows, model)
        return task.batches(choose_portion(config.train, model.config, machine, task.longest))
    sequences = rows.sequences(config.finetune.packing)
    per_step = round(config.train.batch_size * len(sequences) / len(rows.train.rows.rows))
    return Batches(rows.source(config), Order(per_step, 1 if arm == ONE_BY_ONE else MICRO_BATCH))


def ours(arm: str, folder: Path) -> tuple[Callable[[], int], int]:
    """A function that takes a step and returns its tokens; weights that learn."""
    from gpt.configuration import OptimConfig
    from gpt.finetuning import choose_what_learns
    from gpt.machine.device import choose_machine
    from gpt.optim import Rates, build_optimizer
    from gpt.training.step import Step
    config, base, rows = task_of(arm, folder)
    machine, optim = choose_machine("cpu", "float32"), OptimConfig(name="adamw", lr=1e-3)
    model = choose_what_learns(base.model(), config, rows.chat.stop_token).train()
    batches = our_batches(arm, config, base, rows, model, machine)
    step = Step(model, build_optimizer(model, optim, Rates.of(optim, model.config, 16_384)),
                machine, 1.0)
    number = iter(range(1_000_000))

    def learn() -> int:
        parts = batches.step(next(number))
        step.gradients(parts, lambda: None)
        step.apply()
        return sum(part.tokens for part in parts)

    return learn, sum(p.numel() for p in model.parameters() if p.requires_grad)


def theirs(arm: str, folder: Path) -> tuple[Callable[[], int], int]:
    """The same with transformers and peft."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(base_folder(arm, folder) / "theirs",
                                                 dtype=torch.float32)
    if "peft" in arm:
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora="dora" in arm,
                                                 target_modules="all-linear"))
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-3, fused=True)
    config, _, rows = task_of(arm.replace("transformers", ""), folder)
    examples = forever(rows.train.rows.rows)
    per_step = config.train.batch_size
    together = int(arm.split()[-2]) if arm in SHORT_PEERS else MICRO_BATCH

    def learn() -> int:
        tokens = 0
        for _ in range(per_step // together):
            chosen = [next(examples) for _ in range(together)]
            tokens += sum(map(len, chosen))
            (model(**collated(chosen)).loss / (per_step // together)).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return tokens

    return learn, sum(p.numel() for p in learned)


def forever(rows: list[Any]) -> Iterator[Any]:
    """Rows in a shuffled order, again and again."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for i in torch.randperm(len(rows), generator=generator).tolist():
            yield rows[i]


def collated(rows: list[Any]) -> dict[str, torch.Tensor]:
    """Padded on the right, as transformers' collators do."""
    width = max(len(row.tokens) for row in rows)
    batch = {name: torch.full((len(rows), width), padding)
             for name, padding in (("input_ids", 0), ("attention_mask", 0), ("labels", -100))}
    for i, row in enumerate(rows):
        tokens, learned = torch.from_numpy(row.tokens), torch.from_numpy(row.learned)
        batch["input_ids"][i, :len(tokens)] = tokens
        batch["attention_mask"][i, :len(tokens)] = 1
        batch["labels"][i, :len(tokens)] = torch.where(learned, tokens, -100)
    return batch


if __name__ == "__main__":
    run_command(main)
