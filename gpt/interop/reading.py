"""A Hugging Face folder as a model of ours."""

from __future__ import annotations

import re
import reprlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.files import read_json
from gpt.interop.architectures import ARCHITECTURES, Architecture, validated
from gpt.interop.options import Options
from gpt.interop.tensors import Rule
from gpt.interop.weight_files import WeightFiles
from gpt.model import GPT
from gpt.tokenizer import Tokenizer, read_huggingface_tokenizer
from gpt.tokenizer.hub_folder import HubFolder

# Constants that older versions saved among the weights: masks, and the frequencies of RoPE.
_CONSTANTS = re.compile(r"(.*\.)?(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)")
_PREFIX = re.compile(r"(transformer|model)\.")


def is_huggingface_folder(path: Path) -> bool:
    """Whether a folder has a config.json that is none of ours, sound or not."""
    if not (path / "config.json").is_file() or (path / "manifest.json").is_file():
        return False
    try:
        values = read_json(path / "config.json")
    except UserError:
        return True
    return not isinstance(values, dict) or "format_version" not in values


@dataclass(frozen=True)
class HuggingFaceFolder:
    """A model in a folder as transformers saves it."""

    path: Path

    def look(self) -> None:
        """Raises UserError for weights that cannot be read: of all that can be wrong, pickled ones
        are told first."""
        WeightFiles(self.path)

    @property
    def config(self) -> ModelConfig:
        """As `read_config`."""
        return read_config(self.path)

    def model(self, dtype: torch.dtype = torch.float32) -> GPT:
        """As `read_model`."""
        return read_model(self.path, dtype)

    def tokenizer(self) -> Tokenizer:
        """As the folder's tokenizer.json says it."""
        return read_huggingface_tokenizer(self.path)

    def digest(self) -> str:
        """SHA-256 over its weights."""
        return WeightFiles(self.path).digest()


def read_config(folder: Path) -> ModelConfig:
    """The architecture of a folder. Raises UserError naming what it has that we have not."""
    return _read(folder)[1]


def read_model(folder: Path, dtype: torch.dtype = torch.float32) -> GPT:
    """The model of a folder, on the CPU, in evaluation mode.

    Raises UserError for pickled or quantised weights, for tensors that are missing, left over or of
    another shape than config.json says, and for options that we do not have.
    """
    architecture, config, left_over = _read(folder)
    if left_over:
        print(f"warning: {folder / 'config.json'}: not understood, and not used: "
              f"{', '.join(left_over)}", file=sys.stderr)
    files, wanted = WeightFiles(folder), architecture.rules(config)
    named = _stored_names(files.names, wanted)
    _refuse_what_does_not_fit(files, named, config, architecture)
    with torch.device("meta"):
        model = GPT(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for rule in wanted:
        _check_shape(rule, files, named, shapes[rule.ours])
    model.load_state_dict({rule.ours: rule.join(lambda name: files.read(named[name]).to(dtype))
                           for rule in wanted}, assign=True)
    return model.eval()


def _read(folder: Path) -> tuple[Architecture, ModelConfig, list[str]]:
    """What config.json says, and the names in it that nobody asked for."""
    path = HubFolder(folder).file("config.json") or folder / "config.json"
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it is no object")
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(f"{path}: model_type={reprlib.repr(kind)} is not supported; choose a model "
                        f"of {', '.join(ARCHITECTURES)}")
    options = Options(values, str(path))
    if options.take("quantization_config", None) is not None:
        raise UserError(f"{path}: quantised weights (quantization_config) are not supported; use "
                        "the model's unquantised release")
    config = validated(ARCHITECTURES[kind].read(options), str(path))
    return ARCHITECTURES[kind], config, options.left_over()


def _stored_names(there: set[str], wanted: list[Rule]) -> dict[str, str]:
    """{a rule's name: the name in the files}: models without a head are saved without a prefix."""
    names = [name for rule in wanted for name in rule.theirs]
    return {name: name if name in there else _PREFIX.sub("", name, count=1) for name in names}


def _refuse_what_does_not_fit(files: WeightFiles, named: dict[str, str], config: ModelConfig,
                              architecture: Architecture) -> None:
    missing = sorted(name for name, stored in named.items() if stored not in files.names)
    if missing:
        raise UserError(f"{files.folder}: {_some(missing)} missing, which a "
                        f"{architecture.model_type} of this config.json has; fetch it again")
    extra = {name for name in files.names - set(named.values()) if not _CONSTANTS.fullmatch(name)}
    if config.tie_embeddings and "lm_head.weight" in extra:
        _refuse_an_untied_head(files, named)
        extra.remove("lm_head.weight")
    if extra:
        raise UserError(f"{files.folder}: {_some(sorted(extra))} left over, which a "
                        f"{architecture.model_type} of this config.json does not have; it is "
                        "another architecture, or an adapter that has to be merged first")


def _refuse_an_untied_head(files: WeightFiles, named: dict[str, str]) -> None:
    table = next(stored for name, stored in named.items() if name.endswith(
        ("embed_tokens.weight", "wte.weight")))
    if not torch.equal(files.read("lm_head.weight"), files.read(table)):
        raise UserError(f"{files.folder}: config.json says tie_word_embeddings, but lm_head.weight "
                        f"is not {table}; if it should count, set tie_word_embeddings to false")


def _check_shape(rule: Rule, files: WeightFiles, named: dict[str, str], ours: torch.Size) -> None:
    for name, required in rule.their_shapes(ours).items():
        if (found := files.shape(named[name])) != required:
            raise UserError(f"{files.folder}: {named[name]} has the shape {found}, config.json "
                            f"asks for {required}; they belong to different models")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"
