"""Models of other tools: Hugging Face folders in and out, GGUF out.

options → architectures (what config.json means) → tensors (which weight is which) → reading,
writing. `equivalent` rewrites what other tools have no option for; `proof` compares what was
written with what was meant, before anybody hears that it is done.
"""

from gpt.interop.reading import is_huggingface_folder, read_config, read_model
from gpt.interop.writing import export_huggingface

__all__ = ["export_huggingface", "gguf", "hub", "is_huggingface_folder", "long_context",
           "model_card", "new_folder", "peft", "read_config", "read_model", "reading",
           "weight_files", "writing"]
