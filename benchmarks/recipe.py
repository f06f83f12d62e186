"""Is the default recipe the one that learns most in a given time? Every part of it against others.

usage: python benchmarks/recipe.py         # the default against GPT-2's, by the clock
       python benchmarks/recipe.py parts   # the default with one part changed, in turn
       python benchmarks/recipe.py whole   # the same arms with the quick start's model
       python benchmarks/recipe.py widths  # learning rates at widths 64, 128 and 256
each with [--rounds=N] [--arms=ARM,ARM]: so many seeds; arms of widths are widths.

The quick start's corpus and model (4 layers of width 128, context 256, bpe:4096). "gpt2" is the
recipe that nanoGPT made the field's habit: GPT-2's block and initialisation, AdamW at 1e-3 with a
cosine, batches of 12. It and the default train for three minutes of wall time each, in turn, with
three seeds and the machine to themselves.

Arms of `parts` train half of that model (2 layers, context 128), in equal time, too: as many
steps as fit into 20 seconds by the time of a step, which is measured first with the arms taking
turns, so that the runs may then share the machine. `whole` trains all of it for 500 steps, for what
does not change a step's time: those that came before the default in `parts`. `widths` trains half
of it at three widths, 140 steps each, with the automatic learning rates and with each of them
halved and doubled.
Writes recipe.json, recipe-parts.json, recipe-whole.json and recipe-widths.json in
benchmarks/results, each once all of its arms have run; benchmarks/recipe.md draws conclusions.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.runs import Chosen, Outcome, choose, events, run_script, train  # noqa: E402
from gpt.configuration import OptimConfig  # noqa: E402
from gpt.errors import UserError, run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.machine.device import choose_machine  # noqa: E402
from gpt.optim import adamw_lr  # noqa: E402

RESULTS = Path(__file__).parent / "results"
CONFIG = "configs/quickstart.yaml"
ROUNDS = 3
MINUTES, SECONDS_OF_PARTS = 3, 20
TIMED_STEPS, TIMED_ROUNDS = 40, 3
HALF = ("model.n_layer=2", "model.block_size=128", "train.batch_size=8", "eval.max_tokens=100_000",
        "train.max_minutes=null")
QUIET = ("log.samples_every_steps=null", "checkpoint.every_steps=null")
ARMS: dict[str, tuple[str, ...]] = {
    "default": (),
    "gpt2": ("model.position=learned", "model.norm=layernorm", "model.mlp=gelu_tanh",
             "model.qk_norm=false", "model.bias=true", "model.n_kv_head=4", "optim.name=adamw",
             "optim.lr=1e-3", "optim.schedule=cosine", "optim.warmup_steps=100", "optim.beta2=0.99",
             "optim.min_lr_fraction=0.1", "train.batch_size=12"),
    "adamw": ("optim.name=adamw",),
    "adamw, lr x 2": ("optim.name=adamw", "optim.lr=8e-3"),
    "lr x 1/2": ("optim.lr=0.01",),
    "lr x 2": ("optim.lr=0.04",),
    "muon_lr x 1/2": ("optim.muon_lr=0.01",),
    "muon_lr x 2": ("optim.muon_lr=0.04",),
    "muon_momentum 0.95": ("optim.muon_momentum=0.95",),
    "muon_momentum 0.85": ("optim.muon_momentum=0.85",),
    "five iterations": (),
    "cosine": ("optim.schedule=cosine",),
    "gpt2's initialisation": (),
    "momentum 0.85, gpt2's initialisation": ("optim.muon_momentum=0.85",),
    "batch x 1/2": ("train.batch_size=4",),
    "batch x 2": ("train.batch_size=16",),
    "beta2_half_life x 1/4": ("optim.beta2_half_life=20000",),
    "beta2_half_life x 4": ("optim.beta2_half_life=320000",),
    "average of weights": ("optim.ema_half_life=40000",),
    "no weight decay": ("optim.weight_decay=0",),
}
# Arms whose steps take another time than the default's, by the arm that is timed for them.
TIMED = {"adamw": "adamw", "adamw, lr x 2": "adamw", "five iterations": "five iterations",
         "batch x 1/2": "batch x 1/2", "batch x 2": "batch x 2"}
PARTS = tuple(arm for arm in ARMS if arm != "gpt2")
CLOSE = ("muon_momentum 0.85", "gpt2's initialisation", "momentum 0.85, gpt2's initialisation")
STEPS_OF_WHOLE = 500
WIDTHS, STEPS_OF_WIDTHS = (64, 128, 256), 140
FACTORS = {"default": (1, 1), "lr x 1/2": (0.5, 1), "lr x 2": (2, 1), "muon_lr x 1/2": (1, 0.5),
           "muon_lr x 2": (1, 2)}


def main(argv: list[str]) -> None:
    """By the clock, or part by part."""
    if argv[:1] == ["--arm"]:  # this script once more, as train.py with what no option can change
        changed(argv[1])
        from train import main as pretrain
        pretrain(argv[2:])
        return
    kind = argv.pop(0) if argv and argv[0] in COMPARISONS else "clock"
    compare, arms = COMPARISONS[kind]
    chosen = choose(argv, arms, ROUNDS)
    if chosen.rest:
        raise UserError(f"{chosen.rest[0]}: give nothing, or one of parts, whole and widths")
    with tempfile.TemporaryDirectory() as folder:
        run_script(Path(folder), "data/prepare.py", str(ROOT / "configs/data/stdlib.yaml"),
                   "out=text")
        found = compare(Path(folder), chosen)
    if chosen.is_whole:
        name = "recipe.json" if kind == "clock" else f"recipe-{kind}.json"
        write_json(RESULTS / name, found | {"rounds": chosen.rounds})


def compare_by_the_clock(folder: Path, chosen: Chosen) -> dict[str, Any]:
    """Three minutes each."""
    found: dict[str, list[Outcome]] = {arm: [] for arm in chosen.arms}
    for seed in range(1, chosen.rounds + 1):
        for arm, outcomes in found.items():
            outcomes.append(one(folder, arm, seed, *ARMS[arm], f"train.max_minutes={MINUTES}"))
            print(f"seed {seed}  {arm:22} {outcomes[-1].bits_per_byte:.4f} bits per byte",
                  flush=True)
    return summary(found) | {"minutes": MINUTES}


def compare_parts(folder: Path, chosen: Chosen) -> dict[str, Any]:
    """As many steps as fit into the time, two runs side by side."""
    arms = with_default(chosen)
    seconds = seconds_per_step(folder, arms)
    overrides = {arm: (*HALF, *ARMS[arm], f"train.steps={round(SECONDS_OF_PARTS / seconds[arm])}")
                 for arm in arms}
    return summary(side_by_side(folder, overrides, chosen.rounds)) | {
        "seconds": SECONDS_OF_PARTS, "seconds_per_step": seconds}


def compare_whole(folder: Path, chosen: Chosen) -> dict[str, Any]:
    """The quick start's model, as many steps for each."""
    same = (f"train.steps={STEPS_OF_WHOLE}", "train.max_minutes=null", "train.batch_size=8",
            "eval.max_tokens=200_000")
    overrides = {arm: (*ARMS[arm], *same) for arm in with_default(chosen)}
    return summary(side_by_side(folder, overrides, chosen.rounds)) | {"steps": STEPS_OF_WHOLE}


def with_default(chosen: Chosen) -> list[str]:
    """The arms, the default among them: the others are compared with it."""
    return ["default", *(arm for arm in chosen.arms if arm != "default")]


def compare_widths(folder: Path, chosen: Chosen) -> dict[str, Any]:
    """Do the learning rates that suit one width suit the others?"""
    found = {}
    for width in chosen.arms:
        print(f"width {width}", flush=True)
        arms = {arm: (*HALF, f"model.n_embd={width}", f"train.steps={STEPS_OF_WIDTHS}",
                      "optim.name=muon",
                      f"optim.lr={lr * adamw_lr(int(width), beside_muon=True)}",
                      f"optim.muon_lr={muon_lr * OptimConfig().muon_lr}")
                for arm, (lr, muon_lr) in FACTORS.items()}
        (folder / width).mkdir()
        (folder / width / "text").symlink_to(folder / "text")
        found[width] = summary(side_by_side(folder / width, arms, chosen.rounds))
    return {"steps": STEPS_OF_WIDTHS, "widths": found}


COMPARISONS: dict[str, tuple[Callable[[Path, Chosen], dict[str, Any]], list[str]]] = {
    "clock": (compare_by_the_clock, ["default", "gpt2"]), "parts": (compare_parts, list(PARTS)),
    "whole": (compare_whole, ["default", *CLOSE]),
    "widths": (compare_widths, [str(width) for width in WIDTHS])}


def side_by_side(folder: Path, arms: dict[str, tuple[str, ...]],
                 rounds: int) -> dict[str, list[Outcome]]:
    """Outcomes by arm, one per seed; a run for each core at a time."""
    jobs = [(arm, seed) for seed in range(1, rounds + 1) for arm in arms]

    def work(job: tuple[str, int]) -> Outcome:
        arm, seed = job
        outcome = one(folder, arm, seed, *arms[arm])
        print(f"seed {seed}  {arm:22} {outcome.steps:5} steps  {outcome.bits_per_byte:.4f} bits "
              "per byte", flush=True)
        return outcome

    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, list[Outcome]] = {arm: [] for arm in arms}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (arm, _), outcome in zip(jobs, pool.map(work, jobs), strict=True):
            found[arm].append(outcome)
    return found


def seconds_per_step(folder: Path, arms: list[str]) -> dict[str, float]:
    """Of each arm, the arms taking turns: what nine in ten steps exceed, since other work on the
    machine disturbs that least."""
    found: dict[str, list[float]] = {TIMED.get(arm, "default"): [] for arm in arms}
    for turn in range(TIMED_ROUNDS):
        for arm in found:
            one(folder, arm, -turn, *HALF, *ARMS[arm], f"train.steps={TIMED_STEPS}",
                "eval.max_tokens=1")
            steps = [e for e in events(folder / "runs" / name_of(arm, -turn))
                     if e["event"] == "train"]
            durations = [e["tokens"] / e["step"] / e["tokens_per_second"] for e in steps]
            found[arm] += durations[5:]
    seconds = {arm: statistics.quantiles(found[TIMED.get(arm, "default")], n=10)[0]
               for arm in arms}
    print("seconds per step:", ", ".join(f"{arm} {seconds[arm]:.3f}" for arm in found), flush=True)
    return seconds


def one(folder: Path, arm: str, seed: int, *overrides: str) -> Outcome:
    """A run of an arm."""
    return train(folder, CONFIG, name_of(arm, seed), "data.dataset=text", f"run.seed={abs(seed)}",
                 *QUIET, *overrides, script=["benchmarks/recipe.py", "--arm", arm])


def name_of(arm: str, seed: int) -> str:
    """A run's name."""
    return f"{''.join(c if c.isalnum() else '-' for c in arm)}-{seed}"


def summary(found: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Bits per byte by seed and arm, their mean, and the difference from the default's."""
    bits = {arm: [outcome.bits_per_byte for outcome in outcomes]
            for arm, outcomes in found.items()}
    means = {arm: statistics.mean(values) for arm, values in bits.items()}
    for arm, values in bits.items() if "default" in bits else ():
        gaps = [value - base for value, base in zip(values, bits["default"], strict=True)]
        print(f"{arm:24} {means[arm]:.4f} bits per byte ({min(values):.4f} to {max(values):.4f}), "
              f"{means[arm] - means['default']:+.4f} ({min(gaps):+.4f} to {max(gaps):+.4f})")
    return {"hardware": choose_machine().describe(), "mean_bits_per_byte": means,
            "bits_per_byte": bits,
            "tokens": {arm: [o.tokens for o in outcomes] for arm, outcomes in found.items()}}


def changed(arm: str) -> None:
    """Make what is imported next what an arm needs and no option offers."""
    if arm == "five iterations":
        from gpt.optim import muon
        muon.NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5  # Jordan et al. 2024
    if arm.endswith(("gpt2", "gpt2's initialisation")):
        from gpt.model import GPT
        GPT.initialise = initialise_as_gpt2  # type: ignore[method-assign]


@torch.no_grad()
def initialise_as_gpt2(model: Any) -> None:
    """Normal, std 0.02, and smaller by √(2 · layers) where a matrix writes into the residual."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            writes = name.endswith(("out_proj.weight", "down_proj.weight"))
            nn.init.normal_(weight, std=0.02 / (2 * model.config.n_layer if writes else 1) ** 0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(weight)


if __name__ == "__main__":
    run_command(main)
