"""Task data as people write it: one JSON object per line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.errors import UserError


@dataclass(frozen=True)
class Record:
    """What the model is given, and what it should answer."""

    prompt: str
    completion: str


def read_records(path: Path) -> list[Record]:
    """Read {"prompt": …, "completion": …} lines. Raises UserError naming file, line and field."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the records {path}: {error.strerror}") from error
    records = [_record(line, f"{path}, line {number}")
               for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if not records:
        raise UserError(f"{path} has no records; write one JSON object per line: "
                        '{"prompt": "…", "completion": "…"}')
    return records


def _record(line: bytes, where: str) -> Record:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with prompt and completion")
    return Record(_text(value, "prompt", where), _text(value, "completion", where))


def _text(value: dict[str, Any], field: str, where: str) -> str:
    if field not in value:
        raise UserError(f"{where}: the field {field} is missing (fields there: "
                        f"{', '.join(map(str, value)) or 'none'})")
    if not isinstance(value[field], str):
        raise UserError(f"{where}: {field} must be text, not {type(value[field]).__name__}")
    text: str = value[field]
    if field == "completion" and not text:
        raise UserError(f"{where}: completion is empty; there is nothing to learn from it")
    return text
