"""The tokenizer that a GGUF file describes, as the tokenizer.json that it was made from."""

from __future__ import annotations

from typing import Any

from gpt.errors import UserError
from gpt.interop.gguf.tokens import BLANK, CONTROL, UNKNOWN, UNUSED, USER_DEFINED
from gpt.tokenizer import Boundaries, Tokenizer, tokenizer_of_definition
from gpt.tokenizer.patterns import (
    BPE_PATTERN,
    DEEPSEEK_PATTERNS,
    DIGIT,
    GPT2_PATTERN,
    HUGGING_FACE,
    O200K_PATTERN,
    QWEN2_PATTERN,
)

# Which patterns the names of models stand for, as llama.cpp's src/llama-vocab.cpp has them.
_LLAMA3, _DIGITS = (HUGGING_FACE[BPE_PATTERN],), (DIGIT, GPT2_PATTERN)
_PATTERNS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), (GPT2_PATTERN,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe", "dbrx"),
                    _LLAMA3),
    **dict.fromkeys(("qwen2", "stablelm2"), (HUGGING_FACE[QWEN2_PATTERN],)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "command-r", "exaone"), _DIGITS),
    **dict.fromkeys(("gpt-4o", "llama4"), (O200K_PATTERN,)), "deepseek-v3": DEEPSEEK_PATTERNS}
_WHOLE_FIRST = {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"}
_NORMALISED = {"qwen2", "command-r"}  # whose texts are brought into the form NFC first


def their_tokenizer(values: dict[str, Any], where: str) -> Tokenizer:
    """The tokenizer of a file's metadata. Raises UserError for one that cannot be built."""
    said = {name.removeprefix("tokenizer.ggml."): value for name, value in values.items()}
    try:
        kind = said.get("model")
        if kind not in ("gpt2", "llama"):
            raise UserError(f"{where}: its tokenizer is {kind!r}; gpt2 (byte-level) and llama "
                            "(SentencePiece's) can be read")
        definition = _byte_level(said, where) if kind == "gpt2" else _sentencepiece(said)
        definition["added_tokens"] = _added(said)
        tokenizer = tokenizer_of_definition(where, definition, _boundaries(said, kind),
                                            said.get("tokenizer.chat_template"))
        tokenizer.template_source, tokenizer.roles = where, _roles(said)
        pad = said.get("padding_token_id")
        tokenizer.pad_token = pad if pad in tokenizer.specials.values() else None
        return tokenizer
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{where}: its tokenizer cannot be read: {type(error).__name__}: {error}"
                        ) from error


def _boundaries(said: dict[str, Any], kind: str) -> Boundaries:
    end, begin = int(said["eos_token_id"]), said.get("bos_token_id")
    begins = said.get("add_bos_token", kind == "llama" or said.get("pre") in _WHOLE_FIRST)
    stops = tuple(int(said[name]) for name in ("eot_token_id", "eom_token_id")
                  if said.get(name) not in (None, end))
    return Boundaries(end, int(begin) if begins and begin is not None else None,
                      tuple(dict.fromkeys(stops)))


def _roles(said: dict[str, Any]) -> dict[str, str]:
    """What chat templates call some tokens."""
    ids = {"bos_token": said.get("bos_token_id"), "eos_token": said.get("eos_token_id"),
           "unk_token": said.get("unknown_token_id"), "pad_token": said.get("padding_token_id")}
    return {role: said["tokens"][i] for role, i in ids.items() if i is not None}


def _kinds(said: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(name, id, kind) of every token that is one."""
    tokens = said["tokens"]
    kinds = said.get("token_type", [1] * len(tokens))
    return [(name, i, kind) for i, (name, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind != UNUSED]


def _added(said: dict[str, Any]) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ends = {said.get("eos_token_id"), said.get("eot_token_id"), said.get("eom_token_id")}
    if said.get("add_bos_token"):
        ends.add(said.get("bos_token_id"))
    return [{"id": i, "content": name, **flags, "special": kind != USER_DEFINED or i in ends}
            for name, i, kind in _kinds(said)
            if kind in (CONTROL, UNKNOWN, USER_DEFINED) or i in ends]


def _byte_level(said: dict[str, Any], where: str) -> dict[str, Any]:
    pre = said.get("pre")
    if pre not in _PATTERNS:
        raise UserError(f"{where}: it cuts text by {pre!r}, which is not known here; the model's "
                        "Hugging Face folder can be read instead")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    cuts = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": False} for pattern in _PATTERNS[pre] if pattern != GPT2_PATTERN]
    vocab = {name: i for name, i, _ in _kinds(said)}
    merges = [merge for merge in said["merges"] if merge.replace(" ", "", 1) in vocab]
    by_gpt2 = GPT2_PATTERN in _PATTERNS[pre]
    return {"version": "1.0", "normalizer": {"type": "NFC"} if pre in _NORMALISED else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                *cuts, {**level, "use_regex": by_gpt2}]},
            "post_processor": None, "decoder": {**level, "use_regex": True},
            "model": {"type": "BPE", "ignore_merges": pre in _WHOLE_FIRST,
                      "vocab": vocab, "merges": merges}}


def _sentencepiece(said: dict[str, Any]) -> dict[str, Any]:
    """Any two neighbours whose token exists are joined, the highest score first."""
    entries, scores = _kinds(said), said["scores"]
    vocab = {name: i for name, i, _ in entries}
    text = [(name, i) for name, i, kind in entries if kind not in (CONTROL, UNKNOWN)]
    merges = [(name[:at], name[at:])
              for name, _ in sorted(text, key=lambda pair: -scores[pair[1]])
              for at in sorted((at for at in range(1, len(name))
                                if name[:at] in vocab and name[at:] in vocab),
                               key=lambda at: (vocab[name[:at]], vocab[name[at:]]))]
    unknown = next((name for name, _, kind in entries if kind == UNKNOWN), None)
    prefixes = said.get("add_space_prefix", True)
    spaced = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    first = [{"type": "Prepend", "prepend": BLANK}] if prefixes else []
    last = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixes else []
    return {"version": "1.0", "normalizer": {"type": "Sequence", "normalizers": [*first, spaced]},
            "pre_tokenizer": None, "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": [
                {**spaced, "pattern": {"String": BLANK}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, *last]},
            "model": {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges],
                      "unk_token": unknown, "fuse_unk": True, "byte_fallback": True}}
