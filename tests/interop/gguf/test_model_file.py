"""GGUF files of other tools, in our hands: models, tokenizers, and what is refused."""

from __future__ import annotations

import re
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpt
from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.interop.architectures import differences
from gpt.interop.equivalent import standard
from gpt.interop.gguf.architectures import LLAMA_CPP
from gpt.interop.gguf.model_file import GgufFile, is_gguf
from gpt.interop.gguf.writing import export_gguf
from gpt.interop.model_card import About
from gpt.interop.reading import read_model
from gpt.runs.saved_model import find_model
from gpt.tokenizer import Tokenizer, build_tokenizer, read_huggingface_tokenizer
from tests.interop.models import MODELS, bpe, chatty, saved
from tests.tiny import random_tokens, tiny_gpt
from tests.tokenizer.hub_tokenizers import AWKWARD, KINDS, write_folder

gguf = pytest.importorskip("gguf")
ABOUT = About("tiny")
TOKENS = random_tokens(2, 40, vocab_size=300)
ROUGH = {"q4_0": 4.0, "q8_0": 0.6, "float16": 0.2, "bfloat16": 0.2}


def file_of(folder: Path, dtype: str = "float32", tokenizer: Tokenizer | None = None,
            **changes: Any) -> Path:
    """A tiny model of ours as a file."""
    model = tiny_gpt(**{"vocab_size": 320, "block_size": 64, "n_inner": 64, **changes})
    export_gguf(model, tokenizer or bpe(), folder / "out", ABOUT, dtype)
    return folder / f"out/tiny-{dtype}.gguf"


def goes(config: ModelConfig) -> bool:
    try:
        standard(config, LLAMA_CPP)
    except UserError:
        return False
    return True


@pytest.fixture(scope="module", params=MODELS)
def filed(request, tmp_path_factory):
    """(a model that transformers made, in our hands; its file)"""
    folder = tmp_path_factory.mktemp("gguf")
    model = read_model(saved(request.param, folder / "hf")[1])
    if not goes(model.config):
        pytest.skip("no architecture of llama.cpp has this variant: see docs/interop.md")
    export_gguf(model, bpe(), folder / "out", ABOUT)
    return model, folder / "out/tiny-float32.gguf"


def test_a_file_is_the_model_that_it_was_made_of(filed, capsys):
    model, path = filed
    found = GgufFile(path).model()
    assert "not understood" not in capsys.readouterr().err
    with torch.no_grad():
        assert (found(TOKENS) - model(TOKENS)).abs().max() <= 1e-5
    # Of rotations, a file holds the factors alone; to llama.cpp, GPT-J has biases of zero.
    without = {"rope_scaling", *(["bias"] if model.config.model_type == "gptj" else [])}
    assert differences(model.config, found.config).keys() <= without
    assert not found.training
    assert found.config.model_type in ("llama", model.config.model_type) or (
        found.config.model_type, model.config.model_type) == ("phi", "gptj")


def test_most_architectures_go_into_files_and_come_back():
    assert len(LLAMA_CPP.known) == 17


@pytest.mark.parametrize("dtype", ROUGH)
def test_files_of_fewer_bits_become_floats(dtype, tmp_path):
    model = tiny_gpt(vocab_size=320, block_size=64, n_inner=64)
    export_gguf(model, bpe(), tmp_path / "out", ABOUT, dtype)
    found = GgufFile(tmp_path / f"out/tiny-{dtype}.gguf").model(torch.bfloat16)
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        difference = (found.float()(TOKENS) - model(TOKENS)).abs().max()
    assert 0 < difference < ROUGH[dtype]


KQUANTS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]


@pytest.mark.parametrize("kind", KQUANTS)
def test_every_common_quantisation_is_read_as_the_library_reads_it(kind, tmp_path):
    """Blocks of random bits, none of which makes a scale that is not finite."""
    path = tmp_path / "a.gguf"
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = np.random.default_rng(0).integers(0, 56, (256, 256 // block * size), dtype=np.uint8)
    written = gguf.GGUFWriter(path, "llama")
    written.add_tensor("token_embd.weight", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    for write in (written.write_header_to_file, written.write_kv_data_to_file,
                  written.write_tensors_to_file, written.close):
        write()
    found = GgufFile(path).read("token_embd.weight")
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert found.shape == (256, 256) and found.dtype == torch.float32 and found.isfinite().all()
    assert np.array_equal(found.numpy(), expected) and found.std() > 0


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("unigram", "smollm")])
def test_a_tokenizer_comes_back_with_the_same_ids(name, tmp_path):
    definition, end = KINDS[name]
    theirs = read_huggingface_tokenizer(write_folder(tmp_path / "hf", definition(), end))
    path = file_of(tmp_path, tokenizer=theirs, vocab_size=912, n_inner=64)
    found = GgufFile(path).tokenizer()
    for text in AWKWARD:
        if name == "mistral" and text.startswith(" "):
            continue  # a file does not say that no blank is put before one: see docs/interop.md
        ids = theirs.encode(text)
        assert found.encode(text) == ids, text
        assert found.decode(ids) == theirs.decode(ids), text
    assert found.boundaries[:2] == theirs.boundaries[:2]
    assert found.specials.keys() >= theirs.specials.keys()


@pytest.mark.parametrize("made", [bpe, chatty, lambda: build_tokenizer("byte")])
def test_our_own_tokenizers_come_back_with_what_they_know(made, tmp_path):
    ours = made()
    found = GgufFile(file_of(tmp_path, tokenizer=ours)).tokenizer()
    for text in AWKWARD:
        assert found.encode(text) == ours.encode(text)
    assert found.end_of_text == ours.end_of_text and found.begin_of_text == ours.begin_of_text
    assert found.chat_template == ours.chat_template


def test_a_file_is_a_model_like_any_other(tmp_path):
    path = file_of(tmp_path, tokenizer=build_tokenizer("byte"))
    lm = gpt.load(path, device="cpu", dtype="float32")
    text = lm.generate("abc", max_new_tokens=8, temperature=0)
    assert text and text == gpt.load(path, device="cpu", dtype="float32").generate(
        "abc", max_new_tokens=8, temperature=0)
    saved_model = find_model(str(path))
    assert not saved_model.is_ours and len(saved_model.weight_hash()) == 64
    assert is_gguf(path) and not is_gguf(tmp_path) and not is_gguf(tmp_path / "none.gguf")


def test_the_scaling_of_llama_3_is_recognised(tmp_path):
    scaling = {"factor": 32.0, "original_block_size": 8192}
    path = file_of(tmp_path, qk_norm=False, rope_base=500_000.0, rope_scaling=scaling)
    found = GgufFile(path).config.rope_scaling
    assert found.kind == "llama3" and found.factor == 32.0
    path = file_of(tmp_path / "b", qk_norm=False, rope_scaling=scaling | {"high_freq_factor": 5.0})
    assert GgufFile(path).config.rope_scaling.kind == "longrope"  # by its factors


# ----- What is refused


def rewritten(path: Path, **values: Any) -> Path:
    """A copy with other metadata, and tensors without those that are None."""
    reader = gguf.GGUFReader(path)
    kept = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    target = path.with_name("other.gguf")
    writer = gguf.GGUFWriter(target, values.pop("architecture", "qwen3"))
    for name, field in kept.items():
        if name == "general.architecture" or name in values:
            continue
        kinds = field.types
        writer.add_key_value(name, field.contents(), kinds[0],
                             kinds[-1] if len(kinds) > 1 else None)
    for name, value in values.items():
        if value is not None and "." in name and not name.startswith("blk"):
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        if values.get(tensor.name, 0) is not None:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    if "extra" in values:
        writer.add_tensor("blk.0.ffn_gate_inp.weight", np.zeros((4, 32), dtype=np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file,
                  writer.write_tensors_to_file, writer.close):
        write()
    return target


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"architecture": "mamba"}, "general.architecture='mamba' is not "
                             "supported; choose a model of gpt2, llama, qwen3"),
    "no token table": ({"token_embd.weight": None}, "has no token_embd.weight"),
    "a lost tensor": ({"blk.1.attn_k.weight": None}, "blk.1.attn_k.weight missing, for a qwen3"),
    "experts": ({"extra": 1}, "blk.0.ffn_gate_inp.weight left over, for a qwen3"),
    "experts by number": ({"qwen3.expert_count": 4}, "mixtures of experts are not supported"),
    "other sizes": ({"qwen3.feed_forward_length": 96}, r"has the shape \(64, 32\), the metadata"),
    "a text for a number": ({"qwen3.block_count": "two"}, "block_count must be a number"),
    "layers without end": ({"qwen3.block_count": 2**30}, "block_count must be a whole number"),
    "a part of a head": ({"qwen3.rope.dimension_count": 4}, "rope.dimension_count=4 is not"),
    "another stretching": ({"qwen3.rope.scaling.type": "su"}, "rope.scaling.type='su' is not"),
    "a part of a file": ({"split.count": 3}, "is one of 3 parts; join them with llama.cpp's"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(name, tmp_path):
    values, expected = REFUSED[name]
    path = rewritten(file_of(tmp_path), **values)
    with pytest.raises(UserError, match=expected) as refusal:
        file = GgufFile(path)
        file.look()
        file.model()
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


TOKENIZERS: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"tokenizer.ggml.model": "bert"}, "its tokenizer is 'bert'; gpt2"),
    "another way to cut": ({"tokenizer.ggml.pre": "tekken"}, "it cuts text by 'tekken'"),
    "no end": ({"tokenizer.ggml.eos_token_id": None}, "KeyError: 'eos_token_id'"),
    "an end that is none": ({"tokenizer.ggml.eos_token_id": 10**6}, "id 1000000, which is no"),
    "no merges": ({"tokenizer.ggml.merges": None}, "KeyError: 'merges'"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_cannot_be_read_is_refused(name, tmp_path):
    values, expected = TOKENIZERS[name]
    path = rewritten(file_of(tmp_path), **values)
    with pytest.raises(UserError, match=expected):
        GgufFile(path).tokenizer()


def test_what_is_not_understood_is_told(tmp_path, capsys):
    path = rewritten(file_of(tmp_path), **{"qwen3.future.option": 5})
    assert GgufFile(path).config.n_layer == 2
    assert f"warning: {path}: not understood, and not used: future.option" in (
        capsys.readouterr().err)


def test_a_file_that_is_cut_off_anywhere_is_one_line(tmp_path):
    whole = file_of(tmp_path).read_bytes()
    place = tmp_path / "cut.gguf"
    for length in [*range(64), *range(64, len(whole), 997), len(whole) - 1]:
        place.write_bytes(whole[:length])
        with pytest.raises(UserError, match=re.escape(str(place))) as refusal:
            GgufFile(place).model()
        assert "\n" not in str(refusal.value)


def test_a_hostile_header_is_refused_at_once(tmp_path):
    path = tmp_path / "hostile.gguf"
    for tensors, entries in ((2**60, 1), (1, 2**60), (2**24 + 1, 0), (1000, 1000)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + bytes(64))
        began = time.process_time()
        with pytest.raises(UserError, match="no sound GGUF file"):
            GgufFile(path)
        assert time.process_time() - began < 1
    name = struct.pack("<Q", 1) + b"x"
    array, many = 9, struct.pack("<IQ", 4, 2**60)  # of numbers, behind the end of the file
    nested = struct.pack("<IQ", array, 1) * 5000
    for value in (many, nested + many):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + name
                         + struct.pack("<I", array) + value + bytes(64))
        began = time.process_time()
        with pytest.raises(UserError, match="no sound GGUF file"):
            GgufFile(path)
        assert time.process_time() - began < 1
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 9, 1, 1) + bytes(64))
    with pytest.raises(UserError, match="version 9"):
        GgufFile(path)


def test_without_the_library_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    path = file_of(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'gpt-toolkit\[gguf\]'"):
        GgufFile(path)


def test_a_file_is_found_wherever_it_lies(tmp_path, monkeypatch):
    path = file_of(tmp_path)
    (tmp_path / "models").mkdir()
    shutil.copy(path, tmp_path / "models/a.gguf")
    monkeypatch.chdir(tmp_path)
    assert find_model("models/a.gguf").config().n_layer == 2
    with pytest.raises(UserError, match=r"there is no run models/b.gguf"):
        find_model("models/b.gguf")
