"""Published tokenizers against `tokenizers` and llama.cpp: `make interop` fetches them for this."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from gpt.interop.gguf.retokenizing import Reconstructed, llama_cpp_ids
from gpt.interop.gguf.tokens import TokenTable
from gpt.tokenizer import read_huggingface_tokenizer
from tests.interop.published import NAMES
from tests.tokenizer.hub_tokenizers import AWKWARD, corpus
from tests.tokenizer.test_json import SAFE_CUT

FOLDER = Path(__file__).parents[2] / "build/tokenizers"
SCRIPTS = [
    "مَرْحَبًا بِكُمْ", "ภาษาไทยไม่มีช่องว่าง", "नमस्ते दुनिया", "தமிழ் மொழி", "עִבְרִית",
    "Ünïcödé naïve", "Привет, мир", "日本語のテキスト", "한국어 문장", "Ελληνικά ΚΕΦ",
    "İstanbul ŞIŞLI ǅ", "👩‍👩‍👧 🇪🇺 👍🏽", "def f(x):\n\treturn x**2", "1,234.50 ½ ٣ ⅷ",
    "don't WE'LL 'ſ", "a_b-c/d\\e", "e\u0301 o\u0308", "<｜fim▁begin｜>", "<|fim_prefix|>"]
# What llama.cpp does otherwise, and why.
OTHERWISE = {
    "gpt4o": "its pattern knows no combining marks",
    "deepseek_v3": "it takes tokens with the names of filling in the middle for control tokens",
    "qwen3": "the same",
    "gemma3": "it takes </s>, which is text there, for a control token",
}


def texts() -> list[str]:
    """Awkward texts, and every script with every kind of neighbour."""
    around = [("", ""), (" ", " "), ("  ", "\n"), ("x", "'s"), ("(", ")."), ("\r\n", "\t"),
              ("1", "2"), ("\u00a0", "\u3000"), ("<|im_start|>", "</s>"), ("ab\n\n", "   y")]
    made = [f"{before}{script}{after}" for script in SCRIPTS for before, after in around]
    return [text for text in [*AWKWARD, *corpus()[1:], *made] if len(text) < 20_000]


@pytest.fixture(params=[*NAMES, "smollm2"])
def published(request):
    folder = FOLDER / request.param
    if not folder.is_dir():
        pytest.skip("make interop fetches published tokenizers for this")
    return request.param, read_huggingface_tokenizer(folder), folder


def test_ids_are_those_of_tokenizers(published):
    _, ours, folder = published
    library = Library.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True
    for text in map(ours.writable, texts()):
        found = library.encode(text, add_special_tokens=False).ids
        if set(found).isdisjoint(ours.specials.values()):
            assert ours.encode(text) == found, text


def as_transformers_has_it(name: str, file: dict) -> dict:
    """The file with what transformers' class for it makes anew."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                 "split": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}
    parts = {"llama2": {"normalizer": None, "pre_tokenizer": metaspace},
             "gpt4o": {"pre_tokenizer": level},
             "gemma3": {"added_tokens": [
                 {**token, "special": token["special"] or token["content"] == "<mask>"}
                 for token in file["added_tokens"]]}}
    return file | parts.get(name, {})


def test_ids_are_those_of_transformers_but_for_what_its_classes_make_anew(published):
    name, ours, folder = published
    other = AutoTokenizer.from_pretrained(str(folder), split_special_tokens=True)
    file = json.loads((folder / "tokenizer.json").read_text())
    changed = as_transformers_has_it(name, file)
    library = Library.from_str(json.dumps(changed))
    library.encode_special_tokens = True
    differ = 0
    for text in [*map(ours.writable, texts()), "<mask>", " a", "\u2581a", "\ta 12345 THE'S"]:
        found = other.encode(text, add_special_tokens=False)
        assert found == library.encode(text, add_special_tokens=False).ids, text
        if set(found).isdisjoint(ours.specials.values()):
            differ += ours.encode(text) != found
    assert bool(differ) == (changed != file)


def test_every_token_alone_and_in_pairs_is_the_text_of_tokenizers(published):
    """But for bytes that are no text: `tokenizers` has a replacement for each of them."""
    _, ours, folder = published
    library = Library.from_file(str(folder / "tokenizer.json"))
    for i in ours.text_ids:
        assert ours.decode([i]) == library.decode([i], skip_special_tokens=False), i
    chosen = random.Random(0).choices(sorted(ours.text_ids), k=40_000)
    for both in zip(chosen[::2], chosen[1::2], strict=True):
        if "\ufffd" not in (text := ours.decode(both)):
            assert text == library.decode(both, skip_special_tokens=False), both


def test_all_are_encoded_in_pieces_to_the_ids_of_the_whole(published):
    _, ours, _ = published
    assert ours.encodes_in_pieces
    for text in map(ours.writable, texts()):
        cuts = [match.end() for match in re.finditer(SAFE_CUT, text)]
        first, *more = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        ids = [*ours.encode(first), *(i for one in more for i in ours.encode_behind(one))]
        assert ids == ours.encode(text), text


def test_a_gguf_file_carries_it_as_llama_cpp_encodes(published, tmp_path, record_property):
    name, ours, _ = published
    path = tmp_path / "vocabulary.gguf"
    _write(path, TokenTable.of(ours, ours.vocab_size))
    form = "NFC" if name.startswith("qwen") else None
    given = [unicodedata.normalize(form, text) if form else text
             for text in map(ours.writable, texts())]
    read = Reconstructed(GGUFReader(path))
    assert [read.encode(text) for text in given] == [ours.encode(text) for text in given]
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("make interop builds llama.cpp for this; the file's own data are right")
    other = [text for text, ids in zip(given, llama_cpp_ids(path, given), strict=True)
             if ids != ours.encode(text)]
    print(f"{name}: llama.cpp finds other ids in {len(other)} of {len(given)} texts")
    assert bool(other) == (name in OTHERWISE), other[:3]
    assert len(other) < len(given) / 4


def _write(path: Path, table: TokenTable) -> None:
    """A GGUF file of the least that llama.cpp reads a vocabulary from."""
    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(len(table.tokens))
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_block_count,
                writer.add_feed_forward_length, writer.add_head_count):
        add(1)
    writer.add_layer_norm_rms_eps(1e-5)
    table.add_to(writer)
    writer.add_tensor("token_embd.weight", np.zeros((1, 1), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
