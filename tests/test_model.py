"""The model against independent implementations, and the properties it must have."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from gpt.config import ModelConfig
from gpt.model import GPT, KVCache, flops_per_token, parameter_count
from gpt.model.embedding import rotate, rotations, sinusoids
from tests.tiny import ARCHITECTURES, random_tokens, tiny_gpt

architectures = pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)


@architectures
def test_editing_a_token_never_changes_earlier_logits(changes):
    model = tiny_gpt(**changes)
    tokens = random_tokens(2, 8)
    edited = tokens.clone()
    edited[:, 5] = (edited[:, 5] + 1) % model.config.vocab_size

    with torch.no_grad():
        before, after = model(tokens), model(edited)  # (2, 8, V)

    assert_close(after[:, :5], before[:, :5], rtol=0, atol=0)
    assert (after[:, 5:] != before[:, 5:]).any(dim=-1).all()  # every later position saw the edit


@architectures
def test_reading_in_portions_through_the_cache_gives_the_logits_of_reading_at_once(changes):
    model, tokens = tiny_gpt(**changes), random_tokens(2, 20)
    cache = KVCache(model.config, 2, 32, torch.device("cpu"), torch.float32)

    with torch.no_grad():
        whole = model(tokens)
        parts = [model(part, cache) for part in tokens.split([7, 1, 1, 5, 6], dim=1)]

    # Sums of up to 128 products in another order: a few float32 roundings of values around 1.
    assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert cache.length == 20


def test_a_sequence_longer_than_block_size_is_refused():
    with pytest.raises(ValueError, match=r"33 tokens is longer than block_size \(32\)"):
        tiny_gpt()(random_tokens(1, 33))


def test_logits_and_gradients_are_those_of_transformers_qwen3():
    transformers = pytest.importorskip("transformers")
    ours = tiny_gpt(n_embd=64, n_head=4, n_kv_head=2, tie_embeddings=False)
    c = ours.config
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
        vocab_size=c.vocab_size, hidden_size=c.n_embd, intermediate_size=c.n_inner,
        num_hidden_layers=c.n_layer, num_attention_heads=c.n_head, head_dim=c.head_dim,
        num_key_value_heads=c.n_kv_head, max_position_embeddings=c.block_size, rms_norm_eps=1e-6,
        rope_theta=c.rope_base, rope_parameters={"rope_theta": c.rope_base, "rope_type": "default"},
        tie_word_embeddings=False, attention_bias=False, attn_implementation="eager")).eval()
    theirs.load_state_dict(qwen3_names(ours))
    assert_same_function(ours, theirs)


def qwen3_names(model: GPT) -> dict[str, torch.Tensor]:
    """Our weights under Qwen3's names: only fused matrices are cut, nothing is reordered."""
    state = model.state_dict()
    names = {"model.embed_tokens.weight": state["embedding.token_embedding.weight"],
             "model.norm.weight": state["final_norm.weight"], "lm_head.weight": model.output_weight}
    widths = model.blocks[0].attention.qkv_widths
    for i in range(model.config.n_layer):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        q, k, v = state[ours + "attention.qkv_proj.weight"].split(widths)
        gate, up = state[ours + "feedforward.up_proj.weight"].chunk(2)
        names |= {theirs + "self_attn.q_proj.weight": q, theirs + "self_attn.k_proj.weight": k,
                  theirs + "self_attn.v_proj.weight": v, theirs + "mlp.gate_proj.weight": gate,
                  theirs + "mlp.up_proj.weight": up}
        for a, b in (("attention.out_proj", "self_attn.o_proj"),
                     ("attention.q_norm", "self_attn.q_norm"),
                     ("attention.k_norm", "self_attn.k_norm"),
                     ("feedforward.down_proj", "mlp.down_proj"),
                     ("attention_norm", "input_layernorm"),
                     ("feedforward_norm", "post_attention_layernorm")):
            names[theirs + b + ".weight"] = state[ours + a + ".weight"]
    return names


def test_logits_and_gradients_are_those_of_transformers_gpt2():
    transformers = pytest.importorskip("transformers")
    ours = tiny_gpt(**ARCHITECTURES["gpt2"])
    c = ours.config
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer,
        n_head=c.n_head, attn_implementation="eager")).eval()
    theirs.load_state_dict(gpt2_names(ours))
    assert_same_function(ours, theirs)


def gpt2_names(model: GPT) -> dict[str, torch.Tensor]:
    """Our weights under GPT-2's names; its matrices lie transposed."""
    state = model.state_dict()
    names = {"transformer.wte.weight": state["embedding.token_embedding.weight"],
             "transformer.wpe.weight": state["embedding.position_embedding.weight"],
             "lm_head.weight": model.output_weight}
    for kind in ("weight", "bias"):
        names[f"transformer.ln_f.{kind}"] = state[f"final_norm.{kind}"]
        for i in range(model.config.n_layer):
            for a, b in (("attention_norm", "ln_1"), ("feedforward_norm", "ln_2"),
                         ("attention.qkv_proj", "attn.c_attn"),
                         ("attention.out_proj", "attn.c_proj"),
                         ("feedforward.up_proj", "mlp.c_fc"),
                         ("feedforward.down_proj", "mlp.c_proj")):
                tensor = state[f"blocks.{i}.{a}.{kind}"]
                names[f"transformer.h.{i}.{b}.{kind}"] = _transposed(tensor)
    return names


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T if tensor.dim() == 2 else tensor


def assert_same_function(ours: GPT, theirs: torch.nn.Module) -> None:
    tokens = random_tokens(3, 24)
    our_logits, their_logits = ours(tokens), theirs(tokens).logits
    assert_close(our_logits, their_logits, rtol=1e-4, atol=2e-5)
    assert our_logits.std() > 0.1  # not a comparison of zeros

    for logits in (our_logits, their_logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    our_gradient = ours.embedding.token_embedding.weight.grad
    assert_close(our_gradient, theirs.get_input_embeddings().weight.grad, rtol=1e-3, atol=1e-5)


def test_sinusoids_are_the_papers_formula():
    table = sinusoids(torch.arange(50), 16)
    for position, i in ((0, 0), (1, 0), (7, 3), (49, 7)):
        angle = position / 10_000 ** (2 * i / 16)
        assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_with_rope_scores_depend_on_distance_and_not_on_place():
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(query_at: int, key_at: int) -> float:
        turn = [rotations(torch.tensor([p]), 16, 10_000.0) for p in (query_at, key_at)]
        return float((rotate(q, turn[0]) * rotate(k, turn[1])).sum())

    assert score(5, 3) == pytest.approx(score(905, 903), abs=1e-3)
    assert score(5, 3) != pytest.approx(score(5, 4), abs=1e-2)


def test_without_positions_the_order_of_earlier_tokens_is_invisible():
    tokens = random_tokens(1, 6)
    shuffled = tokens[:, [2, 0, 1, 3, 4, 5]]
    for position, sees_order in (("none", False), ("rope", True), ("learned", True),
                                 ("sinusoidal", True)):
        model = tiny_gpt(position=position, n_layer=1)
        with torch.no_grad():
            difference = (model(tokens) - model(shuffled))[:, -1].abs().max().item()
        assert (difference > 1e-3) == sees_order, position


def test_grouped_heads_read_the_key_and_value_head_of_their_group():
    grouped = tiny_gpt(n_head=4, n_kv_head=2)
    full = tiny_gpt(n_head=4, n_kv_head=4)
    state = grouped.state_dict()
    for i in range(2):
        name, D = f"blocks.{i}.attention.qkv_proj.weight", grouped.config.head_dim
        q, k, v = state[name].split([4 * D, 2 * D, 2 * D])
        twice = [m.view(2, D, -1).repeat_interleave(2, 0).flatten(0, 1) for m in (k, v)]
        state[name] = torch.cat((q, *twice))
    full.load_state_dict(state)
    tokens = random_tokens(2, 9)
    with torch.no_grad():
        assert_close(full(tokens), grouped(tokens), rtol=1e-4, atol=1e-5)


def test_blocks_begin_as_the_identity_and_predictions_near_uniform():
    model = tiny_gpt(zero_outputs=True, vocab_size=500, n_embd=64, tie_embeddings=True)
    tokens = random_tokens(2, 8, vocab_size=500)
    with torch.no_grad():
        x = model.embedding(tokens, torch.arange(8))
        assert_close(model.hidden(tokens), model.final_norm(x), rtol=0, atol=0)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), random_tokens(16, vocab_size=500,
                                                                          seed=1))
    assert loss.item() == pytest.approx(math.log(500), abs=0.1)


def test_weights_are_drawn_with_the_documented_spread():
    model = tiny_gpt(zero_outputs=True, n_embd=256, vocab_size=2000, bias=True)
    block = model.blocks[0]
    assert model.embedding.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.attention.qkv_proj.weight.std().item() == pytest.approx(256 ** -0.5, rel=0.02)
    assert block.feedforward.up_proj.weight.std().item() == pytest.approx(256 ** -0.5, rel=0.02)
    for zero in (block.attention.out_proj.weight, block.feedforward.down_proj.weight,
                 block.attention.qkv_proj.bias):
        assert not zero.any()
    assert (block.attention_norm.weight == 1).all()


def test_parameters_are_counted_as_on_paper():
    c = ModelConfig(vocab_size=50_257, block_size=1024, n_layer=12, n_head=12, n_kv_head=12,
                    n_embd=768, position="learned", norm="layernorm", mlp="gelu_tanh", bias=True,
                    qk_norm=False, tie_embeddings=True)
    with torch.device("meta"):
        gpt2 = GPT(c)
    assert parameter_count(gpt2) == 124_439_808  # GPT-2 small

    tiny = tiny_gpt(n_embd=32, n_head=4, n_kv_head=2, n_layer=2)  # V 61, SwiGLU 96 wide
    block = 32 * (32 + 16 + 16) + 32 * 32 + 2 * 8 + 2 * 32 + 32 * 2 * 96 + 96 * 32
    assert parameter_count(tiny) == 2 * 61 * 32 + 2 * block + 32


def test_flops_follow_the_formula_and_leave_out_tables_that_are_only_looked_up():
    tied = tiny_gpt(tie_embeddings=True)
    attention = 12 * 2 * 32 * 32
    assert flops_per_token(tied) == 6 * parameter_count(tied) + attention
    assert flops_per_token(tied, 16) == 6 * parameter_count(tied) + attention // 2
    untied = tiny_gpt(tie_embeddings=False)
    assert flops_per_token(untied) == 6 * (parameter_count(untied) - 61 * 32) + attention
    learned = tiny_gpt(position="learned", tie_embeddings=True)
    assert flops_per_token(learned) == 6 * (parameter_count(learned) - 32 * 32) + attention


def test_dropout_acts_in_training_and_not_in_evaluation():
    model, tokens = tiny_gpt(dropout=0.3), random_tokens(1, 8)
    with torch.no_grad():
        assert torch.equal(model(tokens), model(tokens))
        model.train()
        assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("change", [
    {"n_layer": 3}, {"n_head": 2}, {"n_kv_head": 1}, {"n_embd": 64}, {"n_inner": 40},
    {"position": "learned"}, {"rope_base": 50.0}, {"norm": "layernorm"}, {"mlp": "gelu"},
    {"mlp": "gelu_tanh"}, {"mlp": "relu2"}, {"qk_norm": False}, {"bias": True},
    {"tie_embeddings": True}], ids=str)
def test_every_field_of_the_architecture_changes_the_function(change):
    def outputs(**fields: object) -> torch.Tensor:
        with torch.no_grad():
            return tiny_gpt(**fields)(random_tokens(1, 12))

    assert torch.equal(outputs(), outputs())
    assert not torch.equal(outputs(), outputs(**change))
