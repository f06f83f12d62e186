"""Renders a chat template, as a program of its own: gpt/chat/template.py runs it.

jinja2's sandbox bounds what a template can reach; the process, which holds nothing else, how much
memory it takes and how long. Lines of JSON in, lines of JSON out. The environment is that of
transformers.utils.chat_template_utils, in which templates are written.
"""

import sys

del sys.path[0]  # this folder, where jinja2 would look for modules of its own

import contextlib  # noqa: E402
import json  # noqa: E402
import signal  # noqa: E402
from datetime import datetime  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

from jinja2 import Template, TemplateError, nodes  # noqa: E402
from jinja2.exceptions import SecurityError  # noqa: E402
from jinja2.ext import Extension, LoopControlExtension  # noqa: E402
from jinja2.parser import Parser  # noqa: E402
from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: E402
from jinja2.utils import Namespace  # noqa: E402

MEMORY_BYTES = 512 << 20  # beside what Python and jinja2 take
MOST_CHARACTERS = 20_000_000  # of a rendering
ABANDONED_SECONDS = 60  # where nobody is left who would end it sooner


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


def environment() -> ImmutableSandboxedEnvironment:
    """What templates are written for."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                         extensions=[Generation, LoopControlExtension])
    made.filters["tojson"] = _to_json
    made.globals.update(raise_exception=_refuse, namespace=SafeNamespace)
    return made


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
             sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _bound_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # where the system has no such
        import resource

        used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))


def main() -> None:
    """Read a template, then what to render by it, until standard input ends."""
    print("ready", flush=True)
    given = json.loads(sys.stdin.readline())
    _bound_memory()
    template: Template | None = None
    try:
        template = environment().from_string(given)
    except Exception as error:
        failure = _words(error)
    for line in sys.stdin:
        if hasattr(signal, "alarm"):
            signal.alarm(ABANDONED_SECONDS)
        if template is None:
            print(json.dumps({"error": failure}), flush=True)
            continue
        _render(template, json.loads(line))
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _render(template: Template, asked: dict[str, Any]) -> None:
    """A line for each rendering, up to the first that fails."""
    now = datetime.fromisoformat(asked["now"])
    for one in asked["wanted"]:
        try:
            text = template.render(
                **asked["variables"], messages=[asked["turns"][i] for i in one["turns"]],
                add_generation_prompt=one["asks"], strftime_now=now.strftime)
            if len(text) > MOST_CHARACTERS:
                raise TemplateError(f"it writes more than {MOST_CHARACTERS:,} characters")
            answer = json.dumps({"text": text})
        except Exception as error:
            print(json.dumps({"error": _words(error)}), flush=True)
            return
        print(answer, flush=True)


def _words(error: Exception) -> str:
    said = " ".join(str(error).split())[:1000]
    said = "".join(c for c in said if c.isprintable())
    return said if isinstance(error, TemplateError) and said else f"{type(error).__name__}: {said}"


if __name__ == "__main__":
    main()
