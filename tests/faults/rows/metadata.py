"""Row 7: metadata that lie: headers, offsets, shapes, and numbers that no file of ours has."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.rows import hostile, runs
from tests.faults.tally import Tally
from tests.faults.warm import command

Change = Callable[[Path], None]  # of a file
SAMPLE = ("sample.py", "runs/run", "--max-new-tokens", 1)
RESUME = ("train.py", *runs.words("run", 4))
IMPORT = ("gpt", "import", "hf", "imported")
TRAIN = ("train.py", *runs.words("other", 2))
NUMBERS: tuple[Any, ...] = (-1, 0, 10**9, 10**30, float("nan"), float("inf"), 1e400, 0.5, "12",
                            None, [], {}, True)
COUNTS = {"step", "tokens", "elapsed_seconds", "passed_over"}
SIZES = {"n_layer", "n_head", "n_embd", "vocab_size", "block_size", "hidden_size",
         "num_hidden_layers", "num_attention_heads", "max_position_embeddings"}


def run(short: bool, folder: Path) -> Tally:
    """Every lie in every place; short: every fortieth."""
    tally = Tally()
    world, number = hostile.world(), 0
    for what, path, change, words, may_work in _lies(world):
        number += 1
        if short and number % 40:
            continue
        copy = hostile.copied(folder / "copy")
        change(copy / path)
        if "checkpoints" in path.parts and path.name not in ("manifest.json", "best.json"):
            hostile.seal(copy / Path(*path.parts[:4]))
        done = command(*words, folder=copy)
        if done.code == 0 and may_work:
            tally.expect()
        else:
            tally.expect(hostile.refused(done, f"{what} in {path.name}, {words[0]} {words[1]}"))
    return tally


def _lies(world: Path) -> Iterator[tuple[str, Path, Change, tuple[object, ...], bool]]:
    """(what, a file, how it is changed, the command that meets it, whether it may just work)"""
    step = hostile.checkpoint_of(world / "runs" / "run").relative_to(world)
    for what, lie in _headers():
        yield what, step / "model.safetensors", lie, SAMPLE, False
        yield what, step / "optimizer.safetensors", lie, RESUME, False
        yield what, Path("hf/model.safetensors"), lie, IMPORT, False
    for path, words in ((step / "config.json", SAMPLE), (Path("hf/config.json"), IMPORT)):
        values = json.loads((world / path).read_text())
        for place in _places(values):
            for number in NUMBERS:
                yield (f"{'.'.join(place)}={number!r}", path, _put(place, number), words,
                       _is_harmless(values, place, number))
    yield from _in_states(world, step)


def _in_states(world: Path, step: Path) -> Iterator[tuple[str, Path, Change, tuple[object, ...],
                                                          bool]]:
    for path, words in ((step / "state.json", RESUME), (step / "manifest.json", SAMPLE),
                        (Path("data/dataset.json"), TRAIN)):
        values = json.loads((world / path).read_text())
        for place in _places(values):
            for number in (*NUMBERS[:5], "x" * 10**6):
                if number == _at(values, place):
                    continue
                said = repr(number)[:20]
                may_be = place[-1] in COUNTS and number in (0, 10**9)
                yield (f"{'.'.join(place)}={said}", path, _put(place, number), words, may_be)
    for number in NUMBERS:
        yield (f"step={number!r}", Path("runs/run/checkpoints/best.json"), _put(("step",), number),
               ("sample.py", "runs/run@best"), number in (0, True))
    for path, words in ((step / "state.json", RESUME), (step / "manifest.json", SAMPLE),
                        (Path("data/dataset.json"), TRAIN)):
        yield "a million brackets", path, lambda file: file.write_text("[" * 10**6), words, False


def _is_harmless(values: Any, place: tuple[str, ...], number: Any) -> bool:
    """What is refused by all means: a size that no model has. All else may be another model,
    whose tensors do not fit, or something that does not matter."""
    return not (_at(values, place) and isinstance(_at(values, place), int)
                and place[-1] in SIZES and number not in (None, True, "12"))


def _places(value: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Ways to all values of a JSON object that are no objects; of a list, to its first."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _places(each, (*above, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from _places(value[0], (*above, "0"))
    else:
        yield above


def _at(value: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        value = value[int(key) if isinstance(value, list) else key]
    return value


def _put(place: tuple[str, ...], number: Any) -> Change:
    def change(value: Any) -> None:
        owner, key = _at(value, place[:-1]), place[-1]
        owner[int(key) if isinstance(owner, list) else key] = number

    return lambda path: hostile.edit(path, change)


def _headers() -> Iterator[tuple[str, Change]]:
    """Lies of a safetensors file."""
    for size in (2**60, 2**63, 2**64 - 1, 10**9, 0):
        yield f"a header of {size} bytes", _begin(struct.pack("<Q", size))
    yield "no bytes", lambda path: path.write_bytes(b"")
    yield "a header that is no JSON", lambda path: path.write_bytes(
        struct.pack("<Q", 8) + b"not JSON")
    yield "a hundred thousand brackets", lambda path: path.write_bytes(
        struct.pack("<Q", 10**5) + b"[" * 10**5)
    yield "a tensor by another name", _header(lambda one: one, name="elsewhere")
    yield "overlapping tensors", _header(_overlap)
    yield "a shape that is too large", _header(lambda one: one.update(shape=[2**40, 2**23]))
    yield "a shape of other sizes", _header(lambda one: one.update(shape=[1, *one["shape"]]))
    yield "a negative shape", _header(lambda one: one.update(shape=[-1, -1]))
    yield "a shape that overflows", _header(lambda one: one.update(shape=[2**32, 2**32, 4]))
    yield "offsets beyond the file", _header(lambda one: one.update(data_offsets=[0, 2**62]))
    yield "offsets that run backwards", _header(lambda one: one.update(data_offsets=[64, 0]))
    yield "an unknown number format", _header(lambda one: one.update(dtype="Q8_0"))
    yield "a number format of another size", _header(lambda one: one.update(dtype="F64"))
    yield "a number format that is none", _header(lambda one: one.update(dtype=None))


def _begin(words: bytes) -> Change:
    return lambda path: path.write_bytes(words + path.read_bytes()[8:])


def _overlap(one: dict[str, Any]) -> None:
    begin, end = one["data_offsets"]
    one["data_offsets"] = [begin // 2, end // 2]


def _header(change: Callable[[dict[str, Any]], Any], name: str | None = None) -> Change:
    """Change the entry of the last tensor, or its name."""
    def changed(path: Path) -> None:
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:8 + size])
        last = max(each for each in header if each != "__metadata__")
        change(header[last])
        header = {name if name and each == last else each: one for each, one in header.items()}
        words = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(words)) + words + data[8 + size:])

    return changed
