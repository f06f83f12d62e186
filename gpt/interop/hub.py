"""Models by name, such as openai-community/gpt2: fetched from the Hugging Face Hub, or found in
its cache."""

from __future__ import annotations

import re
from pathlib import Path

from gpt.errors import UserError
from gpt.interop.weight_files import CONVERT

FILES = ["config.json", "generation_config.json", "model.safetensors", "model-*.safetensors",
         "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
         "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
         "chat_template.jinja", "chat_format.json", "adapter_config.json",
         "adapter_model.safetensors"]
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_name(text: str) -> bool:
    """Whether a text could be OWNER/NAME on the Hub; the path of a run or of a file, mistyped,
    could not."""
    return (bool(_NAME.fullmatch(text)) and not text.endswith(".gguf")
            and Path(text).parts[0] not in {"runs", *_folders_here()})


def _folders_here() -> set[str]:
    return {path.name for path in Path().iterdir() if path.is_dir()}


def fetch(name: str) -> Path:
    """The folder of a model of the Hub; only JSON, text and safetensors are fetched.

    Raises UserError if it is neither cached nor to be had, or if it has no safetensors.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # whatever the network stack raises
        raise UserError(
            f"{name} is no folder here, and could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}); where there is a network, run: hf download {name} "
            f"--local-dir FOLDER, bring FOLDER here, and give its path") from error
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{name} on the Hugging Face Hub has no safetensors; if it has pickled "
                        "weights, and you trust them, convert them once: "
                        + CONVERT.format(folder=name))
    return folder
