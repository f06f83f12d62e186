"""Models that transformers saved, in our hands: the same function, whatever way they were saved."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gpt
from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.interop import is_huggingface_folder, read_config, read_model
from gpt.interop.proof import sample_text
from gpt.runs.saved_model import find_model
from tests.interop.models import (
    CONTEXT,
    MODELS,
    VOCAB,
    assert_same_after_a_step,
    assert_same_gradients,
    assert_same_logits,
    change_config,
    change_weights,
    largest_difference,
    save,
    saved,
)
from tests.interop.variants import VARIANTS
from tests.tiny import random_tokens

TOKENS = random_tokens(2, 40, vocab_size=VOCAB)


@pytest.fixture(scope="module", params=MODELS)
def imported(request, tmp_path_factory):
    """(their model, its folder, what `gpt.load` makes of it)"""
    theirs, folder = saved(request.param, tmp_path_factory.mktemp("hf") / "model")
    return theirs, folder, gpt.load(folder, device="cpu", dtype="float32")


def test_logits_and_gradients_are_those_of_transformers(imported, request):
    theirs, _, lm = imported
    name = request.node.callspec.params["imported"]
    assert_same_logits(lm.model, theirs, lm.tokenizer.encode(sample_text(lm.tokenizer)))
    if name not in VARIANTS:
        assert_same_gradients(lm.model, theirs)
    model, other = copy.deepcopy(lm.model), copy.deepcopy(theirs)
    assert_same_after_a_step(model, other)


def test_a_hundred_greedy_tokens_are_those_of_transformers(imported):
    theirs, _, lm = imported
    prompt = lm.prompt_tokens("def read")
    settings = gpt.language_model.sampling_config(max_new_tokens=100, temperature=0)
    never = sorted({*range(VOCAB)} - lm.tokenizer.text_ids)  # control tokens and padding
    lm.never = never
    made = [piece.new for _, piece in lm.write([lm.request(prompt, settings)])]
    found = theirs.generate(torch.tensor([prompt]), max_new_tokens=100, do_sample=False,
                            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                            suppress_tokens=never, pad_token_id=0, eos_token_id=None)
    assert [new.token for new in made] == found[0, len(prompt):].tolist()
    assert len(made) == 100 and len({new.token for new in made}) > 3


def test_a_padded_vocabulary_keeps_its_rows_and_never_samples_them(imported):
    _, _, lm = imported
    assert lm.model.config.vocab_size == VOCAB > lm.tokenizer.vocab_size
    assert set(range(lm.tokenizer.vocab_size, VOCAB)) <= set(lm.never)


@pytest.mark.parametrize("name", ["gpt2", "llama 3"])
def test_shards_hold_what_one_file_holds(name, tmp_path):
    theirs, folder = saved(name, tmp_path / "m", max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert not (folder / "model.safetensors").exists()
    assert largest_difference(read_model(folder), theirs, TOKENS) <= 1e-4
    digest = find_model(str(folder)).weight_hash()
    shard = sorted(folder.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert find_model(str(folder)).weight_hash() != digest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_files_become_float32_exactly(dtype, tmp_path):
    theirs, folder = saved("llama 3", tmp_path / "m")
    save(theirs.to(dtype), "llama3", folder)
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {dtype}
    ours = read_model(folder)
    theirs = type(theirs).from_pretrained(folder, dtype=torch.float32)
    assert largest_difference(ours, theirs, TOKENS) <= 1e-4
    assert ours.lm_head.weight.dtype == torch.float32
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)
    assert read_model(folder, dtype).lm_head.weight.dtype == dtype


@pytest.mark.parametrize("name", ["gpt2", "llama tied", "llama 3"])
def test_names_without_the_prefix_are_understood(name, tmp_path):
    """As openai-community/gpt2 has them, and whatever was saved without its head."""
    theirs, folder = saved(name, tmp_path / "m")
    change_weights(folder, lambda tensors: {k.removeprefix("transformer.").removeprefix("model."): v
                                    for k, v in tensors.items()})
    assert largest_difference(read_model(folder), theirs, TOKENS) <= 1e-4


def test_masks_and_frequencies_that_older_versions_saved_are_passed_over(tmp_path):
    mask = torch.ones(1, 1, CONTEXT, CONTEXT).tril()
    for name, constants in (
            ("gpt2", {"transformer.h.0.attn.bias": mask,
                      "transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}),
            ("llama 2", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})):
        theirs, folder = saved(name, tmp_path / name)
        change_weights(folder, lambda tensors, more=constants: tensors | more)
        assert largest_difference(read_model(folder), theirs, TOKENS) <= 1e-4


def test_the_old_and_the_new_way_to_write_rope_are_one(tmp_path):
    theirs, folder = saved("llama 3", tmp_path / "m")
    new = read_config(folder)
    assert "rope_parameters" in json.loads((folder / "config.json").read_text())
    scaling = {k: v for k, v in theirs.config.rope_parameters.items() if k != "rope_theta"}
    for old in ({"rope_theta": 500.0, "rope_scaling": scaling},
                {"rope_theta": 500, "rope_scaling": scaling | {"type": "llama3"}},
                {"rope_scaling": scaling | {"rope_theta": 500.0}, "rope_theta": 3.0}):
        change_config(folder, without=("rope_parameters",), **old)
        assert read_config(folder) == new
        assert largest_difference(read_model(folder), theirs, TOKENS) <= 1e-4
    change_config(folder, rope_theta=700.0)
    assert largest_difference(read_model(folder), theirs, TOKENS) <= 1e-4  # the inner one counts
    change_config(folder, rope_scaling=scaling)
    assert largest_difference(read_model(folder), theirs, TOKENS) > 1e-2


def test_a_head_saved_beside_the_table_it_is_tied_to_has_to_equal_it(tmp_path):
    theirs, folder = saved("gpt2", tmp_path / "m")
    table = theirs.transformer.wte.weight.detach()
    change_weights(folder, lambda tensors: tensors | {"lm_head.weight": table.clone()})
    assert largest_difference(read_model(folder), theirs, TOKENS) <= 1e-4
    change_weights(folder, lambda tensors: tensors | {"lm_head.weight": table + 1e-3})
    with pytest.raises(UserError, match=r"tie_word_embeddings, but lm_head\.weight is not "
                                        r"transformer\.wte\.weight; .* tie_word_embeddings to fal"):
        read_model(folder)
    change_config(folder, tie_word_embeddings=False)
    assert read_model(folder).lm_head.weight.equal(table + 1e-3)


def test_a_tied_model_needs_no_head(tmp_path):
    _, folder = saved("llama 3", tmp_path / "m")
    change_weights(folder, lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"})
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        read_model(folder)
    change_config(folder, tie_word_embeddings=True)
    ours = read_model(folder)
    assert ours.output_weight is ours.embedding.token_embedding.weight


GATE = "model.layers.1.mlp.gate_proj.weight"


def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path):
    _, folder = saved("llama 3", tmp_path / "m")
    sound = (folder / "model.safetensors").read_bytes()
    layer = "model.layers.0.self_attn"
    for change, expected in (
            (lambda t: {k: v for k, v in t.items() if k != GATE},
             "gate_proj.weight is missing, which a llama of this config.json has"),
            (lambda t: {k: v for k, v in t.items() if "layers.1" not in k},
             "input_layernorm.weight, .*gate_proj.weight and 6 more are missing"),
            (lambda t: t | {f"{layer}.q_proj.lora_A": torch.ones(2)},
             "q_proj.lora_A is left over, which a llama .* an adapter"),
            (lambda t: t | {f"{layer}.q_proj.bias": torch.ones(32)}, "q_proj.bias is left over"),
            (lambda t: t | {GATE: t[GATE].T.contiguous()},
             r"gate_proj.weight has the shape \(32, 64\), config.json asks for \(64, 32\)"),
            (lambda t: t | {GATE: t[GATE][:-1].clone()}, r"\(63, 32\), config.json asks for"),
            (lambda t: t | {"model.norm.weight": torch.ones(1, 32)}, r"\(1, 32\)"),
            (lambda t: t | {GATE: (t[GATE] * 9).to(torch.int8)}, "gate_proj.weight is stored as "
             "int8; quantised weights are not supported"),
            (lambda t: t | {GATE: t[GATE].to(torch.float8_e4m3fn)}, "stored as float8_e4m3fn")):
        (folder / "model.safetensors").write_bytes(sound)
        change_weights(folder, change)
        with pytest.raises(UserError, match=expected):
            read_model(folder)


def test_two_more_of_a_fused_parts_rows_do_not_make_up_for_two_less_of_another(tmp_path):
    _, folder = saved("llama 3", tmp_path / "m")
    q, k = (f"model.layers.0.self_attn.{one}_proj.weight" for one in "qk")
    change_weights(folder, lambda t: t | {q: torch.cat((t[q], t[k][:2])), k: t[k][2:].clone()})
    with pytest.raises(UserError, match=r"q_proj.weight has the shape \(34, 32\)"):
        read_model(folder)


def test_what_is_a_hugging_face_folder(tmp_path):
    _, folder = saved("gpt2", tmp_path / "m")
    assert is_huggingface_folder(folder)
    assert not is_huggingface_folder(tmp_path)
    assert not is_huggingface_folder(tmp_path / "none")
    (folder / "config.json").write_text("{")
    assert is_huggingface_folder(folder)
    with pytest.raises(UserError, match=r"config\.json is damaged: it is not valid JSON"):
        find_model(str(folder)).config()
    for value, expected in (("[]", "no object"), ("{}", "model_type=None is not supported")):
        (folder / "config.json").write_text(value)
        with pytest.raises(UserError, match=expected):
            find_model(str(folder)).config()
    (folder / "config.json").write_text('{"format_version": 1, "model": {}}')
    assert not is_huggingface_folder(folder)  # one of ours, without its manifest


def test_the_hubs_cache_of_links_is_read(tmp_path):
    theirs, folder = saved("llama 3", tmp_path / "m", max_shard_size="40KB")
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/0c1d"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / f"{number}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{number}")
    lm = gpt.load(snapshot, dtype="float32")
    assert largest_difference(lm.model, theirs, TOKENS) <= 1e-4
    assert lm.tokenizer.encode("a")


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path):
    _, folder = saved("gpt2", tmp_path / "m")
    for name in ("model.safetensors", "config.json", "model.safetensors.index.json"):
        (folder / name).touch()
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} is a link that leads out of its folder"):
            read_model(folder)
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)


def test_a_model_that_is_read_holds_no_copy_of_what_needs_none(tmp_path):
    """Float32 tensors that are not fused stay in the file's pages until they are used."""
    _, folder = saved("gpt2 untied", tmp_path / "m")
    ours = read_model(folder)
    assert not ours.training
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in ours.parameters())
    assert isinstance(ours.config, ModelConfig) and ours.config.n_inner == 40


def test_a_trained_model_differs_from_its_file_and_the_file_stays(tmp_path):
    """The file's pages are a private copy: what is learned never reaches the disk."""
    _, folder = saved("gpt2", tmp_path / "m")
    before = (folder / "model.safetensors").read_bytes()
    ours = read_model(folder)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1.0)
    assert (folder / "model.safetensors").read_bytes() == before


def test_what_nobody_asked_for_is_named_once(tmp_path, capsys):
    _, folder = saved("gpt2", tmp_path / "m")
    capsys.readouterr()
    gpt.load(folder)
    assert capsys.readouterr().err == ""  # transformers' own options are all known
    change_config(folder, attention_sink=4, mixture={"of": 2}, nothing=None)
    gpt.load(folder)
    err = capsys.readouterr().err
    assert err.count("not understood, and not used: attention_sink, mixture") == 1
