"""python -m gpt look: what happens inside a model while it reads a text, as a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpt.configuration import sampling_config
from gpt.language_model import load
from gpt.reports import CONTROLS, look_page, refuse_no_place

FILE = Path("look.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, the text, and what of sampling is shown."""
    parser.add_argument("run", metavar="RUN",
                        help="run, checkpoint, Hugging Face folder or GGUF file")
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="what the model reads")
    parser.add_argument("--begin", action="store_true",
                        help="read it as the beginning of a document, as sample.py --begin does")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, default=FILE,
                        help="the page (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    for name, value in CONTROLS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value,
                            metavar="X", help="the setting of sampling that is shown (%(default)s)")


def run(options: argparse.Namespace) -> None:
    """Write the page, and say where it is."""
    refuse_no_place(options.output)
    controls = {name: getattr(options, name) for name in CONTROLS}
    sampling_config(**controls)  # before anything is loaded
    lm = load(options.run, options.device, "float32")
    look_page(lm, options.prompt, controls, options.begin).write(options.output)
    print(f"look: {options.output}")
