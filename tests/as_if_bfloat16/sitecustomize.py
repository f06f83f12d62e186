"""Makes a process believe that its processor computes in bfloat16 (torch then does, slowly).

`pytest --as-if-bfloat16` puts this folder on the path of the tests and of every process that they
start; Python imports a module of this name by itself.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys


class _AfterTorchCpu(importlib.abc.MetaPathFinder):
    """Changes torch.cpu once it has been imported, without importing it any earlier."""

    def find_spec(self, name, path, target=None):
        if name != "torch.cpu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_change(module):
            load(module)
            capabilities = module.get_capabilities
            module.get_capabilities = lambda: {**capabilities(), "avx512_bf16": True}

        spec.loader.exec_module = load_and_change
        return spec


if "torch" in sys.modules:
    raise ImportError("torch was imported before it could be told what the processor can do")
sys.meta_path.insert(0, _AfterTorchCpu())
