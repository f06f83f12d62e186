"""python -m gpt evaluate: how well models predict, and what they write."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt.configuration import WAYS, find_places
from gpt.configuration.strict_yaml import load_file
from gpt.errors import UserError
from gpt.evaluation import (
    Bundle,
    Difference,
    Material,
    Measurement,
    Result,
    Scored,
    Subject,
    as_json,
    core_result,
    core_score,
    difference,
    difference_line,
    lines,
    measure,
    window_length,
)
from gpt.finetuning import task_result
from gpt.language_model import LanguageModel, Over, opened
from gpt.machine.device import DTYPES
from gpt.machine.ranks import Ranks, joined
from gpt.runs.saved_model import SavedModel, find_model
from gpt.shards import Dataset, dataset_folder, is_dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, and a text of one's own."""
    parser.add_argument("run", metavar="RUN", nargs="?",
                        help="run folder, checkpoint, Hugging Face folder or GGUF file")
    parser.add_argument("--compare", metavar="RUN", nargs="+", default=[],
                        help="the same of other models, and how each differs from the first one, "
                             "whose validation split all are scored on")
    parser.add_argument("--text", metavar="FILE",
                        help="score this text rather than the run's validation split")
    parser.add_argument("--data", metavar="FILE",
                        help="a task: examples as finetune.py reads them, whose prompts are "
                             "answered in the model's chat format; or questions with choices, JSON "
                             'lines of {"context", "choices", "answer"}, of which the likeliest '
                             "per byte is taken")
    parser.add_argument("--tasks", metavar="TASK,…",
                        help="lm-eval's tasks by name, where a network or a local copy has their "
                             "data, and files of tasks (NAME.yaml); needs gpt-toolkit[eval]")
    parser.add_argument("--num-fewshot", type=int, metavar="N",
                        help="examples in the prompts of --tasks; default: as a task says")
    parser.add_argument("--limit", type=int, metavar="N",
                        help="questions of each of --tasks; default: all")
    parser.add_argument("--core", metavar="FOLDER",
                        help="the CORE metric, by its published bundle in this folder")
    parser.add_argument("--core-questions", type=int, metavar="N",
                        help="of each of its tasks; default: all")
    parser.add_argument("--samples", type=int, default=32, metavar="N",
                        help="texts of each kind that are written to see whether they repeat "
                             "themselves, or what was learned; 0: none. Default: 32")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    parser.add_argument("--dtype", choices=DTYPES,
                        help="number format of products; default: as the run's own evaluations "
                             "(eval.dtype), which is float32 unless it says otherwise")
    parser.add_argument("--parallel", default="auto", choices=WAYS,
                        help="how the processes of a launcher hold the model: auto, replicate, "
                             "shard or tensor (docs/scale.md)")


def run(options: argparse.Namespace) -> None:
    """Print a model's score, and which weights it belongs to."""
    with joined("auto") as ranks:
        _run(options, ranks)


def _run(options: argparse.Namespace, ranks: Ranks) -> None:
    models = [Model.named(name, options.dtype)
              for name in [*([options.run] if options.run else []), *options.compare]]
    if not models or (options.compare and len(models) == 1):
        raise UserError("give RUN, the model that is to be evaluated" if not models else
                        "--compare takes two models: two names, or one beside RUN")
    for name, least in (("samples", 0), ("core_questions", 1), ("num_fewshot", 0), ("limit", 1)):
        if (count := getattr(options, name)) is not None and count < least:
            raise UserError(f"--{name.replace('_', '-')} {count}: it must be {least} or more")
    for name, of in (("core_questions", "core"), ("num_fewshot", "tasks"), ("limit", "tasks")):
        if getattr(options, name) is not None and not getattr(options, of):
            raise UserError(f"--{name.replace('_', '-')} is for --{of}: give that, too, or leave "
                            "it out")
    given = [name for name in ("text", "compare", "data", "tasks", "core")
             if getattr(options, name)]
    if len(given) > 1 and given != ["text", "compare"]:
        raise UserError(f"give --{given[0]} or --{given[-1]}, not both")
    over = Over(ranks, options.parallel, copies=True)
    if not options.data and not options.tasks and not options.core:
        return _measure(models, options, over)
    one, found = models[0], _asked(models[0], options, over)
    if options.json:
        return print(json.dumps({"subject": dataclasses.asdict(one.subject), **found.values}))
    return print("\n".join([f"{one.subject.name}: weights {one.subject.weights[:16]}",
                            *found.lines]))


def _asked(model: Model, options: argparse.Namespace, over: Over) -> Result:
    """What a model makes of tasks."""
    if options.core:
        bundle = Bundle(Path(options.core))
        return core_result(core_score(model.opened(over), bundle, options.core_questions), bundle,
                           model.dtype)
    if options.data:
        return task_result(model.opened(over), Path(options.data), model.dtype)
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("--tasks needs lm-eval; run: pip install 'gpt-toolkit[eval]'")
    from gpt.evaluation import harness  # imports lm-eval, which takes seconds
    found = harness.run_tasks(model.opened(over), options.tasks.split(","), options.num_fewshot,
                              options.limit)
    return Result([harness.table(found)], {
        name: found[name] for name in ("results", "groups", "versions", "n-shot", "n-samples")
        if name in found} | {"dtype": model.dtype})


def _measure(models: list[Model], options: argparse.Namespace, over: Over) -> None:
    """Print what is found of models on one text; of several, how they differ from the first."""
    material: Material | None = None
    found: list[Measurement] = []
    others: list[Difference] = []
    first: tuple[Subject, Material, Scored] | None = None
    for model in models:
        lm = model.opened(over)
        if material is None:
            material = (Material.of_file(Path(options.text), lm.tokenizer) if options.text
                        else _validation_split(lm, model))
        if (length := window_length(lm)) < lm.block_size:
            print(f"(scored in windows of {length:,} tokens; the model could read "
                  f"{lm.block_size:,})", file=sys.stderr)
        own = material.in_tokens_of(lm.tokenizer)
        measured, scored = measure(lm, model.subject, own, options.samples)
        found.append(measured)
        if first is not None:
            others.append(difference(first, (model.subject, own, scored)))
        first = first or (model.subject, own, scored)
    if options.json:
        told = [as_json(each) for each in found]
        return print(json.dumps({"models": told, "differences": list(map(as_json, others))}
                                if options.compare else told[0]))
    for each in found:
        print("\n".join(lines(each)))
    for other in others:
        print(difference_line(other))


@dataclass(frozen=True)
class Model:
    """A model that is to be measured, what its run says of data, and in which number format."""

    saved: SavedModel
    data: dict[str, Any]
    dtype: str

    @classmethod
    def named(cls, name: str, dtype: str | None) -> Model:
        """Raises UserError if there is none, or its run asks for another format than there is."""
        saved = find_model(name)
        config = _config_of(saved.path)
        dtype = dtype or config.get("eval", {}).get("dtype", "float32")
        if dtype not in DTYPES:
            raise UserError(f"the run's config.yaml asks for eval.dtype={dtype}; give --dtype, one "
                            f"of {', '.join(DTYPES)}")
        return cls(saved, config.get("data", {}), dtype)

    @cached_property
    def subject(self) -> Subject:
        """As measurements call it; the weights are hashed once."""
        return Subject(str(self.saved.path), self.saved.weight_hash(),
                       self.data.get("isolate_documents", False))

    def opened(self, over: Over) -> LanguageModel:
        """The model, of the weights in float32, as in training."""
        lm = opened(self.saved, dtype="float32", over=over)
        return LanguageModel(lm.model, lm.tokenizer, lm.machine.measuring(self.dtype))


def _config_of(path: Path) -> dict[str, Any]:
    """The configuration of a checkpoint's run; empty if that is not known."""
    config = path.parent.parent / "config.yaml"
    in_a_run = path.parent.name == "checkpoints" and config.is_file()
    values: dict[str, Any] = load_file(config).values if in_a_run else {}
    if in_a_run:
        find_places(values, config.parent)
    return values


def _validation_split(lm: LanguageModel, model: Model) -> Material:
    path, name = model.saved.path, model.data.get("dataset", "")
    if not name:
        raise UserError(f"{path} was not trained on a dataset that is known here; give --text "
                        "FILE, or --data FILE with examples that it is to answer")
    folder = dataset_folder(name)
    if not is_dataset(folder):
        raise UserError(f"{path}: its dataset ({name}) is not here; give --text FILE")
    dataset = Dataset(folder)
    if dataset.tokenizer.fingerprint != lm.tokenizer.fingerprint:
        raise UserError(f"{folder} was made with another tokenizer than {path}; give --text FILE")
    return Material.of_dataset(dataset)
