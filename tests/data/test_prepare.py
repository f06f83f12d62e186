"""From a recipe to a dataset: all of it or nothing, once, and only from text that is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data import prepare as prepare_module
from data import sources
from data.prepare import main, prepare
from data.recipe import Recipe
from gpt.errors import UserError
from gpt.shards import Dataset, TokenStream, is_dataset, verify_dataset
from gpt.tokenizer import END_OF_TEXT, Tokenizer

ROOT = Path(__file__).resolve().parents[2]
FILES = {f"{i:02}.txt": f"document {i} says {END_OF_TEXT}: é\n" * 8 for i in range(12)}


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    for name, text in FILES.items():
        (Path("corpus") / name).write_text(text, encoding="utf-8")


def recipe(**changes) -> Recipe:
    return Recipe(**{"sources": ["corpus"], "tokenizer": "byte", "out": "out", "workers": 2,
                     **changes})


def refusal(**changes) -> str:
    """The line a preparation is refused with; it leaves the folder as it was."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        prepare(recipe(**changes))
    assert sorted(Path().rglob("*")) == before
    return str(caught.value)


def documents(dataset: Dataset, stream: TokenStream) -> list[str]:
    """The texts of a split."""
    ids = stream.read(0, len(stream)).tolist()
    assert ids[-1] == dataset.tokenizer.end_of_text
    texts: list[list[int]] = [[]]
    for i in ids:
        if i == dataset.tokenizer.end_of_text:
            texts.append([])
        else:
            texts[-1].append(i)
    return [dataset.tokenizer.decode(text) for text in texts[:-1]]


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:270"])
def test_the_dataset_holds_every_document_whole_on_one_side(tokenizer):
    dataset = prepare(recipe(tokenizer=tokenizer))
    train, val = (documents(dataset, stream) for stream in (dataset.train, dataset.val))
    assert sorted(train + val) == sorted(FILES.values())
    assert len(train) > len(val) > 0
    assert verify_dataset(Path("out")) == []


def test_the_manifest_says_what_is_there():
    manifest = prepare(recipe(name="mine", split="documents", val_fraction=0.3)).manifest
    assert (manifest.name, manifest.tokenizer.spec, manifest.dtype) == ("mine", "byte", "uint16")
    assert manifest.sources == ["corpus"] and manifest.bad_text == {}
    total = {field: sum(getattr(info, field) for info in manifest.splits.values())
             for field in ("documents", "bytes", "tokens")}
    size = sum(len(text.encode()) for text in FILES.values())
    assert total == {"documents": 12, "bytes": size, "tokens": size + 12}
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "dataset.json", "tokenizer", "train-00000.bin", "train-00000.offsets", "val-00000.bin",
        "val-00000.offsets"]


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:270"])
@pytest.mark.parametrize("split", ["documents", "tail"])
def test_tokens_depend_on_no_piece_batch_or_thread_size(tokenizer, split, monkeypatch):
    whole = prepare(recipe(tokenizer=tokenizer, split=split, out="whole", workers=1))
    monkeypatch.setattr(sources, "PIECE_BYTES", 40)
    monkeypatch.setattr(prepare_module, "BATCH_CHARACTERS", 100)
    pieced = prepare(recipe(tokenizer=tokenizer, split=split, out="pieced", workers=3))
    assert pieced.manifest.splits == whole.manifest.splits
    assert pieced.manifest.fingerprint == whole.manifest.fingerprint


def test_a_tokenizer_is_trained_on_the_training_split_alone():
    text = "a" * 900 + "z" * 100
    Path("one.txt").write_text(text)
    dataset = prepare(recipe(sources=["one.txt"], tokenizer="char"))
    assert dataset.tokenizer.encode("a") == [0]
    assert dataset.tokenizer.decode([1]) != "z"
    assert documents(dataset, dataset.val) == ["z" * 100]


def test_a_tokenizer_file_of_ones_own_is_used_and_named():
    first = prepare(recipe(tokenizer="bpe:270", out="first"))
    Path("own.tiktoken").write_bytes(Path("first/tokenizer/ranks.tiktoken").read_bytes())
    dataset = prepare(recipe(tokenizer="own.tiktoken"))
    assert dataset.manifest.tokenizer.spec == "own.tiktoken"
    assert documents(dataset, dataset.val) == documents(first, first.val)
    assert len(dataset.val) == len(first.val)


def files_of(folder: str) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes())
            for path in Path(folder).rglob("*") if path.is_file()}


def test_preparing_again_keeps_every_file(capsys):
    prepare(recipe())
    before = files_of("out")
    again = prepare(recipe(workers=5, name="renamed"))
    assert files_of("out") == before and len(again.train) > 0
    assert "out is already prepared" in capsys.readouterr().out


@pytest.mark.parametrize(("changes", "difference"), [
    ({"seed": 4}, "seed (0 there, 4 asked)"),
    ({"tokenizer": "char"}, "tokenizer ('byte' there, 'char' asked)"),
    ({"sources": ["corpus/*"]}, "sources (['corpus'] there, ['corpus/*'] asked)"),
    ({"val_fraction": 0.5, "split": "tail"},
     "val_fraction (0.1 there, 0.5 asked), split ('auto' there, 'tail' asked)"),
    ({"on_bad_text": "skip"}, "on_bad_text ('error' there, 'skip' asked)")])
def test_preparing_another_recipe_into_the_same_folder_is_refused(changes, difference):
    prepare(recipe())
    before = files_of("out")
    assert refusal(**changes) == (
        f"out holds a dataset made from another recipe: {difference}; choose another out=FOLDER, "
        "or remove that folder first")
    assert files_of("out") == before


def test_a_folder_that_holds_something_else_is_left_alone():
    assert refusal(out="corpus") == (
        "corpus exists and is not a dataset; choose another out=FOLDER")
    assert refusal(out="corpus/00.txt").startswith("corpus/00.txt exists and is not a dataset")
    Path("out").mkdir()
    assert is_dataset(prepare(recipe()).folder)


def test_without_text_there_is_one_line_and_nothing_else():
    Path("empty").mkdir()
    assert refusal(sources=["empty"]).startswith("the source empty has no text")
    assert refusal(sources=["missing"]).startswith("the source missing is no file or folder")
    assert refusal(sources=["corpus", "missing"]).startswith("the source missing is no file")
    Path("empty/a.txt").touch()
    Path("empty/b.txt").touch()
    assert refusal(sources=["empty"]) == (
        "the sources (empty) are empty: there is no text to prepare")
    Path("mark.txt").write_bytes(b"\xef\xbb\xbf")
    assert refusal(sources=["mark.txt"]).startswith("the train split is empty: 3 bytes in 1 ")


def test_a_split_that_would_be_empty_is_refused():
    assert refusal(sources=["corpus/00.txt"], split="documents") == (
        "the val split is empty: 272 bytes in 1 documents are too little for val_fraction=0.1; "
        "give more text, or split=tail")
    assert is_dataset(prepare(recipe(sources=["corpus/00.txt"], split="tail")).folder)


def add_bad_files() -> None:
    (Path("corpus") / "05b.txt").write_bytes(b"fine\nnot \xff fine\n")
    (Path("corpus") / "utf16.txt").write_bytes("wide\n".encode("utf-16"))


def test_invalid_text_is_an_error_with_file_and_line_and_nothing_is_left():
    add_bad_files()
    for tokenizer in ("byte", "bpe:270"):
        assert refusal(tokenizer=tokenizer).startswith(
            "corpus/05b.txt, line 2: the text is not UTF-8")


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:270"])
def test_invalid_text_is_replaced_or_skipped_as_asked_and_counted(tokenizer, capsys):
    add_bad_files()
    replaced = prepare(recipe(tokenizer=tokenizer, on_bad_text="replace", out="replaced"))
    skipped = prepare(recipe(tokenizer=tokenizer, on_bad_text="skip", out="skipped"))
    assert replaced.manifest.bad_text == {"replaced": 2}
    assert skipped.manifest.bad_text == {"skipped": 2}
    texts = documents(replaced, replaced.train) + documents(replaced, replaced.val)
    assert "fine\nnot \ufffd fine\n" in texts
    assert sorted(documents(skipped, skipped.train) + documents(skipped, skipped.val)) == sorted(
        FILES.values())
    assert "2 documents with invalid UTF-8 were skipped" in capsys.readouterr().out


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
@pytest.mark.parametrize("method", ["encode_batch", "save"])
def test_an_interrupted_preparation_leaves_nothing(method, error, monkeypatch):
    before = sorted(Path().rglob("*"))

    def fail(*args: object) -> None:
        raise error("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, method, fail)
        with pytest.raises(error, match="pulled the plug"):
            prepare(recipe())
    assert sorted(Path().rglob("*")) == before
    assert is_dataset(prepare(recipe()).folder)


def test_a_refused_preparation_leaves_no_folders_above_the_dataset():
    add_bad_files()
    refusal(out="new/deeper/out")
    assert not Path("new").exists()


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from data.prepare import main
from gpt.tokenizer import Tokenizer
Tokenizer.encode_batch = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
main(["corpus", "tokenizer=byte", "out=out"])
"""


def test_a_killed_preparation_leaves_no_folder_that_trains_and_does_not_stop_the_next():
    done = subprocess.run([sys.executable, "-c", KILLED, str(ROOT)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    [leftover] = [path for path in Path().iterdir() if path.name != "corpus"]
    assert not Path("out").exists() and not is_dataset(leftover)
    with pytest.raises(UserError, match="there is no dataset in"):
        Dataset(leftover)
    assert is_dataset(prepare(recipe()).folder)


def test_what_a_killed_preparation_left_does_not_stop_one_with_the_same_process_id():
    Path(f"out.tmp-{os.getpid()}").mkdir()
    assert is_dataset(prepare(recipe()).folder)
    assert not list(Path().glob("*.tmp-*"))


def test_the_command_prepares_and_says_what_it_made(capsys):
    main(["corpus", "tokenizer=byte", "out=made/here"])
    told = capsys.readouterr().out
    assert "made/here: tokenizer byte, vocabulary 257" in told
    assert [line.split()[0] for line in told.splitlines()] == ["made/here:", "train", "val"]
    assert is_dataset(Path("made/here"))
