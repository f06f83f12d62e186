"""Weights on disk: what is damaged, hostile or pickled is refused before anything is done."""

from __future__ import annotations

import json
import pickle
import struct
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import gpt
from gpt.errors import UserError
from gpt.interop.reading import read_model
from gpt.interop.weight_files import INDEX, WeightFiles
from tests.interop.models import MODELS, make, save, saved


def container(header: bytes | dict, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file: the header's length, the header, the numbers."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HOSTILE = {
    "empty": b"", "no header": b"\x05", "2^60 bytes": container({}, length=2**60),
    "2^64 - 1 bytes": container({}, length=2**64 - 1),
    "longer than the file": container({}, b"", 99),
    "no JSON": container(b"{{{{"), "a list": container(b"[]"), "deep": container(b"[" * 10_000),
    "overlapping": container({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "lying shape": container({"a": entry([9], 0, 8)}, bytes(8)),
    "huge shape": container({"a": entry([2**40, 2**40], 0, 8)}, bytes(8)),
    "overflowing shape": container({"a": entry([2**63, 2], 0, 0)}),
    "beyond the end": container({"a": entry([2**30], 0, 2**32)}, bytes(8)),
    "backwards": container({"a": entry([2], 8, 0)}, bytes(8)),
    "negative": container(b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', bytes(8)),
    "holes": container({"a": entry([2], 8, 16)}, bytes(16)),
    "unknown dtype": container({"a": entry([2], 0, 8, "X32")}, bytes(8)),
    "truncated": container({"a": entry([2], 0, 8)}, bytes(7)),
    "more than it says": container({"a": entry([2], 0, 8)}, bytes(9)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
def test_a_hostile_header_is_refused_at_once(name, sharded, tmp_path):
    file = tmp_path / ("a.safetensors" if sharded else "model.safetensors")
    file.write_bytes(HOSTILE[name])
    if sharded:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    started = time.process_time()
    with pytest.raises(UserError, match=r"is no sound safetensors file: .*; fetch it again"):
        WeightFiles(tmp_path)
    assert time.process_time() - started < 1


def test_a_hostile_header_takes_no_memory(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for header in HOSTILE.values():
        (tmp_path / "model.safetensors").write_bytes(header)
        with pytest.raises(UserError):
            WeightFiles(tmp_path)
    kilobytes = 1 if sys.platform != "darwin" else 1024
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000 * kilobytes


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, bytes]:
    _, folder = saved("llama tied", tmp_path_factory.mktemp("small") / "m")
    return folder, (folder / "model.safetensors").read_bytes()


@settings(max_examples=150, derandomize=True, database=None, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_of_a_header_gives_a_model_or_one_line(small, data):
    folder, sound = small
    header = 8 + struct.unpack("<Q", sound[:8])[0]
    at = data.draw(st.integers(0, header - 1))
    changed = sound[:at] + bytes([data.draw(st.integers(0, 255))]) + sound[at + 1:]
    cut = data.draw(st.sampled_from([len(sound), len(sound), at, header]))
    (folder / "model.safetensors").write_bytes(changed[:cut])
    try:
        read_model(folder)
    except UserError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize("index, expected", [
    ("{", "not valid JSON"), ("[]", "has no weight_map"), ("{}", "has no weight_map"),
    ('{"weight_map": []}', "has no weight_map"), ('{"weight_map": {}}', "has no weight_map"),
    ('{"weight_map": {"a": "../a.safetensors"}}', r"names '\.\./a\.safetensors'"),
    ('{"weight_map": {"a": "/etc/passwd"}}', "names '/etc/passwd', which is no file name"),
    ('{"weight_map": {"a": "sub/a.safetensors"}}', "which is no file name"),
    ('{"weight_map": {"a": ".."}}', "which is no file name"),
    ('{"weight_map": {"a": ""}}', "which is no file name"),
    ('{"weight_map": {"a": "%s"}}' % ("x" * 300), "names 'xxx.*, which is no file name"),
    ('{"weight_map": {"a": 7}}', "names 7, which is no file name"),
    ('{"weight_map": {"a": null}}', "names None"),
    (r'{"weight_map": {"a": "a\u0000b"}}', "no file name|has no a"),
    ('{"weight_map": {"a": "gone.safetensors"}}', r"has no gone\.safetensors, which .* names"),
    ('{"weight_map": {"b": "a.safetensors"}}', r"says that a\.safetensors holds b, but it does"),
])
def test_an_index_leads_nowhere_but_to_files_of_its_folder(index, expected, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    for place in (folder, tmp_path):
        save_file({"a": torch.ones(2)}, place / "a.safetensors")
    (folder / INDEX).write_text(index)
    with pytest.raises(UserError, match=expected):
        WeightFiles(folder)


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "sang")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth",
                                  "pytorch_model-00001-of-00002.bin"])
def test_pickles_are_refused_with_the_way_to_convert_them_and_never_opened(name, tmp_path):
    folder = save(make("gpt2"), MODELS["gpt2"][1], tmp_path / "m")
    (folder / "model.safetensors").unlink()
    for path in (folder / name, folder / "tokenizer.pkl"):
        path.write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(UserError, match="pickled weights alone") as refusal:
        gpt.load(folder)
    assert "from_pretrained" in str(refusal.value) and str(folder) in str(refusal.value)
    assert not (tmp_path / "canary").exists()
    pickle.loads((folder / name).read_bytes())
    assert (tmp_path / "canary").read_text() == "sang"  # it would have


def test_a_pickle_under_the_name_of_safetensors_is_no_safetensors(tmp_path):
    folder = save(make("gpt2"), MODELS["gpt2"][1], tmp_path / "m")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(UserError, match="is no sound safetensors file"):
        gpt.load(folder)
    assert not (tmp_path / "canary").exists()


def test_pickles_beside_safetensors_are_left_alone(tmp_path):
    _, folder = saved("gpt2", tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    gpt.load(folder)
    assert not (tmp_path / "canary").exists()


def test_the_command_that_converts_pickles_does(tmp_path):
    import shlex

    from gpt.interop.weight_files import CONVERT
    words = shlex.split(CONVERT.format(folder="OLD"))
    assert words[:2] == ["python", "-c"] and words[3:] == ["OLD", "NEW_FOLDER"]
    _, folder = saved("gpt2", tmp_path / "old")
    argv, sys.argv = sys.argv, ["-c", str(folder), str(tmp_path / "new")]
    try:
        exec(words[2], {})
    finally:
        sys.argv = argv
    assert WeightFiles(tmp_path / "new").names == WeightFiles(folder).names


def test_a_folder_without_weights_says_what_it_lacks(tmp_path):
    with pytest.raises(UserError, match=r"holds no weights: neither model\.safetensors nor "):
        WeightFiles(tmp_path)
