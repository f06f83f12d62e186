"""python -m gpt VERB: what is done with models and datasets besides training and sampling."""

from __future__ import annotations

import importlib
import re

from gpt.errors import OneLineParser, UserError, run_command

VERBS = {
    "evaluate": ("evaluating", "how well models predict, how sure that is, and how two differ; "
                               "tasks, CORE"),
    "plan": ("planning", "which model to train for how long, and what it will give"),
    "sweep": ("sweeping", "train a small grid of runs, and tell which is best"),
    "import": ("importing", "turn a Hugging Face folder or a GGUF file into a checkpoint"),
    "export": ("exporting", "turn a run into a Hugging Face folder or a GGUF file, and prove it"),
    "report": ("reporting", "what runs did, or what a dataset holds, as a page to look at"),
    "look": ("looking", "what happens inside a model while it reads a text, as a page"),
    "runs": ("listing", "which runs there are, and how far they have come"),
    "curves": ("curves", "the loss of runs, drawn in the terminal"),
    "serve": ("serving", "answer clients of OpenAI's API: needs gpt-toolkit[serve]"),
    "verify": ("verifying", "compare every file of datasets, runs, checkpoints and exports with "
                            "its recorded SHA-256"),
    "replay": ("replaying", "take a step again that was not to be taken, and say where it went "
                            "wrong"),
    "env": ("environment", "versions, hardware, and what a model costs on it"),
}
IS_FIELD = re.compile(r"[A-Za-z_]\w*(\.\w+)+=").match


def main(argv: list[str]) -> None:
    """Find the verb and do it; only its own module is loaded."""
    if not argv:
        raise UserError(f"give a verb: {', '.join(VERBS)}; python -m gpt --help says what each "
                        "does")
    parser = OneLineParser(prog="python -m gpt", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (module, meaning) in VERBS.items():
        one = verbs.add_parser(verb, help=meaning, description=meaning)
        if argv[:1] == [verb]:
            chosen = importlib.import_module(f"gpt.verbs.{module}")
            chosen.add_arguments(one)
            one.set_defaults(run_verb=chosen.run)
    options, more = parser.parse_known_args(argv)
    if more:  # fields behind options
        if not (hasattr(options, "words") and all(map(IS_FIELD, more))):
            parser.error(f"unrecognized arguments: {' '.join(more)}")
        options.words += more
    options.run_verb(options)


if __name__ == "__main__":
    run_command(main)
