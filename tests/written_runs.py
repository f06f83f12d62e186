"""Runs as they lie on disk, written without training."""

from __future__ import annotations

import json
import math
import os
import random
import socket

import yaml

END = {"event": "end"}


def step(number, seed=0, **changes):
    """A line of training, whose figures are functions of the step and a seed."""
    draw = random.Random(1000 * seed + number)
    rate = 0.02 * min(1.0, number / 10)
    return {"event": "train", "step": number, "tokens": number * 512,
            "elapsed_seconds": number * 0.25,
            "loss": 2 + 4 / math.sqrt(number) + draw.gauss(0, 0.1),
            "lr": rate, "lr_embeddings": rate, "lr_matrices": rate / 2, "grad_norm": draw.random(),
            "data_seconds": 0.001 * draw.random(), "tokens_per_second": 2048.0,
            "flops_per_token": 1000, "mfu": 0.25, "peak_memory_bytes": 2**30,
            "grad_norm_matrices": draw.random(), "grad_norm_embeddings": draw.random(), **changes}


def evaluation(number, **changes):
    return {"event": "eval", "step": number, "tokens": number * 512,
            "elapsed_seconds": number * 0.25, "val_loss": 3 - number / 1000,
            "val_bits_per_byte": 1.5 - number / 1000, "dtype": "float32", **changes}


def as_lines(*lines):
    return "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)


def write_run(folder, lines=None, samples=(), config=None, seed=0, **files):
    """A run of 200 steps that has ended, or of these lines. files: of other contents."""
    folder.mkdir(parents=True, exist_ok=True)
    if lines is None:
        lines = [*(step(n, seed) for n in range(1, 201)), evaluation(100), evaluation(200),
                 END | {"step": 200}]
    (folder / "metrics.jsonl").write_text(as_lines(*lines))
    (folder / "samples.jsonl").write_text(as_lines(*samples))
    config = config or {"run": {"name": folder.name, "seed": seed}, "train": {"batch_size": 8}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(json.dumps(
        {"command": ["train.py", "configs/a b.yaml", "run.seed=3"], "hardware": "a computer",
         "commit": "c0ffee", "packages": {"torch": "2.13.0"}}))
    (folder / "identity.json").write_text(json.dumps({"model.n_layer": 2, "model.n_embd": 32}))
    (folder / "train.log").write_text(f"{folder}: 12,345 parameters, 1,000 FLOPs per token\n")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def lock(folder, process=None, host=None):
    (folder / "lock").write_text(f"process {process or os.getpid()} on "
                                 f"{host or socket.gethostname()}")
