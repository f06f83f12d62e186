"""Tables as text."""

from __future__ import annotations

import contextlib
import csv
import io

SEPARATORS = ",;\t"


def separator_of(text: str) -> str:
    """What cuts the header of a .csv file, with which the text begins, into several names.

    The first of commas, semicolons and tabs that does; a comma if none does.
    """
    for mark in SEPARATORS:
        with contextlib.suppress(csv.Error):
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
            if len(next(filter(None, lines), [])) > 1:
                return mark
    return ","
