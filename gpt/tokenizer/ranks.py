"""Where tiktoken gives a tokenizer.json's ids, from ranks that follow from its merges."""

from __future__ import annotations

from typing import Any, NamedTuple

from gpt.tokenizer.alphabet import token_of
from gpt.tokenizer.cutting import known_patterns
from gpt.tokenizer.definition import Definition, control_tokens, merge_pairs, stripping
from gpt.tokenizer.merges import merges_of
from gpt.tokenizer.patterns import ALONE

_LONGEST = 1024  # bytes of a token; following the merges of one takes the square of that


class RanksAndPattern(NamedTuple):
    """What tiktoken needs, beside the control tokens."""

    ranks: dict[bytes, int]
    pattern: str


def as_ranks(definition: Definition) -> RanksAndPattern | None:
    """Ranks and pattern with the definition's ids for every text; None if there are none.

    There are some for byte-level BPE whose pattern is known and whose merges come about in the
    order of their tokens' ids; large ones take a second or two to see that. The merges may name
    more pairs than ever meet, as Llama 3's do.
    """
    model, specials = definition["model"], control_tokens(definition)
    patterns = known_patterns(definition)
    only_control = len(specials) == len(definition.get("added_tokens", ()))
    if (patterns is None or len(patterns) != 1 or patterns[0] not in ALONE
            or definition.get("normalizer") or not only_control or stripping(definition)):
        return None
    try:
        ranks = _ranks(model, specials)
        alike = ranks is not None and _merge_alike(definition, ranks)
    except KeyError:  # a token or a merge with a character that stands for no byte
        return None
    return RanksAndPattern(ranks, patterns[0]) if ranks is not None and alike else None


def _ranks(model: dict[str, Any], specials: dict[str, int]) -> dict[bytes, int] | None:
    """The ids of the tokens that are text, by their bytes; None if a byte has none."""
    vocab = model["vocab"]
    if not isinstance(vocab, dict):  # a Unigram model's
        return None
    ranks = {token_of(name): i for name, i in vocab.items() if name not in specials}
    complete = all(bytes([b]) in ranks for b in range(256))
    return ranks if complete and max(map(len, ranks)) <= _LONGEST else None


def _merge_alike(definition: Definition, ranks: dict[bytes, int]) -> bool:
    """Whether tiktoken, with these ranks, makes the merges of the model in the model's order.

    The pairs that tiktoken ever joins are those of `merges_of`: they must stand in this order.
    tiktoken takes a piece that is a token whole, which for a token without such a pair is right
    only if the model ignores merges there.
    """
    pairs = [(token_of(first), token_of(second)) for first, second in merge_pairs(definition)]
    if any(first + second not in ranks for first, second in pairs):
        return False  # a merge ends in a control token
    expected = merges_of(ranks)
    wanted = set(expected)
    reachable = len(expected) == sum(len(token) > 1 for token in ranks)
    return ([pair for pair in pairs if pair in wanted] == expected
            and (reachable or bool(definition["model"].get("ignore_merges"))))
