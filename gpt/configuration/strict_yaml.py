"""YAML without its surprises.

Compared with plain PyYAML: `1e-4` is a number, `on` and `no` are text, `012` is ten and two, a key
given twice is an error, and neither tags (which can build objects) nor aliases (which can grow a
few bytes into gigabytes) are accepted. Every value's line is kept, so that errors can point at it.
"""

from __future__ import annotations

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
        text = path.read_text(encoding="utf-8")
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
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
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
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in result:
                raise UserError(f"{where}, line {line}: the key '{key}' stands twice; remove one")
            child = f"{path}.{key}" if path else key
            result[key] = _build(value_node, child, where, lines)
            lines[child] = line
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, f"{path}.{i}", where, lines) for i, item in enumerate(node.value)]
    quoted = isinstance(node, yaml.ScalarNode) and node.style in ("'", '"', "|", ">")
    return node.value if quoted else parse_scalar(node.value)
