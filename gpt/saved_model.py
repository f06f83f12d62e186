"""A model on disk, whoever saved it: a run, a checkpoint, a Hugging Face folder or name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from gpt import checkpoint
from gpt.config import ModelConfig
from gpt.errors import UserError
from gpt.interop import hub
from gpt.interop.reading import is_huggingface_folder, read_config, read_model
from gpt.interop.weight_files import WeightFiles
from gpt.model import GPT
from gpt.tokenizer import Tokenizer, read_huggingface_tokenizer


@dataclass(frozen=True)
class SavedModel:
    """Where a model lies, and how its parts are read."""

    path: Path
    is_ours: bool

    def config(self) -> ModelConfig:
        """The architecture."""
        return checkpoint.load_model_config(self.path) if self.is_ours else read_config(self.path)

    def model(self, dtype: torch.dtype = torch.float32) -> GPT:
        """The model in `dtype`, on the CPU, in evaluation mode."""
        if self.is_ours:
            return checkpoint.load_model(self.path).to(dtype)
        return read_model(self.path, dtype)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that travels with it. Raises UserError if the model is too small for it."""
        tokenizer = (checkpoint.load_tokenizer(self.path) if self.is_ours
                     else read_huggingface_tokenizer(self.path))
        rows = self.config().vocab_size or 0
        if tokenizer.vocab_size > rows:
            raise UserError(f"{self.path}: the tokenizer has {tokenizer.vocab_size} ids, the model "
                            f"{rows}; they belong to different models")
        return tokenizer

    def weight_hash(self) -> str:
        """SHA-256 that says which weights these are."""
        return (checkpoint.weight_hash(self.path) if self.is_ours
                else WeightFiles(self.path).digest())


def find_model(name: str) -> SavedModel:
    """The model that RUN names. Raises UserError if there is none, or if its files are damaged."""
    path = Path(name)
    if hub.is_hub_name(name):
        path = hub.fetch(name)
    elif not is_huggingface_folder(path):
        return SavedModel(checkpoint.find(name), is_ours=True)
    WeightFiles(path)  # of all that can be wrong, pickled weights are told first
    return SavedModel(path, is_ours=False)
