"""Small tokenizers of the kinds that lie on the Hugging Face Hub, trained by `tokenizers`."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gpt.tokenizer.alphabet import name_of
from gpt.tokenizer.patterns import _LLAMA3, DEEPSEEK_PATTERNS, HUGGING_FACE, QWEN2_PATTERN

LACKING = (0x04, 0x1D, 0xF1, 0xF2, 0xFF)  # bytes that smollm's vocabulary lacks
STDLIB = Path(sysconfig.get_paths()["stdlib"])
MORE = ("Größe, naïve café, 中文 和 日本語。 Привет, мир! 🙂👩‍👩‍👧 e\u0301 ½ ٣ "
        "don't We'LL 12345\n") * 20
AWKWARD = [
    "", " ", "a", " a", "  a", "a ", "\n", "a\n\n  b\r\n\tc  ",
    "def f(x):\n    return x ** 2  # ok\n", "don't We'LL they'RE 'ſ",
    "e\u0301 é ﬁ ½ ٣ 12345 1 22 4444", "中文没有空格。日本語", "🙂👩‍👩‍👧🏽 🇩🇪",
    "\x00\x01\x1c\x7f\x85\u200b\ufeff\u2028", "\u3000a\u00a0 b", " " * 10_000 + "x", "x" * 10_000,
    "<|endoftext|> a</s><s> <unk><0x41>▁<|begin_of_text|><pad> x",
    "<think> so </think>  <tool_call>\n", "Ġhello Ċ", "ﷺ Ǆ ẞ ß İ ı", "\U0010ffff\ufffd"]


@cache
def corpus() -> tuple[str, ...]:
    return (MORE, *((STDLIB / name).read_text(encoding="utf-8")
                    for name in ("heapq.py", "textwrap.py", "bisect.py", "string.py")))


@cache
def _byte_level_model(pattern: str | None, digits: bool = False) -> str:
    """A trained model of 600 tokens, as JSON."""
    trained = Tokenizer(models.BPE())
    first = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    first += [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    trained.pre_tokenizer = pre_tokenizers.Sequence([
        *first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    return trained.to_str()


def _byte_level(pattern: str | None, controls: list[str], digits: bool = False) -> dict[str, Any]:
    definition = json.loads(_byte_level_model(pattern, digits))
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
             "use_regex": True}
    size = len(definition["model"]["vocab"])
    return {**definition, "decoder": level, "post_processor": level,
            "added_tokens": [added(size + i, name) for i, name in enumerate(controls)]}


def added(i: int, name: str, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": name, **flags, "special": special}


def template(name: str, i: int) -> dict[str, Any]:
    begin = {"SpecialToken": {"id": name, "type_id": 0}}
    a, b = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    return {"type": "TemplateProcessing", "single": [begin, a], "pair": [begin, a, begin, b],
            "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]}}}


def gpt2() -> dict[str, Any]:
    """Its end of text is part of the vocabulary."""
    definition = _byte_level(None, ["<|endoftext|>"])
    definition["model"]["vocab"]["<|endoftext|>"] = definition["added_tokens"][0]["id"]
    return definition


def control_first() -> dict[str, Any]:
    """As SmolLM has it: control tokens have the lowest ids."""
    definition = gpt2()
    vocab = {name: i + 1 for name, i in definition["model"]["vocab"].items()}
    definition["model"]["vocab"] = vocab | {"<|endoftext|>": 0}
    return definition | {"added_tokens": [added(0, "<|endoftext|>")]}


def llama3() -> dict[str, Any]:
    """With every pair that could make a token among its merges, as the published one has them."""
    definition = _byte_level(_LLAMA3, ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    model = definition["model"]
    vocab = model["vocab"]
    model["merges"] = [[name[:at], name[at:]] for name in sorted(vocab, key=vocab.__getitem__)
                       for at in range(1, len(name)) if {name[:at], name[at:]} <= vocab.keys()]
    level = definition["post_processor"]
    processor = {"type": "Sequence", "processors": [
        level, template("<|begin_of_text|>", len(vocab))]}
    return {**definition, "post_processor": processor, "model": {**model, "ignore_merges": True}}


def qwen() -> dict[str, Any]:
    definition = _byte_level(HUGGING_FACE[QWEN2_PATTERN], ["<|endoftext|>", "<|im_end|>"])
    last = definition["added_tokens"][-1]["id"]
    definition["added_tokens"] += [added(last + 1, "<think>", special=False),
                                   added(last + 2, "</think>", special=False)]
    return {**definition, "normalizer": {"type": "NFC"}}


def starcoder() -> dict[str, Any]:
    """A pattern of its own: digits one by one, then GPT-2's."""
    return _byte_level(None, ["<|endoftext|>"], digits=True)


def smollm() -> dict[str, Any]:
    """Some bytes have no token, and the one for what is unknown begins texts elsewhere."""
    definition = starcoder()
    model = definition["model"]
    ids = {name_of(bytes([b])) for b in LACKING}
    vocab = {name: i for name, i in model["vocab"].items() if name not in ids}
    vocab["<|endoftext|>"] = definition["added_tokens"][0]["id"]
    return {**definition, "model": {**model, "vocab": vocab, "unk_token": "<|endoftext|>"}}


def deepseek() -> dict[str, Any]:
    """Three patterns, one after the other."""
    definition = _byte_level(HUGGING_FACE[QWEN2_PATTERN], ["<|endoftext|>"])
    cuts = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": False} for pattern in DEEPSEEK_PATTERNS]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False}
    return {**definition, "normalizer": {"type": "Sequence", "normalizers": []},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, level]}}


@cache
def _spaced_model() -> str:
    """As SentencePiece has it: `▁` for a space, bytes for what no token spells."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Sequence([  # no published one joins lines and words
        pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="always")])
    controls = ["<unk>", "<s>", "</s>"]
    trained.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=900, limit_alphabet=90, show_progress=False,
        special_tokens=[*controls, *(f"<0x{b:02X}>" for b in range(256))]))
    definition = json.loads(trained.to_str())
    return json.dumps({**definition, "added_tokens": definition["added_tokens"][:3]})


REPLACED = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
SPACED = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
STRIPPED = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _spaced(normalizer: Any, pre_tokenizer: Any, *more: Any) -> dict[str, Any]:
    definition = json.loads(_spaced_model())
    decoders = [REPLACED, {"type": "ByteFallback"}, {"type": "Fuse"}, *more]
    return {**definition, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "post_processor": template("<s>", 1),
            "decoder": {"type": "Sequence", "decoders": decoders}}


def llama2() -> dict[str, Any]:
    """The older form: a normalizer puts the space before the text."""
    prepend = {"type": "Prepend", "prepend": "▁"}
    return _spaced({"type": "Sequence", "normalizers": [prepend, SPACED]}, None, STRIPPED)


def mistral() -> dict[str, Any]:
    """The newer form: the pre-tokenizer does."""
    return _spaced(None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first",
                          "split": False}, STRIPPED)


def gemma() -> dict[str, Any]:
    """Nothing is put before a text, and runs of blanks are added tokens."""
    definition = _spaced(SPACED, {"type": "Split", "pattern": {"String": " "},
                                  "behavior": "MergedWithPrevious", "invert": False})
    model = definition["model"]
    for name, i in (("▁▁", 900), ("▁▁▁▁", 901)):
        model["vocab"][name] = i
        model["merges"].append([name[:len(name) // 2]] * 2)
        definition["added_tokens"].append(added(i, name, special=False))
    return definition


@cache
def _unigram_model() -> str:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(corpus(), trainers.UnigramTrainer(
        vocab_size=500, show_progress=False, special_tokens=["<unk>", "</s>"], unk_token="<unk>"))
    return trained.to_str()


def unigram() -> dict[str, Any]:
    definition = json.loads(_unigram_model())
    return {**definition, "decoder": {"type": "Metaspace", "replacement": "▁",
                                      "prepend_scheme": "always", "split": True}}


KINDS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "gpt2": (gpt2, "<|endoftext|>"), "control_first": (control_first, "<|endoftext|>"),
    "llama3": (llama3, "<|end_of_text|>"), "qwen": (qwen, "<|endoftext|>"),
    "starcoder": (starcoder, "<|endoftext|>"), "smollm": (smollm, "<|endoftext|>"),
    "deepseek": (deepseek, "<|endoftext|>"), "llama2": (llama2, "</s>"),
    "mistral": (mistral, "</s>"), "gemma": (gemma, "</s>"), "unigram": (unigram, "</s>")}


def write_folder(folder: Path, definition: dict[str, Any], eos: str | None,
                 **settings: Any) -> Path:
    """A folder as save_pretrained writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, "tokenizer.json", definition)
    ends = {} if eos is None else {"eos_token": eos}
    write(folder, "tokenizer_config.json",
          {"tokenizer_class": "PreTrainedTokenizerFast", **ends, **settings})
    return folder


def two_files(folder: Path, **config: Any) -> Path:
    """vocab.json and merges.txt, as GPT-2 has them."""
    model = gpt2()["model"]
    write(folder, "vocab.json", model["vocab"])
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    write(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", **config})
    return folder


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def theirs(folder: Path) -> PreTrainedTokenizerBase:
    """What transformers makes of a folder; control tokens in a text stay text."""
    return AutoTokenizer.from_pretrained(str(folder), split_special_tokens=True)


def their_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)
