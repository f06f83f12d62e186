"""The tokenizer that a GGUF file describes, built from the file alone by llama.cpp's rules; and
llama.cpp's own, where it is installed.

Written apart from `tokens`, whose names and kinds it checks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt.interop.gguf.tokens import CONTROL, UNKNOWN, USER_DEFINED

# How llama.cpp cuts text, by the name in the file (its src/llama-vocab.cpp).
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _of_o200k(upper: str, lower: str) -> list[str]:
    """upper, lower: what letters of each case are, in a class or in its place."""
    words = [rf"[^\r\n\p{{L}}\p{{N}}]?{letters}{_CONTRACTION}?"
             for letters in (f"{upper}*{lower}+", f"{upper}+{lower}*")]
    return ["|".join([*words, r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"])]


PATTERNS = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "llama-bpe": [f"{_CONTRACTION}|{_WORD}"],
    "smaug-bpe": [f"{_CONTRACTION}|{_WORD}"],
    "qwen2": [f"{_CONTRACTION}|{_WORD.replace('{1,3}', '')}"],
    "deepseek-v3": [
        r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "gpt-4o": _of_o200k(r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]")}
WHOLE_WORDS_FIRST = {"llama-bpe"}  # a piece that is a token is not merged together

# Where llama.cpp's pattern is another than the model's: it takes no marks for part of a word.
OTHERWISE = {"gpt-4o": _of_o200k(r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])")}
_KEPT: list[Any] = []  # what C holds pointers to


class Reconstructed:
    """The tokenizer of a file. patterns: to cut by, where not by those of the name in the file."""

    def __init__(self, reader: Any, patterns: list[str] | None = None):
        from tokenizers import AddedToken

        fields = {name.removeprefix("tokenizer.ggml."): field.contents()
                  for name, field in reader.fields.items() if name.startswith("tokenizer.ggml.")}
        self._tokens: list[str] = fields["tokens"]
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        self._prefix = " " if fields.get("add_space_prefix") else ""
        self._names: dict[int, str] = {}
        if fields["model"] == "llama":
            self._built = _sentencepiece(self._tokens, fields["scores"], fields["token_type"])
        else:
            self._built = self._byte_level(fields, patterns or PATTERNS[fields["pre"]])
        given = zip(self._tokens, fields["token_type"], strict=True)
        self._built.add_tokens([AddedToken(token, normalized=False) for token, kind in given
                                if kind == USER_DEFINED])

    def _byte_level(self, fields: dict[str, Any], patterns: list[str]) -> Any:
        from tokenizers import Regex, models, pre_tokenizers
        from tokenizers import Tokenizer as Built

        pairs = [tuple(merge.split(" ")) for merge in fields["merges"]]
        vocab = dict(self._ids)
        for left, right in pairs:  # steps on the way to a token
            vocab.setdefault(left + right, len(self._tokens) + len(vocab))
        self._names = {number: token for token, number in vocab.items()}
        built = Built(models.BPE(vocab=vocab, merges=pairs,
                                 ignore_merges=fields["pre"] in WHOLE_WORDS_FIRST))
        built.pre_tokenizer = pre_tokenizers.Sequence([
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        return built

    def encode(self, text: str) -> list[int]:
        """Ids as llama.cpp finds them: what is no token falls apart into bytes."""
        prefix = self._prefix if text else ""
        found: list[int] = []
        for number in self._built.encode(prefix + text, add_special_tokens=False).ids:
            token = self._names.get(number)
            known = token is None or token in self._ids
            found += [number] if known else [self._ids[c] for c in token or ""]
        return found


def _sentencepiece(tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]) -> Any:
    """Any two neighbours whose token exists are joined, the highest score first."""
    from tokenizers import Tokenizer as Built
    from tokenizers import models, normalizers

    vocab = {token: i for i, token in enumerate(tokens)}
    text = {token for token, kind in zip(tokens, kinds, strict=True)
            if kind not in (CONTROL, UNKNOWN)}
    merges = [(token[:at], token[at:])
              for token in sorted(text, key=lambda token: -scores[vocab[token]])
              for at in range(1, len(token)) if {token[:at], token[at:]} <= text]
    built = Built(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    built.normalizer = normalizers.Replace(" ", "▁")
    return built


def llama_cpp_version() -> str | None:
    """Of the package that runs llama.cpp; None where it is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    import llama_cpp

    version: str = llama_cpp.__version__
    return version


def llama_cpp_ids(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """What llama.cpp itself makes of texts with a file's tokenizer."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    _KEPT.append(quiet)
    options = llama_cpp.llama_model_default_params()
    options.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    vocab = llama_cpp.llama_model_get_vocab(model)
    found = []
    for data in map(str.encode, texts):
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), False, False)
        found.append(list(ids[:count]))
    llama_cpp.llama_model_free(model)
    return found
