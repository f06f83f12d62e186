"""Checkpoints: saved whole or not at all, verified before use, free of pickles.

`checkpoints/step-00000500/` holds model.safetensors, config.json, tokenizer/, state.json,
optimizer.safetensors and, written last, manifest.json with the size and SHA-256 of each. The folder
is written under a temporary name, flushed to disk and renamed, so a name `step-…` stands for a
complete save. The newest is the one with the highest step whose files match its manifest.

Where adapters alone learn, a checkpoint has adapter.safetensors instead of the weights, and the
weights that they adapt lie once in the run's `base/`, a checkpoint without an optimizer.
"""

from gpt.runs.checkpoint.background import InOrder
from gpt.runs.checkpoint.contents import Contents, Room
from gpt.runs.checkpoint.finding import damage, find, newest_sound
from gpt.runs.checkpoint.layout import (
    FORMAT_VERSION,
    OPTIMIZER,
    Best,
    TrainState,
    base_folder,
    read_best,
    read_state,
    write_best,
)
from gpt.runs.checkpoint.loading import (
    load_adapter,
    load_model,
    load_model_config,
    load_tokenizer,
    load_training,
    load_weights,
)
from gpt.runs.checkpoint.saving import prune, remove_leftovers, save, save_model, write
from gpt.runs.manifest import ADAPTER, WEIGHTS, steps_in, weight_hash

__all__ = ["ADAPTER", "FORMAT_VERSION", "OPTIMIZER", "WEIGHTS", "Best", "Contents", "InOrder",
           "Room", "TrainState", "base_folder", "damage", "find", "load_adapter", "load_model",
           "load_model_config", "load_tokenizer", "load_training", "load_weights", "newest_sound",
           "prune", "read_best", "read_state", "remove_leftovers", "save", "save_model",
           "steps_in", "weight_hash", "write", "write_best"]
