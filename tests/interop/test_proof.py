"""The proof of a Hugging Face export: whatever is written wrongly is noticed, named and deleted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from gpt.errors import WorkFailed
from gpt.interop import equivalent, export_huggingface, proof, reading, writing
from gpt.interop.architectures import Architecture
from gpt.interop.architectures.rope import Rope
from gpt.interop.model_card import About
from gpt.interop.options import Options
from gpt.tokenizer import build_tokenizer
from tests.tiny import ARCHITECTURES, tiny_config, tiny_gpt

REPORT = "the export is wrong and was deleted: .*please report this with the "


def tokenizer() -> Any:
    return build_tokenizer("bpe:300", [proof._AWKWARD, "the thing that thinks " * 30])


def refused(tmp_path, expected: str, **changes: Any) -> None:
    model = tiny_gpt(vocab_size=300, **{"block_size": 64, **changes})
    with pytest.raises(WorkFailed, match=expected) as failure:
        export_huggingface(model, tokenizer(), tmp_path / "out", About("x"))
    assert str(failure.value).startswith("the export is wrong and was deleted: ")
    assert not list(tmp_path.iterdir())


def corrupt_tensors(monkeypatch, change: Callable[[dict], dict]) -> None:
    right = writing.their_tensors
    monkeypatch.setattr(writing, "their_tensors", lambda *given: change(right(*given)))


def swapped(one: str, other: str) -> Callable[[dict], dict]:
    return lambda tensors: tensors | {one: tensors[other], other: tensors[one]}


LAYERS = "model.layers.{}.mlp.down_proj.weight"
WRONG_TENSORS = {
    "two layers": ({}, swapped(LAYERS.format(1), LAYERS.format(2)), "block 1 differs by"),
    "the last two layers": ({}, swapped(LAYERS.format(0), LAYERS.format(2)), "block 0 differs by"),
    "gate and value": ({}, swapped(*(f"model.layers.2.mlp.{one}_proj.weight" for one in (
        "gate", "up"))), "block 2 differs by"),
    "queries and keys": ({"n_kv_head": 4}, swapped(*(f"model.layers.0.self_attn.{one}_proj.weight"
                                                   for one in "qk")), "block 0 differs by"),
    "table": ({}, lambda t: t | {
        "model.embed_tokens.weight": t["model.embed_tokens.weight"] * 1.01},
        "embedding differs by"),
    "head": ({}, lambda t: t | {"lm_head.weight": t["lm_head.weight"].flip(0)}, "logits differs"),
    "last norm": ({}, lambda t: t | {"model.norm.weight": t["model.norm.weight"] + 0.01},
                  "final norm differs by"),
    "not a number": ({}, lambda t: t | {"lm_head.weight": t["lm_head.weight"] * torch.nan},
                     "logits differs by nan"),
    "missing": ({}, lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"},
                "model.norm.weight is missing"),
    "turned": (ARCHITECTURES["gpt2"], lambda t: t | {"transformer.h.1.attn.c_proj.weight": t[
        "transformer.h.1.attn.c_proj.weight"].T.contiguous()}, "block 1 differs by"),
    "positions": (ARCHITECTURES["gpt2"], lambda t: t | {"transformer.wpe.weight": t[
        "transformer.wpe.weight"].roll(1, 0)}, "embedding differs by"),
}


@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_wrong_weights_are_noticed_and_the_layer_is_named(name, tmp_path, monkeypatch):
    changes, change, expected = WRONG_TENSORS[name]
    corrupt_tensors(monkeypatch, change)
    refused(tmp_path, expected, n_layer=3, **changes)


@dataclasses.dataclass(frozen=True)
class Careless:
    """Options that are written wrong."""

    options: dict[str, Any]

    def read(self, options: Options, fields: dict[str, Any]) -> dict[str, Any]:
        return {}

    def write(self, config: Any) -> dict[str, Any]:
        return self.options


def exported_as(monkeypatch, change: Callable[[Architecture], Architecture],
                read_too: bool = False) -> None:
    """Let models be written, and read, by another table than the right one."""
    def standard(config):
        right, found = equivalent.standard(config)
        if read_too:
            monkeypatch.setitem(reading.ARCHITECTURES, right.model_type, change(right))
        return change(right), found
    monkeypatch.setattr(writing, "standard", standard)


WRONG_OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "eps": ({}, {"rms_norm_eps": 1e-5}, "model.norm_eps is 1e-05, not 1e-06"),
    "base": ({}, {"rope_theta": 9_000.0}, "model.rope_base is 9000.0, not 10000.0"),
    "context": ({}, {"max_position_embeddings": 63}, "model.block_size is 63, not 64"),
    "window": (ARCHITECTURES["windows"], {"sliding_window": 6},
               r"model.windows is \[6, None\], not \[5, None\]"),
    "layers": (ARCHITECTURES["windows"], {"layer_types": ["full_attention", "sliding_attention"]},
               r"model.windows is \[None, 5\], not \[5, None\]"),
    "scaling": (ARCHITECTURES["llama"], {"rope_scaling": None}, "model.rope_scaling is None, not"),
    "heads": ({"n_kv_head": 4, "qk_norm": False}, {
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16},
        "model.n_head is 2, not 4"),
    "activation": (ARCHITECTURES["gpt2"], {"activation_function": "gelu"},
                   "model.mlp is gelu, not gelu_tanh"),
    "size": ({}, {"vocab_size": 301}, r"the shape \(300, 32\), config.json asks for \(301, 32\)"),
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_wrong_options_are_noticed_and_named(name, tmp_path, monkeypatch):
    changes, wrong, expected = WRONG_OPTIONS[name]

    exported_as(monkeypatch, lambda right: dataclasses.replace(
        right, rows=(*right.rows, Careless(wrong))))
    refused(tmp_path, expected, **changes)


def test_a_mistake_that_reader_and_writer_share_is_noticed_by_transformers(tmp_path, monkeypatch):
    """Were value and gate taken for each other both ways, our own reading would find nothing."""
    def mistaken(right: Architecture) -> Architecture:
        names = right.names.inside | {"feedforward.up_proj": ("mlp.up_proj", "mlp.gate_proj")}
        return dataclasses.replace(right, names=dataclasses.replace(right.names, inside=names))
    exported_as(monkeypatch, mistaken, read_too=True)
    refused(tmp_path, "read back by transformers, block 0 differs by")


def test_an_option_misnamed_both_ways_is_noticed_by_transformers(tmp_path, monkeypatch):
    exported_as(monkeypatch, lambda right: dataclasses.replace(
        right, rows=(*right.rows[:-1], Rope(base_name="rope_bass"))), read_too=True)
    refused(tmp_path, "read back by transformers, block 0 differs by", rope_base=50.0)


def without_last_merge(definition: dict[str, Any]) -> None:
    definition["model"]["merges"].pop()


def other_first_merge(definition: dict[str, Any]) -> None:
    merges = definition["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


def other_pattern(definition: dict[str, Any]) -> None:
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\s+|\S+"}


def two_ids_swapped(definition: dict[str, Any]) -> None:
    vocab = definition["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


@pytest.mark.parametrize("change", [without_last_merge, other_first_merge, other_pattern,
                                    two_ids_swapped])
def test_a_wrong_tokenizer_is_noticed_and_the_place_is_named(change, tmp_path, monkeypatch):
    right = writing.tokenizer_json

    def wrong(given) -> str:
        definition = json.loads(right(given))
        change(definition)
        return json.dumps(definition)
    monkeypatch.setattr(writing, "tokenizer_json", wrong)
    refused(tmp_path, r"this toolkit encodes the sample text differently from token \d+ on; please")


def test_ids_that_transformers_alone_reads_otherwise_are_noticed(tmp_path, monkeypatch):
    right = writing.tokenizer_config
    monkeypatch.setattr(writing, "tokenizer_config", lambda *given: right(*given) | {
        "extra_special_tokens": {"word": "the"}})
    monkeypatch.setattr(writing, "read_huggingface_tokenizer", lambda folder: tokenizer())
    monkeypatch.setattr(proof, "transformers_ids", lambda folder, text: [1, *range(9)])
    refused(tmp_path, "transformers encodes the sample text differently from token 0 on")


def test_what_transformers_cannot_open_is_one_line(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no such architecture")
    for one in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        with monkeypatch.context() as patch:
            patch.setattr(one, "from_pretrained", fail)
            refused(tmp_path, r"transformers \d.* cannot open it \(ValueError: no such arch")


def test_states_are_compared_in_the_order_of_the_layers():
    states = {"embedding": torch.ones(2), "block 0": torch.ones(2), "logits": torch.ones(2)}
    assert proof.compare_states(states, {"logits": torch.ones(2) + 9e-5}, "x") == pytest.approx(
        9e-5, rel=1e-3)
    for name in states:
        with pytest.raises(WorkFailed, match=rf"read back by x, {name} differs by 0\.1 "):
            proof.compare_states(states, {**states, name: torch.ones(2) * 1.1}, "x")
    with pytest.raises(WorkFailed, match="embedding differs"):
        proof.compare_states(states, {k: v + 1 for k, v in states.items()}, "x")
    with pytest.raises(WorkFailed, match=r"differs by 0\.00011 "):
        proof.compare_states(states, {"logits": torch.ones(2) + 1.1e-4}, "x")
    large = {"logits": torch.tensor([1000.0, 1.0])}
    proof.compare_states(large, {"logits": torch.tensor([1000.05, 1.0])}, "x")
    small = {"logits": torch.tensor([0.01])}
    proof.compare_states(small, {"logits": torch.tensor([0.01009])}, "x")
    with pytest.raises(WorkFailed):
        proof.compare_states(large, {"logits": torch.tensor([1000.2, 1.0])}, "x")


def test_ids_are_compared_to_their_end():
    proof.compare_ids([1, 2], [1, 2], "x")
    for found, place in (([1, 3], 1), ([1], 1), ([1, 2, 3], 2), ([], 0)):
        with pytest.raises(WorkFailed, match=f"x encodes .* from token {place} on"):
            proof.compare_ids([1, 2], found, "x")


def test_options_that_change_nothing_are_not_compared():
    learned = {**ARCHITECTURES["gpt2"]}
    proof.compare_options(tiny_config(**learned, rope_base=5.0, dropout=0.5),
                          tiny_config(**learned))
    proof.compare_options(tiny_config(window=5, window_pattern="SFS"),
                          tiny_config(window=5, window_pattern="SF"))
    with pytest.raises(WorkFailed, match=r"model.rope_base is 10000.0, not 5.0"):
        proof.compare_options(tiny_config(rope_base=5.0), tiny_config())


def test_the_sample_holds_every_token_and_awkward_text():
    made = tokenizer()
    text = proof.sample_text(made)
    ids = set(made.encode(text))
    whole = {i for i in made.text_ids if made.decode_bytes([i]).isascii()}
    assert len(whole & ids) > 0.9 * len(whole) and len(ids) > 150
    tokens = proof.sample_tokens(made, 64, 999)
    assert tokens.shape == (2, 64) and tokens[1].max() > 300
    assert torch.equal(tokens, proof.sample_tokens(made, 64, 999))
    assert tokens[0].tolist() == made.encode(text)[:64]
    assert proof.sample_tokens(made, 4096, 999).shape == (2, 256)


def test_states_are_those_of_the_layers():
    model = tiny_gpt()
    tokens = torch.arange(8).view(1, 8)
    states = proof.layer_states(model, tokens)
    assert list(states) == ["embedding", "block 0", "block 1", "final norm", "logits"]
    assert torch.equal(states["logits"], model(tokens))
    assert torch.equal(states["embedding"], model.embedding(tokens, torch.arange(8)))
    assert torch.equal(states["final norm"], model.final_norm(states["block 1"]))
    assert not model._forward_hooks and not model.embedding._forward_hooks


def test_transformers_warnings_are_held_back_and_come_again(monkeypatch):
    from transformers.utils import logging
    logging.set_verbosity_warning()
    logging.enable_progress_bar()
    with proof._quiet_transformers():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == logging.WARNING
    assert logging.is_progress_bar_enabled()


def test_a_token_whose_double_is_merged_otherwise_is_needed_in_the_sample():
    """Doubled, ' `' is ' ' and '``' where that is merged first."""
    text = "``` ```` ``" * 50 + "\nan `a` or `b` in 1 `c`" * 5
    tokenizer = build_tokenizer("bpe:270", [text])
    fence, tick = (tokenizer.encode(part) for part in ("``", " `"))
    assert len(fence) == len(tick) == 1 and fence[0] < tick[0]
    assert tick[0] not in tokenizer.encode(" ``")
    lines = proof.sample_text(tokenizer).split("\n")
    assert any(tick[0] in tokenizer.encode(line) and line[:2] == " `" and line[2] != "a"
               for line in lines)
