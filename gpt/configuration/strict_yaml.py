"""YAML without its surprises.

Compared with plain PyYAML: `1e-4` is a number, `on` and `no` are text, `012` is ten and two, a key
given twice is an error, and neither tags (which can build objects) nor aliases (which can grow a
few bytes into gigabytes) are accepted. Every value's line is kept, so that errors can point at it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpt.errors import UserError

_SCALARS: list[tuple[re.Pattern[str], Callable[[str], Any]]] = [
    (re.compile(r"(?:~|null|Null|NULL|)$"), lambda text: None),
    (re.compile(r"(?:true|True|TRUE)$"), lambda text: True),
    (re.compile(r"(?:false|False|FALSE)$"), lambda text: False),
    (re.compile(r"[-+]?[0-9][0-9_]*$"), int),
    (re.compile(r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), float),
    (re.compile(r"[-+]?\.(?:inf|Inf|INF)$"), lambda text: float(text.replace(".", ""))),
    (re.compile(r"\.(?:nan|NaN|NAN)$"), lambda text: float("nan")),
]

DEEPEST = 100  # nested sections; parsing takes quadratic time
MOST_BYTES, MOST_VALUES = 1 << 20, 40_000  # of a file: for more, parsing takes many seconds
LONGEST_PATH = 2000  # characters of a value's place, which is kept for each

_NO_TEXT = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # nor bytes of a name (PEP 383)


@dataclass
class Document:
    """A parsed YAML file: its values, and the line of each by dotted path ("train.steps")."""

    values: Any
    lines: dict[str, int] = field(default_factory=dict)


def parse_scalar(text: str) -> Any:
    """The value of an unquoted YAML word: number, true or false, null, or the text itself."""
    for pattern, convert in _SCALARS:
        if pattern.match(text):
            try:
                return convert(text)
            except ValueError:  # 1__0, or thousands of digits
                return text
    return text


def load_file(path: Path) -> Document:
    """Parse a YAML file. Raises UserError naming file and line."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UserError(f"{path} is longer than {MOST_BYTES >> 20} MiB, and no configuration")
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read the configuration {path}: {reason}") from error
    return load_text(text, str(path))


def load_text(text: str, where: str) -> Document:
    """Parse YAML text; `where` names it in errors."""
    try:
        _refuse_surprises(text, where)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{where}{line}: not valid YAML: {' '.join(problem.split())}") from error
    except UserError:
        raise
    except (RecursionError, ValueError) as error:
        raise UserError(f"{where}: not valid YAML: {error or 'nested too deeply'}") from error
    document = Document(None)
    if root is not None:
        document.values = _build(root, "", where, document.lines)
    return document


def _refuse_surprises(text: str, where: str) -> None:
    """Look at the file's events before anything is built from them."""
    depth = values = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        values += isinstance(event, yaml.NodeEvent)
        if values > MOST_VALUES:
            raise UserError(f"{where}: more than {MOST_VALUES:,} values are no configuration")
        _refuse_tags_and_aliases(event, where)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise UserError(f"{where}: not valid YAML: nested too deeply")


def _refuse_tags_and_aliases(event: yaml.Event, where: str) -> None:
    mark = event.start_mark
    line = mark.line + 1 if mark else 1
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise UserError(f"{where}, line {line}: YAML anchors and aliases are not accepted; "
                        "write the value out")
    if tag := getattr(event, "tag", None):
        raise UserError(f"{where}, line {line}: the YAML tag {tag} is not accepted; "
                        "write a plain value")


def _build(node: yaml.Node, path: str, where: str, lines: dict[str, int]) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{where}, line {line}: a key is one word, not a list or a section")
            key = _text(key_node, where)
            if key in result:
                raise UserError(f"{where}, line {line}: the key '{key}' stands twice; remove one")
            child = f"{path}.{key}" if path else key
            if len(child) > LONGEST_PATH:
                raise UserError(f"{where}, line {line}: not valid YAML: a key is too long")
            result[key] = _build(value_node, child, where, lines)
            lines[child] = line
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, f"{path}.{i}", where, lines) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    text = _text(node, where)
    return text if node.style in ("'", '"', "|", ">") else parse_scalar(text)


def _text(node: yaml.ScalarNode, where: str) -> str:
    """A word, if all of it are characters: escapes in quotes could make others."""
    if found := _NO_TEXT.search(node.value):
        raise UserError(f"{where}, line {node.start_mark.line + 1}: \\u{ord(found[0]):04x} is no "
                        "character; take it out")
    return node.value
