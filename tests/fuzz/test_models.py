"""Models of other tools: Hugging Face folders, safetensors files, PEFT's adapters."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.errors import UserError
from gpt.interop import hub
from gpt.interop.model_card import About
from gpt.interop.peft.writing import export_peft
from gpt.interop.reading import read_config, read_model
from gpt.interop.weight_files import INDEX, WeightFiles
from gpt.runs.saved_model import find_model
from gpt.tokenizer import build_tokenizer
from tests.fuzz.inputs import as_json, damaged, fuzzed, is_read, json_files, mutated
from tests.interop.models import saved
from tests.model.test_lora import adapted, adapter
from tests.tiny import ARCHITECTURES, tiny_gpt

KINDS = ["gpt2", "llama 3", "qwen3"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    def refused(name):
        raise UserError(f"{name} is not here")
    monkeypatch.setattr(hub, "fetch", refused)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_any_config_of_a_model_is_read_or_refused(kind, tmp_path):
    _, folder = saved(kind, tmp_path / "m")
    value = json.loads((folder / "config.json").read_text())
    seen = set()

    @fuzzed(60)
    @given(json_files(value))
    def tried(data):
        (folder / "config.json").write_bytes(data)
        seen.add(is_read(lambda: (read_config(folder), read_model(folder))))
        is_read(lambda: find_model(str(folder)).tokenizer())

    tried()
    assert seen == {True, False}


def test_any_index_of_weights_is_followed_or_refused(tmp_path):
    _, folder = saved("gpt2", tmp_path / "m")
    names = WeightFiles(folder).names
    value = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / INDEX).write_bytes(as_json(value))
    read_model(folder)
    seen = set()

    @fuzzed(60)
    @given(json_files(value))
    def tried(data):
        (folder / INDEX).write_bytes(data)
        seen.add(is_read(lambda: read_model(folder)))

    tried()
    assert False in seen  # and what is sound was read above


def test_any_header_of_weights_is_read_or_refused(tmp_path):
    _, folder = saved("gpt2", tmp_path / "m")
    path = folder / "model.safetensors"
    sound = path.read_bytes()
    size = 8 + struct.unpack("<Q", sound[:8])[0]
    value = json.loads(sound[8:size])
    seen = set()

    def whole(header, said=None):
        return struct.pack("<Q", len(header) if said is None else said) + header + sound[size:]

    sizes = st.sampled_from([0, 1, 7, 2**31, 2**60, 2**64 - 1])

    @fuzzed(80)
    @given(st.one_of(mutated(value).map(as_json).map(whole), damaged(sound[8:size]).map(whole),
                     sizes.map(lambda said: whole(sound[8:size], said)), damaged(sound)))
    def tried(data):
        path.write_bytes(data)
        seen.add(is_read(lambda: read_model(folder)))

    tried()
    assert seen == {True, False}


@pytest.fixture(scope="module")
def peft(tmp_path_factory):
    """A model of a folder, and adapters for it."""
    folder = tmp_path_factory.mktemp("peft")
    options = ARCHITECTURES["llama"]
    export_peft(adapted(adapter(), **options), build_tokenizer("byte"), folder / "adapter",
                "me/base")
    return tiny_gpt(**options), folder / "adapter"


PATTERNS = {"rank_pattern": {".*q_proj": 4}, "alpha_pattern": {"^model.layers.1": 8}}


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_any_adapter_is_read_or_refused(name, peft):
    from gpt.interop.peft.reading import read_peft

    model, folder = peft
    sound = (folder / name).read_bytes()
    seen = set()
    contents = damaged(sound)
    if name.endswith(".json"):
        value = json.loads(sound)
        contents = st.one_of(json_files(value), json_files(value | PATTERNS))

    @fuzzed(80)
    @given(contents)
    def tried(data):
        (folder / name).write_bytes(data)
        seen.add(is_read(lambda: read_peft(folder, model)))
        is_read(lambda: find_model(str(folder)))

    tried()
    (folder / name).write_bytes(sound)
    assert seen == {True, False} and is_read(lambda: read_peft(folder, model))


PATIENT = ["(a+)+$", "(([a-z.0-9_]+)+)!", "(.*.*)*x", "(?:.?){50}!", "((a|a)*)*b", ".*" * 20 + "!",
           "(model|layers|[a-z.0-9]+)*!", "[a-z.]+" * 12 + "!", "(.|..)*?!", "(?=(.+)+!)."]


@pytest.mark.parametrize("pattern", PATIENT)
def test_no_pattern_of_an_adapter_takes_long(pattern, peft):
    from gpt.interop.peft.reading import read_peft

    model, folder = peft
    sound = (folder / "adapter_config.json").read_bytes()
    (folder / "adapter_config.json").write_bytes(as_json(
        json.loads(sound) | {"rank_pattern": {pattern: 3}}))
    try:
        is_read(lambda: read_peft(folder, model))
    finally:
        (folder / "adapter_config.json").write_bytes(sound)


def test_adapters_that_adapt_each_other_are_refused(peft, tmp_path):
    for name, base in (("a", "b"), ("b", "a"), ("c", "c"), ("d", ".")):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).write_bytes((peft[1] / file).read_bytes())
        value = json.loads((folder / "adapter_config.json").read_text())
        value["base_model_name_or_path"] = str(tmp_path / base)
        (folder / "adapter_config.json").write_bytes(as_json(value))
        assert not is_read(lambda folder=folder: find_model(str(folder)))


def test_any_gguf_file_is_read_or_refused(tmp_path):
    pytest.importorskip("gguf")
    from gpt.interop.gguf.model_file import GgufFile
    from gpt.interop.gguf.writing import export_gguf

    model = tiny_gpt(vocab_size=257, block_size=16, n_layer=1, n_embd=16, n_head=2, n_kv_head=1)
    export_gguf(model, build_tokenizer("byte"), tmp_path / "out", About("x"))
    path = tmp_path / "out/x-float32.gguf"
    sound, seen = path.read_bytes(), set()

    @fuzzed(150)
    @given(st.one_of(damaged(sound), damaged(sound[:3000]).map(lambda head: head + sound[3000:])))
    def tried(data):
        path.write_bytes(data)
        seen.add(is_read(lambda: (GgufFile(path).model(), GgufFile(path).tokenizer())))

    tried()
    assert False in seen
