"""A model on disk, whoever saved it: a run, a checkpoint, a Hugging Face folder or name, a GGUF
file, or adapters of one in PEFT's layout."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from gpt.chat import Chat, read_format
from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.interop import hub
from gpt.interop.gguf.model_file import GgufFile, is_gguf
from gpt.interop.peft.layout import base_of, is_peft_folder, peft_digest
from gpt.interop.peft.reading import read_peft
from gpt.interop.reading import HuggingFaceFolder, is_huggingface_folder
from gpt.model import GPT
from gpt.model.lora import adapt, load_adapter_state, merge
from gpt.runs import checkpoint
from gpt.tokenizer import CHAT_FORMAT, HubFolder, Tokenizer


@dataclass(frozen=True)
class SavedModel:
    """Where a model lies, and how its parts are read.

    peft: a folder with adapters of it, which are merged into what is read.
    """

    path: Path
    is_ours: bool
    peft: Path | None = None

    @cached_property
    def _theirs(self) -> HuggingFaceFolder | GgufFile:
        """A model of another tool."""
        return GgufFile(self.path) if is_gguf(self.path) else HuggingFaceFolder(self.path)

    def config(self) -> ModelConfig:
        """The architecture."""
        return checkpoint.load_model_config(self.path) if self.is_ours else self._theirs.config

    def model(self, dtype: torch.dtype = torch.float32) -> GPT:
        """The model in `dtype`, on the CPU, in evaluation mode, with its adapters merged."""
        if (model := self.adapted_model()) is not None:
            merge(model)
            return model.to(dtype)
        if not self.is_ours:
            return self._theirs.model(dtype)
        return checkpoint.load_model(self.path).to(dtype)

    def base(self) -> SavedModel:
        """The model without its adapters; itself, if it has none."""
        if self.peft is not None:
            return SavedModel(self.path, self.is_ours)
        found = checkpoint.load_adapter(self.path) if self.is_ours else None
        return self if found is None else SavedModel(found[1], is_ours=True)

    def adapted_model(self, base: GPT | None = None) -> GPT | None:
        """The model with its adapters beside its frozen weights, in float32; None if it has none.

        base: the model that they adapt, which then shares its weights; None: they are read.
        """
        if self.peft is not None:
            model = self.base().model() if base is None else sharing(base)
            adapter, tensors = read_peft(self.peft, model)
            adapt(model, adapter)
            load_adapter_state(model, tensors)
            return model.eval()
        found = checkpoint.load_adapter(self.path) if self.is_ours else None
        if found is None:
            return None
        model = checkpoint.load_model(found[1]) if base is None else sharing(base)
        adapt(model, found[0])
        checkpoint.load_weights(self.path, model)
        return model.eval()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that travels with it. Raises UserError if the model is too small for it."""
        tokenizer = (checkpoint.load_tokenizer(self.path) if self.is_ours
                     else self._theirs.tokenizer())
        rows = self.config().vocab_size or 0
        if tokenizer.vocab_size > rows:
            raise UserError(f"{self.path}: the tokenizer has {tokenizer.vocab_size} ids, the model "
                            f"{rows}; they belong to different models")
        return tokenizer if self.peft is None else _in_the_words_of(self.peft, tokenizer)

    def weight_hash(self) -> str:
        """SHA-256 that says which weights these are."""
        digest = (checkpoint.weight_hash(self.path) if self.is_ours
                  else self._theirs.digest())
        if self.peft is None:
            return digest
        return hashlib.sha256(f"{digest} {peft_digest(self.peft)}".encode()).hexdigest()


def _in_the_words_of(adapters: Path, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the chat format or template that lies beside adapters, if one does."""
    if (file := adapters / CHAT_FORMAT).is_file():
        return Chat(read_format(file), tokenizer).own_tokenizer()
    text, source = HubFolder(adapters).chat_template()
    if text in (None, tokenizer.chat_template):
        return tokenizer
    found = copy.copy(tokenizer)
    found.chat_template, found.template_source, found.chat_format = text, source, None
    return found


def sharing(model: GPT) -> GPT:
    """Another model of the same weights, which lie where they are."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def find_model(name: str) -> SavedModel:
    """The model that RUN names. Raises UserError if there is none, or if its files are damaged."""
    path = _place_of(name)
    if not is_peft_folder(path):
        return _whole_model(name, path)
    base = base_of(path)
    if is_peft_folder(place := _place_of(base)):
        raise UserError(f"{path} holds adapters of {base}, which holds adapters itself; merge "
                        "those into their model, and name that in base_model_name_or_path")
    found = _whole_model(base, place)
    return SavedModel(found.path, found.is_ours, path)


def _place_of(name: str) -> Path:
    return hub.fetch(name) if hub.is_hub_name(name) else Path(name)


def _whole_model(name: str, path: Path) -> SavedModel:
    """A model that is no adapter of another."""
    if not is_huggingface_folder(path) and not is_gguf(path):
        return SavedModel(checkpoint.find(name), is_ours=True)
    found = SavedModel(path, is_ours=False)
    found._theirs.look()
    return found
