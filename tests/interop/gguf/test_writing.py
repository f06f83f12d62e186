"""GGUF files: what is in them, and what they cannot hold."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import numpy as np
import pytest
import torch

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.interop.gguf import writing as gguf_writing
from gpt.interop.gguf.architectures import LLAMA as LLAMA_TABLE
from gpt.interop.gguf.modelfile import modelfile
from gpt.interop.gguf.retokenizing import Reconstructed
from gpt.interop.gguf.writing import DTYPES, export_gguf
from gpt.interop.model_card import About
from gpt.interop.proof import sample_text
from gpt.model.rope import rope_frequencies, rotate, rotations
from gpt.tokenizer import (
    BPE_PATTERN,
    O200K_PATTERN,
    Boundaries,
    RankTokenizer,
    Tokenizer,
    build_tokenizer,
)
from gpt.tokenizer import read_huggingface_tokenizer as read_hub
from tests.interop.models import TEXT, bpe, chatty
from tests.tiny import ARCHITECTURES, tiny_gpt
from tests.tokenizer.hub_tokenizers import AWKWARD, KINDS, write_folder

gguf = pytest.importorskip("gguf")
ABOUT = About("tiny", "mit")
LLAMA = {"qk_norm": False, "norm_eps": 1e-5}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LLAMA_CPP_NAMES = {"gpt2": "gpt-2", "control_first": "gpt-2", "llama3": "llama-bpe",
                   "qwen": "qwen2", "starcoder": "smollm", "smollm": "smollm",
                   "deepseek": "deepseek-v3", "llama2": "default",
                   "mistral": "default", "gemma": "default"}
# name: (options, llama.cpp's name for the architecture)
EXPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "qwen3": ({"n_inner": 64}, "qwen3"), "qwen3 tied": ({"tie_embeddings": True}, "qwen3"),
    "gpt2": (ARCHITECTURES["gpt2"], "gpt2"),
    "gpt2 untied": ({**ARCHITECTURES["gpt2"], "tie_embeddings": False, "n_inner": 64}, "gpt2"),
    "waves": ({**ARCHITECTURES["vaswani"], "mlp": "gelu_tanh"}, "gpt2"),
    "llama": ({**LLAMA, "rope_base": 500.0, "n_kv_head": 1}, "llama"),
    "llama long": (ARCHITECTURES["llama"], "llama"),
    "wide heads": ({**LLAMA, "head_dim": 16, "residual_scale": 0.5}, "llama"),
    "mistral": ({**LLAMA, "window": 64}, "llama")}


def export(tmp_path, changes: dict[str, Any], dtype: str = "float32",
           tokenizer: Tokenizer | None = None) -> tuple[Any, str]:
    """(reader, what was said) of a tiny model."""
    model = tiny_gpt(**{"vocab_size": 320, "block_size": 64, **changes})
    said = export_gguf(model, tokenizer or bpe(), tmp_path / "out", ABOUT, dtype)
    return gguf.GGUFReader(tmp_path / f"out/tiny-{dtype}.gguf"), said


def value(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_architecture_is_written_in_every_type_and_proven(name, dtype, tmp_path):
    changes, architecture = EXPORTED[name]
    reader, said = export(tmp_path, changes, dtype)
    assert value(reader, "general.architecture") == architecture
    assert value(reader, "general.license") == "mit" and value(reader, "general.name") == "tiny"
    rounded = "" if dtype == "float32" else f", rounded to {dtype}"
    assert said.startswith(f"read back: options and all {len(reader.tensors)} tensors are the "
                           f"model's{rounded}; logits differ by at most ")
    assert "ids of" in said and {p.name for p in (tmp_path / "out").iterdir()} == {
        f"tiny-{dtype}.gguf", "Modelfile", "SHA256SUMS"}
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    stored = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(dtype, dtype.upper())
    assert {kind for key, kind in kinds.items() if "norm" in key or "bias" in key} == {"F32"}
    assert kinds["blk.0.ffn_up.weight"] == stored
    assert kinds["token_embd.weight"] == {"Q4_0": "Q8_0"}.get(stored, stored)
    told = re.search(r"the perplexity of 63 tokens of the sample is ([\d.]+) where it was ([\d.]+)",
                     said)
    assert (told is None) == (dtype == "float32")
    if told is not None:
        after, before = map(float, told.groups())
        assert abs(after / before - 1) < {"q4_0": 1.0, "q8_0": 0.1}.get(dtype, 0.05)


def test_the_options_are_those_that_llama_cpp_reads(tmp_path):
    reader, _ = export(tmp_path, {**EXPORTED["wide heads"][0], "rope_base": 700.0},
                       tokenizer=chatty())
    expected = {"context_length": 64, "embedding_length": 32, "block_count": 2,
                "feed_forward_length": 96, "attention.head_count": 4, "attention.head_count_kv": 2,
                "attention.key_length": 16, "attention.value_length": 16, "vocab_size": 320,
                "rope.dimension_count": 16, "rope.freq_base": 700.0,
                "attention.layer_norm_rms_epsilon": float(np.float32(1e-5))}
    for name, wanted in expected.items():
        assert value(reader, f"llama.{name}") == wanted, name
    tokens = {"model": "gpt2", "pre": "llama-bpe", "eos_token_id": 300, "bos_token_id": 301,
              "add_bos_token": True}
    for name, wanted in tokens.items():
        assert value(reader, f"tokenizer.ggml.{name}") == wanted, name
    assert value(reader, "tokenizer.chat_template") == "{{ messages }}"
    assert len(value(reader, "tokenizer.ggml.tokens")) == 320
    kinds = value(reader, "tokenizer.ggml.token_type")
    assert [kinds.count(kind) for kind in (1, 3, 5)] == [300, 3, 17]
    assert kinds[300] == 3 and kinds[303] == 5


def test_gpt2s_options_have_their_own_names(tmp_path):
    reader, _ = export(tmp_path, {**ARCHITECTURES["gpt2"], "norm_eps": 1e-3})
    assert value(reader, "gpt2.attention.layer_norm_epsilon") == pytest.approx(1e-3)
    assert not [name for name in reader.fields if "rope" in name]
    assert value(reader, "tokenizer.ggml.add_bos_token") is False


def test_turning_neighbours_of_interleaved_rows_is_turning_halves():
    """By llama.cpp's formula (ggml's rope in its normal mode), against ours."""
    D, H = 8, 3
    torch.manual_seed(0)
    W, x = torch.randn(H * D, 5), torch.randn(6, 5)
    config = ModelConfig(vocab_size=9, n_embd=H * D, n_head=H, n_kv_head=H, qk_norm=False)
    cos, sin = rotations(torch.arange(6), rope_frequencies(config))      # (T, 1, D/2)
    ours = rotate((x @ W.T).view(1, 6, H, D), (cos, sin))[0]

    rule = next(one for one in LLAMA_TABLE.rules(config) if "qkv_proj" in one.ours)
    q, k, v = rule.split(torch.cat((W, W, W))).values()
    y = (x @ q.T).view(6, H, D // 2, 2)
    a, b = y[..., 0], y[..., 1]                                           # neighbours
    theirs = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)  # (T, H, D/2, 2)
    torch.testing.assert_close(torch.cat((theirs[..., 0], theirs[..., 1]), dim=-1), ours)
    assert torch.equal(k, q) and torch.equal(v, W)
    assert torch.equal(rule.join(dict(zip(
        rule.theirs, (q, k, v), strict=True)).get), torch.cat((W, W, W)))
    assert torch.equal(q[:D], W[[0, 4, 1, 5, 2, 6, 3, 7]])


def test_the_scaling_of_llama_3_is_a_tensor_that_divides(tmp_path):
    changes = {**LLAMA, "rope_scaling": {"factor": 4.0, "original_block_size": 32}}
    reader, _ = export(tmp_path, changes)
    stored = {t.name: t for t in reader.tensors}["rope_freqs.weight"]
    config = tiny_gpt(**changes).config
    plain = rope_frequencies(config.model_copy(update={"rope_scaling": None}))
    torch.testing.assert_close(plain / torch.tensor(np.array(stored.data)),
                               rope_frequencies(config))
    assert stored.data.max() == 4.0 and stored.data.min() == 1.0


REFUSED = {
    "window": ({**LLAMA, "window": 5}, "llama.cpp's llama.* model.window=5"),
    "mistral by layer": ({**LLAMA, "window": 5, "window_pattern": "SF"}, "model.window=5"),
    "another yarn": ({**LLAMA, "rope_scaling": {"kind": "yarn", "beta_fast": 16.0}},
                     "model.rope_scaling.kind=yarn"),
    "another scale": ({"model_type": "gemma2", "qk_norm": False, "norm": "rmsnorm_1p",
                       "mlp": "geglu", "norm_placement": "both", "tie_embeddings": True,
                       "attention_scale": 0.1, "embedding_scale": 32 ** 0.5},
                      "llama.cpp's gemma2.* model.attention_scale=0.1"),
    "half a head in starcoder2": ({"model_type": "starcoder2", "norm": "layernorm", "bias": True,
                                   "mlp": "gelu_tanh", "qk_norm": False, "rope_dim": 4},
                                  "llama.cpp's starcoder2.* model.rope_dim=4"),
    "qwen3 window": ({"window": 5}, "llama.cpp's qwen3.* model.window=5"),
    "gelu": ({**ARCHITECTURES["gpt2"], "mlp": "gelu"}, "model.mlp=gelu"),
    "relu": ({**ARCHITECTURES["gpt2"], "mlp": "relu"}, "model.mlp=relu"),
    "relu2": ({**ARCHITECTURES["gpt2"], "mlp": "relu2"}, "model.mlp=relu2"),
    "qwen3 scaling": ({"rope_scaling": {}}, "model.rope_scaling.kind=llama3")}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_cannot_express_is_refused_by_the_options_name(name, tmp_path):
    changes, expected = REFUSED[name]
    with pytest.raises(UserError, match=expected):
        export(tmp_path, changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes, named", [
    ({"n_embd": 48, "n_inner": 64}, "model.n_embd=48"), ({"n_inner": 40}, "model.n_inner=40"),
    ({"head_dim": 10}, r"model.n_head \* head_dim=40")])
def test_q8_0_needs_whole_blocks(changes, named, tmp_path):
    with pytest.raises(UserError, match=rf"multiples of 32, unlike .*{named}.*export as float16"):
        export(tmp_path, {"n_head": 4, "head_dim": 16, **changes}, "q8_0")
    export(tmp_path, changes, "float16")


def test_without_the_library_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_writing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the gguf package; run: pip install 'gpt-toolkit\["):
        export(tmp_path, {})


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_of_the_hub_are_carried_or_refused(kind, tmp_path):
    make, eos = KINDS[kind]
    tokenizer = read_hub(write_folder(tmp_path / "hub", make(), eos))
    if kind == "unigram":
        with pytest.raises(UserError, match=r"its model is Unigram; llama.cpp runs BPE.*so a GGUF "
                                            "file cannot carry it; export with --format hf"):
            export(tmp_path, {"vocab_size": 1000}, tokenizer=tokenizer)
        return
    reader, said = export(tmp_path, {"vocab_size": 1000}, tokenizer=tokenizer)
    assert value(reader, "tokenizer.ggml.pre") == LLAMA_CPP_NAMES[kind]
    assert " characters are the same by the file's own data; " in said
    own = "a reading by llama.cpp's rules (for its own: pip install llama-cpp-python)"
    assert (f"; {own} finds them too in " in said) != (kind in ("qwen", "mistral"))
    assert ("; in NFC, which is left to the caller, a reading" in said) == (kind == "qwen")
    # llama.cpp puts a blank before a text that begins with one, too; transformers does not.
    assert ("finds other ids in " in said) == (kind == "mistral")
    rebuilt = Reconstructed(reader)
    for text in map(tokenizer.writable, (*AWKWARD, TEXT)):
        if kind != "mistral" or not text.startswith(" "):
            assert rebuilt.encode(unicodedata.normalize("NFC", text) if kind == "qwen" else text
                                  ) == tokenizer.encode(text)


def test_kinds_of_tokens_are_llama_cpps(tmp_path):
    tokenizer = read_hub(write_folder(tmp_path / "a", KINDS["gemma"][0](), "</s>"))
    reader, _ = export(tmp_path / "a", {"vocab_size": 1000}, tokenizer=tokenizer)
    kinds = dict(zip(value(reader, "tokenizer.ggml.tokens"),
                     value(reader, "tokenizer.ggml.token_type"), strict=True))
    assert [kinds[name] for name in ("<unk>", "<s>", "<0x0A>", "e", "▁▁", "[PAD999]")] == [
        2, 3, 6, 1, 1, 5]
    assert not value(reader, "tokenizer.ggml.add_space_prefix")
    tokenizer = read_hub(write_folder(tmp_path / "b", KINDS["qwen"][0](), "<|endoftext|>"))
    reader, _ = export(tmp_path / "b", {"vocab_size": 1000}, tokenizer=tokenizer)
    kinds = dict(zip(value(reader, "tokenizer.ggml.tokens"),
                     value(reader, "tokenizer.ggml.token_type"), strict=True))
    assert [kinds[name] for name in ("<think>", "<|im_end|>", "Ġ")] == [4, 3, 1]


@pytest.mark.parametrize(("change", "why"), [
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False},
        LEVEL]}}, "llama.cpp has no name for its way to cut text \\(its pre_tokenizer: .*a\\+"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, {**LEVEL, "use_regex": False}]}},
     r"llama.cpp has no name for its way to cut text \(its patterns: \\p\{N\}\)"),
])
def test_a_way_to_cut_that_llama_cpp_lacks_is_named(change, why, tmp_path):
    definition = {**KINDS["qwen"][0](), **change}
    tokenizer = read_hub(write_folder(tmp_path / "hub", definition, "<|endoftext|>"))
    with pytest.raises(UserError, match=why):
        export(tmp_path, {"vocab_size": 1000}, tokenizer=tokenizer)


def test_sentencepiece_with_a_cut_of_its_own_is_refused_before_anything_is_written(tmp_path):
    definition = KINDS["gemma"][0]()
    definition["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "[0-9]"},
                                   "behavior": "Isolated", "invert": False}
    tokenizer = read_hub(write_folder(tmp_path / "hub", definition, "</s>"))
    with pytest.raises(UserError, match="no name for its way to cut text"):
        export(tmp_path, {"vocab_size": 1000}, tokenizer=tokenizer)


def test_whole_words_first_is_refused_where_llama_cpp_merges(tmp_path):
    definition = KINDS["qwen"][0]()
    model = definition["model"]
    definition["model"] = {**model, "ignore_merges": True,
                           "merges": model["merges"][:-1]}
    tokenizer = read_hub(write_folder(tmp_path / "hub", definition, "<|endoftext|>"))
    with pytest.raises(UserError, match=r"takes words that are tokens whole, which llama.cpp does "
                                        r"not do with the pattern of qwen2"):
        export(tmp_path, {"vocab_size": 1000}, tokenizer=tokenizer)


def test_llama_cpps_own_rules_for_words_with_marks_are_told(tmp_path):
    """Its pattern for o200k knows no combining marks, so that ids differ there."""
    ranks = {bytes([b]): b for b in range(256)} | {"\u0e17\u0e35".encode()[i:j]: n for n, (i, j) in
                                                   enumerate([(0, 2), (0, 3), (3, 5), (3, 6),
                                                              (0, 6)], 256)}
    tokenizer = RankTokenizer("x", ranks, O200K_PATTERN, {"<end>": 300}, Boundaries(300))
    _, said = export(tmp_path, {}, tokenizer=tokenizer)
    assert "are the same by the file's own data; a reading by llama.cpp's rules" in said
    assert "finds other ids in " in said and "first in " in said


@pytest.mark.parametrize("spec", ["byte", "char", "bpe:257", "bpe:400"])
def test_our_own_tokenizers_are_rebuilt_from_the_file_alone(spec, tmp_path):
    tokenizer = build_tokenizer(spec, [TEXT + "日本語"])
    reader, _ = export(tmp_path, {"vocab_size": 420}, tokenizer=tokenizer)
    rebuilt = Reconstructed(reader)
    for text in ("", "a", TEXT, "日本 語é\x00\r\n\n  x", "<|endoftext|>", "e\u0301 " * 50):
        assert rebuilt.encode(text) == tokenizer.encode(text)


def test_tokens_that_no_merge_makes_are_looked_up_as_whole_words(tmp_path):
    """As in Llama 3's vocabulary; llama.cpp does so for its "llama-bpe"."""
    ranks = {bytes([b]): b for b in range(256)} | {b"alone": 256}
    tokenizer = RankTokenizer("x", ranks, BPE_PATTERN, {"<end>": 257}, Boundaries(257))
    reader, _ = export(tmp_path, {}, tokenizer=tokenizer)
    assert Reconstructed(reader).encode("alone alones") == tokenizer.encode("alone alones")
    assert tokenizer.encode("alone") == [256]


def test_the_modelfile_goes_with_it_and_what_it_lacks_is_said(tmp_path):
    for name, tokenizer in (("whole", bpe()), ("lacking", chatty())):
        _, said = export(tmp_path / name, {}, tokenizer=tokenizer)
        expected = modelfile("tiny-float32.gguf", tokenizer, 64)
        assert (tmp_path / name / "out/Modelfile").read_text() == expected.text
        assert said.splitlines()[1:] == [expected.remark] * (name == "lacking")


def test_after_a_failure_nothing_is_left(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")
    for broken in ("write_atomically", "_write", "prove"):
        with monkeypatch.context() as patch:
            patch.setattr(gguf_writing, broken, fail)
            with pytest.raises(OSError, match="No space"):
                export(tmp_path, {})
        assert not list(tmp_path.iterdir())


def test_the_sample_is_long_enough_to_matter():
    assert len(sample_text(bpe())) > 4000


@pytest.mark.parametrize(("whole_first", "name"), [(True, "llama-bpe"), (False, "smaug-bpe")])
def test_whether_words_are_taken_whole_decides_between_two_names_of_one_pattern(
        whole_first, name, tmp_path):
    definition = KINDS["llama3"][0]() | {"normalizer": {"type": "NFC"}}
    definition["model"] = {**definition["model"], "ignore_merges": whole_first}
    tokenizer = read_hub(write_folder(tmp_path / "hub", definition, "<|eot_id|>"))
    reader, _ = export(tmp_path, {"vocab_size": 1000}, tokenizer=tokenizer)
    assert value(reader, "tokenizer.ggml.pre") == name
