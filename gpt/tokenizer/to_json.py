"""Any tokenizer of ours as tokenizer.json and tokenizer_config.json, for `tokenizers` and others.

The ids are the same for every text: the merges follow from the ranks, and the patterns cut the
same pieces in the regular expressions of `tokenizers`.
"""

from __future__ import annotations

import json
from typing import Any

from gpt.errors import UserError
from gpt.tokenizer.alphabet import name_of
from gpt.tokenizer.base import Tokenizer
from gpt.tokenizer.definition import Definition, opened, with_control_tokens
from gpt.tokenizer.json_tokenizer import JsonTokenizer
from gpt.tokenizer.merges import merges_of
from gpt.tokenizer.patterns import GPT2_PATTERN, HUGGING_FACE
from gpt.tokenizer.rank_tokenizer import RankTokenizer


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The text of a tokenizer.json. Raises UserError for one that has no such form."""
    if isinstance(tokenizer, JsonTokenizer):
        return tokenizer.definition
    assert isinstance(tokenizer, RankTokenizer)
    definition = _byte_level(tokenizer)
    library = opened(definition).library
    for name, i in tokenizer.specials.items():
        if i in library.encode(name, add_special_tokens=False).ids:
            raise UserError(f"tokenizer {tokenizer.spec}: the text {name!r} would become the "
                            "control token of that name in other programs; give that another name")
    return json.dumps(definition, indent=2, ensure_ascii=False) + "\n"


def tokenizer_config(tokenizer: Tokenizer, block_size: int) -> dict[str, Any]:
    """What tokenizer_config.json says, for a model that reads block_size tokens."""
    names = {i: name for name, i in tokenizer.specials.items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast",
              "eos_token": _name(tokenizer, names, tokenizer.end_of_text),
              "pad_token": _name(tokenizer, names, padding(tokenizer)),
              "model_max_length": block_size, "clean_up_tokenization_spaces": False}
    if tokenizer.begin_of_text is not None:
        config["bos_token"] = _name(tokenizer, names, tokenizer.begin_of_text)
    elif (begin := tokenizer.named_tokens.get("bos_token")) is not None:
        config["bos_token"] = begin  # which chat templates write
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    return config


def padding(tokenizer: Tokenizer) -> int:
    """The id that other tools fill batches up with, which fail without one."""
    return tokenizer.end_of_text if tokenizer.pad_token is None else tokenizer.pad_token


def _name(tokenizer: Tokenizer, names: dict[int, str], i: int) -> str:
    """A token's name; for one that is no control token, its text."""
    return names[i] if i in names else tokenizer.decode_bytes([i]).decode("utf-8", "replace")


def _byte_level(tokenizer: RankTokenizer) -> Definition:
    """A definition without its own check."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}
    definition: Definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": _pre_tokenizer(tokenizer, level),
        "post_processor": _post_processor(tokenizer), "decoder": level,
        "model": _model(tokenizer)}
    return with_control_tokens(definition, tokenizer.specials)


def _model(tokenizer: RankTokenizer) -> dict[str, Any]:
    merges = merges_of(tokenizer.ranks)
    reachable = len(merges) == sum(len(token) > 1 for token in tokenizer.ranks)
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": not reachable, "vocab": _vocab(tokenizer),
            "merges": [f"{name_of(first)} {name_of(second)}" for first, second in merges]}


def _vocab(tokenizer: RankTokenizer) -> dict[str, int]:
    """Id by name, control tokens included: `tokenizers` gives those that are not other ids."""
    vocab = {name_of(token): i for token, i in tokenizer.ranks.items()}
    if both := vocab.keys() & tokenizer.specials.keys():
        raise UserError(f"tokenizer {tokenizer.spec}: {min(both)!r} is the name of a control token "
                        "and of one that is text, which a tokenizer.json cannot hold; give the "
                        "control token another name")
    return dict(sorted((vocab | tokenizer.specials).items(), key=lambda item: item[1]))


def _pre_tokenizer(tokenizer: RankTokenizer, level: dict[str, Any]) -> dict[str, Any]:
    """GPT-2's pattern as the one that is built in, so that other programs recognise it."""
    if tokenizer.pattern == GPT2_PATTERN:
        return level
    if (regex := HUGGING_FACE.get(tokenizer.pattern)) is None:
        raise UserError(f"tokenizer {tokenizer.spec}: its pattern {tokenizer.pattern!r} is none "
                        "that can be written as a tokenizer.json")
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated",
             "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**level, "use_regex": False}]}


def _post_processor(tokenizer: RankTokenizer) -> dict[str, Any] | None:
    """What puts begin_of_text before a text, where there is one."""
    if (first := tokenizer.begin_of_text) is None:
        return None
    name = _name(tokenizer, {i: name for name, i in tokenizer.specials.items()}, first)
    begin = {"SpecialToken": {"id": name, "type_id": 0}}
    text, other = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    return {"type": "TemplateProcessing", "single": [begin, text],
            "pair": [begin, text, begin, other],
            "special_tokens": {name: {"id": name, "ids": [first], "tokens": [name]}}}
