"""Writing safetensors files."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gpt.errors import WorkFailed


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors, copied to the CPU first. Raises WorkFailed where the disk has no room."""
    path.touch()  # with the mode that the umask gives, which safetensors does not
    mode = path.stat().st_mode
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(ready, path, metadata={"format": "pt"})
        path.chmod(mode)
    except SafetensorError as error:
        needed = sum(tensor.nbytes for tensor in ready.values())
        free = shutil.disk_usage(path.parent).free
        raise WorkFailed(f"cannot write {path}: {error} ({needed:,} bytes are needed, {free:,} are "
                         "free); make room and run the same command again") from error
