"""Safetensors files, and the disk that has no room for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from gpt.errors import UserError
from gpt.files.tensors import SavedTensors, TensorFile, index_of, save_tensors
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


EVERY_FORMAT = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64,
                torch.int32, torch.int8, torch.uint8, torch.bool]


def test_what_is_written_tensor_by_tensor_is_a_file_of_safetensors(tmp_path):
    tensors = {f"ö {dtype}": torch.arange(7).to(dtype) for dtype in EVERY_FORMAT}
    tensors |= {"number": torch.tensor(3.0), "none": torch.empty(0, 5),
                "part": torch.arange(12.0).view(3, 4)[:, 1:3]}
    file = tmp_path / "a.safetensors"
    save_tensors(tensors, file)
    found = load_file(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()},
              tmp_path / "theirs.safetensors", {"format": "pt"})
    with safe_open(file, "pt") as ours, safe_open(tmp_path / "theirs.safetensors", "pt") as theirs:
        assert ours.metadata() == theirs.metadata() == {"format": "pt"}
    header = int.from_bytes(file.read_bytes()[:8], "little")
    assert header % 8 == 0  # tensors begin at a multiple of eight
    assert file.stat().st_size == 8 + header + sum(t.nbytes for t in tensors.values())


def test_tensors_are_written_in_the_order_of_the_header_and_all_of_them(tmp_path):
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    with pytest.raises(AssertionError, match="in the order"), \
            TensorFile(tmp_path / "turned", tensors) as file:
        file.write("b", tensors["b"])
    with pytest.raises(AssertionError, match="b was not written"), \
            TensorFile(tmp_path / "half", tensors) as file:
        file.write("a", tensors["a"])
    with pytest.raises(ValueError, match="of the work"), TensorFile(tmp_path / "c", tensors):
        raise ValueError("of the work")  # and not what is lacking since


def in_files(folder: Path, **changes: object) -> Path:
    """A path whose tensors lie in two files with an index."""
    for number, tensors in enumerate(({"a": torch.ones(2, 3), "b": torch.zeros(1)},
                                      {"c": torch.arange(4)})):
        save_tensors(tensors, folder / f"model-{number}.safetensors")
    path = folder / "model.safetensors"
    index_of(path).write_text(json.dumps({"weight_map": {
        "a": "model-0.safetensors", "b": "model-0.safetensors", "c": "model-1.safetensors",
        **changes}}))
    return path


def test_tensors_of_one_file_and_of_several_are_read_alike(tmp_path):
    several = SavedTensors(in_files(tmp_path))
    save_tensors(dict(several), tmp_path / "whole.safetensors")
    whole = SavedTensors(tmp_path / "whole.safetensors")
    for found in (several, whole):
        assert sorted(found) == ["a", "b", "c"] and len(found) == 3
        assert torch.equal(found["a"], torch.ones(2, 3)) and found["c"].tolist() == [0, 1, 2, 3]
        assert found.shape("a") == (2, 3) and found.shape("c") == (4,)
        assert "d" not in found


@pytest.mark.parametrize("index", [
    "", "[1]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": ""}}',
    '{"weight_map": {"a": "../secret.safetensors"}}', '{"weight_map": {"a": "/etc/passwd"}}',
    '{"weight_map": {"a": ".."}}', '{"weight_map": {"a": "\\ud800"}}',
    '{"a": ' + '[' * 101 + ']' * 101 + '}'])
def test_a_damaged_index_is_one_line(tmp_path, index):
    path = in_files(tmp_path)
    index_of(path).write_text(index)
    with pytest.raises(UserError) as caught:
        SavedTensors(path)
    assert str(index_of(path)) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_several_that_is_missing_or_cut_off_is_an_error(tmp_path):
    path = in_files(tmp_path)
    part = tmp_path / "model-1.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    with pytest.raises(SafetensorError):
        SavedTensors(path)
    part.unlink()
    with pytest.raises(FileNotFoundError, match="model-1"):
        SavedTensors(path)
    part.write_bytes(whole)
    assert len(SavedTensors(path)) == 3


def test_a_disk_without_room_is_one_line_with_bytes_and_leaves_nothing(tmp_path):
    pytest.importorskip("resource", reason="Windows has no limits on the size of files")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "out")], cwd=ROOT,
                          capture_output=True, text=True, env=script_environment(), timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("failed: cannot write ") and done.stderr.count("\n") == 1
    assert "model.safetensors: " in done.stderr and " bytes are needed, " in done.stderr
    assert not list(tmp_path.iterdir())
