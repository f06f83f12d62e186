"""A run as typed, validated sections: ranges, derived defaults, and what cannot go together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gpt.configuration import FinetuneConfig, ModelConfig, PretrainConfig, TrainConfig, validate
from gpt.configuration.command_line import field_paths
from gpt.configuration.model import default_n_inner
from gpt.errors import UserError

SEEDED = settings(max_examples=100, derandomize=True, database=None, deadline=None)
SCHEMAS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
REQUIRED = {"pretrain": {"data": {"dataset": "x"}},
            "finetune": {"finetune": {"from": "runs/a", "data": "a.jsonl"}}}
FIELDS = [(kind, path) for kind, schema in SCHEMAS.items() for path in field_paths(schema)]
SWITCHES = {"run.compile", "run.deterministic", "model.qk_norm", "model.bias",
            "model.tie_embeddings", "data.isolate_documents", "train.recompute_activations",
            "finetune.packing", "lora.rslora", "checkpoint.background",
            "checkpoint.keep_before_cooldown", "parallel.offload", "log.report"}


def build(kind: str = "pretrain", /, **given):
    """A configuration from its required values and `section={field: value}`."""
    required = REQUIRED[kind]
    return validate(SCHEMAS[kind], required | {section: required.get(section, {}) | fields
                                               for section, fields in given.items()}, {})


def nested(path: str, value: object) -> dict[str, object]:
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def refusal(kind: str = "pretrain", /, **given) -> str:
    with pytest.raises(UserError) as caught:
        build(kind, **given)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "path"), FIELDS)
def test_true_is_a_value_of_switches_alone(kind, path):
    section, field = path.split(".", 1)
    needed = {"finetune": {"method": "lora"}} if section == "lora" else {}
    if path in SWITCHES:
        built = build(kind, **needed, **{section: {field: True}})
        assert getattr(getattr(built, section), field) is True
    else:
        assert f"{path}: " in refusal(kind, **{section: nested(field, True)})


@pytest.mark.parametrize("field", ["steps", "batch_size", "max_minutes"])
def test_a_boolean_for_a_number_is_explained(field):
    assert refusal(train={field: False}) == (
        f"defaults: train.{field}: true and false are no value for this field (given: False)")
    assert getattr(TrainConfig(**{field: 1}), field) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), "abc", [], {}])
@pytest.mark.parametrize("path", ["optim.lr", "train.steps", "model.dropout", "model.n_layer"])
def test_numbers_are_finite_numbers(path, value):
    section, field = path.split(".")
    assert f"{path}: input should be" in refusal(**{section: {field: value}})


@pytest.mark.parametrize(("path", "accepted", "refused"), [
    ("data.packing", ["windows", "documents"], ["rows", None]),
    ("parallel.replicate", ["auto", 1, 4096], [0, -1, "all", None, 1.5]),
    ("parallel.shard", ["auto", 1, 8], [0, -1, "all", None]),
    ("parallel.tensor", ["auto", 1, 8], [0, "all"]),
    ("parallel.context", [1, 8], [0, "auto"]),
    ("parallel.pipeline", [1, 8], [0, "auto"]),
    ("parallel.timeout_seconds", [5, 1e4], [4.9, -1, "auto"]),
    ("checkpoint.shard_size", [1, 10**12], [0, -1, None]),
    ("data.loader_workers", [0, 1, 256], [-1, 257, 0.5]),
    ("model.n_layer", [1, 1024], [0, -1, 1025, 10**9, 1.5]),
    ("model.block_size", [1, 2**24], [0, 2**24 + 1]),
    ("model.vocab_size", [1, None, 2**24], [0, 2**24 + 1, 2**70]),
    ("model.n_inner", [1, 2**19], [0, 2**19 + 1]),
    ("model.dropout", [0, 0.999], [-0.1, 1]),
    ("model.rope_base", [1.01, 1e6], [1, 0]),
    ("optim.lr", ["auto", 1e-9], [0, -1, "fast"]),
    ("optim.weight_decay", [0, 5], [-0.1]),
    ("optim.beta2", [0, 0.999], [1, -0.1]),
    ("optim.cooldown_fraction", [0, 1], [1.1, -0.1]),
    ("optim.warmup_steps", [0, 9], [-1, 0.5]),
    ("train.steps", [1, 2**40, 5.0], [0, 2**40 + 1]),
    ("train.epochs", [0.01, 3], [0]),
    ("train.micro_batch_size", ["auto", 1], [0, "all"]),
    ("train.grad_clip", [0, 1.5], [-1]),
    ("run.seed", [0, 2**63 - 1], [-1, 2**63]),
    ("run.name", ["a", "a.b-c_9"], ["", ".", "..", "../a", "a/b", "-a", "a b", "a\n", "a\0"]),
    ("run.dtype", ["bfloat16"], ["int8", None]),
    ("checkpoint.keep", [1], [0])])
def test_ranges_hold_at_their_edges(path, accepted, refused):
    section, field = path.split(".")
    for value in accepted:
        assert getattr(getattr(build(**{section: {field: value}}), section), field) == value
    for value in refused:
        assert f"{path}: " in refusal(**{section: {field: value}})


@pytest.mark.parametrize("budgets", [
    {"steps": 1, "tokens": 1}, {"steps": 1, "epochs": 1}, {"tokens": 1, "max_minutes": 1},
    {"steps": 1, "tokens": 1, "epochs": 1, "max_minutes": 1}])
def test_two_budgets_are_refused_by_name(budgets):
    assert refusal(train=budgets) == (
        f"defaults: train: set one of steps, tokens, epochs and max_minutes, not {list(budgets)}")


@pytest.mark.parametrize("budget", [{}, {"steps": 1}, {"tokens": 1}, {"epochs": 1},
                                    {"max_minutes": 1}, {"steps": 1, "tokens": None}])
def test_one_budget_or_none_is_accepted(budget):
    assert build(train=budget).train.model_dump(include=budget.keys()) == budget


@pytest.mark.parametrize(("n_head", "n_kv_head"), [(12, 6), (4, 2), (2, 1), (1, 1), (3, 3)])
def test_key_value_heads_default_to_half_of_an_even_number_of_heads(n_head, n_kv_head):
    assert ModelConfig(n_head=n_head, n_embd=48).n_kv_head == n_kv_head
    assert ModelConfig(n_head=n_head, n_embd=48, n_kv_head=n_head).n_kv_head == n_head


@pytest.mark.parametrize(("n_embd", "mlp", "n_inner"), [
    (768, "swiglu", 2048), (256, "swiglu", 704), (12, "swiglu", 32),
    (768, "gelu", 3072), (768, "gelu_tanh", 3072), (768, "relu2", 3072)])
def test_the_feed_forward_width_follows_from_the_models_width(n_embd, mlp, n_inner):
    assert ModelConfig(n_embd=n_embd, mlp=mlp, n_head=1).n_inner == n_inner
    assert ModelConfig(n_embd=n_embd, mlp=mlp, n_head=1, n_inner=10).n_inner == 10


@SEEDED
@given(st.integers(1, 2**17))
def test_swiglus_three_matrices_have_the_parameters_of_the_others_two_up_to_rounding(n_embd):
    wide = default_n_inner(n_embd, "swiglu")
    assert wide % 32 == 0
    assert 0 <= 3 * wide - 2 * default_n_inner(n_embd, "gelu") < 3 * 32


@pytest.mark.parametrize(("model", "message"), [
    ({"n_head": 7}, "n_embd (768) must be a multiple of n_head (7), or head_dim "
     "be given"),
    ({"n_kv_head": 5}, "n_head (12) must be a multiple of n_kv_head (5)"),
    ({"n_kv_head": 24}, "n_head (12) must be a multiple of n_kv_head (24)"),
    ({"n_embd": 36, "n_head": 12}, "RoPE turns pairs: n_embd / n_head (3) must be even"),
    ({"n_embd": 3, "n_head": 1, "position": "sinusoidal"},
     "sinusoidal positions need an even n_embd, not 3")])
def test_shapes_that_do_not_fit_are_explained_with_their_numbers(model, message):
    assert refusal(model=model).lower() == f"defaults: model: {message}".lower()


def test_an_odd_head_width_is_fine_where_nothing_turns_pairs():
    assert ModelConfig(n_embd=36, n_head=12, position="learned").head_dim == 3


def test_a_validation_file_and_a_validation_share_exclude_each_other():
    both = {"val_data": "v.jsonl", "val_fraction": 0.5}
    assert refusal("finetune", finetune=both) == (
        "defaults: finetune: set val_data or val_fraction, not both")
    for field, value in both.items():
        assert getattr(build("finetune", finetune={field: value}).finetune, field) == value


@pytest.mark.parametrize(("kind", "path"), FIELDS)
def test_a_misspelt_field_is_refused_and_the_right_one_named(kind, path):
    section, field = path.split(".", 1)
    wrong = field + "x"
    told = refusal(kind, **{section: nested(wrong, 1)})
    assert told.startswith(f"defaults: there is no field {section}.{wrong}; ")
    if len(field) > 2:
        assert told.endswith(f"did you mean {path}?")


def test_the_starting_point_is_called_from_in_files_and_base_in_python():
    assert build("finetune").finetune.base == "runs/a"
    assert build("finetune").model_dump(by_alias=True)["finetune"]["from"] == "runs/a"
    assert "there is no field finetune.base" in refusal("finetune", finetune={"base": "x"})


@pytest.mark.parametrize(("kind", "section", "field"), [
    ("pretrain", "run", "out_dir"), ("finetune", "finetune", "data"),
    ("finetune", "finetune", "val_data")])
def test_a_place_with_a_nul_character_is_refused(kind, section, field):
    told = refusal(kind, **{section: {field: "a\0b"}})
    assert f"{section}.{field}: no file or folder has a NUL character in its name" in told
    build(kind, **{section: {field: "a b"}})


def test_a_configuration_never_changes():
    config = build()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.steps = 5


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_dumped_configuration_reads_back_the_same(kind):
    config = build(kind, model={"n_layer": 2}) if kind == "pretrain" else build(kind)
    assert SCHEMAS[kind].model_validate(config.model_dump(by_alias=True)) == config


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner,
                                                                max_size=2))


@SEEDED
@given(st.dictionaries(
    st.sampled_from(["run", "model", "train", "optim", "x"]),
    ANYTHING | st.dictionaries(
        st.sampled_from(["name", "n_head", "n_embd", "mlp", "n_inner", "steps", "lr"]), ANYTHING)))
def test_any_values_give_a_configuration_or_one_error(values):
    try:
        assert isinstance(validate(PretrainConfig, REQUIRED["pretrain"] | values, {}),
                          PretrainConfig)
    except UserError as error:
        assert str(error).startswith(("defaults: ", "the configuration"))
