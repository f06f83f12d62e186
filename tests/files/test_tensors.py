"""Safetensors files, and the disk that has no room for them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from gpt.files.tensors import save_tensors
from tests.tiny import ROOT, script_environment

# A limit on the size of files stands for a full disk: the write fails at the same place.
LIMITED = """
import resource, sys
from pathlib import Path
import torch
from gpt.runs import checkpoint
from gpt.errors import run_command
from gpt.tokenizer import build_tokenizer
from tests.tiny import tiny_gpt

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
run_command(lambda argv: checkpoint.save_model(
    Path(argv[0]), tiny_gpt(), build_tokenizer("byte"), imported_from="here"))
"""


def test_tensors_come_back_as_they_were_whatever_their_layout(tmp_path):
    tensors = {"turned": torch.arange(6.0).view(2, 3).T, "half": torch.ones(2).bfloat16(),
               "learned": torch.nn.Parameter(torch.randn(3))}
    save_tensors(tensors, tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_disk_without_room_is_one_line_with_bytes_and_leaves_nothing(tmp_path):
    pytest.importorskip("resource", reason="Windows has no limits on the size of files")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "out")], cwd=ROOT,
                          capture_output=True, text=True, env=script_environment(), timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("failed: cannot write ") and done.stderr.count("\n") == 1
    assert "model.safetensors: " in done.stderr and " bytes are needed, " in done.stderr
    assert not list(tmp_path.iterdir())
