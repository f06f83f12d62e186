"""python -m gpt report: runs, or a dataset, as a page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gpt.errors import UserError
from gpt.reports import (
    charts,
    figures,
    finite,
    place_of,
    refuse_no_place,
    report,
    watch,
    write_pictures,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN …, and what is made of them."""
    parser.add_argument("paths", metavar="RUN", nargs="+",
                        help="run folders, which are compared with the first; or one dataset")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path,
                        help="default: report.html in the folder; of several runs, here")
    parser.add_argument("--watch", action="store_true",
                        help="write it again and again until the runs have ended; the page in a "
                             "browser follows")
    parser.add_argument("--png", metavar="FOLDER", type=Path,
                        help="write the charts as pictures instead: needs gpt-toolkit[report]")
    parser.add_argument("--json", action="store_true",
                        help="print the figures behind it instead")


def run(options: argparse.Namespace) -> None:
    """Write what is asked for, and say where it is."""
    if options.watch and (options.png or options.json):
        raise UserError("--watch writes a page; give it without --png and --json")
    if options.output:
        refuse_no_place(options.output)
    if options.png and options.png.is_file():
        raise UserError(f"--png {options.png} is a file; give a folder, which is made if need be")
    if options.json:
        print(json.dumps(finite(figures(options.paths)), indent=1, allow_nan=False, default=str))
    if options.png:
        for path in write_pictures(charts(options.paths), options.png):
            print(path)
    if options.output or not (options.png or options.json):
        output = options.output or place_of(options.paths)
        if options.watch:
            watch(options.paths, output, print)
        else:
            report(options.paths).write(output)
        print(f"report: {output}")
