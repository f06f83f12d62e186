"""A run goes on with more processes, with fewer, and laid out in another way: the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel import test_runs
from tests.parallel.runs import Outcome, assert_same_run, train

place = test_runs.place  # the folder of datasets, as a fixture

# Each leg of a chain: (ranks, how the model is laid out)
ONE = (1, ())
DDP = (2, ("parallel.replicate=2",))
FSDP = (2, ("parallel.shard=2",))
TP = (2, ("parallel.tensor=2",))
FSDP_4 = (4, ("parallel.shard=4",))
HSDP = (4, ("parallel.replicate=2", "parallel.shard=2"))
CHAINS = {
    "1 → 2 → 4 → 1": (ONE, DDP, FSDP_4, ONE),
    "DDP → FSDP → TP → 1": (DDP, FSDP, TP, ONE),
    "HSDP → DDP → FSDP": (HSDP, DDP, FSDP),
}
# Five steps in an epoch: of 155 sequences, or of 38 examples. The second stop is at its edge. Three
# if packed, of which the first stop is at the edge.
STOPS = (3, 5, 8)
KINDS = {
    "pretraining": ("train", (*test_runs.PRETRAIN, "model.block_size=128", "train.batch_size=31",
                              "train.micro_batch_size=4", "eval.every_steps=4")),
    "padded": ("finetune", test_runs.TUNE),
    "packed": ("finetune", (*test_runs.TUNE, "finetune.packing=true", "finetune.max_length=128",
                            "train.batch_size=4", "train.epochs=4")),
    "lora": ("finetune", (*test_runs.TUNE, "finetune.method=lora", "lora.rank=2")),
}
WORKERS = [("pretraining", 0), ("pretraining", 2), ("padded", 0), ("packed", 0), ("lora", 0)]
SHORT = [("pretraining", 2, "1 → 2 → 4 → 1")]


def chained(kind: str, workers: int, chain: str, folder: Path) -> Outcome:
    """The run in legs, of which each but the last is stopped; what came of all of them."""
    script, settings = KINDS[kind]
    legs, rows = CHAINS[chain], dict[int, list[bytes]]()
    name = f"{kind}-{list(CHAINS).index(chain)}-{workers}"
    for (ranks, layout), stop_at in zip(legs, [*STOPS[:len(legs) - 1], None], strict=True):
        leg = train(ranks, script, folder, *settings, *reading(script, workers), *layout,
                    f"run.name={name}", stop_at=stop_at)
        rows |= leg.rows  # what a leg read ahead, the next has read again
    return leg._replace(rows=rows)


def undisturbed(kind: str, folder: Path) -> Outcome:
    """The run in one process, from its beginning to its end."""
    script, settings = KINDS[kind]
    return train(1, script, folder, *settings, *reading(script, 0),
                 f"run.name={kind}-undisturbed")


def reading(script: str, workers: int) -> tuple[str, ...]:
    """How many threads read ahead; fine-tuning has none."""
    return (f"data.loader_workers={workers}",) if script == "train" else ()


def compare(kind: str, workers: int, chain: str, folder: Path) -> None:
    found, expected = chained(kind, workers, chain, folder), undisturbed(kind, folder)
    found = found._replace(rows={step: rows for step, rows in found.rows.items()
                                 if step in expected.rows})  # and not only read ahead
    assert_same_run(found, expected, padded=KINDS[kind][0] == "finetune")


@pytest.mark.parametrize(("kind", "workers", "chain"), SHORT)
def test_other_numbers_of_processes_go_on_with_the_same_run(kind, workers, chain, place):
    compare(kind, workers, chain, place)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers", "chain"), [
    (*kind, chain) for kind in WORKERS for chain in CHAINS if (*kind, chain) not in SHORT])
def test_every_kind_of_run_goes_on_laid_out_in_another_way(kind, workers, chain, place):
    compare(kind, workers, chain, place)
