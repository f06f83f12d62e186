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
from gpt.tokenizer.contents import Contents, contents_of
from gpt.tokenizer.definition import Definition, steps, with_control_tokens
from gpt.tokenizer.hub_folder import HubFolder
from gpt.tokenizer.json_tokenizer import JsonTokenizer
from gpt.tokenizer.rank_tokenizer import RankTokenizer

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
    contents = contents_of(json.dumps(_of_gpt2(folder)) if text is None else text)
    end = _end_of_text(folder, contents, END_OF_TEXT if text is None else None)
    named = {name: i for name in {*folder.named_tokens(), end}
             if (i := contents.id_of(name)) is not None}
    controls = {name: i for name, i in named.items() if _is_control(name, name == end, contents)}
    first = (_put_first(folder, contents.outline.get("post_processor")) if text is not None
             else _asked_first(folder, contents))
    boundaries = Boundaries(named[end], first, _other_stops(folder, contents, named[end]))
    if not controls.keys() <= contents.specials.keys():
        changed = with_control_tokens(contents.definition, controls)
        contents = contents_of(json.dumps(changed), changed)
    return _tokenizer_of(spec, contents, boundaries)


def tokenizer_of_definition(spec: str, definition: Definition, boundaries: Boundaries,
                            chat_template: str | None) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Raises ValueError for one that cannot be used."""
    tokenizer = _tokenizer_of(spec, contents_of(json.dumps(definition), definition), boundaries)
    tokenizer.chat_template = chat_template
    return tokenizer


def _tokenizer_of(spec: str, contents: Contents, boundaries: Boundaries) -> Tokenizer:
    """tiktoken's, where it gives the same ids."""
    if contents.pattern is not None:
        return RankTokenizer(spec, contents.ranks, contents.pattern, contents.specials, boundaries)
    return JsonTokenizer(spec, contents.text, boundaries, contents=contents)


def _is_control(name: str, ends_text: bool, contents: Contents) -> bool:
    """Whether a token that the settings name is no text.

    A token that merges end in is text: a `!` may be named as what pads, say. An added token is
    what the definition says, unless it ends texts.
    """
    if name in {token["content"] for token in contents.outline.get("added_tokens", ())}:
        return ends_text
    library = contents.library
    try:
        ids: list[int] = library.encode(name, add_special_tokens=False).ids
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ValueError(f"it cannot encode {name!r}: {error}") from error
    return library.token_to_id(name) not in ids


def _of_gpt2(folder: HubFolder) -> Definition:
    """A tokenizer.json made from the vocab.json and merges.txt of GPT-2's kind."""
    merges, settings = folder.text("merges.txt"), folder.settings
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


def _end_of_text(folder: HubFolder, contents: Contents, default: str | None) -> str:
    """The name of the token that ends texts."""
    name = folder.name_of("eos_token")
    for file in ("generation_config.json", "config.json"):
        if name is None and (found := _ids_in(folder, file, contents)):
            name = contents.name_of(found[0])
    if name is None and default is not None and contents.id_of(default) is not None:
        name = default
    if name is None:
        raise UserError(f"{folder.path} does not say which token ends a text: it needs an "
                        "eos_token in tokenizer_config.json, or an eos_token_id in "
                        "generation_config.json")
    if contents.id_of(name) is None:
        raise UserError(f"{folder.path}: its eos_token {name!r} is no token of its tokenizer")
    return name


def _ids_in(folder: HubFolder, file: str, contents: Contents) -> list[int]:
    """eos_token_id of a file, which is one id or several."""
    value = folder.json(file).get("eos_token_id")
    found = value if isinstance(value, list) else [] if value is None else [value]
    for i in found:
        if type(i) is not int or i not in contents.tokens:
            raise UserError(f"{folder.path / file}: its eos_token_id {i!r} is no token's id")
    return found


def _other_stops(folder: HubFolder, contents: Contents, end: int) -> tuple[int, ...]:
    found = _ids_in(folder, "generation_config.json", contents)
    return tuple(i for i in dict.fromkeys(found) if i != end)


def _asked_first(folder: HubFolder, contents: Contents) -> int | None:
    """The id that the settings put before a text. Beside a tokenizer.json they do not count."""
    settings = folder.settings
    name = folder.name_of("bos_token") or END_OF_TEXT  # as of GPT2Tokenizer
    if not settings.get("add_bos_token"):
        return None
    if (first := contents.id_of(name)) is None:
        raise UserError(f"{folder.path}: its bos_token {name!r} is no token of its tokenizer")
    return first


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
