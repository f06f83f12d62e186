"""Renders a chat template, as a program of its own: gpt/chat/template.py runs it.

jinja2's sandbox bounds what a template can reach; the process, which holds nothing else, how much
memory it takes and how long. A line of JSON in, a line of JSON out. The environment is that of
transformers.utils.chat_template_utils, in which templates are written.
"""

import sys

del sys.path[0]  # this folder, where jinja2 would look for modules of its own

import json  # noqa: E402
from datetime import datetime  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

from jinja2 import TemplateError, nodes  # noqa: E402
from jinja2.exceptions import SecurityError  # noqa: E402
from jinja2.ext import Extension, LoopControlExtension  # noqa: E402
from jinja2.parser import Parser  # noqa: E402
from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: E402
from jinja2.utils import Namespace  # noqa: E402

MEMORY_BYTES = 512 << 20  # beside what Python and jinja2 take
MOST_CHARACTERS = 20_000_000  # of a rendering


class Generation(Extension):
    """`{% generation %}`, which some templates put around answers, means nothing here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """What stands inside."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True),
                           lineno=line)


class SafeNamespace(Namespace):
    """jinja2's, without names that would reach into Python."""

    def __init__(*args: Any, **named: Any) -> None:  # (`self` may be a name in it)
        for name in dict(*args[1:], **named):
            _refuse_inner(name)
        Namespace.__init__(*args, **named)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_inner(name)
        super().__setitem__(name, value)


def _refuse_inner(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def environment(now: str) -> ImmutableSandboxedEnvironment:
    """What templates are written for. now: the time that they are told, in ISO format."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                         extensions=[Generation, LoopControlExtension])
    made.filters["tojson"] = _to_json
    made.globals.update(
        raise_exception=_refuse, namespace=SafeNamespace,
        strftime_now=lambda form: datetime.fromisoformat(now).strftime(form))
    return made


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
             sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # no such thing on this system
        return
    try:
        used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    except (OSError, ValueError):
        return


def main() -> None:
    """Read a template, then what to render by it, until standard input ends."""
    given = json.loads(sys.stdin.readline())
    _bound_memory()
    template, failure = None, ""
    try:
        template = environment(given["now"]).from_string(given["template"])
    except Exception as error:
        failure = _words(error)
    for line in sys.stdin:
        try:
            if template is None:
                raise TemplateError(failure)
            texts = [template.render(**one) for one in json.loads(line)]
            if sum(map(len, texts)) > MOST_CHARACTERS:
                raise TemplateError(f"it writes more than {MOST_CHARACTERS:,} characters")
            answer = json.dumps({"texts": texts})
        except Exception as error:
            answer = json.dumps({"error": _words(error)})
        print(answer, flush=True)


def _words(error: Exception) -> str:
    said = " ".join(str(error).split())[:1000]
    return said if isinstance(error, TemplateError) and said else f"{type(error).__name__}: {said}"


if __name__ == "__main__":
    main()
