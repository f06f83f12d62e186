"""Small models, data and machines that tests share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt.batches import TokenizedText
from gpt.configuration import ModelConfig, SamplingConfig
from gpt.errors import run_command
from gpt.generation import Engine, Generation, Request, room_for
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.shards import TokenStream

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
CPU = Machine(torch.device("cpu"), torch.float32)

# The architectures of the toolkit, small.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "default": {},
    "tied": {"tie_embeddings": True},
    "gpt2": {"position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True,
             "tie_embeddings": True, "qk_norm": False, "n_kv_head": 4},
    "vaswani": {"position": "sinusoidal", "norm": "layernorm", "mlp": "gelu", "bias": True,
                "qk_norm": False, "n_kv_head": 4},
    "multi-query": {"n_kv_head": 1, "mlp": "relu2", "position": "none"},
    "llama": {"qk_norm": False, "norm_eps": 1e-5, "bias": True,
              "rope_scaling": {"factor": 4.0, "original_block_size": 16}},
    "windows": {"window": 5, "window_pattern": "SF"},
    "wide heads": {"head_dim": 12, "logit_softcap": 8.0, "residual_scale": 0.5},
    "gemma": {"norm": "rmsnorm_1p", "norm_placement": "both", "mlp": "geglu", "window": 5,
              "window_pattern": "SF", "rope_base": 1e6, "local_rope_base": 1e3,
              "embedding_scale": 32 ** 0.5, "attention_scale": 0.3, "attention_softcap": 2.0,
              "logit_softcap": 5.0, "tie_embeddings": True},
    "neox": {"norm": "layernorm", "residual": "parallel", "mlp": "gelu", "rope_dim": 4,
             "qk_norm": False, "n_kv_head": 4, "bias": ["up_proj", "down_proj", "norm"]},
    "falcon": {"norm": "layernorm", "residual": "parallel_one_norm", "mlp": "relu",
               "qk_norm": False, "n_kv_head": 1, "bias": ["norm"]},
    "phi": {"norm": "layernorm", "residual": "parallel_one_norm", "mlp": "gelu_tanh",
            "rope_dim": 4, "qk_norm": False, "n_kv_head": 2,
            "bias": ["qkv_proj", "out_proj", "up_proj", "down_proj", "norm", "lm_head"]},
    "olmo": {"norm_placement": "after", "qk_norm": "across_heads", "rope_pattern": "RN",
             "bias": ["qkv_proj"], "logit_scale": 0.5,
             "rope_scaling": {"kind": "yarn", "factor": 4.0, "original_block_size": 16}},
}


def tiny_config(**changes: Any) -> ModelConfig:
    """A model of a few thousand parameters."""
    return ModelConfig(**{"vocab_size": 61, "block_size": 32, "n_layer": 2, "n_head": 4,
                          "n_embd": 32, **changes})


def tiny_gpt(seed: int = 0, zero_outputs: bool = False, **changes: Any) -> GPT:
    """A tiny model in evaluation mode.

    zero_outputs=False also draws the matrices that start at zero, so that every layer matters.
    """
    torch.manual_seed(seed)
    model = GPT(tiny_config(**changes)).eval()
    if not zero_outputs:
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any() or parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def generate_tokens(model: GPT, prompt: Sequence[int], config: SamplingConfig,
                    machine: Machine = CPU, stop_tokens: Sequence[int] = (),
                    never: Sequence[int] = (), prefix: int = 0) -> Iterator[Generation]:
    """Continue one prompt alone."""
    request = Request(prompt, config, prefix)
    engine = Engine(model, machine, stop_tokens, never, rows=1,
                    max_tokens=room_for([request], model.config.block_size))
    for _, new in engine.run([request]):
        yield new


def random_tokens(*shape: int, vocab_size: int = 61, seed: int = 0) -> torch.Tensor:
    """Token ids, (B, T) int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, shape, generator=generator)


def stream_of(*lengths: int) -> TokenStream:
    """A stream of counting tokens, in shards of these lengths."""
    tokens = np.arange(sum(lengths), dtype=np.uint16)
    return TokenStream(np.split(tokens, np.cumsum(lengths)[:-1]))


END = 10**6  # end-of-text in the corpora below


def tokenized(tokens: Sequence[int] | np.ndarray, vocab_size: int = END + 1,
              end_of_text: int = END) -> TokenizedText:
    """A text of these tokens in two shards; documents end with end_of_text."""
    tokens = np.asarray(tokens, dtype=np.int64)
    starts = np.append(0, np.flatnonzero(tokens == end_of_text) + 1)
    starts = starts[starts < len(tokens)].astype("<u8")
    cut = len(tokens) // 3
    offsets = [starts[starts < cut], starts[starts >= cut] - np.uint64(cut)]
    stream = TokenStream([tokens[:cut], tokens[cut:]], offsets)
    return TokenizedText(stream, vocab_size, end_of_text, "the text")


def counting_text(length: int) -> TokenizedText:
    """0, 1, 2, …, so that a token is its own position."""
    return tokenized(np.arange(length))


def run_script(script: str, *arguments: object, cwd: Path, stdin: str | bytes = b"",
               **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of the root scripts as a user would, in another folder."""
    stdin = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(command_line(script, *arguments), cwd=cwd, input=stdin,
                          capture_output=True, env=script_environment(**environment), timeout=240)
    return subprocess.CompletedProcess(done.args, done.returncode,
                                       done.stdout.decode("utf-8", "replace"),
                                       done.stderr.decode("utf-8", "replace"))


def call_main(module: Any, *arguments: object, monkeypatch: Any,
              capsys: Any) -> tuple[int, str, str]:
    """Run a script's main in this process; returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    capsys.readouterr()
    code = 0
    try:
        run_command(module.main)
    except SystemExit as left:
        code = int(left.code or 0)
    return code, *capsys.readouterr()


def command_line(script: str, *arguments: object) -> list[str]:
    """The command that runs a script of the project."""
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def as_in_a_terminal() -> None:
    """For a process that is started: what a shell starts in the background, and nohup, inherits
    that Ctrl-C and the end of a terminal are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def script_environment(**changes: str) -> dict[str, str]:
    """One thread, so that runs side by side do not wait for each other."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **changes}
