"""python -m gpt plan: which model to train for how long, and what it will give."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shlex
import sys
from pathlib import Path

from gpt.configuration import BUDGETS, RunConfig, nested, split_arguments, validate
from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.machine.device import ready_machine
from gpt.planning import (
    GIB,
    Goal,
    OnDataSheet,
    ThisMachine,
    as_json,
    as_yaml,
    planned,
    told,
    train_command,
)
from gpt.shards import Dataset, dataset_folder, is_dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A dataset, and what there is to spend."""
    parser.add_argument("words", metavar="DATASET section.field=value", nargs="+",
                        help="a prepared folder; and fields of train.py that are to be so")
    spent = parser.add_mutually_exclusive_group(required=True)
    spent.add_argument("--minutes", type=positive, metavar="M", help="of the whole command")
    spent.add_argument("--flops", type=positive, metavar="F", help="of training, such as 1e15")
    spent.add_argument("--tokens", type=positive, metavar="N",
                       help="that training reads; the model is the largest that they suffice for")
    parser.add_argument("--memory", type=positive, metavar="G",
                        help="GiB of a device that the model, its gradients and so on may take; "
                             "default: what it has")
    parser.add_argument("--device", metavar="NAME",
                        help="a GPU that is not here, by its data sheet: h100, a100, l4 …")
    parser.add_argument("--devices", type=count, metavar="N", default=1,
                        help="how many of --device")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE",
                        help="the configuration to write; default: plan-DATASET.yaml")
    parser.add_argument("--json", action="store_true", help="figures for another program")


def run(options: argparse.Namespace) -> None:
    """Plan, tell, and write."""
    words, overrides = split_arguments(options.words)
    if len(words) != 1:
        raise UserError(f"one dataset is planned for, not {len(words)}: {' '.join(words)}")
    if options.devices > 1 and options.device is None:
        raise UserError("--devices needs --device: of several devices nothing can be measured in "
                        "one process")
    dataset = Dataset(_prepared(words[0]))
    file = options.output or Path(f"plan-{dataset.folder.resolve().name}.yaml")
    if file.exists():
        raise UserError(f"{file} is there already: give another name with -o, or delete it")
    memory = None if options.memory is None else options.memory * GIB
    goal = Goal(None if options.minutes is None else 60 * options.minutes, options.flops,
                options.tokens)
    given = nested(overrides)
    if budgets := given.get("train", {}).keys() & set(BUDGETS):
        raise UserError(f"train.{min(budgets)} is what a plan finds: give --minutes, --flops or "
                        "--tokens instead")
    machine = ready_machine(validate(RunConfig, given.get("run", {}), {}))
    device = (ThisMachine(machine, dataset, memory) if options.device is None else
              OnDataSheet(options.device, options.devices, memory))
    plan = planned(dataset, goal, device, machine, given,
                   lambda line: print(line, file=sys.stderr, flush=True))
    command = shlex.join(["python", "-m", "gpt", *sys.argv[1:]])
    write_atomically(file, as_yaml(plan, command, file))
    if options.json:
        return print(json.dumps(as_json(plan, file)))
    print("\n".join(told(plan)))
    print(f"written to {file}; train it with: {train_command(plan, file)}")


def positive(text: str) -> float:
    """A number above zero. Raises argparse.ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"{text} is no number above zero")


def count(text: str) -> int:
    """A whole number from one on. Raises argparse.ArgumentTypeError."""
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 on")


def _prepared(name: str) -> Path:
    folder = dataset_folder(name)
    if not is_dataset(folder):
        raise UserError(f"{name} is no prepared dataset: prepare it first with python "
                        f"data/prepare.py {name}")
    return folder
