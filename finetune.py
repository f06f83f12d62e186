"""Fine-tune a trained run on a task.

usage: python finetune.py configs/NAME.yaml [section.field=value ...] [--preview N]

The task is a file of prompts and completions, conversations, labelled texts or plain texts; the
loss counts answers and the stop token that ends each. The result is a run folder like any other.
--preview N prints N examples as the model will read them, and what is learned of each, and stops.
"""

from __future__ import annotations

import sys

from gpt.errors import UserError, run_command


def main(argv: list[str]) -> None:
    """Parse, build, train."""
    from gpt.configuration import FinetuneConfig, parse_command_line

    argv, previewed = take_preview(argv)
    command = parse_command_line(FinetuneConfig, argv, __doc__ or "")
    # Importing torch takes longer than all before this line: help and mistakes do without it.
    from gpt.finetuning import TaskRows, choose_what_learns, preview
    from gpt.finetuning.run import finetuning, settled, with_defaults
    from gpt.machine.device import launch
    from gpt.machine.ranks import joined
    from gpt.reports import report_at_end
    from gpt.runs.saved_model import find_model
    from gpt.training.task import train_task

    config = settled(command.config)
    base = find_model(config.finetune.base)
    rows = TaskRows.load(config, base.tokenizer(), base.config().block_size)
    dry_run = "--dry-run" in command.flags
    if dry_run or previewed is not None:  # a run tells it in its log
        print("\n".join(rows.opening_lines()))
    if previewed is not None:
        print(preview(rows, previewed, colour=sys.stdout.isatty()))
        return
    config, chosen = with_defaults(config, rows, base)
    if chosen is not None:
        print(chosen)
    model = choose_what_learns(base.model(), config, rows.chat.stop_token)
    timeout = config.parallel.timeout_seconds
    with joined(config.run.device, timeout) as ranks, launch(config.run, ranks) as machine:
        train_task(finetuning(config, base, rows, model), config, machine, dry_run, report_at_end)


def take_preview(argv: list[str]) -> tuple[list[str], int | None]:
    """(the other arguments, N of --preview N)"""
    words = [part for word in argv for part in
             (word.split("=", 1) if word.startswith("--preview=") else [word])]
    if "--preview" not in words:
        return argv, None
    place = words.index("--preview")
    number = "".join(words[place + 1:place + 2])
    if not number.isdecimal() or not int(number):
        raise UserError("--preview needs a number of examples: --preview 5")
    return [*words[:place], *words[place + 2:]], int(number)


if __name__ == "__main__":
    run_command(main, goes_on=True)
