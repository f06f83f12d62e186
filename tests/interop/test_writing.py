"""Our models in transformers' hands: the same function; what it cannot have is refused by name."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import gpt
from gpt.chat import FORMATS, Chat
from gpt.configuration import PretrainConfig, SamplingConfig
from gpt.configuration.strict_yaml import load_file as load_yaml
from gpt.errors import UserError
from gpt.interop import export_huggingface, read_config, read_model, writing
from gpt.interop.gguf.writing import export_gguf
from gpt.interop.model_card import About
from gpt.interop.proof import sample_text
from gpt.model import GPT
from gpt.tokenizer import Boundaries, RankTokenizer, Tokenizer, build_tokenizer
from tests.interop.models import (
    CONTEXT,
    MODELS,
    assert_same_gradients,
    change_config,
    largest_difference,
    saved,
)
from tests.interop.variants import VARIANTS
from tests.tiny import ARCHITECTURES, CPU, ROOT, SHARED, generate_tokens, random_tokens, tiny_gpt

ABOUT = About("tiny")
LAYERNORM = {"norm": "layernorm", "mlp": "gelu", "qk_norm": False, "n_kv_head": 4}
LLAMA = {"qk_norm": False, "norm_eps": 1e-5}
# name: (its options, the model_type that it becomes)
EXPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "default": ({}, "qwen3"), "tied": (ARCHITECTURES["tied"], "qwen3"),
    "windows": ({**ARCHITECTURES["windows"], "n_layer": 3}, "qwen3"),
    "wide heads": ({"head_dim": 12, "residual_scale": 0.5, "rope_base": 500.0}, "qwen3"),
    "gpt2": (ARCHITECTURES["gpt2"], "gpt2"), "vaswani": (ARCHITECTURES["vaswani"], "gpt2"),
    "waves tied": ({**LAYERNORM, "position": "sinusoidal", "tie_embeddings": True}, "gpt2"),
    "no positions": ({**LAYERNORM, "mlp": "relu2", "position": "none", "rope_base": 5.0}, "gpt2"),
    "llama": (ARCHITECTURES["llama"], "llama"),
    "llama long": ({**LLAMA, "n_kv_head": 1, "rope_scaling": {"original_block_size": 32}}, "llama"),
    "mistral": ({**LLAMA, "window": 9, "window_pattern": "SS", "head_dim": 12}, "mistral"),
    "window of all": ({**LLAMA, "window": CONTEXT}, "llama")}
SAME_WEIGHTS = ("default", "tied", "windows", "gpt2", "llama", "llama long", "mistral")


def byte_model(changes: dict[str, Any], vocab_size: int = 300) -> GPT:
    return tiny_gpt(vocab_size=vocab_size, block_size=CONTEXT, **changes)


def opened(folder: Path) -> Any:
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", local_files_only=True, trust_remote_code=False).eval()


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request, tmp_path_factory):
    """(our model, the folder, transformers' model, the options' name)"""
    ours = byte_model(EXPORTED[request.param][0])
    folder = tmp_path_factory.mktemp("export") / "out"
    said = export_huggingface(ours, build_tokenizer("byte"), folder, ABOUT)
    assert said.startswith("read back by transformers: logits differ by at most ")
    return ours, folder, opened(folder), request.param


def test_logits_and_gradients_are_ours(exported):
    ours, folder, theirs, name = exported
    text = torch.tensor([list((ROOT / "README.md").read_bytes()[:CONTEXT])])
    for tokens in (random_tokens(2, CONTEXT, vocab_size=300), text):
        assert largest_difference(ours, theirs, tokens) <= 1e-4
        assert largest_difference(read_model(folder), theirs, tokens) <= 1e-4
    assert theirs.config.model_type == EXPORTED[name][1]
    if name in SAME_WEIGHTS:
        assert_same_gradients(byte_model(EXPORTED[name][0]), theirs, vocab_size=300)


def test_a_hundred_greedy_tokens_are_ours(exported):
    ours, _, theirs, _ = exported
    prompt = list(b"def read")
    found = theirs.generate(torch.tensor([prompt]), max_new_tokens=100, do_sample=False,
                            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                            pad_token_id=0, eos_token_id=None)
    greedy = SamplingConfig(max_new_tokens=100, temperature=0)
    made = [new.token for new in generate_tokens(ours, prompt, greedy, CPU, ())]
    assert made == found[0, len(prompt):].tolist() and len(made) == 100


def test_back_with_us_every_bit_is_the_same(exported):
    ours, folder, _, name = exported
    back = read_model(folder)
    if name in SAME_WEIGHTS:
        for key, tensor in ours.state_dict().items():
            assert torch.equal(back.state_dict()[key], tensor), key
        assert back.config.windows == ours.config.windows
        rest = {"window", "window_pattern", "preset", "depth", "model_type"}
        assert back.config.model_dump(exclude=rest) == ours.config.model_dump(exclude=rest)


# What is absent, or has no meaning up to max_position_embeddings, is said otherwise.
RESTATED = {name for name in VARIANTS if name.endswith((" yarn", " dynamic"))} | {"phi4 mini"}


@pytest.mark.parametrize("name", MODELS)
def test_from_transformers_and_back_every_bit_and_option_is_the_same(name, tmp_path):
    theirs, folder = saved(name, tmp_path / "in")
    lm = gpt.load(folder, dtype="float32")
    export_huggingface(lm.model, lm.tokenizer, tmp_path / "out", ABOUT)
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        unread = 2 if key.endswith("embed_positions.weight") else 0  # rows of OPT's padding
        assert torch.equal(after[key][unread:], tensor[unread:]), key
    again = opened(tmp_path / "out")
    assert type(again) is type(theirs)
    mine, other = again.config.to_dict(), theirs.config.to_dict()
    model_type = theirs.config.model_type
    ignored = {"_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id", "dtype",
               "initializer_range", "init_std", "max_window_layers", "torch_dtype", "n_ctx",
               "use_cache", "architectures", "n_inner", "use_bidirectional_attention"}
    if model_type == "falcon":  # whose switches say one thing in several ways
        ignored |= {"num_ln_in_parallel_attn", "num_kv_heads", "multi_query", "parallel_attn"}
    if name in RESTATED:
        ignored.add("rope_parameters")
    assert {k for k in other if mine.get(k) != other[k]} <= ignored


def test_a_folder_holds_all_that_the_tools_of_the_field_look_for(tmp_path):
    tokenizer = build_tokenizer("byte")
    tokenizer.chat_template = Chat(FORMATS["plain"], tokenizer).jinja()
    export_huggingface(byte_model({}), tokenizer, tmp_path / "out", ABOUT)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "README.md",
                     "SHA256SUMS", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    talk = [{"role": "user", "content": "2 + 2 = "}, {"role": "assistant", "content": "4"}]
    assert theirs.apply_chat_template(talk, tokenize=False) == "2 + 2 = 4<|endoftext|>"
    assert theirs("héllo")["input_ids"] == tokenizer.encode("héllo")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"]) == (256, None)
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    model = opened(tmp_path / "out")
    assert model.generation_config.eos_token_id == 256
    assert model.generation_config.pad_token_id == 256
    batch = theirs(["a longer text", "short"], padding=True)["input_ids"]
    assert batch[1][-1] == 256 and len(batch[0]) == len(batch[1])


def test_versions_of_transformers_that_know_no_layer_types_see_the_window(tmp_path):
    export_huggingface(byte_model({"window": 9}), build_tokenizer("byte"), tmp_path / "out", ABOUT)
    assert read_config(tmp_path / "out").windows == [9, 9]
    change_config(tmp_path / "out", without=("layer_types",))
    assert read_config(tmp_path / "out").windows == [9, 9]
    assert set(opened(tmp_path / "out").config.layer_types) == {"sliding_attention"}


def test_all_ids_that_end_generation_are_given(tmp_path):
    plain = build_tokenizer("byte")
    assert isinstance(plain, RankTokenizer)
    tokenizer = RankTokenizer("x", plain.ranks, plain.pattern, {"<end>": 256, "<turn>": 257,
                                                                "<begin>": 258},
                              Boundaries(256, 258, (257,)))
    export_huggingface(byte_model({}), tokenizer, tmp_path / "out", ABOUT)
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation == {"bos_token_id": 258, "eos_token_id": [256, 257], "pad_token_id": 256}
    lm = gpt.load(tmp_path / "out")
    assert lm.tokenizer.boundaries == tokenizer.boundaries


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("changes", [{}, ARCHITECTURES["vaswani"]], ids=["qwen3", "waves"])
def test_weights_are_stored_in_the_type_that_is_asked_for(dtype, changes, tmp_path):
    ours = byte_model(changes)
    export_huggingface(ours, build_tokenizer("byte"), tmp_path / "out", ABOUT, dtype)
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    values = json.loads((tmp_path / "out/config.json").read_text())
    assert values["dtype"] == values["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert opened(tmp_path / "out").dtype == dtype
    assert next(ours.parameters()).dtype == torch.float32


def test_large_models_are_cut_into_files_of_at_most_the_size_that_is_asked_for(tmp_path):
    ours = byte_model({"n_layer": 3})
    export_huggingface(ours, build_tokenizer("byte"), tmp_path / "out", ABOUT,
                       max_shard_bytes=40_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 2
    sizes = [sum(tensor.nbytes for tensor in load_file(path).values()) for path in files]
    assert max(sizes) <= 40_000
    tensors = [tensor.nbytes for path in files for tensor in load_file(path).values()]
    assert len(files) <= 2 * sum(tensors) / 40_000 + 1  # filled, not a tensor each
    assert len(files) < len(tensors) / 2
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in ours.parameters())
    back = read_model(tmp_path / "out")
    assert all(torch.equal(back.state_dict()[k], v) for k, v in ours.state_dict().items())
    assert largest_difference(ours, opened(tmp_path / "out"), random_tokens(1, 9)) <= 1e-4
    one = tmp_path / "one"
    total = index["metadata"]["total_size"]
    export_huggingface(ours, build_tokenizer("byte"), one, ABOUT, max_shard_bytes=total)
    assert (one / "model.safetensors").is_file()


REFUSED = {
    "softcap": ({"logit_softcap": 8.0}, "model.logit_softcap=8.0"),
    "swiglu beside layernorm": ({**ARCHITECTURES["gpt2"], "mlp": "swiglu"}, "model.mlp=swiglu"),
    "gelu beside rmsnorm": ({"mlp": "gelu"}, "model.mlp=gelu"),
    "several": (ARCHITECTURES["multi-query"], "model.position=none, model.mlp=relu2"),
    "geglu beside layernorm": ({"norm": "layernorm", "mlp": "geglu", "qk_norm": False,
                                "n_kv_head": 4}, "model.position=rope, model.mlp=geglu"),
    "qk_norm beside layernorm": ({**ARCHITECTURES["gpt2"], "qk_norm": True}, "model.qk_norm=True"),
    "grouped gpt2": ({**ARCHITECTURES["gpt2"], "n_kv_head": 2}, "model.n_kv_head=2"),
    "wide gpt2": ({**ARCHITECTURES["gpt2"], "head_dim": 12}, "model.head_dim=12"),
    "odd gpt2": ({**ARCHITECTURES["gpt2"], "n_embd": 34, "head_dim": 8}, "model.head_dim=8"),
    "gpt2 with windows": ({**ARCHITECTURES["gpt2"], "window": 5}, "model.window=5"),
    "qwen3 with biases": ({"bias": True}, "model.bias=True"),
    "layers without rotations beside qk_norm": ({"rope_pattern": "RN"}, "model.rope_pattern=RN"),
}


@pytest.mark.parametrize(("model_type", "message"), [
    ("llama", "Hugging Face's llama, the nearest architecture, cannot express model.qk_norm=True;"),
    ("bert", "model.model_type=bert is none of gpt2, llama, mistral, qwen3, ")])
def test_a_model_type_that_does_not_fit_is_refused(model_type, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export_huggingface(byte_model({"model_type": model_type}), build_tokenizer("byte"),
                           tmp_path / "out", ABOUT)


def test_a_model_goes_out_under_the_name_that_is_asked_for(tmp_path):
    model = byte_model({**LLAMA, "model_type": "granite"})
    export_huggingface(model, build_tokenizer("byte"), tmp_path / "out", ABOUT)
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "granite"
    export_gguf(model, build_tokenizer("byte"), tmp_path / "gguf", ABOUT)  # as llama, to llama.cpp


@pytest.mark.parametrize("export", [export_huggingface, export_gguf])
@pytest.mark.parametrize("name", REFUSED)
def test_what_the_target_cannot_express_is_refused_by_its_options_name(name, export, tmp_path):
    changes, expected = REFUSED[name]
    with pytest.raises(UserError, match=r"cannot express .*to be exported has to be") as refusal:
        export(tiny_gpt(vocab_size=300, **changes), build_tokenizer("byte"), tmp_path / "o", ABOUT)
    assert expected in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_never_touched(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link to a folder").symlink_to(tmp_path / "empty")
    for name in ("file", "folder", "link", "link to a folder"):
        for export in (export_huggingface, export_gguf):
            with pytest.raises(UserError, match=f"{name} exists already; choose another name"):
                export(byte_model({}), build_tokenizer("byte"), tmp_path / name, ABOUT)
    for nameless in (Path(), Path("a/.."), Path("/")):
        with pytest.raises(UserError, match="is no name for a new folder"):
            export_huggingface(byte_model({}), build_tokenizer("byte"), nameless, ABOUT)
    assert (tmp_path / "folder/a").read_text() == (tmp_path / "file").read_text() == "mine"
    export_huggingface(byte_model({}), build_tokenizer("byte"), tmp_path / "empty", ABOUT)
    assert (tmp_path / "empty/config.json").is_file()


def test_files_can_be_read_by_whoever_may_read_the_users_files(tmp_path):
    before = os.umask(0o022)
    try:
        export_huggingface(byte_model({}), build_tokenizer("byte"), tmp_path / "out", ABOUT)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {0o644}


@pytest.mark.parametrize("broken", ["save_tensors", "write_json", "write_atomically", "model_card",
                                    "prove", "tokenizer_json"])
def test_after_any_failure_nothing_is_left(broken, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(writing, broken, fail)
    with pytest.raises(OSError, match="No space"):
        export_huggingface(byte_model({}), build_tokenizer("byte"), tmp_path / "out", ABOUT)
    assert not list(tmp_path.iterdir())


def test_without_transformers_the_proof_is_our_own_reading_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(writing.proof, "has_transformers", lambda: False)
    said = export_huggingface(byte_model({}), build_tokenizer("byte"), tmp_path / "out", ABOUT)
    assert said == ("read back by this toolkit: same logits, same ids (transformers is not "
                    "installed here; pip install transformers for a second opinion)")


def shipped() -> list[Path]:
    return [path for path in sorted((ROOT / "configs").glob("*.yaml"))
            if "finetune" not in load_yaml(path).values]


def tokenizer_of(recipe: str) -> Tokenizer:
    """Of the recipe's kind, from a tiny text: a named encoding is a byte-pair encoding, too."""
    spec = str(load_yaml(ROOT / recipe).values["tokenizer"])
    spec = spec if spec in ("byte", "char") else "bpe:400"
    return build_tokenizer(spec, [(ROOT / "README.md").read_text()])


# What differs from depth-12 is how wide it is, which takes a while.
@pytest.mark.parametrize("path", [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in ("depth-20",
                                                                              "depth-24")))
    for path in shipped()])
@pytest.mark.parametrize("export", [export_huggingface, export_gguf])
def test_every_shipped_configuration_can_be_exported(path, export, tmp_path):
    if export is export_gguf:
        pytest.importorskip("gguf")
        if path.stem == "lesson":
            pytest.skip("llama.cpp has no architecture with a plain ReLU")
    values = load_yaml(path).values
    config = PretrainConfig.model_validate(values)
    tokenizer = tokenizer_of(config.data.dataset)
    model = config.model.model_dump() | {"vocab_size": tokenizer.vocab_size, "n_layer": 2}
    torch.manual_seed(0)
    said = export(GPT(type(config.model)(**model)).eval(), tokenizer, tmp_path / "out", ABOUT)
    assert "read back" in said


@pytest.mark.skipif(not (SHARED / "gpt2.tiktoken").is_file(), reason="GPT-2's ranks are not here")
def test_gpt2s_own_vocabulary_is_exported_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(writing.proof, "has_transformers", lambda: False)  # it is slow
    tokenizer = build_tokenizer(str(SHARED / "gpt2.tiktoken"))
    ours = tiny_gpt(**ARCHITECTURES["gpt2"] | {"n_embd": 16, "n_layer": 1, "vocab_size": 50_304})
    export_huggingface(ours, tokenizer, tmp_path / "out", ABOUT)
    text = sample_text(tokenizer)
    assert len(text) > 300_000  # every token is in it
    change_config(tmp_path / "out", vocab_size=50_256)
    with pytest.raises(UserError, match="50257 ids, the model 50256"):
        gpt.load(tmp_path / "out")
