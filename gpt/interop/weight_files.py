"""The safetensors files of a Hugging Face folder: one, or several with an index."""

from __future__ import annotations

import hashlib
import json
import reprlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt.errors import UserError
from gpt.files import read_json, sha256_of
from gpt.files.tensors import is_file_name
from gpt.tokenizer.hub_folder import HubFolder

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONVERT = ("python -c \"import sys, transformers; transformers.AutoModelForCausalLM"
           ".from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])\" {folder} NEW_FOLDER")


class WeightFiles:
    """Tensors by name, read when they are asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._place = _places(folder)
        self._open = {name: _opened(folder, name) for name in sorted(set(self._place.values()))}
        for tensor, file in self._place.items():
            if tensor not in self._open[file].keys():  # noqa: SIM118 (no mapping, a handle)
                raise UserError(f"{folder / INDEX} says that {file} holds {tensor}, but it does "
                                "not; fetch the folder again")

    @property
    def names(self) -> set[str]:
        """All tensors."""
        return set(self._place)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._open[self._place[name]].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored. Raises UserError if it is no plain float."""
        try:
            tensor: Tensor = self._open[self._place[name]].get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{self.folder / self._place[name]}: {name} cannot be read: "
                            f"{error}") from error
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise UserError(f"{self.folder / self._place[name]}: {name} is stored as "
                            f"{str(tensor.dtype).removeprefix('torch.')}; quantised weights are "
                            "not supported, use the model's unquantised release")
        return tensor

    def digest(self) -> str:
        """SHA-256 over all files: says which weights these are."""
        hashes = [sha256_of(self.folder / file) for file in self._open]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(
            json.dumps(hashes).encode()).hexdigest()


def _places(folder: Path) -> dict[str, str]:
    """{tensor: file that holds it}"""
    if (index := HubFolder(folder).file(INDEX)) is not None:
        weight_map = read_json(index)
        weight_map = weight_map.get("weight_map") if isinstance(weight_map, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{folder / INDEX} is damaged: it has no weight_map")
        for file in weight_map.values():
            if not is_file_name(file):
                raise UserError(f"{folder / INDEX} names {reprlib.repr(file)}, which is no file "
                                "name")
        return weight_map
    if (folder / ONE_FILE).is_file():
        return dict.fromkeys(_opened(folder, ONE_FILE).keys(), ONE_FILE)
    if pickled := sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt*")):
        raise UserError(f"{folder} holds pickled weights alone ({pickled[0]}), which can run code "
                        "when they are loaded; if you trust them, convert them once: "
                        + CONVERT.format(folder=folder))
    raise UserError(f"{folder} holds no weights: neither {ONE_FILE} nor {INDEX} is there")


def _opened(folder: Path, name: str) -> Any:
    """A file of the folder. A link may lead into a Hub cache's blobs, but to no other place."""
    if (path := HubFolder(folder).file(name)) is None:
        raise UserError(f"{folder} has no {name}, which {INDEX} names; fetch the folder again")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no sound safetensors file: {error}; fetch it again") from error
