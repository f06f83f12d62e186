"""Pretrain a GPT on raw text.

usage: python train.py configs/NAME.yaml [section.field=value ...]

Running the same command again continues the run, to the same bits as if it had never stopped.
"""

from __future__ import annotations

from gpt.errors import run_command


def main(argv: list[str]) -> None:
    """Parse, build, train."""
    from gpt.configuration import PretrainConfig, parse_command_line

    command = parse_command_line(PretrainConfig, argv, __doc__ or "")
    # Importing torch takes longer than all before this line: help and mistakes do without it.
    from data.preparation import open_everywhere
    from gpt.machine.device import launch, training_machine
    from gpt.machine.ranks import joined
    from gpt.reports import report_at_end
    from gpt.training.pretraining import pretraining, with_batch_size, with_vocabulary
    from gpt.training.task import train_task

    run, timeout = command.config.run, command.config.parallel.timeout_seconds
    with joined(run.device, timeout) as ranks:
        training_machine(run, ranks)  # refuse before a corpus is prepared
        dataset = open_everywhere(command.config.data.dataset, ranks)
        config = with_vocabulary(command.config, dataset)
        with launch(config.run, ranks) as machine:
            config = with_batch_size(config, dataset, machine)
            train_task(pretraining(config, dataset), config, machine, "--dry-run" in command.flags,
                       report_at_end)


if __name__ == "__main__":
    run_command(main, goes_on=True)
