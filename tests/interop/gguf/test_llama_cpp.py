"""Exports run by llama.cpp itself: `make interop` builds it for Python and runs this file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

import gpt
import sample
from gpt.__main__ import main as verbs
from gpt.errors import UserError
from gpt.interop.equivalent import standard
from gpt.interop.gguf.architectures import LLAMA_CPP
from gpt.interop.gguf.writing import export_gguf
from gpt.interop.long_context import longest, with_block_size
from gpt.interop.model_card import About
from gpt.interop.reading import read_model
from tests.interop.models import bpe, saved
from tests.interop.variants import VARIANTS
from tests.tiny import random_tokens, run_script

llama_cpp = pytest.importorskip("llama_cpp", reason="make interop builds llama.cpp for this")

MODELS = {
    "qwen3": ("bpe:1024", ["model.n_kv_head=2"]),
    "llama": ("char", ["model.preset=llama-15m", "model.n_kv_head=2", "model.n_inner=352",
                       "model.rope_scaling.factor=4", "model.rope_scaling.original_block_size=64"]),
    "gpt2": ("byte", ["model.preset=gpt2", "model.n_kv_head=4"]),
}
PROMPTS = [
    "def ", "import ", "class ", "return ", "    def __init__(self", "for i in range(", "if x is ",
    "# The ", "\"\"\"Return ", "try:\n    ", "while True:\n", "self.", "a = [1, 2, 3]\n", "None",
    "raise ValueError(", "with open(", "é", "北京", "👍 ", "x  =   1\n\n", "\t\ty", "it's",
    "1234567", "print('hello", "lambda x: "]
NEW_TOKENS = 60
TIE = 1e-3  # scores so close that rounding GELU to float16 can turn them over


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """(run folder, GGUF file) of a model that learned from Python's own source for 150 steps."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer, fields = MODELS[request.param]
    sources = [Path(json.__file__).parent, Path(pytest.__file__).parent]
    shape = ["model.block_size=128", "model.n_layer=3", "model.n_head=4", "model.n_embd=128"]
    for script, arguments in (
            ("data/prepare.py", [*sources, f"tokenizer={tokenizer}", "out=corpus"]),
            ("train.py", ["data.dataset=corpus", "run.name=run", "train.steps=150",
                          "train.batch_size=8", "run.device=cpu", "run.dtype=float32",
                          "eval.max_tokens=1000", *shape, *fields])):
        done = run_script(script, *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    verbs(["export", str(folder / "runs/run"), str(folder / "out"), "--format", "gguf"])
    return folder / "runs/run", next((folder / "out").glob("*.gguf"))


def opened(gguf: Path, block_size: int) -> llama_cpp.Llama:
    """Keys and values in float32, as ours: llama.cpp keeps them in float16 unless told."""
    return llama_cpp.Llama(str(gguf), n_ctx=block_size, verbose=False, logits_all=True,
                           type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)


def test_llama_cpp_finds_the_same_ids_and_logits(exported):
    run, gguf = exported
    lm = gpt.load(str(run), device="cpu", dtype="float32")
    theirs = opened(gguf, lm.model.config.block_size)
    for prompt in PROMPTS:
        ids = lm.tokenizer.encode(prompt)
        assert theirs.tokenize(prompt.encode(), add_bos=False, special=False) == ids, prompt
        theirs.reset()
        theirs.eval(ids)
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids]))[0]
        difference = (torch.tensor(theirs.scores[:len(ids)]) - logits).abs().max().item()
        # GPT-2's gelu comes from a table in float16 there.
        assert difference < (0.05 if lm.model.config.norm == "layernorm" else 1e-4), prompt
        assert logits.std() > 0.5


def test_llama_cpp_writes_the_greedy_text_of_sample_py(exported, capsys):
    run, gguf = exported
    lm = gpt.load(str(run), device="cpu", dtype="float32")
    theirs = opened(gguf, lm.model.config.block_size)
    texts, ties = {}, []
    for prompt in PROMPTS:
        sample.main([str(run), "--prompt", prompt, "--temperature", "0", "--json", "--device",
                     "cpu", "--dtype", "float32", "--max-new-tokens", str(NEW_TOKENS)])
        ours = json.loads(capsys.readouterr().out)
        begin = lm.tokenizer.encode(prompt)
        ids = list(itertools.islice(theirs.generate(begin, temp=0.0, repeat_penalty=1.0),
                                    NEW_TOKENS))[:len(ours["tokens"])]
        if (place := first_difference(ids, ours["tokens"])) is not None:
            with torch.no_grad():
                scores = lm.model(torch.tensor([begin + ids[:place]]))[0, -1]
            assert scores[ours["tokens"][place]] - scores[ids[place]] < TIE, prompt
            ties.append(prompt)
            continue
        found = theirs.create_completion(prompt, max_tokens=NEW_TOKENS, temperature=0.0,
                                         repeat_penalty=1.0)
        # llama-cpp-python leaves out tokens of more than 32 bytes when it writes text.
        if max(lm.tokenizer.byte_lengths()[ours["tokens"]]) <= 32:
            texts[prompt] = (ours["completion"], found["choices"][0]["text"])
    assert {prompt: both for prompt, both in texts.items() if both[0] != both[1]} == {}
    assert len(ties) <= (2 if lm.model.config.norm == "layernorm" else 0)
    assert len(texts) >= 20 and len({ours for ours, _ in texts.values()}) > 5


def first_difference(one: list[int], other: list[int]) -> int | None:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)


@pytest.mark.parametrize("name", VARIANTS)
def test_llama_cpp_computes_every_architecture_that_is_written(name, tmp_path):
    model = read_model(saved(name, tmp_path / "hf")[1])
    try:
        standard(model.config, LLAMA_CPP)
    except UserError as refused:
        pytest.skip(str(refused))
    model = with_block_size(model, longest(model.config))  # its contexts are no shorter than 256
    export_gguf(model, bpe(), tmp_path / "out", About("x"))
    theirs = opened(tmp_path / "out/x-float32.gguf", 256)
    tokens = random_tokens(1, 40, vocab_size=300)
    theirs.eval(tokens[0].tolist())
    with torch.no_grad():
        logits = model(tokens)[0]
    difference = (torch.tensor(theirs.scores[:40]) - logits).abs().max().item()
    assert difference < (0.05 if model.config.norm == "layernorm" or model.config.mlp == "geglu"
                         else 1e-3)
    assert logits.std() > 0.1
