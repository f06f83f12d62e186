"""What each part of a Transformer is there for: the same model without it, trained alike.

usage: python benchmarks/without.py [PATH/tinyshakespeare.txt] [--rounds=N] [--arms=ARM,ARM]

Tiny Shakespeare by characters; a model of four layers, four heads and width 128 reads 16 sequences
of 128 characters a step, 400 steps. Every arm has the same seeds, one a round, batches and steps;
the loss is over the last tenth of the text, in nats per character. Writes
benchmarks/results/without.json.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.runs import choose, shakespeare  # noqa: E402
from gpt.configuration import ModelConfig  # noqa: E402
from gpt.errors import run_command  # noqa: E402
from gpt.files import write_json  # noqa: E402
from gpt.machine.device import choose_machine  # noqa: E402
from gpt.model import GPT  # noqa: E402
from gpt.tokenizer import build_tokenizer  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "without.json"
STEPS, WARMUP, RATE, BATCH, T, ROUNDS = 400, 40, 2e-3, 16, 128, 2
SHAPE = {"n_layer": 4, "n_head": 4, "n_kv_head": 4, "n_embd": 128, "block_size": T}
Change = Callable[[GPT], None]


def main(argv: list[str]) -> None:
    """Train every arm with every seed, and tell."""
    chosen = choose(argv, list(ARMS), ROUNDS)
    text = shakespeare(chosen).read_text(encoding="utf-8")
    tokenizer = build_tokenizer("char", [text])
    ids = torch.tensor(tokenizer.encode(text))
    cut = len(ids) * 9 // 10
    results = {}
    for arm in chosen.arms:
        started = time.perf_counter()
        losses = [trained(arm, seed, tokenizer.vocab_size, ids[:cut], ids[cut:])
                  for seed in range(1, chosen.rounds + 1)]
        results[arm] = told(arm, losses, time.perf_counter() - started)
    if chosen.is_whole:
        write_json(RESULTS, {"hardware": choose_machine(dtype="float32").describe(),
                             "steps": STEPS, "unit": "nats per character", "arms": results})


def told(arm: str, losses: list[tuple[float, float]], seconds: float) -> dict[str, Any]:
    """Medians over seeds, and the spread."""
    own, masked = ([pair[i] for pair in losses] for i in (0, 1))
    print(f"{arm:22} {statistics.median(masked):7.4f}  ({min(masked):.4f} to {max(masked):.4f})"
          f"  {seconds / len(losses):5.1f} s a run"
          + (f"; where it may look ahead {statistics.median(own):.4f}" if own != masked else ""),
          flush=True)
    return {"loss": statistics.median(masked), "losses": masked, "seconds": seconds / len(losses),
            **({"loss_with_what_follows": statistics.median(own)} if own != masked else {})}


def trained(arm: str, seed: int, vocab_size: int, text: Tensor, held: Tensor
            ) -> tuple[float, float]:
    """(the loss as the model reads, the loss when what follows is hidden from it)"""
    fields, change = ARMS[arm]
    torch.manual_seed(seed)
    model = GPT(ModelConfig(**{"vocab_size": vocab_size, **SHAPE, **fields}))
    change(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        progress = max(0.0, (step - WARMUP) / max(1, STEPS - WARMUP))
        rate = RATE * min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * progress))
        optimizer.param_groups[0]["lr"] = rate
        starts = torch.randint(len(text) - T, (BATCH,), generator=generator)
        rows = torch.stack([text[start:start + T + 1] for start in starts.tolist()])
        optimizer.zero_grad()
        loss_of(model, rows).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    rows = held[:len(held) // (T + 1) * (T + 1)].view(-1, T + 1)[::4]
    own = measured(model, rows)
    if "_visible" not in vars(model):
        return own, own
    del model._visible
    return own, measured(model, rows)


def loss_of(model: GPT, rows: Tensor) -> Tensor:
    """Nats per character: (B, T + 1) -> ()"""
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


@torch.inference_mode()
def measured(model: GPT, rows: Tensor) -> float:
    """Over all rows, 64 at a time."""
    return sum(float(loss_of(model, part)) * len(part) for part in rows.split(64)) / len(rows)


# ----- What is taken away


def nothing(model: GPT) -> None:
    """The whole model."""


def without_feedforward(model: GPT) -> None:
    """Layers that only look things up in what came before."""
    for block in model.blocks:
        block.feedforward = Zero()


class Zero(nn.Module):
    """Adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """(…) -> (…), zeros"""
        return torch.zeros_like(x)


def without_residual(model: GPT) -> None:
    """Each part's output takes the place of the stream; the matrices that write begin as others do,
    since nothing flows past them any more."""
    for block in model.blocks:
        for matrix in (block.attention.out_proj, block.feedforward.down_proj):
            nn.init.normal_(matrix.weight, std=matrix.in_features ** -0.5)
        block.behind = lambda x, normed, attended, block=block: block.feedforward(
            block.feedforward_norm(attended))


def without_norms(model: GPT) -> None:
    """Numbers are as large as they become."""
    for block in model.blocks:
        block.attention_norm = block.feedforward_norm = nn.Identity()
        block.attention.q_norm = block.attention.k_norm = nn.Identity()
    model.final_norm = nn.Identity()


def without_mask(model: GPT) -> None:
    """Each character is read from all of its row: also the one that is asked for."""
    model._visible = lambda T, device, *_: {None: torch.ones(T, T, dtype=torch.bool)}


ARMS: dict[str, tuple[dict[str, Any], Change]] = {
    "all of it": ({}, nothing),
    "sine and cosine": ({"position": "sinusoidal"}, nothing),
    "no positions": ({"position": "none"}, nothing),
    "one head": ({"n_head": 1, "n_kv_head": 1}, nothing),
    "one layer": ({"n_layer": 1}, nothing),
    "no feed-forward": ({}, without_feedforward),
    "no residual": ({}, without_residual),
    "no norms": ({}, without_norms),
    "no mask": ({}, without_mask)}


if __name__ == "__main__":
    run_command(main)
