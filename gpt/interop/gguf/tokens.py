"""A tokenizer as GGUF stores it: tokens, their kinds, merges, and the name of a pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt.errors import UserError
from gpt.tokenizer import RankTokenizer, Tokenizer
from gpt.tokenizer.alphabet import name_of
from gpt.tokenizer.merges import merges_of
from gpt.tokenizer.patterns import (
    BPE_PATTERN,
    CL100K_PATTERN,
    GPT2_PATTERN,
    O200K_PATTERN,
    ONE_CHARACTER,
    QWEN2_PATTERN,
)

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, CONTROL, UNUSED = 1, 3, 5  # llama.cpp's token types

# llama.cpp knows patterns by the name of a model that has them.
_NAMES = {GPT2_PATTERN: "gpt-2", BPE_PATTERN: "llama-bpe", CL100K_PATTERN: "llama-bpe",
          O200K_PATTERN: "gpt-4o", QWEN2_PATTERN: "qwen2", ONE_CHARACTER: "gpt-2"}


@dataclass(frozen=True)
class TokenTable:
    """tokens: one for each row of the model, bytes written as visible characters."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pattern: str
    end: int
    begin: int | None
    chat_template: str | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, rows: int) -> TokenTable:
        """Raises UserError for a tokenizer that is no byte-level byte-pair encoding."""
        if not isinstance(tokenizer, RankTokenizer) or tokenizer.pattern not in _NAMES:
            raise UserError(f"tokenizer {tokenizer.spec}: llama.cpp has no name for its way to cut "
                            "text, so GGUF cannot carry it; export with --format hf, and convert "
                            "that with llama.cpp's own convert_hf_to_gguf.py")
        tokens = [f"[PAD{i}]" for i in range(rows)]
        kinds = [UNUSED] * rows
        for token, rank in tokenizer.ranks.items():
            tokens[rank], kinds[rank] = name_of(token), NORMAL
        for name, number in tokenizer.specials.items():
            tokens[number], kinds[number] = name, CONTROL
        return cls(tokens, kinds, _merges(tokenizer), _NAMES[tokenizer.pattern],
                   tokenizer.end_of_text, tokenizer.begin_of_text, tokenizer.chat_template)

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the metadata."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pattern)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        writer.add_eos_token_id(self.end)
        writer.add_bos_token_id(self.end if self.begin is None else self.begin)
        writer.add_add_bos_token(self.begin is not None)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def _merges(tokenizer: RankTokenizer) -> list[str]:
    """Pairs as "left right". llama.cpp asks for at least one, so bytes get one that never stays.

    The bytes of a character are merged from left to right; what comes in between is no token, and
    is taken apart again where it is left over.
    """
    if tokenizer.pattern != ONE_CHARACTER:
        pairs = merges_of(tokenizer.ranks)
    else:
        whole = [token for token in tokenizer.ranks if len(token) > 1]
        pairs = list(dict.fromkeys((token[:i], token[i:i + 1]) for token in whole
                                   for i in range(1, len(token))))
    return [f"{name_of(left)} {name_of(right)}" for left, right in pairs] or ["Ā Ā"]
