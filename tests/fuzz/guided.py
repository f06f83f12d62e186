"""Fuzzing that is guided by what an input reaches in the code, for the parsers written here.

    python tests/fuzz/guided.py PARSER [SECONDS]

It needs the package atheris (pip install atheris), which is no dependency of the project. Inputs
that reached something new are kept in build/fuzz/PARSER, and go on from there the next time; one
that fails is written to build/fuzz, and shown again with `guided.py PARSER 0 FILE`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

try:
    import atheris
except ImportError:
    sys.exit("error: guided fuzzing needs the package atheris: pip install atheris")

with atheris.instrument_imports(include=["data", "gpt", "tarfile", "yaml", "zipfile"]):
    from data.recipe import read_recipe
    from data.sources.bad_text import BadText
    from data.sources.json_values import JsonValues
    from data.sources.streams import BrokenFile
    from gpt.chat import read_format
    from gpt.configuration import sampling_config
    from gpt.configuration.strict_yaml import load_file
    from gpt.finetuning.fields import Fields
    from gpt.finetuning.transcripts import transcript
    from gpt.generation.grammar import grammars
    from gpt.runs.history import read_history
    from gpt.tokenizer import build_tokenizer
    from gpt.tokenizer.rank_file import rank_lines, read_ranks
    from tests.data.sources import sample_files as files
    from tests.fuzz import (
        inputs,
        test_configuration,
        test_datasets,
        test_sources,
        test_task_data,
        test_tokenizers,
    )
    from tests.shards.test_reading import write_dataset

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
DATASET = write_dataset(FOLDER / "dataset", shard_tokens=40).folder
BYTES = build_tokenizer("byte")
grammar = grammars(BYTES)


def at(name, read):
    """A reader of the file of a name, as a function of bytes."""
    def tried(data):
        (FOLDER / name).write_bytes(data)
        read(FOLDER / name)
    return tried


def values(data):
    with (FOLDER / "a").open("wb") as file:
        file.write(data)
    with (FOLDER / "a").open("rb") as file:
        list(JsonValues(file, 1 << 12))


def archive(name):
    def tried(data):
        files.documents(files.corpus_of(str(files.write(str(FOLDER / name), data)),
                                        on_bad_text="replace"), BadText("replace"))
    return tried


def records(name):
    return lambda data: files.read(files.file_of(str(FOLDER / name), data), BadText("replace"))


def text_of(data):
    return data.decode("utf-8", "replace")


def schema(data):
    grammar(sampling_config(json_schema=text_of(data)))


def regex(data):
    grammar(sampling_config(regex=text_of(data)))


def manifest(data):
    with contextlib.suppress(ValueError, RecursionError):  # what is no JSON is written as it is
        data = json.loads(data)
    if isinstance(data, bytes):
        (DATASET / "dataset.json").write_bytes(data)
    else:
        test_datasets.seal(DATASET, data)
    test_datasets.look(DATASET)


def said(data):
    transcript(Fields({"chosen": text_of(data)}, "f, line 1"), "chosen")


TASKS = [inputs.as_json(record) for record in test_task_data.RECORDS.values()]
METRICS = b"".join(json.dumps(line).encode() + b"\n" for line in (
    {"event": "train", "step": 1, "loss": 2.0}, {"event": "eval", "val_loss": 1.0}))
SCHEMA = b'{"type": "object", "properties": {"a": {"enum": [1, "x"]}, "b": {"type": "array", '\
         b'"items": {"$ref": "#"}}}, "required": ["a"], "additionalProperties": false}'
# name: (what reads it, inputs to begin with)
PARSERS = {
    "yaml": (at("a.yaml", load_file), [inputs.as_json(test_configuration.RUN), b"a:\n  - b: 1\n"]),
    "recipe": (at("a.yaml", read_recipe), [inputs.as_json(test_configuration.RECIPE)]),
    "chat": (at("a.yaml", read_format), [b"user:\n  before: '<|x|>'\nstop: a\n"]),
    "json": (values, [test_sources.PLAIN["a.json"], b'{"a": 1} [2, "b"] 3']),
    "tar": (archive("a.tar"), [test_sources.ARCHIVES["gnu.tar"][:4096],
                               test_sources.member(b"0", b"text") + test_sources.END]),
    "zip": (archive("a.zip"), [test_sources.ARCHIVES["stored.zip"]]),
    "csv": (records("a.csv"), [test_sources.PLAIN["a.csv"]]),
    "jsonl": (records("a.jsonl"), [test_sources.PLAIN["a.jsonl"]]),
    "ranks": (at("a.tiktoken", read_ranks), [b"AA== 0\nAQ== 1\n", rank_lines({b"a": 0, b"b": 1})]),
    "task": (at("a.jsonl", test_task_data.learn), TASKS),
    "table": (at("a.csv", test_task_data.learn), [b'prompt,completion\n"a ""b""",c\n']),
    "transcript": (said, [b"\n\nHuman: a\n\nAssistant: b", b"User: a\nAssistant: b"]),
    "schema": (schema, [SCHEMA, b'{"type": "string", "pattern": "a+"}']),
    "regex": (regex, [b"(a|b)+[^c-d]{2,3}?\\d\\pL", b"(?i)x.*$"]),
    "metrics": (at("metrics.jsonl", lambda path: read_history(path.parent)), [METRICS]),
    "tokenizer": (at("tokenizer.json",
                     lambda path: test_tokenizers.use(build_tokenizer(str(path)))),
                  [inputs.as_json({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
                                   "added_tokens": [], "decoder": {"type": "Fuse"}})]),
    "manifest": (manifest, [(DATASET / "dataset.json").read_bytes()])}


def main() -> None:
    """Fuzz one parser until the time is over or something fails."""
    if len(sys.argv) < 2 or sys.argv[1] not in PARSERS:
        sys.exit(f"usage: python tests/fuzz/guided.py PARSER [SECONDS]; PARSER is one of "
                 f"{', '.join(PARSERS)}")
    read, seeds = PARSERS[sys.argv[1]]
    seconds, kept = (sys.argv[2:3] or ["600"])[0], ROOT / "build/fuzz" / sys.argv[1]
    kept.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (kept / f"seed-{number}").write_bytes(seed)
    (FOLDER / "tokenizer_config.json").write_text('{"eos_token": "a"}')

    def tried(data: bytes) -> None:
        inputs.is_read(lambda: read(data), BrokenFile)

    options = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=3000", "-max_len=8192",
               f"-artifact_prefix={kept.parent / sys.argv[1]}-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, *(sys.argv[3:] or [str(kept)])], tried)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
