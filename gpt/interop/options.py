"""A Hugging Face config.json, read so that nothing in it is overlooked."""

from __future__ import annotations

import math
import reprlib
from typing import Any

from gpt.errors import UserError

# What says nothing about the function that the weights compute.
NEUTRAL = {
    "_attn_implementation_autoset", "_name_or_path", "architectures", "attn_implementation",
    "auto_map", "begin_suppress_tokens", "bos_token_id", "cache_implementation",
    "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id",
    "dtype", "eos_token_id", "experiment_ids", "finetuning_task", "gradient_checkpointing",
    "id2label", "initializer_range", "is_decoder", "is_encoder_decoder", "is_llama_config",
    "keys_to_ignore_at_inference", "label2id", "max_length", "max_sequence_length", "model_type",
    "n_ctx", "output_attentions", "output_hidden_states", "output_scores", "pad_token_id",
    "prefix", "problem_type", "pruned_heads", "return_dict",
    "return_dict_in_generate", "sep_token_id", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "suppress_tokens",
    "task_specific_params", "tf_legacy_loss", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers.js_config", "transformers_version", "use_bfloat16", "use_cache",
    # How text is generated, in configurations of older versions.
    "bad_words_ids", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "remove_invalid_values",
    "repetition_penalty", "temperature", "tie_encoder_decoder", "top_k", "top_p", "typical_p",
}
MOST = 2**24  # beyond all sizes of a model
MISSING = object()


class Options:
    """The values of a config.json; each is taken once, and what is left over can be told."""

    def __init__(self, values: dict[str, Any], where: str):
        self._values, self.where = values, where
        self._taken: set[str] = set()
        self._sections: dict[str, Options] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a name is there at all, be it with null."""
        return name in self._values

    def take(self, name: str, default: Any = MISSING) -> Any:
        """A value; null and absent are the default. Raises UserError if there is none."""
        self._taken.add(name)
        value = self._values.get(name)
        if value is None:
            if default is MISSING:
                raise UserError(f"{self.where} has no {name}, without which the model cannot be "
                                "rebuilt")
            return default
        return value

    def number(self, name: str, default: Any = MISSING) -> Any:
        """A value that has to be a finite number."""
        value = self.take(name, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not default and not (is_number and abs(value) < math.inf):
            raise UserError(f"{self.where}: {name} must be a number, not {_shown(value)}")
        return value

    def count(self, name: str, default: Any = MISSING) -> Any:
        """A value that has to be a whole number from 1 on."""
        value = self.number(name, default)
        if value is not default and not (isinstance(value, int) and 1 <= value <= MOST):
            raise UserError(f"{self.where}: {name} must be a whole number from 1 to {MOST}, not "
                            f"{_shown(value)}")
        return value

    def require(self, name: str, *supported: Any, default: Any) -> Any:
        """A value that has to be one of those that this toolkit can express."""
        value = self.take(name, default)
        if value not in supported:
            known = " or ".join(repr(one) for one in supported)
            raise UserError(f"{self.where}: {name}={_shown(value)} is not supported; this toolkit "
                            f"computes with {known}")
        return value

    def section(self, name: str) -> Options | None:
        """A nested object; None if there is none, or nothing in it."""
        value = self.take(name, None)
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{self.where}: {name} must be an object, not {_shown(value)}")
        if not value:
            return None
        self._sections[name] = Options(value, f"{self.where}: {name}")
        return self._sections[name]

    def left_over(self) -> list[str]:
        """Names that nobody asked for and that are not known to be neutral, nested ones too."""
        own = [name for name, value in self._values.items() if value is not None
               and name not in self._taken and name not in NEUTRAL]
        nested = [f"{name}.{one}" for name, section in self._sections.items()
                  for one in section.left_over()]
        return sorted(own + nested)


def _shown(value: Any) -> str:
    """A value in an error: what could be very long is cut."""
    return reprlib.repr(value)
