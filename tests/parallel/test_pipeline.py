"""A model whose layers lie on several ranks, against the same model on one."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing import assert_close

from gpt.batches import IGNORE, MicroBatch
from gpt.configuration import AdapterConfig, PreferenceConfig, SamplingConfig
from gpt.errors import UserError
from gpt.finetuning.preferences import PairBatch, PreferenceObjective
from gpt.generation import Engine, Request
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.model.lora import adapt
from gpt.parallel import gradients
from gpt.parallel.pipeline import Pipeline, lay_out_pipeline, layers_of_stages
from gpt.parallel.pipeline_schedule import PipelineSchedule
from gpt.training.evaluate import evaluate
from gpt.training.objective import summed_loss, token_losses
from tests.parallel.processes import run_ranks
from tests.tiny import ARCHITECTURES, CPU, random_tokens, tiny_gpt
from tests.tiny_runs import accumulate_gradients, clip_gradients

# Sums of float32 in another order: numbers of about 1 from a few thousand roundings of 6e-8.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
TIED_FOUR = {"n_layer": 4, "tie_embeddings": True}


def micro_batch(rows: int, length: int, seed: int, documents: bool = False) -> MicroBatch:
    """Random tokens, of which the first of each row is not supervised."""
    tokens = random_tokens(rows, length + 1, seed=seed)
    targets = tokens[:, 1:].clone()
    targets[:, 0] = IGNORE
    segments = torch.arange(length).expand(rows, -1) // 3 if documents else None
    return MicroBatch(tokens[:, :-1], targets, rows * length, segments)


def batch_of(count: int, documents: bool = False) -> list[MicroBatch]:
    """Micro-batches of different shapes."""
    return [micro_batch(1 + i % 2, 6 + 3 * i, seed=i, documents=documents) for i in range(count)]


def tuned_gpt(changes: dict[str, Any], lora: bool = False, recompute: bool = False,
              frozen: tuple[str, ...] = ()) -> GPT:
    """The same model on every rank, ready to learn."""
    model = tiny_gpt(**changes)
    if lora:
        adapt(model, AdapterConfig(rank=2, targets=["all"]))
        for name, weight in model.named_parameters():
            if name.endswith(".B"):
                weight.data.add_(0.1)
    for name, weight in model.named_parameters():
        weight.requires_grad_(weight.requires_grad and not name.startswith(frozen))
    model.recompute = recompute
    return model.train()


def laid_out(model: GPT) -> Pipeline:
    """A model over all ranks."""
    return lay_out_pipeline(model, init_device_mesh("cpu", (dist.get_world_size(),)))


def counted(batch: list[MicroBatch]) -> int:
    return sum(part.supervised_tokens for part in batch)


def pipelined(options: dict[str, Any], batch: list[MicroBatch], steps: int = 1,
              machine: Machine = CPU) -> tuple[float, float, dict[str, torch.Tensor]]:
    """(loss, norm, gradients of the weights that a rank holds), after so many equal steps."""
    model = tuned_gpt(**options)
    pipeline = laid_out(model)
    schedule = PipelineSchedule(pipeline, machine)
    for _ in range(steps):
        model.zero_grad()
        loss = schedule.gradients(batch, summed_loss, counted(batch))
        pipeline.sum_tied_gradients()
    found = {name: weight.grad for name, weight in model.named_parameters()
             if weight.grad is not None}
    held = {name for name, weight in model.named_parameters()
            if weight.requires_grad and pipeline.holds(name)}
    assert held == found.keys()
    assert all(weight.is_meta != pipeline.holds(name) for name, weight in model.named_parameters())
    return loss.item(), clip_over_stages(pipeline, 0.0).item(), found


def clip_over_stages(pipeline: Pipeline, limit: float) -> torch.Tensor:
    """As a step clips: each weight counts once."""
    elsewhere = {weight for name, weight in pipeline.model.named_parameters()
                 if not pipeline.owns(name)}
    return gradients.clip_gradients(pipeline.model.parameters(), limit, pipeline.group, elsewhere)


def assert_as_alone(stages: int, options: dict[str, Any], batch: list[MicroBatch],
                    steps: int = 1, machine: Machine = CPU) -> None:
    """Loss, norm and every gradient over so many stages are those of one process."""
    model = tuned_gpt(**options)
    loss = accumulate_gradients(model, batch, machine)
    norm = clip_gradients(model, 0.0)
    left = {name for name, weight in model.named_parameters() if weight.grad is not None}
    for found_loss, found_norm, theirs in run_ranks(stages, pipelined, options, batch, steps,
                                                    machine):
        assert_close(found_loss, loss.item(), **CLOSE)
        assert_close(found_norm, norm.item(), **CLOSE)
        for name, gradient in theirs.items():
            expected = model.get_parameter(name).grad
            assert expected is not None
            assert_close(gradient, expected, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
        left -= theirs.keys()
    assert not left  # every weight has its gradient somewhere
    assert norm > 0.1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_of_every_architecture_are_those_of_one_process(name: str):
    assert_as_alone(2, {"changes": ARCHITECTURES[name]}, batch_of(3))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("stages", [2, 4])
def test_a_step_may_have_any_number_of_micro_batches_of_any_shapes(stages: int, count: int):
    assert_as_alone(stages, {"changes": TIED_FOUR}, batch_of(count), steps=2)


@pytest.mark.parametrize("options", [
    {"recompute": True},
    {"lora": True},
    {"lora": True, "recompute": True},
    {"frozen": ("embedding", "blocks.0", "blocks.1")},            # all of the first stage
    {"frozen": ("blocks.2", "blocks.3", "final_norm", "lm_head")},  # all of the last one
], ids=str)
def test_what_learns_where_and_what_is_recomputed_changes_no_gradient(options: dict[str, Any]):
    assert_as_alone(2, {"changes": {"n_layer": 4}, **options}, batch_of(3, documents=True))


def test_documents_are_read_apart_on_every_stage():
    apart, together = batch_of(3, documents=True), batch_of(3)
    assert_as_alone(4, {"changes": TIED_FOUR}, apart)
    model = tuned_gpt(TIED_FOUR)
    losses = [accumulate_gradients(model, batch, CPU) for batch in (apart, together)]
    assert not torch.equal(*losses)


def test_products_in_bfloat16_are_those_of_one_process():
    machine = Machine(torch.device("cpu"), torch.bfloat16)
    assert_as_alone(2, {"changes": {"tie_embeddings": True}}, batch_of(3), machine=machine)


def under_way(count: int, frozen: tuple[str, ...] = ()) -> tuple[int, list[tuple[int, ...]]]:
    """(the most micro-batches that a rank was inside of, shapes of what it sent in a step)"""
    model = tuned_gpt({"n_layer": 4}, frozen=frozen)
    pipeline = laid_out(model)
    schedule, batch = PipelineSchedule(pipeline, CPU), batch_of(count)
    schedule.gradients(batch, summed_loss, counted(batch))  # in which they agree on the schedule
    live, most, sent = 0, 0, []

    def gone(gradient: torch.Tensor) -> None:
        nonlocal live
        live -= 1

    def come(module: Any, inputs: Any, x: torch.Tensor) -> None:
        nonlocal live, most
        live, most = live + 1, max(most, live + 1)
        if x.requires_grad:
            x.register_hook(gone)

    first = next(i for i in range(4) if pipeline.owns(f"blocks.{i}."))
    model.blocks[first].register_forward_hook(come)
    operation = dist.P2POp

    def noted(op: Any, tensor: torch.Tensor, *others: Any) -> dist.P2POp:
        if op is dist.isend:
            sent.append(tuple(tensor.shape))
        return operation(op, tensor, *others)

    dist.P2POp = noted  # type: ignore[assignment, misc]
    try:
        schedule.gradients(batch, summed_loss, counted(batch))
    finally:
        dist.P2POp = operation  # type: ignore[misc]
    return most, sorted(sent)


def test_a_stage_is_inside_few_micro_batches_and_sends_each_once_each_way():
    shapes = [(*part.inputs.shape, 32) for part in batch_of(6)]
    for stage, (most, sent) in enumerate(run_ranks(4, under_way, 6)):
        assert most == 4 - stage
        assert sent == sorted(shapes * ((stage < 3) + (stage > 0)))  # to the next, and back


def test_no_gradient_is_sent_to_stages_before_any_that_learn():
    shapes = sorted((*part.inputs.shape, 32) for part in batch_of(3))
    frozen = ("embedding", "blocks.0", "blocks.1")
    assert [sent for _, sent in run_ranks(2, under_way, 3, frozen)] == [shapes, []]


def evaluated(changes: dict[str, Any], batch: list[MicroBatch]) -> list[Any]:
    """What is not training, on each rank of a pipeline, or in one process."""
    model = tuned_gpt(changes)
    pipeline = laid_out(model) if dist.is_initialized() else None
    model.eval()
    kept = [not weight.is_meta for weight in model.parameters()]
    with pipeline.whole_head() if pipeline else contextlib.nullcontext():
        score = evaluate(model, batch, torch.ones(61, dtype=torch.int64), CPU)
        engine = Engine(model, CPU, rows=2, max_tokens=20)
        config = SamplingConfig(temperature=0.0, max_new_tokens=6)
        texts = [(row, new.token) for row, new in engine.run(
            [Request([1, 2, 3], config), Request([4, 5, 6, 7, 8], config, prefix=2)])]
        with torch.inference_mode():
            scores = token_losses(model, batch[0])
    assert kept == [not weight.is_meta for weight in model.parameters()]  # what was lent is gone
    return [score.loss, texts, scores]


@pytest.mark.parametrize("changes", [{"n_layer": 3}, ARCHITECTURES["windows"], TIED_FOUR,
                                     {"bias": ["lm_head"]}], ids=str)
def test_evaluation_and_generation_give_every_rank_what_one_process_gives(changes: dict[str, Any]):
    batch = batch_of(3, documents=True)
    loss, texts, scores = evaluated(changes, batch)
    for found in run_ranks(changes.get("n_layer", 2), evaluated, changes, batch):
        assert_close(found[0], loss, **CLOSE)
        assert found[1] == texts
        assert_close(found[2], scores, **CLOSE)


def too_long() -> str:
    """What a rank says of a sequence that no stage can read."""
    model = tuned_gpt({})
    laid_out(model)
    with torch.inference_mode(), pytest.raises(ValueError) as error:
        model.hidden(random_tokens(1, 33))
    return str(error.value)


def test_no_rank_waits_for_another_that_refuses_what_is_too_long():
    assert set(run_ranks(2, too_long)) == {"a sequence of 33 tokens is longer than block_size (32)"}


def preferred(pairs: list[PairBatch]) -> tuple[float, dict[str, float]]:
    """Loss and figures of learning from preferences, on each rank or in one process."""
    model, objective = tuned_gpt({}), PreferenceObjective(PreferenceConfig())
    if not dist.is_initialized():
        loss = accumulate_gradients(model, pairs, CPU, objective=objective)
        figures = objective.take_figures()
    else:
        pipeline = laid_out(model)
        loss = PipelineSchedule(pipeline, CPU).gradients(pairs, objective.summed_loss, 4)
        figures = pipeline.from_last(objective.take_figures())
    return loss.item(), {name: number.item() for name, number in figures.items()}


def test_preferences_are_learned_and_their_figures_told_on_every_rank():
    pairs = [PairBatch(**vars(micro_batch(4, 6 + i, seed=i)), reference=torch.randn(4))
             for i in range(2)]
    loss, figures = preferred(pairs)
    for found_loss, found_figures in run_ranks(2, preferred, pairs):
        assert_close(found_loss, loss, **CLOSE)
        assert_close(found_figures, figures, **CLOSE)
        assert found_figures.keys() == {"margin", "preference_accuracy"}


def tied_ends() -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(a tied embedding after some updates, all weights gathered, all weights of this rank)"""
    model = tuned_gpt(TIED_FOUR)
    pipeline = laid_out(model)
    schedule, batch = PipelineSchedule(pipeline, CPU), batch_of(4)
    held = [weight for weight in model.parameters() if not weight.is_meta]
    optimizer = torch.optim.AdamW(held, lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        schedule.gradients(batch, summed_loss, counted(batch))
        pipeline.sum_tied_gradients()
        clip_over_stages(pipeline, 1.0)
        optimizer.step()
    everywhere = pipeline.everywhere(model.state_dict())
    gathered = {name: pipeline.told(name, tensor, lambda tensor=tensor: tensor)
                for name, tensor in everywhere.items()}
    return (model.output_weight.detach(), gathered,
            {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta})


def test_tied_embeddings_stay_equal_to_the_bit_and_weights_are_gathered_from_their_owners():
    found = run_ranks(4, tied_ends)
    assert torch.equal(found[0][0], found[3][0])
    assert not torch.equal(found[0][0], tuned_gpt(TIED_FOUR).output_weight)
    gathered = found[0][1]
    assert gathered.keys() == tuned_gpt(TIED_FOUR).state_dict().keys()
    for _, others, held in found:
        assert others.keys() == gathered.keys()
        for name, tensor in held.items():
            assert torch.equal(gathered[name], tensor)


def test_layers_are_spread_so_that_no_stage_is_slow():
    def layers(stages: int, **changes: Any) -> list[int]:
        return layers_of_stages(tiny_gpt(**changes), stages)

    assert layers(2, n_layer=8, vocab_size=2) == [4, 4]
    assert layers(4, n_layer=10, vocab_size=2) == [2, 3, 3, 2]  # the last also scores
    # 12,000 weights in a layer, 40,000 in the output layer: three of them
    assert layers(2, n_layer=9, vocab_size=1250) == [6, 3]
    assert layers(3, n_layer=3) == [1, 1, 1]


def test_more_stages_than_layers_are_refused():
    with pytest.raises(UserError, match=r"parallel\.pipeline=3: the model has 2 layers, and each "
                                        r"stage needs one; parallel\.pipeline can be 2 at most"):
        layers_of_stages(tiny_gpt(), 3)
