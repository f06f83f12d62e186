"""How a tokenizer.json cuts a text before merging, and whether a text may be encoded in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from gpt.tokenizer.definition import Definition, kinds, steps
from gpt.tokenizer.patterns import DEEPSEEK_PATTERNS, DIGIT, FROM_HUGGING_FACE, GPT2_PATTERN

# Cuts that depend on no more than the characters beside them, so that they stay what they are in a
# text that was cut itself, between a word and the blank behind it.
_LOCAL = {DIGIT, *DEEPSEEK_PATTERNS[:2]}
_LOCAL_STEPS = {"Digits", "Metaspace"}
_ACROSS = re.compile(r"[^\W_]\s|\n[^\W_]")  # where a long text is cut into pieces


def known_patterns(definition: Definition) -> tuple[str, ...] | None:
    """The patterns that cut a text one after the other, as tiktoken writes them.

    None for a definition that does not write bytes as visible characters, or cuts in another way.
    """
    found: list[str] = []
    *before, last = [*steps(definition.get("pre_tokenizer"))] or [{"type": ""}]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    for step in before:
        if (pattern := _pattern(step)) is None:
            return None
        found.append(pattern)
    return (*found, GPT2_PATTERN) if last.get("use_regex", True) else tuple(found)


def _pattern(step: dict[str, Any]) -> str | None:
    match step:
        case {"type": "Digits", "individual_digits": True}:
            return DIGIT
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior,
              "invert": invert} if (behavior, invert) in (("Isolated", False), ("Removed", True)):
            # What stands between two matches is lost where they are `removed` the other way round.
            known = FROM_HUGGING_FACE.get(regex)
            return known or (regex if regex in DEEPSEEK_PATTERNS and not invert else None)
    return None


def encodes_in_pieces(definition: Definition, tokens: Iterable[bytes]) -> bool:
    """Whether no token stands for both sides of a place between a word and a blank.

    None does if one of the patterns always cuts there, or if no token holds such a place, for then
    no merge goes across. An added token may do so all the same. tokens: what each one spells.
    """
    changed = kinds(definition.get("normalizer"))
    for token in definition.get("added_tokens", ()):
        looks_beyond = token["lstrip"] or token["rstrip"] or (changed and token["normalized"])
        if not token["special"] and (looks_beyond or _ACROSS.search(token["content"])):
            return False
    if (patterns := known_patterns(definition)) is not None:
        return not set(patterns) <= _LOCAL and changed <= {"NFC"}
    return (_knows_all_bytes(definition["model"]) and _looks_at_single_characters(definition)
            and not any(map(_goes_across, tokens)))


def _knows_all_bytes(model: dict[str, Any]) -> bool:
    """Whether no two unknown characters can become one token."""
    vocab = model["vocab"]
    return bool(model.get("byte_fallback")) and isinstance(vocab, dict) and all(
        f"<0x{b:02X}>" in vocab or (b < 128 and chr(b) in vocab) for b in range(256))


def _looks_at_single_characters(definition: Definition) -> bool:
    """Whether all that comes before merging sees no more than a character, or the text's start."""
    before = [step for part in ("normalizer", "pre_tokenizer")
              for step in steps(definition.get(part))]
    return all(step["type"] in {"Prepend", *_LOCAL_STEPS}
               or (step["type"] in ("Replace", "Split") and len(step["pattern"].get("String", "")
                                                               ) == 1)
               for step in before)


def _goes_across(token: bytes) -> bool:
    return bool(_ACROSS.search(token.decode("utf-8", "replace")))
