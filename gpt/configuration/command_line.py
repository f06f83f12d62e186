"""From a command line to a configuration: defaults, then the YAML file, then section.field=value.

Every value remembers where it came from, so that an error can name the file and line, and
`--print-config` can show it.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from gpt.configuration import strict_yaml
from gpt.configuration.section import Section
from gpt.configuration.sections import PLACES
from gpt.errors import UserError

C = TypeVar("C", bound=BaseModel)
FLAGS = {"--print-config": "print the resolved configuration, and where each value came from",
         "--dry-run": "print parameters, tokens, memory and expected time, and stop"}


@dataclass
class Invocation(Generic[C]):
    """A command line, understood."""

    config: C
    file: Path | None
    flags: set[str] = field(default_factory=set)
    origins: dict[str, str] = field(default_factory=dict)


def parse_command_line(schema: type[C], argv: list[str], usage: str) -> Invocation[C]:
    """Read `[FILE.yaml] [section.field=value …] [flags]` into a validated `schema`.

    Overrides are accepted as section.field=value, --section.field=value and --section.field value.
    `--help` and `--print-config` print and leave.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(schema, usage))
        sys.exit(0)
    flags = {word for word in argv if word in FLAGS}
    files, overrides = split_arguments([word for word in argv if word not in FLAGS])
    if len(files) > 1:
        raise UserError(f"one configuration file is expected, not {len(files)}: {' '.join(files)}")
    file = Path(files[0]) if files else None
    values, origins = _read_file(file) if file else ({}, {})
    if file and "run" in schema.model_fields:
        _continue_where_it_lies(file, values, origins)
        run = values.setdefault("run", {})
        if isinstance(run, dict) and "name" not in run:  # a run is named after its file
            run["name"], origins["run.name"] = file.stem, f"the name of {file}"
    for path, value in overrides.items():
        _set(values, path, value)
        origins[path] = "command line"
    refuse_another_commands(schema, values, file)
    config = validate(schema, values, origins)
    if "--print-config" in flags:
        implied = schema.implied(values) if issubclass(schema, Section) else {}
        print(print_config(config, implied | origins))
        sys.exit(0)
    return Invocation(config, file, flags, origins)


# What only one command's configuration has.
_COMMANDS = {"finetune": "finetune.py", "lora": "finetune.py", "preference": "finetune.py",
             "data": "train.py", "model": "train.py", "sources": "data/prepare.py"}


def refuse_another_commands(schema: type[BaseModel], values: dict[str, Any], file: Path | None
                            ) -> None:
    """Raise UserError for a configuration that is written for another command."""
    if any(name in values for name in _COMMANDS.keys() & schema.model_fields.keys()):
        return  # what else there is, is a mistake in one field
    for name, script in _COMMANDS.items():
        if name in values:
            raise UserError(f"{file or 'command line'}: {name} is for another command: "
                            f"python {script} {file or '…'}")


def _continue_where_it_lies(file: Path, values: dict[str, Any], origins: dict[str, str]) -> None:
    """config.yaml in a run's folder means that folder, whatever it was called or wherever it was
    when it was written."""
    folder = file.absolute().parent
    if file.name != "config.yaml" or not (folder / "identity.json").is_file():
        return
    run = values.setdefault("run", {})
    if isinstance(run, dict):
        above = file.parent.parent if file.parent.name else folder.parent
        run |= {"name": folder.name, "out_dir": str(above)}
        origins |= {f"run.{name}": f"the folder of {file}" for name in ("name", "out_dir")}
    find_places(values, folder)


def find_places(values: dict[str, Any], run: Path) -> None:
    """Relative places in a run's configuration that are not found from here are looked for from
    where the run was started."""
    if not (run / "environment.json").is_file():
        return
    try:
        home = json.loads((run / "environment.json").read_text())["working_directory"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    for place in PLACES:
        section, _, name = place.partition(".")
        given = values[section].get(name) if isinstance(values.get(section), dict) else None
        if (isinstance(given, str) and not _exists(given)
                and _exists(there := str(Path(str(home)) / given))):
            values[section][name] = there


def split_arguments(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Separate bare words (files) from overrides."""
    files: list[str] = []
    overrides: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        name, equals, text = word.removeprefix("--").partition("=")
        if word.startswith("--") and not equals:
            value = next(words, None)
            if value is None:
                raise UserError(f"{word} needs a value: {word} VALUE, or {name}=VALUE; --help "
                                "lists all fields")
            text, equals = value, "="
        is_field = word.startswith("--") or _FIELD.fullmatch(name)
        if not equals or not is_field or _exists(word):
            files.append(word)
        else:
            overrides[name] = _parse_value(text, f"the value of {name}")
    return files, overrides


_FIELD = re.compile(r"[A-Za-z_][\w.]*")  # what stands before "=" in an override; not in a URL


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError:  # longer than any file name
        return False


def _parse_value(text: str, where: str) -> Any:
    if text[:1] in ("[", "{", '"', "'"):
        return strict_yaml.load_text(text, where).values
    return strict_yaml.parse_scalar(text)


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"there is no configuration file {path}{hint}")
    document = strict_yaml.load_file(path)
    values = {} if document.values is None else document.values
    if not isinstance(values, dict):
        raise UserError(f"{path}, line 1: a configuration is made of 'section:' and fields")
    for name, section in list(values.items()):
        # Of a section, all fields are commented out, or left open.
        if section is None or (name, section) == ("parallel", "auto"):
            values[name] = {}
    return values, {key: f"{path}, line {line}" for key, line in document.lines.items() if key}


def nested(overrides: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted name as sections: {"run.seed": 1} -> {"run": {"seed": 1}}"""
    values: dict[str, Any] = {}
    for path, value in overrides.items():
        _set(values, path, value)
    return values


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise UserError(f"cannot set {path}: {name} is not a section")
    values[last] = value


def validate(schema: type[C], values: dict[str, Any], origins: dict[str, str]) -> C:
    """Build the configuration, or raise UserError naming the first wrong field and its origin."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
        raise UserError(_explain(schema, problems[0], origins)) from error


def _explain(schema: type[BaseModel], problem: Any, origins: dict[str, str]) -> str:
    path = _field_path(schema, problem["loc"])
    origin = _origin_of(path, problem, origins)
    name = path or "the configuration"
    if problem["type"] == "extra_forbidden":
        known = list(field_paths(schema))
        if (number := re.search(r"\.(\d+)\.", path)) is not None:  # an item of a list
            known = [p.replace(".N.", number[0]) for p in known]
        if path in known:
            section, _, last = path.rpartition(".")
            return f"{origin}: write {path} as a section: '{section}:' and '{last}:' below it"
        sections = {p.split(".")[0] for p in known}
        near = difflib.get_close_matches(path, [*known, *sections], 1, cutoff=0.5)
        by_last_name = [p for p in known if p.rpartition(".")[2] == path.rpartition(".")[2]]
        likely = by_last_name or near
        advice = f"did you mean {likely[0]}?" if likely else "--help lists all fields"
        return f"{origin}: there is no field {path}; {advice}"
    if problem["type"] == "missing":
        name = next((p for p, info in field_paths(schema).items()
                     if p.startswith(f"{name}.") and ".N." not in p and info.is_required()), name)
        return f"{name} is missing: give {name}=VALUE, or set it in the YAML file"
    message = problem["msg"].removeprefix("Value error, ")
    if message.startswith(("Input", "List", "String", "Value")):  # pydantic's own words
        message = message[:1].lower() + message[1:]
    if problem["type"] == "list_type" and isinstance(problem["input"], (str, int, float)):
        message += f"; write [{problem['input']}]"
    if origin.startswith("the name of"):
        message += f"; give {name}=NAME"
    given = "" if isinstance(problem["input"], dict) else f" (given: {problem['input']!r})"
    return f"{origin}: {name}: {message}{given}"


def _origin_of(path: str, problem: Any, origins: dict[str, str]) -> str:
    """Where a wrong value came from; for fields that do not fit together, the strongest origin."""
    prefix = f"{path}." if path else ""
    inside = [origin for p, origin in origins.items() if p.startswith(prefix)]
    if inside and problem["type"] == "value_error" and isinstance(problem["input"], dict):
        return "command line" if "command line" in inside else inside[0]
    while path and path not in origins:
        path = path.rpartition(".")[0]
    return origins.get(path, inside[0] if inside else "defaults")


def _field_path(schema: type[BaseModel], loc: tuple[Any, ...]) -> str:
    """The dotted path of an error, without the branch names that pydantic adds for unions."""
    names: list[str] = []
    current: type[BaseModel] | None = schema
    for part in loc:
        names.append(str(part))
        if isinstance(part, int):  # an item of a list of sections
            continue
        if current is None:
            break
        fields = {(f.alias or n): f for n, f in current.model_fields.items()}
        current = _section_of(fields[part].annotation) if part in fields else None
        if current is None:
            break
    return ".".join(names)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or may hold, or that the items of its list are."""
    arguments: tuple[Any, ...] = getattr(annotation, "__args__", ())
    if getattr(annotation, "__origin__", None) is list or type(None) in arguments:
        annotation = arguments[0]
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


def field_paths(schema: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every field of a configuration by its dotted path."""
    found: dict[str, Any] = {}
    for name, info in schema.model_fields.items():
        path = prefix + (info.alias or name)
        section = _section_of(info.annotation)
        if section is None or section is not info.annotation:
            found[path] = info
        if section is not None:
            is_list = getattr(info.annotation, "__origin__", None) is list
            found |= field_paths(section, f"{path}.N." if is_list else f"{path}.")
    return found


def help_text(schema: type[BaseModel], usage: str, flags: bool = True) -> str:
    """Usage, then every field with its type, default and meaning, then the flags."""
    lines = [usage.strip(), "", "Fields (given in the YAML file or as section.field=value):"]
    for path, info in field_paths(schema).items():
        lines.append(f"  {path:30} {_type_name(info.annotation)}; {_default_text(info)}")
        if info.description:
            lines.append(f"  {'':30}   {info.description}")
    if flags:
        lines += ["", "Flags:", *(f"  {flag:30} {meaning}" for flag, meaning in FLAGS.items())]
    return "\n".join(lines)


def _default_text(info: Any) -> str:
    if info.default_factory is not None:
        return "derived"
    if info.default is PydanticUndefined:
        return "required"
    return f"default {json.dumps(info.default, ensure_ascii=False)}"


def _type_name(annotation: Any) -> str:
    arguments = getattr(annotation, "__args__", None)
    if getattr(annotation, "__metadata__", None) is not None:
        return _type_name(annotation.__origin__)
    if isinstance(annotation, type) and not arguments:
        names = {"str": "text", "int": "integer", "float": "number", "NoneType": "null"}
        return names.get(annotation.__name__, annotation.__name__)
    if str(annotation).startswith("typing.Literal"):
        return " | ".join(json.dumps(a).strip('"') for a in annotation.__args__)
    if annotation is not None and getattr(annotation, "__origin__", None) is list:
        return f"list of {_type_name(annotation.__args__[0])}"
    return " | ".join(_type_name(a) for a in arguments or ())


def print_config(config: BaseModel, origins: dict[str, str]) -> str:
    """The resolved configuration as YAML; a comment gives each value's origin."""
    lines = []
    for name, section in config.model_dump(by_alias=True).items():
        if not isinstance(section, dict):
            origin = origins.get(name, "default")
            lines.append(f"{name}: {json.dumps(section, ensure_ascii=False)}  # {origin}")
            continue
        lines.append(f"{name}:")
        for key, value in section.items():
            origin = origins.get(f"{name}.{key}", "default")
            lines.append(f"  {key}: {json.dumps(value, ensure_ascii=False)}  # {origin}")
    return "\n".join(lines)
