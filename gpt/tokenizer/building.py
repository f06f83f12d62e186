"""From a tokenizer's specification to the tokenizer: single bytes, characters, merges, files."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tiktoken

from gpt.errors import UserError
from gpt.tokenizer.alphabet import VISIBLE, token_of
from gpt.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt.tokenizer.huggingface import holds_tokenizer, read_huggingface_tokenizer
from gpt.tokenizer.patterns import (
    BPE_PATTERN,
    CL100K_PATTERN,
    GPT2_PATTERN,
    O200K_PATTERN,
    ONE_CHARACTER,
)
from gpt.tokenizer.rank_file import read_ranks
from gpt.tokenizer.rank_tokenizer import RankTokenizer

NAMED = ("gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base")
SPECIFICATIONS = (f"byte, char, bpe:N, {', '.join(NAMED)}, a .tiktoken file, the tokenizer folder "
                  "of a dataset or checkpoint, or a Hugging Face folder with a tokenizer.json")

# The longest token of bpe:N, which is as long as GPT-2's longest: beyond lie no words, but whole
# passages that a corpus repeats.
MOST_TOKEN_BYTES = 128

# What a .tiktoken file does not carry, by its number of ranks: (pattern, id of <|endoftext|>).
KNOWN_FILES = {50_256: (GPT2_PATTERN, 50_256), 50_280: (GPT2_PATTERN, 50_256),
               100_256: (CL100K_PATTERN, 100_257), 199_998: (O200K_PATTERN, 199_999)}


def needs_corpus(spec: str) -> bool:
    """Whether building this tokenizer means reading the corpus first."""
    return spec == "char" or spec.startswith("bpe:")


def build_tokenizer(spec: str, texts: Iterable[str] = ()) -> Tokenizer:
    """Build a tokenizer from its specification; `texts` is the corpus for char and bpe:N.

    bpe:N may read the texts twice. Those of an iterator are kept in memory for that.
    """
    if spec == "byte":
        ranks = {bytes([b]): b for b in range(256)}
        return RankTokenizer(spec, ranks, ONE_CHARACTER, {END_OF_TEXT: 256})
    if spec == "char":
        return _characters(texts)
    if match := re.fullmatch(r"bpe:(\d+)", spec):
        return _train_bpe(int(match[1]), texts)
    if spec in NAMED:
        return _tiktoken_named(spec)
    if spec.endswith(".tiktoken"):
        return _from_rank_file(Path(spec))
    if (Path(spec) / "encoding.json").is_file():
        return Tokenizer.load(Path(spec))
    if holds_tokenizer(Path(spec)):
        return read_huggingface_tokenizer(Path(spec))
    raise UserError(f"unknown tokenizer '{spec}': choose {SPECIFICATIONS}")


def _characters(texts: Iterable[str]) -> Tokenizer:
    """The corpus's characters in code-point order, then the bytes that none of them is."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    ranks = {character.encode(): i for i, character in enumerate(sorted(seen))}
    for b in range(256):
        ranks.setdefault(bytes([b]), len(ranks))
    return RankTokenizer("char", ranks, ONE_CHARACTER, {END_OF_TEXT: len(ranks)})


def _train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """Train a byte-pair encoding of exactly vocab_size ids, <|endoftext|> included.

    Where merges would go on to tokens of more than MOST_TOKEN_BYTES, it says so, and trains again
    with that bound: so the vocabulary of any other corpus is what it is without one.
    """
    if not 257 <= vocab_size <= 2**20:
        raise UserError(f"bpe:{vocab_size}: the size must lie in 257 (the bytes and "
                        f"{END_OF_TEXT}) to {2**20}")
    texts = list(texts) if isinstance(texts, Iterator) else texts
    ranks = bpe_ranks(train_bpe_with_tokenizers(vocab_size - 1, texts))
    if (longest := max(map(len, ranks))) > MOST_TOKEN_BYTES:
        print(f"note: bpe:{vocab_size} would have tokens of up to {longest:,} bytes, from text "
              "that repeats long stretches without blanks; it is trained again with tokens of at "
              f"most {MOST_TOKEN_BYTES} bytes", file=sys.stderr)
        ranks = bpe_ranks(train_bpe_with_tokenizers(vocab_size - 1, texts, MOST_TOKEN_BYTES))
    return RankTokenizer(f"bpe:{vocab_size}", ranks, BPE_PATTERN, {END_OF_TEXT: len(ranks)})


def train_bpe_with_tokenizers(vocab_size: int, texts: Iterable[str],
                              most_bytes: int | None = None) -> Any:
    """A `tokenizers.Tokenizer` trained on texts: byte-level merges inside BPE_PATTERN's pieces.

    most_bytes: length of the longest token, at least 2; None leaves it open.
    """
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trained

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(BPE_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = sorted(VISIBLE.values())
    # The library counts characters, of which its alphabet has one for each byte, and stops below.
    bound: dict[str, Any] = {} if most_bytes is None else {"max_token_length": most_bytes + 1}
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet,
                                  show_progress=False, special_tokens=[], **bound)
    trained.train_from_iterator(texts, trainer)
    return trained


def bpe_ranks(trained: Any) -> dict[bytes, int]:
    """Ranks of a byte-level `tokenizers.Tokenizer`: its visible characters turned into bytes."""
    return {token_of(name): i for name, i in trained.get_vocab().items()}


def _from_rank_file(path: Path) -> Tokenizer:
    if not path.is_file():
        raise UserError(f"there is no rank file {path}; give the path of a .tiktoken file")
    ranks = read_ranks(path)
    free = max(ranks.values()) + 1
    pattern, end_of_text = KNOWN_FILES.get(len(ranks), (BPE_PATTERN, free))
    if end_of_text in ranks.values():
        pattern, end_of_text = BPE_PATTERN, free
    return RankTokenizer(path.name, ranks, pattern, {END_OF_TEXT: end_of_text})


def _tiktoken_named(name: str) -> Tokenizer:
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # whatever the network stack raises
        url = getattr(getattr(error, "request", None), "url", None)
        file = hashlib.sha1(url.encode()).hexdigest() if url else "its rank file"
        raise UserError(
            f"tokenizer {name}: its ranks are not on this machine and could not be fetched "
            f"({type(error).__name__}); put them as {file} into the folder named by "
            "TIKTOKEN_CACHE_DIR, or use one that needs no network: tokenizer=bpe:8192, or "
            "tokenizer=PATH.tiktoken") from error
    return RankTokenizer(name, encoding._mergeable_ranks, encoding._pat_str,
                         encoding._special_tokens)
