"""Safetensors files, written and read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from gpt.errors import UserError, WorkFailed
from gpt.files.atomic import no_room, read_json

_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16",
          torch.int64: "I64", torch.int32: "I32", torch.int8: "I8", torch.uint8: "U8",
          torch.bool: "BOOL"}


LONGEST_NAME = 255  # characters; a longer one is an error of the system's, not one that is missing


class TensorFile:
    """A safetensors file that is written from its first tensor to its last: of a large model no
    second copy ever stands in memory.

    tensors: all that it will hold; what they hold is handed in later, in this order.
    Source of the format: https://github.com/huggingface/safetensors, "Format".
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]):
        self._path, self._left = path, list(tensors)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in tensors.items():
            begin, end = end, end + tensor.numel() * tensor.element_size()
            header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape),
                            "data_offsets": [begin, end]}
        words = json.dumps(header, separators=(",", ":")).encode()
        words += b" " * (-len(words) % 8)  # so that tensors begin where processors like it
        self._bytes = 8 + len(words) + end
        self._file = path.open("wb")
        self._write(len(words).to_bytes(8, "little") + words)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError as failed:
            if error is None:
                raise self._no_room(failed) from failed
        assert error is not None or not self._left, f"{self._left[0]} was not written"

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor. Raises WorkFailed where the disk has no room."""
        assert name == self._left.pop(0), "tensors come in the order of the header"
        numbers = tensor.detach().cpu().contiguous().reshape(-1)
        self._write(numbers.view(torch.uint8).numpy().data)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> WorkFailed:
        return no_room(self._path, self._bytes, error)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors into one file. Raises WorkFailed where the disk has no room."""
    with TensorFile(path, tensors) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)


def index_of(path: Path) -> Path:
    """The file that says in which of several files the tensors of `path` lie."""
    return path.with_name(f"{path.name}.index.json")


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, or of several with an index; each read when asked for.

    Raises UserError, SafetensorError or OSError for files that are missing or damaged.
    """

    def __init__(self, path: Path):
        files = _files_in(index_of(path)) if index_of(path).is_file() else [path]
        self._in = {name: file for opened in files
                    for file in [safe_open(opened, "pt")] for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._in[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._in)

    def __len__(self) -> int:
        return len(self._in)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without reading it."""
        return tuple(self._in[name].get_slice(name).get_shape())


def _files_in(index: Path) -> list[Path]:
    """The files that an index names. Raises UserError if it names none, or leads elsewhere."""
    found = read_json(index)
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(map(is_file_name, places.values())):
        raise UserError(f"{index} is damaged: its weight_map is to name the file of each tensor")
    return [index.with_name(name) for name in sorted(set(places.values()))]


def is_file_name(value: object) -> bool:
    """Whether this is the name of a file in some folder, which may be there."""
    return (isinstance(value, str) and value not in ("", "..") and Path(value).name == value
            and len(value) <= LONGEST_NAME and _is_unicode(value))


def _is_unicode(text: str) -> bool:
    """Whether it holds no half of a surrogate pair, which JSON can."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
