"""The CORE metric while training: when it is due, and what it will cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gpt.configuration import EvalConfig
from gpt.evaluation import Bundle, Core, core_score, in_format
from gpt.language_model import LanguageModel
from gpt.model import GPT
from gpt.runs.checkpoint import TrainState
from gpt.training.plan import Work
from gpt.training.telemetry import Log

TIMED_QUESTIONS = 4  # of each task, to plan with


def core_bundle(config: EvalConfig) -> Bundle | None:
    """The bundle, if CORE is to be measured. Raises UserError for one that is not whole."""
    return None if config.core_bundle is None else Bundle(Path(config.core_bundle))


def core_measure(config: EvalConfig, lm: LanguageModel) -> Callable[[], Core] | None:
    """What measures it, if it is to be measured."""
    bundle = core_bundle(config)
    return None if bundle is None else lambda: core_score(lm, bundle, config.core_questions)


def core_work(config: EvalConfig, lm: LanguageModel) -> list[Work]:
    """The same as work that is planned."""
    if (bundle := core_bundle(config)) is None:
        return []
    most = config.core_questions
    counts = [len(bundle.items(task)) for task in bundle.tasks]
    asked = sum(min(most or count, count) for count in counts)
    some = sum(min(TIMED_QUESTIONS, count) for count in counts)
    return [Work(lambda: core_score(lm, bundle, TIMED_QUESTIONS), (config.core_every_steps,),
                 share=some / asked)]


def tell_core(model: GPT, measure: Callable[[], Core], dtype: str, log: Log, state: TrainState
              ) -> None:
    """Compute the CORE metric while training, and tell it."""
    model.eval()
    found = measure()
    model.train()
    log.event("core", state.step, tokens=state.tokens, elapsed_seconds=state.elapsed_seconds,
              core=found.core, core_low=found.interval.low, core_high=found.interval.high,
              dtype=dtype, **{f"core_{task.label}": task.centred for task in found.tasks})
    log.say(f"step {state.step}: CORE {found.core:.4f} ({found.interval}){in_format(dtype)}")
