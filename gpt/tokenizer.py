"""Text to token ids and back.

A tokenizer is three things: ranks (the bytes of each token, and its id), a pattern that cuts text
into pieces before merging, and control tokens. tiktoken encodes and decodes all of them, whether
they are single bytes, characters, a byte-pair encoding trained here, or one of tiktoken's own.
Every tokenizer holds all 256 single bytes, so any bytes survive a round trip; and text never
becomes a control token, whatever it spells.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from gpt.errors import UserError
from gpt.fast_encoding import BPE_PATTERN, CL100K_PATTERN, GPT2_PATTERN, O200K_PATTERN, FastEncoding
from gpt.files import naming
from gpt.rank_file import rank_lines, read_ranks

END_OF_TEXT = "<|endoftext|>"
NAMED = ("gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base")
SPECIFICATIONS = (f"byte, char, bpe:N, {', '.join(NAMED)}, a .tiktoken file, or the tokenizer "
                  "folder of a dataset or checkpoint")

ONE_CHARACTER = r"(?s:.)"

# What a .tiktoken file does not carry, by its number of ranks: (pattern, id of <|endoftext|>).
_KNOWN_FILES = {50_256: (GPT2_PATTERN, 50_256), 50_280: (GPT2_PATTERN, 50_256),
                100_256: (CL100K_PATTERN, 100_257), 199_998: (O200K_PATTERN, 199_999)}

# Longer runs of white space would overflow the stack of tiktoken's regular expressions.
_LONG_BLANK = re.compile(r"\s{4096}")


class Tokenizer:
    """Ranks, pattern and control tokens, with tiktoken doing the work."""

    def __init__(self, spec: str, ranks: dict[bytes, int], pattern: str, specials: dict[str, int]):
        missing = [b for b in range(256) if bytes([b]) not in ranks]
        if missing:
            raise UserError(f"tokenizer {spec}: {len(missing)} of the 256 single bytes have no "
                            "token, so not every text could be encoded; use another rank file")
        if END_OF_TEXT not in specials:
            raise UserError(f"tokenizer {spec}: it has no {END_OF_TEXT}, which ends documents; use "
                            "another one")
        self.spec = spec
        self.ranks, self.pattern, self.specials = ranks, pattern, specials
        self._encoding = tiktoken.Encoding(spec, pat_str=pattern, mergeable_ranks=ranks,
                                           special_tokens=specials)

    def __reduce__(self) -> tuple[Any, ...]:
        """For processes that encode: what it is made of."""
        return Tokenizer, (self.spec, self.ranks, self.pattern, self.specials)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return self._encoding.n_vocab

    @property
    def end_of_text(self) -> int:
        """The id that separates documents and ends answers; no text encodes to it."""
        return self.specials[END_OF_TEXT]

    @cached_property
    def _fast_encoding(self) -> FastEncoding | None:
        return FastEncoding.of(self.pattern, self.ranks)

    @cached_property
    def _ids(self) -> set[int]:
        return {*self.ranks.values(), *self.specials.values()}

    @cached_property
    def _rank_lines(self) -> bytes:
        return rank_lines(self.ranks)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ranks, pattern and control tokens: equal means identical ids."""
        digest = hashlib.sha256(json.dumps([self.pattern, sorted(self.specials.items())]).encode())
        digest.update(self._rank_lines)
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Bytes that arrived as lone surrogates (PEP 383) are kept."""
        if not text.isascii() and _SURROGATE.search(text):
            text = _NO_BYTE.sub("\ufffd", text)
            return self.encode_bytes(text.encode("utf-8", "surrogateescape"))
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` for a text without lone surrogates, (n,) uint32."""
        return self.encode_arrays([text])[0]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_array` for each of several texts; many short ones cost little more than one."""
        fast = self._fast_encoding
        found = fast.encode_all(texts) if fast is not None else [None] * len(texts)
        return [self._encode_plainly(text) if ids is None else ids
                for text, ids in zip(texts, found, strict=True)]

    def _encode_plainly(self, text: str) -> np.ndarray:
        parts = [self._encoding.encode_to_numpy(part, disallowed_special=())
                 for part in _tame(text)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of any bytes; those that are not UTF-8 become single-byte tokens."""
        ids: list[int] = []
        for i, part in enumerate(_INVALID.split(data.decode("utf-8", "surrogateescape"))):
            if i % 2 == 0:
                ids += self.encode(part)
            else:
                ids += [self.ranks[bytes([b])] for b in part.encode("utf-8", "surrogateescape")]
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that tokens stand for. Raises UserError for an id that is no token."""
        ids = [int(i) for i in ids]
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError) as error:
            wrong = next(i for i in ids if i not in self._ids)
            raise UserError(f"token id {wrong} is not in tokenizer {self.spec}, whose ids lie in "
                            f"0 to {self.vocab_size - 1}") from error

    def decode(self, ids: Iterable[int]) -> str:
        """Text that tokens stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def byte_lengths(self) -> np.ndarray:
        """Bytes of text per token id, (vocab_size,) int64; control tokens have none."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self.ranks.items():
            lengths[rank] = len(token)
        return lengths

    def save(self, folder: Path) -> None:
        """Write all that is needed to encode and decode without a network."""
        folder.mkdir(parents=True, exist_ok=True)
        meta = {"format_version": 1, "spec": self.spec, "pattern": self.pattern,
                "specials": self.specials, "sha256": self.fingerprint}
        files = {"encoding.json": (json.dumps(meta, indent=2) + "\n").encode(),
                 "ranks.tiktoken": self._rank_lines}
        for name, data in files.items():
            with naming(folder / name):
                (folder / name).write_bytes(data)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read what `save` wrote. Raises UserError if anything in it changed."""
        try:
            meta = json.loads((folder / "encoding.json").read_text(encoding="utf-8"))
            ranks = read_ranks(folder / "ranks.tiktoken")
            tokenizer = cls(meta["spec"], ranks, meta["pattern"], meta["specials"])
            intact = tokenizer.fingerprint == meta["sha256"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError,
                RecursionError) as error:
            raise UserError(f"cannot read the tokenizer in {folder}: {error}") from error
        if not intact:
            raise UserError(f"the tokenizer in {folder} is damaged: its hash is not the one it was "
                            "saved with; prepare the dataset again or use another checkpoint")
        return tokenizer


_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_INVALID = re.compile("([\udc80-\udcff]+)")


def _tame(text: str) -> list[str]:
    """The text in parts, cut inside any very long run of blanks."""
    parts, start = [], 0
    for match in _LONG_BLANK.finditer(text):
        parts.append(text[start:match.end()])
        start = match.end()
    return [*parts, text[start:]] if start < len(text) or not parts else parts


def needs_corpus(spec: str) -> bool:
    """Whether building this tokenizer means reading the corpus first."""
    return spec == "char" or spec.startswith("bpe:")


def build_tokenizer(spec: str, texts: Iterable[str] = ()) -> Tokenizer:
    """Build a tokenizer from its specification; `texts` is the corpus for char and bpe:N."""
    if spec == "byte":
        ranks = {bytes([b]): b for b in range(256)}
        return Tokenizer(spec, ranks, ONE_CHARACTER, {END_OF_TEXT: 256})
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
    raise UserError(f"unknown tokenizer '{spec}': choose {SPECIFICATIONS}")


def _characters(texts: Iterable[str]) -> Tokenizer:
    """The corpus's characters in code-point order, then the bytes that none of them is."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    ranks = {character.encode(): i for i, character in enumerate(sorted(seen))}
    for b in range(256):
        ranks.setdefault(bytes([b]), len(ranks))
    return Tokenizer("char", ranks, ONE_CHARACTER, {END_OF_TEXT: len(ranks)})


def _train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """Train a byte-pair encoding of exactly vocab_size ids, <|endoftext|> included."""
    if not 257 <= vocab_size <= 2**20:
        raise UserError(f"bpe:{vocab_size}: the size must lie in 257 (the bytes and "
                        f"{END_OF_TEXT}) to {2**20}")
    ranks = bpe_ranks(train_bpe_with_tokenizers(vocab_size - 1, texts))
    return Tokenizer(f"bpe:{vocab_size}", ranks, BPE_PATTERN, {END_OF_TEXT: len(ranks)})


def train_bpe_with_tokenizers(vocab_size: int, texts: Iterable[str]) -> Any:
    """A `tokenizers.Tokenizer` trained on texts: byte-level merges inside BPE_PATTERN's pieces."""
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trained

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(BPE_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet,
                                  show_progress=False, special_tokens=[])
    trained.train_from_iterator(texts, trainer)
    return trained


def bpe_ranks(trained: Any) -> dict[bytes, int]:
    """Ranks of a byte-level `tokenizers.Tokenizer`: its visible characters turned into bytes."""
    to_byte = _visible_character_bytes()
    return {bytes(to_byte[c] for c in token): i for token, i in trained.get_vocab().items()}


def _visible_character_bytes() -> dict[str, int]:
    """Byte-level BPE writes each byte as a visible character; this maps them back.

    Source: Radford et al. 2019 (GPT-2): printable bytes stand for themselves, the others follow
    from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _from_rank_file(path: Path) -> Tokenizer:
    if not path.is_file():
        raise UserError(f"there is no rank file {path}; give the path of a .tiktoken file")
    ranks = read_ranks(path)
    free = max(ranks.values()) + 1
    pattern, end_of_text = _KNOWN_FILES.get(len(ranks), (BPE_PATTERN, free))
    if end_of_text in ranks.values():
        pattern, end_of_text = BPE_PATTERN, free
    return Tokenizer(path.name, ranks, pattern, {END_OF_TEXT: end_of_text})


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
    return Tokenizer(name, encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens)
