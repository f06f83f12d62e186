"""A tokenizer as GGUF stores it: tokens and their kinds, and how llama.cpp joins bytes to them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpt.errors import UserError
from gpt.tokenizer import JsonTokenizer, RankTokenizer, Tokenizer
from gpt.tokenizer.alphabet import name_of
from gpt.tokenizer.cutting import known_patterns
from gpt.tokenizer.definition import Definition, kinds, merge_pairs, steps, unknown_id
from gpt.tokenizer.merges import merges_of
from gpt.tokenizer.patterns import (
    BPE_PATTERN,
    CL100K_PATTERN,
    DEEPSEEK_PATTERNS,
    DIGIT,
    GPT2_PATTERN,
    O200K_PATTERN,
    ONE_CHARACTER,
    QWEN2_PATTERN,
)

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
BLANK = "▁"  # how SentencePiece writes one

# llama.cpp knows patterns by the name of a model that has them. Under some names a piece that is a
# token is taken whole, whatever its merges are; of the others, those that have a twin are below.
_NAMES = {(GPT2_PATTERN,): "gpt-2", (BPE_PATTERN,): "llama-bpe", (CL100K_PATTERN,): "llama-bpe",
          (O200K_PATTERN,): "gpt-4o", (QWEN2_PATTERN,): "qwen2", (ONE_CHARACTER,): "gpt-2",
          (DIGIT, GPT2_PATTERN): "smollm", DEEPSEEK_PATTERNS: "deepseek-v3"}
_WHOLE_FIRST = {"llama-bpe"}
_BY_MERGES = {"llama-bpe": "smaug-bpe"}
_ADVICE = "export with --format hf, which vLLM, transformers and others open"


@dataclass(frozen=True)
class TokenTable:
    """tokens: one for each row of the model, by the names that llama.cpp has for them.

    merges: of byte-level encoding, whose bytes are visible characters. scores: of SentencePiece,
    where the neighbours whose token has the highest are joined first.
    """

    tokens: list[str]
    kinds: list[int]
    pattern: str
    end: int
    begin: int | None
    chat_template: str | None
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    prefixes_space: bool = False
    unknown: int | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, rows: int) -> TokenTable:
        """Raises UserError for a tokenizer that llama.cpp has no like of."""
        tokens, kinds_of = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
        if isinstance(tokenizer, RankTokenizer):
            named: dict[int, tuple[str, int]] = {
                rank: (name_of(token), NORMAL) for token, rank in tokenizer.ranks.items()}
            how = _of_ranks(tokenizer)
        else:
            assert isinstance(tokenizer, JsonTokenizer)
            how, named = _of_definition(tokenizer), _named(tokenizer.parsed)
        for i, (name, kind) in named.items():
            tokens[i], kinds_of[i] = name, kind
        for name, i in tokenizer.specials.items():
            tokens[i] = name
            if kinds_of[i] != UNKNOWN:
                kinds_of[i] = CONTROL
        if "scores" in how:
            scores: dict[str, float] = how.pop("scores")
            how["scores"] = [scores.get(token, _LOWEST) for token in tokens]
        return cls(tokens, kinds_of, end=tokenizer.end_of_text, begin=tokenizer.begin_of_text,
                   chat_template=tokenizer.chat_template, **how)

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the metadata."""
        writer.add_tokenizer_model("llama" if self.scores else "gpt2")
        writer.add_tokenizer_pre(self.pattern)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.prefixes_space)
        else:
            writer.add_token_merges(self.merges)
        writer.add_eos_token_id(self.end)
        writer.add_bos_token_id(self.end if self.begin is None else self.begin)
        writer.add_add_bos_token(self.begin is not None)
        if self.unknown is not None:
            writer.add_unk_token_id(self.unknown)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def _of_ranks(tokenizer: RankTokenizer) -> dict[str, Any]:
    """llama.cpp asks for at least one merge, so bytes get one that never stays.

    The bytes of a character are merged from left to right; what comes in between is no token, and
    is taken apart again where it is left over.
    """
    if (tokenizer.pattern,) not in _NAMES:
        raise _refusal(tokenizer, f"llama.cpp has no name for its pattern {tokenizer.pattern!r}")
    if tokenizer.pattern != ONE_CHARACTER:
        pairs = merges_of(tokenizer.ranks)
    else:
        whole = [token for token in tokenizer.ranks if len(token) > 1]
        pairs = list(dict.fromkeys((token[:i], token[i:i + 1]) for token in whole
                                   for i in range(1, len(token))))
    merges = [f"{name_of(left)} {name_of(right)}" for left, right in pairs] or ["Ā Ā"]
    return {"pattern": _NAMES[(tokenizer.pattern,)], "merges": merges}


def _of_definition(tokenizer: JsonTokenizer) -> dict[str, Any]:
    definition, model = tokenizer.parsed, tokenizer.parsed["model"]
    if model["type"] != "BPE":
        raise _refusal(tokenizer, f"its model is {model['type']}; llama.cpp runs BPE, and others "
                                  "of encoders alone")
    if (patterns := known_patterns(definition)) is not None:
        return _byte_level(tokenizer, patterns)
    if not _is_sentencepiece(definition):
        raise _refusal(tokenizer, "llama.cpp has no name for its way to cut text (its "
                       f"pre_tokenizer: {json.dumps(definition.get('pre_tokenizer'))[:120]})")
    order: dict[str, float] = {}
    for rank, (left, right) in enumerate(merge_pairs(definition)):
        order.setdefault(left + right, float(-rank))
    return {"pattern": "default", "scores": order, "prefixes_space": tokenizer.prefixes_space,
            "unknown": unknown_id(definition, model["vocab"])}


def _byte_level(tokenizer: JsonTokenizer, patterns: tuple[str, ...]) -> dict[str, Any]:
    model, pairs = tokenizer.parsed["model"], merge_pairs(tokenizer.parsed)
    if patterns not in _NAMES:
        raise _refusal(tokenizer, "llama.cpp has no name for its way to cut text (its patterns: "
                       f"{', '.join(patterns)})")
    name = _NAMES[patterns]
    if not model.get("ignore_merges"):
        name = _BY_MERGES.get(name, name)
    elif name not in _WHOLE_FIRST and not set(model["vocab"]) <= _made(model, pairs):
        raise _refusal(tokenizer, "it takes words that are tokens whole, which llama.cpp does not "
                       f"do with the pattern of {name}")
    return {"pattern": name, "merges": [" ".join(pair) for pair in pairs]}


def _made(model: dict[str, Any], pairs: list[tuple[str, str]]) -> set[str]:
    """What merges make, and single characters."""
    return {left + right for left, right in pairs} | {name for name in model["vocab"]
                                                      if len(name) == 1}


def _is_sentencepiece(definition: Definition) -> bool:
    """Blanks as `▁`, no cut but at them, and bytes for characters that have no token."""
    return (bool(definition["model"].get("byte_fallback"))
            and kinds(definition.get("normalizer")) <= {"Prepend", "Replace"}
            and all(step["type"] == "Metaspace" or step.get("pattern") == {"String": " "}
                    for step in steps(definition.get("pre_tokenizer"))))


_LOWEST = -1e6  # of tokens that nothing is merged into


def _named(definition: Definition) -> dict[int, tuple[str, int]]:
    """(name, kind) by id of all tokens of a tokenizer.json.

    An added token is looked for in the text before anything else; but one that holds a `▁` in
    SentencePiece's way would be looked for in a text that still has blanks there.
    """
    model, is_spaced = definition["model"], _is_sentencepiece(definition)
    named = {i: (name, BYTE if is_spaced and len(name) == 6 and name.startswith("<0x") else NORMAL)
             for name, i in model["vocab"].items()}
    for token in definition.get("added_tokens", ()):
        if not (is_spaced and BLANK in token["content"]):
            named[token["id"]] = token["content"], USER_DEFINED
    if is_spaced and (unknown := unknown_id(definition, model["vocab"])) is not None:
        named[unknown] = named[unknown][0], UNKNOWN
    return named


def _refusal(tokenizer: Tokenizer, why: str) -> UserError:
    return UserError(f"tokenizer {tokenizer.spec}: {why}, so a GGUF file cannot carry it; "
                     f"{_ADVICE}")
