"""Adapters of PEFT in our hands and ours in PEFT's: the same function on the same base."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from gpt.configuration import AdapterConfig
from gpt.errors import UserError, WorkFailed
from gpt.interop import read_model
from gpt.interop.equivalent import standard, standard_form
from gpt.interop.peft import writing as our_peft
from gpt.interop.peft.reading import read_peft
from gpt.interop.peft.writing import export_peft
from gpt.interop.writing import write_folder
from gpt.model import GPT
from gpt.model.lora import adapt, adapter_state, base_state, chosen_parts, load_adapter_state
from tests.finetuning.conversations import BYTES
from tests.interop.models import VOCAB, bpe, largest_difference, saved
from tests.model.published import assert_nearly_equal
from tests.tiny import ARCHITECTURES, random_tokens, tiny_gpt

TOLERANCE = 1e-4  # as for whole models: float32 sums in another order
TOKENS = random_tokens(2, 24)
THEIR_TOKENS = random_tokens(2, 24, vocab_size=VOCAB)
METHODS: dict[str, dict[str, Any]] = {
    "lora": {}, "dora": {"method": "dora"}, "rslora": {"rslora": True}}
LAYERNORM: dict[str, Any] = {"norm": "layernorm", "qk_norm": False}
# Architectures of Hugging Face, and what an exported base is rewritten in.
OURS: dict[str, dict[str, Any]] = {
    "qwen3": {}, "qwen3 tied": ARCHITECTURES["tied"], "llama": ARCHITECTURES["llama"],
    "mistral": {"qk_norm": False, "window": 5}, "gpt2": ARCHITECTURES["gpt2"],
    "waves": {**ARCHITECTURES["vaswani"], "tie_embeddings": True},
    "gpt2, scaled": {**ARCHITECTURES["gpt2"], "residual_scale": 0.3},
    "qwen3, scaled": {"head_dim": 12, "residual_scale": 0.5},
    "qwen2": {"qk_norm": False, "bias": ["qkv_proj"]},
    "pythia": {**LAYERNORM, "n_kv_head": 4, "residual": "parallel", "bias": True, "mlp": "gelu",
               "rope_dim": 4},
    "falcon": {**LAYERNORM, "n_kv_head": 2, "residual": "parallel", "bias": ["norm"],
               "mlp": "gelu"},
    "glm4": {"qk_norm": False, "norm_placement": "both", "bias": ["qkv_proj"], "rope_dim": 4,
             "model_type": "glm4"},
    "gemma2": {"qk_norm": False, "norm_placement": "both", "norm": "rmsnorm_1p", "mlp": "geglu",
               "embedding_scale": 32 ** 0.5, "attention_softcap": 2.0, "logit_softcap": 5.0},
    "phi3": {"qk_norm": False, "rope_dim": 4, "model_type": "phi3"},
    "granite": {"qk_norm": False, "residual_scale": 0.3, "model_type": "granite"}}
EVERY_MATRIX = {
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}


@torch.no_grad()
def learn(parameters: dict[str, Tensor]) -> None:
    """Give an adapter values that training might have given it."""
    for name, tensor in parameters.items():
        if name.endswith(".B") or "lora_B" in name:
            tensor.normal_(std=0.1)
        elif "magnitude" in name:
            tensor.mul_(1 + 0.3 * torch.rand_like(tensor))


def adapter(**changes: Any) -> AdapterConfig:
    return AdapterConfig(**{"rank": 4, "alpha": 6.0, **changes})


def adapted(config: AdapterConfig, **changes: Any) -> GPT:
    """A model of ours with an adapter that has learned."""
    model = tiny_gpt(**changes)
    adapt(model, config)
    learn(adapter_state(model))
    return model


def with_adapter(model: GPT, folder: Path) -> GPT:
    """A base with what our reader finds in a folder."""
    config, tensors = read_peft(folder, model)
    adapt(model, config)
    load_adapter_state(model, tensors)
    return model


# ----- Ours in PEFT's hands

def exported_base(model: GPT, folder: Path) -> PreTrainedModel:
    """The model under an adapter, as transformers opens its export."""
    plain = GPT(model.config)
    plain.load_state_dict(base_state(model))
    architecture, _ = standard(model.config)
    folder.mkdir()
    write_folder(folder, standard_form(plain), bpe(), architecture, 10**9)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def in_peft(model: GPT, folder: Path) -> PreTrainedModel:
    """An adapted model, exported and opened by PEFT."""
    peft = pytest.importorskip("peft")
    base = exported_base(model, folder / "base")
    told = export_peft(model, BYTES, folder / "adapter", "me/base")
    assert told.startswith("read back by this toolkit: logits differ by at most ")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of weights that are missing or left over
        return peft.PeftModel.from_pretrained(base, str(folder / "adapter")).eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OURS)
def test_peft_computes_what_our_adapter_computes(name, method, tmp_path):
    model = adapted(adapter(**METHODS[method]), **OURS[name])
    assert largest_difference(model, in_peft(model, tmp_path), TOKENS) <= TOLERANCE
    with torch.no_grad():
        assert (model(TOKENS) - tiny_gpt(**OURS[name])(TOKENS)).abs().max() > 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["k_proj"], ["out_proj"], ["down_proj"],
                                     ["feedforward"]], ids="+".join)
@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_peft_adapts_the_targets_and_nothing_else(name, targets, method, tmp_path):
    """c_proj alone would be two matrices of GPT-2; of c_attn some rows may stay as they are."""
    model = adapted(adapter(targets=targets, **METHODS[method]), **OURS[name])
    assert largest_difference(model, in_peft(model, tmp_path), TOKENS) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in OURS if name != "gpt2, scaled"])
def test_what_was_exported_is_read_back_to_the_bit(name, method, tmp_path):
    for number, targets in enumerate((["q_proj", "v_proj", "out_proj"], ["down_proj"])):
        config = adapter(dropout=0.25, targets=targets, **METHODS[method])
        model = adapted(config, **OURS[name])
        export_peft(model, BYTES, tmp_path / str(number), "me/base")
        found, tensors = read_peft(tmp_path / str(number), tiny_gpt(**OURS[name]))
        assert found == config
        expected = adapter_state(model)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)


def test_a_factor_in_the_exported_base_is_taken_out_again(tmp_path):
    model = adapted(adapter(method="dora"), **OURS["gpt2, scaled"])
    export_peft(model, BYTES, tmp_path / "a", "me/base")
    tensors = read_peft(tmp_path / "a", tiny_gpt(**OURS["gpt2, scaled"]))[1]
    stored = load_file(tmp_path / "a/adapter_model.safetensors")
    name = "blocks.1.attention.out_proj.lora.out_proj.B"
    assert_nearly_equal(tensors[name], adapter_state(model)[name])
    assert_nearly_equal(stored["base_model.model.transformer.h.1.attn.c_proj.lora_B.weight"],
                        0.3 * adapter_state(model)[name])


def test_the_folder_says_what_others_need_to_know(tmp_path):
    export_peft(adapted(adapter(method="dora"), **OURS["gpt2"]), BYTES, tmp_path / "a", "me/base")
    found = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert found == found | {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "me/base", "r": 4,
        "lora_alpha": 6, "use_dora": True, "use_rslora": False, "lora_dropout": 0.0, "bias": "none",
        "target_modules": EVERY_MATRIX["gpt2"], "rank_pattern": {"attn.c_attn": 12},
        "alpha_pattern": {"attn.c_attn": 18}, "fan_in_fan_out": True}
    export_peft(adapted(adapter(alpha=0.5)), BYTES, tmp_path / "b", "me/base")
    found = json.loads((tmp_path / "b/adapter_config.json").read_text())
    assert found == found | {
        "lora_alpha": 0.5, "rank_pattern": {}, "fan_in_fan_out": False,
        "target_modules": sorted(EVERY_MATRIX["llama"])}


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_a_fresh_adapter_stays_one_that_can_learn(name, tmp_path):
    model = tiny_gpt(**OURS[name])
    adapt(model, adapter())
    export_peft(model, BYTES, tmp_path / "a", "me/base")
    again = with_adapter(tiny_gpt(**OURS[name]), tmp_path / "a")
    assert torch.equal(again(TOKENS), model(TOKENS))
    assert chosen_parts(again.adapter.targets, model.config) == chosen_parts(["all"], model.config)
    again(TOKENS).square().sum().backward()
    assert all(tensor.grad.any() for key, tensor in again.named_parameters() if key.endswith(".B"))


@pytest.mark.parametrize("dead", [[0], [0, 1, 2, 3]], ids=["one", "all"])
def test_what_can_never_learn_is_no_part_of_a_joint_matrix(dead, tmp_path):
    """Where A and B are both zero neither has a gradient; c_attn's other parts need none of it."""
    model = adapted(adapter(method="dora", targets=["q_proj"]), **OURS["gpt2"])
    bury(model, dead)
    export_peft(model, BYTES, tmp_path / "a", "me/base")
    again = with_adapter(tiny_gpt(**OURS["gpt2"]), tmp_path / "a")
    assert again.adapter.targets == ["q_proj"]
    assert again.adapter.rank == max(1, 4 - len(dead))
    assert_nearly_equal(again(TOKENS), model(TOKENS))


def test_what_can_never_learn_keeps_its_place_in_a_matrix_of_its_own(tmp_path):
    model = adapted(adapter(), **OURS["qwen3"])
    bury(model, [1])
    export_peft(model, BYTES, tmp_path / "a", "me/base")
    tensors = read_peft(tmp_path / "a", tiny_gpt(**OURS["qwen3"]))[1]
    assert all(torch.equal(tensors[key], one) for key, one in adapter_state(model).items())


def bury(model: GPT, components: list[int]) -> None:
    """Make components of A and B zero."""
    for name, tensor in adapter_state(model).items():
        if name.endswith(".A"):
            tensor[components] = 0.0
        elif name.endswith(".B"):
            tensor[:, components] = 0.0


def test_an_adapter_of_an_int8_base_is_exported_as_it_is(tmp_path):
    model = adapted(adapter(base="int8", method="dora"))
    export_peft(model, BYTES, tmp_path / "a", "me/base")
    config, tensors = read_peft(tmp_path / "a", tiny_gpt())
    assert config.base == "full"
    expected = adapter_state(model)
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="this model has no adapter; export the model itself"):
        export_peft(tiny_gpt(), BYTES, tmp_path / "a", "me/base")
    with pytest.raises(UserError, match=r"cannot express model\.logit_softcap=8\.0"):
        export_peft(adapted(adapter(), logit_softcap=8.0), BYTES, tmp_path / "a", "me/base")
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match="taken exists already"):
        export_peft(adapted(adapter()), BYTES, tmp_path / "taken", "me/base")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("wrong", ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"])
def test_a_wrong_export_is_found_and_deleted(wrong, tmp_path, monkeypatch):
    right = our_peft._their_update
    monkeypatch.setattr(our_peft, "_their_update", lambda *given: {
        name: tensor * (1.05 if name == wrong else 1) for name, tensor in right(*given).items()})
    with pytest.raises(WorkFailed, match="the export is wrong and was deleted: read back by this "
                                         "toolkit, block 0 differs"):
        export_peft(adapted(adapter(method="dora")), BYTES, tmp_path / "a", "me/base")
    monkeypatch.setattr(our_peft, "_their_update", lambda *given: {
        name: tensor for name, tensor in right(*given).items() if name != wrong})
    with pytest.raises(WorkFailed, match=f"deleted: .*{wrong} is missing"):
        export_peft(adapted(adapter(method="dora")), BYTES, tmp_path / "a", "me/base")
    assert not list(tmp_path.iterdir())


# ----- PEFT's in our hands

def made_by_peft(name: str, folder: Path, **options: Any) -> tuple[PreTrainedModel, GPT]:
    """(a model of transformers with an adapter that PEFT saved, as PEFT reads it; as we do)"""
    peft = pytest.importorskip("peft")
    base, path = saved(name, folder / "base")
    kind = "gpt2" if name.startswith("gpt2") else "llama"
    config = {"r": 4, "lora_alpha": 6, "target_modules": EVERY_MATRIX[kind],
              "fan_in_fan_out": kind == "gpt2", "task_type": "CAUSAL_LM", **options}
    torch.manual_seed(0)
    made = peft.get_peft_model(base, peft.LoraConfig(**config))
    learn(dict(made.named_parameters()))
    made.save_pretrained(folder / "adapter")
    # Not the one that was made: patterns are saved in another order than they were given in.
    theirs = peft.PeftModel.from_pretrained(made.unload(), str(folder / "adapter"),
                                            is_trainable=True)
    return theirs.eval(), with_adapter(read_model(path), folder / "adapter")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gpt2", "gpt2 untied", "llama 3", "llama biases", "mistral",
                                  "qwen3"])
def test_we_compute_what_pefts_adapter_computes(name, method, tmp_path):
    theirs, ours = made_by_peft(name, tmp_path, use_rslora=method == "rslora",
                                use_dora=method == "dora")
    assert ours.adapter == adapter(**METHODS[method], targets=ours.adapter.targets)
    assert largest_difference(ours, theirs, THEIR_TOKENS) <= TOLERANCE
    with torch.no_grad(), theirs.disable_adapter():
        assert (theirs(THEIR_TOKENS).logits - ours(THEIR_TOKENS)).abs().max() > 0.1


UNEVEN: dict[str, dict[str, Any]] = {
    "ranks": {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7}},
    "scales": {"alpha_pattern": {"o_proj": 1, "^model.layers.0.self_attn.v_proj": 20}},
    "first pattern": {"rank_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 3},
                      "alpha_pattern": {"q_proj": 3, "layers.0.self_attn.q_proj": 9}},
    "smaller everywhere": {"target_modules": ["q_proj", "v_proj"],
                           "rank_pattern": {"q_proj": 2, "v_proj": 3}},
    "some layers": {"layers_to_transform": [1]},
    "one layer": {"target_modules": r".*\.0\.self_attn\.[qv]_proj"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["layers.0.mlp.down_proj"]}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("uneven", UNEVEN)
def test_matrices_may_have_ranks_and_scales_of_their_own_or_nothing(uneven, method, tmp_path):
    theirs, ours = made_by_peft("llama 3", tmp_path, use_rslora=method == "rslora",
                                use_dora=method == "dora", **UNEVEN[uneven])
    assert largest_difference(ours, theirs, THEIR_TOKENS) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [
    {"target_modules": ["c_attn"], "rank_pattern": {r"h\.1\.attn\.c_attn": 2}},
    {"target_modules": ["c_proj"], "rank_pattern": {"mlp.c_proj": 3}},
    {"target_modules": ["c_attn", "c_fc"], "alpha_pattern": {"c_fc": 2}, "layers_to_transform": 0,
     "layers_pattern": "h"}], ids=["queries, keys, values", "two by one name", "one layer"])
def test_gpt2s_matrices_too(options, method, tmp_path):
    theirs, ours = made_by_peft("gpt2", tmp_path, use_rslora=method == "rslora",
                                use_dora=method == "dora", **options)
    assert largest_difference(ours, theirs, THEIR_TOKENS) <= TOLERANCE


def test_what_was_filled_up_with_zeros_stays_so_in_training(tmp_path):
    ours = made_by_peft("llama 3", tmp_path, rank_pattern={"q_proj": 2},
                        layers_to_transform=[0])[1].train()
    optimizer = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=0.1)
    before = {name: tensor.clone() for name, tensor in adapter_state(ours).items()}
    ours(THEIR_TOKENS).square().mean().backward()
    optimizer.step()
    after = adapter_state(ours)
    for place in ("blocks.0.attention.qkv_proj.lora.q_proj", "blocks.1.attention.out_proj.lora"
                  ".out_proj"):
        columns = slice(2, None) if "q_proj" in place.split(".")[-1] else slice(None)
        assert not after[f"{place}.A"][columns].any() and not after[f"{place}.B"][:, columns].any()
    name = "blocks.0.attention.qkv_proj.lora.q_proj.A"
    assert not torch.equal(after[name][:2], before[name][:2])  # what was read did learn


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_peft(method, tmp_path):
    theirs, ours = made_by_peft("llama 3", tmp_path, use_rslora=method == "rslora",
                                use_dora=method == "dora")
    targets = THEIR_TOKENS[:, 1:].flatten()
    for logits in (ours(THEIR_TOKENS), theirs(THEIR_TOKENS).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), targets).backward()
    found = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert len(found) == len(adapter_state(ours))
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            assert_nearly_equal(parameter.grad, found[their_name(name)])


def their_name(name: str) -> str:
    """Of a weight of a Llama's adapter; not taken from gpt/interop, which is tested here."""
    _, block, layer, _, _, part, what = name.split(".")
    part = "o_proj" if part == "out_proj" else part
    kind = {"A": "lora_A.default.weight", "B": "lora_B.default.weight",
            "magnitude": "lora_magnitude_vector.default.weight"}[what]
    layer = "self_attn" if layer == "attention" else "mlp"
    return f"base_model.model.model.layers.{block}.{layer}.{part}.{kind}"


@pytest.mark.parametrize("beginning", ["gaussian", "orthogonal", False])
def test_how_an_adapter_began_makes_no_difference(beginning, tmp_path):
    theirs, ours = made_by_peft("llama 3", tmp_path, init_lora_weights=beginning)
    assert largest_difference(ours, theirs, THEIR_TOKENS) <= TOLERANCE


def test_half_precision_becomes_float32_exactly(tmp_path):
    made_by_peft("llama 3", tmp_path)
    path = tmp_path / "adapter/adapter_model.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(half, path)
    tensors = read_peft(tmp_path / "adapter", read_model(tmp_path / "base"))[1]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    name = "blocks.1.feedforward.down_proj.lora.down_proj.A"
    assert torch.equal(tensors[name], half[
        "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].float())


# ----- What is refused

@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(our model, a folder with an adapter for it)"""
    folder = tmp_path_factory.mktemp("peft")
    model = adapted(adapter(), **OURS["llama"])
    export_peft(model, BYTES, folder / "adapter", "me/base")
    return tiny_gpt(**OURS["llama"]), folder / "adapter"


def changed(folder: Path, to: Path, **values: Any) -> Path:
    """A copy of a folder with other values in adapter_config.json."""
    to.mkdir()
    (to / "adapter_model.safetensors").write_bytes(
        (folder / "adapter_model.safetensors").read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text()) | values
    (to / "adapter_config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize(("values", "message"), [
    ({"peft_type": "IA3"}, "peft_type='IA3' is not supported; this toolkit computes with 'LORA'"),
    ({"bias": "lora_only"}, "bias='lora_only' is not supported; this toolkit computes with 'none'"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported; merge it "
                                       r"with PEFT \(merge_and_unload\) and use the merged model"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' is not supported: "
                                             "it may have changed the base; save the adapter with "
                                             "path_initial_model_for_weight_conversion, or merge"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq' is not supported"),
    ({"init_lora_weights": "olora"}, "init_lora_weights='olora' is not supported"),
    ({"lora_bias": True}, "lora_bias=True is not supported"),
    ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication=.* is not supported"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices=.* is not supported"),
    ({"target_parameters": ["a.b"]}, "target_parameters=.* is not supported"),
    ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens=.* is not supported"),
    ({"use_something_new": {"a": 1}}, "use_something_new=.* is not supported"),
    ({"use_dora": True}, "lora_magnitude_vector is missing; fetch the folder again"),
    ({"r": 8}, r"lora_A.weight has the shape \(4, 32\), the model and adapter_config.json ask for "
               r"\(8, 32\); they do not belong together"),
    ({"r": 0}, "r must be a whole number from 1"),
    ({"lora_alpha": "x"}, "lora_alpha must be a number, not 'x'"),
    ({"lora_alpha": -1}, r"config.json: alpha \(as this toolkit calls it\): .*greater than"),
    ({"lora_dropout": 1.0}, r"dropout \(as this toolkit calls it\): .*less than 1"),
    ({"rank_pattern": [4]}, "rank_pattern must be an object, not "),
    ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern: q_proj must be a number, not 'x'"),
    ({"alpha_pattern": {"q_proj(": 4}}, r"alpha_pattern has 'q_proj\(', which is no regular "
                                        "expression"),
    ({"rank_pattern": {"(a+)+$": 4}}, r"rank_pattern has '\(a\+\)\+\$', which could take for ever"),
    ({"alpha_pattern": {".*.*.*.*!": 4}}, r"alpha_pattern has '.*!', which could take for ever"),
    ({"use_rslora": "yes"}, "use_rslora='yes' is not supported")])
def test_what_would_be_computed_differently_is_refused_by_name(values, message, llama, tmp_path):
    model, folder = llama
    with pytest.raises(UserError, match=message) as error:
        read_peft(changed(folder, tmp_path / "a", **values), model)
    assert "\n" not in str(error.value) and str(tmp_path / "a") in str(error.value)


@pytest.mark.parametrize("values", [
    {"use_qalora": False, "megatron_config": None, "loftq_config": {}, "peft_version": "99",
     "lora_bias": False, "layer_replication": None, "eva_config": None, "target_parameters": []},
    {"init_lora_weights": None, "rank_pattern": None, "target_modules": "all-linear"}])
def test_options_that_are_off_are_no_obstacle(values, llama, tmp_path):
    model, folder = llama
    expected = read_peft(folder, model)
    found = read_peft(changed(folder, tmp_path / "a", **values), model)
    assert found[0] == expected[0] and found[1].keys() == expected[1].keys()


LORA_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t | {"base_model.model.lm_head.lora_A.weight": t[LORA_A] + 0},
     "safetensors: lm_head.lora_A.weight cannot be used: of this model, attention and feed-forward "
     "can be adapted; merge it with PEFT"),
    (lambda t: t | {"base_model.model.model.embed_tokens.lora_embedding_A": t[LORA_A] + 0,
                    "base_model.model.model.norm.weight": t[LORA_A] + 0},
     r"model.embed_tokens.lora_embedding_A, model\.norm\.weight cannot be used"),
    (lambda t: t | {LORA_A.replace("layers.0", "layers.2"): t[LORA_A] + 0},
     "model.layers.2.self_attn.q_proj.lora_A.weight cannot be used"),
    (lambda t: t | {LORA_A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(32)},
     "q_proj.lora_magnitude_vector cannot be used"),
    (lambda t: {name: one for name, one in t.items() if name != LORA_A},
     "layers.0.self_attn.q_proj.lora_A.weight is missing"),
    (lambda t: t | {LORA_A: t[LORA_A][:, :8].clone()}, r"lora_A.weight has the shape \(4, 8\), "),
    (lambda t: t | {LORA_A: t[LORA_A].to(torch.int8)}, "is stored as torch.int8; it must be a"),
    (lambda t: {}, "holds no adapter; fetch it again")])
def test_weights_that_do_not_fit_are_refused_by_name(change, message, llama, tmp_path):
    model, folder = llama
    path = changed(folder, tmp_path / "a") / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(UserError, match=message) as error:
        read_peft(tmp_path / "a", model)
    assert str(path) in str(error.value)


def test_a_pickled_adapter_is_refused_with_the_command_that_converts_it(llama, tmp_path):
    model, source = llama
    folder = changed(source, tmp_path / "a")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors, .*; convert the pickled "
                                        r"adapter_model\.bin once: python -c") as error:
        read_peft(folder, model)
    command = shlex.split(str(error.value).partition(" once: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    expected = read_peft(source, model)[1]
    assert all(torch.equal(tensor, expected[name])
               for name, tensor in read_peft(folder, model)[1].items())


def test_damaged_and_missing_files_are_named(llama, tmp_path):
    model, source = llama
    with pytest.raises(UserError, match=r"cannot read .*adapter_config\.json"):
        read_peft(tmp_path, model)
    folder = changed(source, tmp_path / "a")
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is no sound safetensors file"):
        read_peft(folder, model)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors, in which .* read$"):
        read_peft(folder, model)
    (folder / "adapter_model.safetensors").symlink_to(source / "adapter_model.safetensors")
    with pytest.raises(UserError, match="is a link that leads out of its folder"):
        read_peft(folder, model)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"adapter_config\.json is damaged: it is no object"):
        read_peft(folder, model)


def test_an_adapter_for_a_model_that_has_no_counterpart_is_refused(llama):
    with pytest.raises(UserError, match=r"cannot express model\.logit_softcap=8\.0"):
        read_peft(llama[1], tiny_gpt(logit_softcap=8.0))
