"""Hugging Face folders to tokenizers: ids as transformers gives them, read from JSON alone.

tiktoken does the work where its ids are the same for every text, `tokenizers` elsewhere. Nothing
is ever unpickled, and SentencePiece's own tokenizer.model is not read.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from gpt.tokenizer.base import CHAT_FORMAT, END_OF_TEXT, Boundaries, Tokenizer, is_failure
from gpt.tokenizer.definition import (
    Definition,
    Opened,
    control_tokens,
    opened,
    steps,
    with_control_tokens,
)
from gpt.tokenizer.hub_folder import HubFolder
from gpt.tokenizer.json_tokenizer import JsonTokenizer
from gpt.tokenizer.rank_tokenizer import RankTokenizer
from gpt.tokenizer.ranks import as_ranks

_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_SAVE = ("open it once with transformers' AutoTokenizer, and its save_pretrained(FOLDER) writes a "
         "tokenizer.json")
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, RecursionError, OverflowError)


def holds_tokenizer(path: Path) -> bool:
    """Whether this is a folder with Hugging Face's files of a tokenizer, or a tokenizer.json."""
    if path.is_file():
        return path.suffix == ".json"
    return any((path / name).is_file() for name in _FILES)


def read_huggingface_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a folder, or of a tokenizer.json with what lies beside it.

    Raises UserError for anything that cannot be read, and for a tokenizer without an end of text.
    """
    folder, file = ((path.parent, path.name) if path.is_file() else (path, "tokenizer.json"))
    try:
        hub = HubFolder(folder)
        with _without_collecting():
            tokenizer = _tokenizer(str(path), hub, file)
        tokenizer.chat_format, tokenizer.roles = hub.text(CHAT_FORMAT), hub.roles()
        tokenizer.chat_template, tokenizer.template_source = hub.chat_template()
        tokenizer.pad_token = tokenizer.specials.get(hub.name_of("pad_token") or "")
        return tokenizer
    except UserError:
        raise
    except _MALFORMED as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"cannot read the tokenizer in {path}: {what}") from error


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Python would look through the million objects of a large file for rubbish, again and again:
    a third of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _tokenizer(spec: str, folder: HubFolder, file: str) -> Tokenizer:
    text = folder.text(file)
    given = _of_gpt2(folder) if text is None else json.loads(text)
    made: Opened | None = opened(given, text)
    assert made is not None
    ids, library = made.ids, made.library
    end = _end_of_text(folder, ids, END_OF_TEXT if text is None else None)
    named = [name for name in {*folder.named_tokens(), end} if name in ids]
    definition = with_control_tokens(given, {
        name: ids[name] for name in named if _is_control(name, name == end, given, library)})
    first = (_put_first(folder, definition.get("post_processor")) if text is not None
             else _asked_first(folder, ids))
    boundaries = Boundaries(ids[end], first, _other_stops(folder, ids, ids[end]))
    if definition is not given:
        made, text = None, None
    return tokenizer_of_definition(spec, definition, boundaries, None, text, made)


def tokenizer_of_definition(spec: str, definition: Definition, boundaries: Boundaries,
                            chat_template: str | None, text: str | None = None,
                            made: Opened | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json. text: as the file has it; made: what it makes, where that
    is known. Raises ValueError for one that cannot be used."""
    if text is None:
        text = json.dumps(definition)
    if (found := as_ranks(definition, text)) is not None:
        return RankTokenizer(spec, found.ranks, found.pattern, control_tokens(definition),
                             boundaries, chat_template)
    return JsonTokenizer(spec, text, boundaries, chat_template, made)


def _is_control(name: str, ends_text: bool, given: Definition, library: Any) -> bool:
    """Whether a token that the settings name is no text.

    A token that merges end in is text: a `!` may be named as what pads, say. An added token is
    what the definition says, unless it ends texts.
    """
    if name in {token["content"] for token in given.get("added_tokens", ())}:
        return ends_text
    try:
        ids: list[int] = library.encode(name, add_special_tokens=False).ids
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ValueError(f"it cannot encode {name!r}: {error}") from error
    return library.token_to_id(name) not in ids


def _of_gpt2(folder: HubFolder) -> Definition:
    """A tokenizer.json made from the vocab.json and merges.txt of GPT-2's kind."""
    merges, settings = folder.text("merges.txt"), folder.settings()
    if folder.file("vocab.json") is None or merges is None:
        raise UserError(f"{folder.path} has neither a tokenizer.json nor GPT-2's vocab.json and "
                        f"merges.txt; if it is another kind of tokenizer, {_SAVE}")
    kind = settings.get("tokenizer_class") or "GPT2Tokenizer"
    if kind not in ("GPT2Tokenizer", "GPT2TokenizerFast") or folder.file("added_tokens.json"):
        raise UserError(f"{folder.path} has vocab.json and merges.txt, but not of GPT-2's own kind "
                        f"({kind}); {_SAVE}")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [{"id": int(i), **flags, **token}
             for i, token in (settings.get("added_tokens_decoder") or {}).items()]
    level = {"type": "ByteLevel", "add_prefix_space": bool(settings.get("add_prefix_space")),
             "trim_offsets": True, "use_regex": True}
    lines = [line for line in merges.splitlines() if line and not line.startswith("#version")]
    return {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": level,
            "post_processor": None, "decoder": level,
            "model": {"type": "BPE", "vocab": folder.json("vocab.json"), "merges": lines}}


def _end_of_text(folder: HubFolder, ids: dict[str, int], default: str | None) -> str:
    """The name of the token that ends texts."""
    name = folder.name_of("eos_token")
    for file in ("generation_config.json", "config.json"):
        if name is None and (found := _ids_in(folder, file, ids)):
            name = next(known for known, i in ids.items() if i == found[0])
    if name is None and default in ids:
        name = default
    if name is None:
        raise UserError(f"{folder.path} does not say which token ends a text: it needs an "
                        "eos_token in tokenizer_config.json, or an eos_token_id in "
                        "generation_config.json")
    if name not in ids:
        raise UserError(f"{folder.path}: its eos_token {name!r} is no token of its tokenizer")
    return name


def _ids_in(folder: HubFolder, file: str, known: dict[str, int]) -> list[int]:
    """eos_token_id of a file, which is one id or several."""
    value = folder.json(file).get("eos_token_id")
    found = value if isinstance(value, list) else [] if value is None else [value]
    for i in found:
        if type(i) is not int or i not in known.values():
            raise UserError(f"{folder.path / file}: its eos_token_id {i!r} is no token's id")
    return found


def _other_stops(folder: HubFolder, ids: dict[str, int], end: int) -> tuple[int, ...]:
    found = _ids_in(folder, "generation_config.json", ids)
    return tuple(i for i in dict.fromkeys(found) if i != end)


def _asked_first(folder: HubFolder, ids: dict[str, int]) -> int | None:
    """The id that the settings put before a text. Beside a tokenizer.json they do not count."""
    settings = folder.settings()
    name = folder.name_of("bos_token") or END_OF_TEXT  # as of GPT2Tokenizer
    if not settings.get("add_bos_token"):
        return None
    if name not in ids:
        raise UserError(f"{folder.path}: its bos_token {name!r} is no token of its tokenizer")
    return ids[name]


def _put_first(folder: HubFolder, processor: Any) -> int | None:
    """The id that a template puts before a single text."""
    first: list[int] = []
    for step in steps(processor):
        if step["type"] == "TemplateProcessing":
            for piece in step["single"]:
                if "Sequence" in piece:
                    break
                first += step["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
        elif step["type"] != "ByteLevel":
            raise UserError(f"{folder.path}: its post-processor {step['type']} is none of a "
                            "decoder-only model's")
    if len(first) > 1:
        raise UserError(f"{folder.path}: its tokenizer puts {len(first)} tokens before a text; "
                        "more than one is not supported")
    return first[0] if first else None
