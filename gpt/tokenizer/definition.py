"""What a tokenizer.json says: control tokens, a dummy prefix, and the bytes that tokens spell."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from gpt.tokenizer.alphabet import token_of
from gpt.tokenizer.base import MOST_IDS, is_failure

Definition = dict[str, Any]

_PARTS = {"normalizers", "pretokenizers", "decoders", "processors"}  # of a Sequence, by its place
_SPACED = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class Opened(NamedTuple):
    """A definition, the `tokenizers.Tokenizer` that does it, and the id of each token."""

    definition: Definition
    library: Any
    ids: dict[str, int]


def opened(definition: Definition, text: str | None = None) -> Opened:
    """What a definition makes. text: as a file has it.

    Raises ValueError for a definition that the library cannot read, or whose ids are not what it
    says.
    """
    library = library_of(definition, json.dumps(definition) if text is None else text)
    ids = library.get_vocab()
    _check_ids(definition, ids)
    return Opened(definition, library, ids)


def library_of(definition: Definition, text: str) -> Any:
    """The `tokenizers.Tokenizer` of a text: it cuts nothing off, pads nothing and reads no control
    tokens. definition: what the text says, with or without its vocabulary.

    Raises ValueError for a definition that it cannot read.
    """
    from tokenizers import Tokenizer as Library

    if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
        raise ValueError("it holds no model")
    model = definition["model"]
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(affix):  # (with a prefix that some token lacks, the library would crash)
            raise ValueError(f"its model has a {affix}, as those that write no text have")
    whole = not any(
        part.get(name) for part, name in ((definition, "truncation"), (definition, "padding"),
                                          (model, "dropout")))
    try:
        library = Library.from_str(text if whole else _plain(text))
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ValueError(str(error)) from error
    if (kind := type(library.model).__name__) not in ("BPE", "Unigram"):
        raise ValueError(f"its model is {kind}; BPE and Unigram can be read")
    library.encode_special_tokens = True
    return library


def _plain(text: str) -> str:
    """The same without what cuts, pads and forgets."""
    definition = json.loads(text)
    forgets = {"dropout": None} if "dropout" in definition["model"] else {}
    return json.dumps({**definition, "truncation": None, "padding": None,
                       "model": {**definition["model"], **forgets}})


def _check_ids(definition: Definition, vocab: dict[str, int]) -> None:
    ids = vocab.values()
    if len(set(ids)) != len(ids) or not ids:
        raise ValueError("every token needs an id of its own")
    if max(ids) >= MOST_IDS:
        raise ValueError(f"id {max(ids)} is beyond all vocabularies")
    for token in definition.get("added_tokens", ()):
        if vocab[token["content"]] != token["id"]:
            raise ValueError(f"its added token {token['content']!r} has id {token['id']}, where "
                             f"`tokenizers` and transformers take {vocab[token['content']]}")


def control_tokens(definition: Definition) -> dict[str, int]:
    """Id by name of the tokens that no text becomes."""
    return {token["content"]: token["id"] for token in definition.get("added_tokens", ())
            if token["special"]}


def stripping(definition: Definition) -> dict[str, tuple[bool, bool]]:
    """Control tokens that take blanks before or behind them away: (before, behind) by name."""
    added = [token for token in definition.get("added_tokens", ()) if token["special"]]
    return {token["content"]: (bool(token.get("lstrip")), bool(token.get("rstrip")))
            for token in added if token.get("lstrip") or token.get("rstrip")}


def with_control_tokens(definition: Definition, ids: dict[str, int]) -> Definition:
    """The same definition, with these tokens among its control tokens."""
    if ids.keys() <= control_tokens(definition).keys():
        return definition
    added = {token["content"]: token for token in definition.get("added_tokens", ())}
    fresh = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for name, i in ids.items():
        added[name] = {"id": i, "content": name, **fresh, **added.get(name, {}), "special": True}
    return {**definition, "added_tokens": sorted(added.values(), key=lambda token: token["id"])}


def merge_pairs(definition: Definition) -> list[tuple[str, str]]:
    """The merges of its model, which may be written `a b` or `[a, b]`."""
    both = (merge.split(" ", 1) if isinstance(merge, str) else merge
            for merge in definition["model"]["merges"])
    return [(first, second) for first, second in both]


def steps(part: Any) -> Iterator[dict[str, Any]]:
    """A normalizer, pre-tokenizer, decoder or post-processor, Sequences taken apart."""
    if part is None:
        return
    inner = [part[name] for name in _PARTS & part.keys()] if part["type"] == "Sequence" else []
    if not inner:
        yield part
    for each in inner:
        for one in each:
            yield from steps(one)


def kinds(part: Any) -> set[str]:
    """The types of its steps."""
    return {step["type"] for step in steps(part)}


def without_prefix(definition: Definition) -> Definition:
    """The same, but nothing is put before a text."""
    return {**definition, **{name: _unprefixed(definition.get(name))
                             for name in {"normalizer", "pre_tokenizer"} & definition.keys()}}


def _unprefixed(part: Any) -> Any:
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        return {name: [step for one in value if (step := _unprefixed(one)) is not None]
                if name in _PARTS else value for name, value in part.items()}
    if part["type"] == "Metaspace":
        part = {**part, "prepend_scheme": "never"}
    return {**part, "add_prefix_space": False} if part.get("add_prefix_space") else part


def prefixes_after_controls(definition: Definition) -> bool:
    """Whether something is put before a text that a control token stands before, and not only at
    the beginning."""
    parts = [*steps(definition.get("normalizer")), *steps(definition.get("pre_tokenizer"))]
    for part in parts:
        if part["type"] == "Metaspace":
            always = "always" if part.get("add_prefix_space", True) else "never"
            if part.get("prepend_scheme", always) == "always":
                return True
        elif part["type"] == "Prepend" or part.get("add_prefix_space"):
            return True
    return False


def unknown_id(definition: Definition, vocab: dict[str, int]) -> int | None:
    """What a model without bytes puts for a character that it does not know."""
    model = definition["model"]
    return model["unk_id"] if "unk_id" in model else vocab.get(model.get("unk_token") or "")


def spelled(definition: Definition, names: Iterable[str]) -> Iterator[bytes]:
    """The bytes that tokens stand for, by the definition's decoder.

    Raises ValueError for a decoder that does more than spell.
    """
    return map(_spelling(definition), names)


def is_byte_level(definition: Definition) -> bool:
    """Whether tokens are written as visible characters, one for each byte."""
    found = kinds(definition.get("decoder"))
    return found == {"ByteLevel"} or (
        not found and "ByteLevel" in kinds(definition.get("pre_tokenizer")))


def _spelling(definition: Definition) -> Callable[[str], bytes]:
    """Of an added token, too: Gemma has runs of `▁` among them. Where characters stand for bytes,
    its name is its text."""
    found = kinds(definition.get("decoder"))
    if is_byte_level(definition):
        added = {token["content"] for token in definition.get("added_tokens", ())}
        return lambda name: name.encode() if name in added else _byte_level(name)
    if not found or found - _SPACED:
        raise ValueError(f"its decoder is {' and '.join(sorted(found)) or 'missing'}; ByteLevel, "
                         "Metaspace and those of Llama and Gemma can be read")
    replaced = list(_replacements(definition["decoder"]))

    def spell(name: str) -> bytes:
        if "ByteFallback" in found and (match := _BYTE.fullmatch(name)):
            return bytes.fromhex(match[1])
        for old, new in replaced:
            name = name.replace(old, new)
        return name.encode()
    return spell


def _byte_level(name: str) -> bytes:
    try:
        return token_of(name)
    except KeyError:
        return name.encode()


def _replacements(decoder: Any) -> Iterator[tuple[str, str]]:
    for step in steps(decoder):
        if step["type"] == "Replace":
            yield step["pattern"]["String"], step["content"]
        if step["type"] == "Metaspace":
            yield step["replacement"], " "
