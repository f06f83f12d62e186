"""From a recipe to a dataset: every document unchanged, all of it or nothing, and only once."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import preparation
from data.documents.corpus import SeenTexts
from data.preparation import open_or_prepare, prepare
from data.prepare import main, recipe_from
from gpt.errors import UserError, WorkFailed
from gpt.files import locked
from gpt.shards import Dataset, is_dataset, verify_dataset
from gpt.shards import writing as shard_writer
from gpt.tokenizer import END_OF_TEXT, RankTokenizer, build_tokenizer
from tests.data.corpora import (
    KINDS,
    PulledPlug,
    documents,
    everything,
    folder_bytes,
    in_small_pieces,
    many_files,
    prose,
    recipe,
    stop_after,
    write_jsonl,
)
from tests.tiny import ROOT, SHARED
from tests.tokenizer import hub_tokenizers

SEEDED = settings(max_examples=20, derandomize=True, database=None, deadline=None)
FILES = {f"{i:02}.txt": f"document {i} says {END_OF_TEXT}: é\n" * 8 for i in range(12)}
GPT2 = SHARED / "gpt2.tiktoken"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _corpus(_in_a_folder):
    Path("corpus").mkdir()
    for name, text in FILES.items():
        (Path("corpus") / name).write_text(text, encoding="utf-8")


def of_corpus(**changes):
    return recipe(**{"sources": ["corpus"], "tokenizer": "byte", **changes})


def refusal(**changes) -> str:
    """The line a preparation is refused with; it leaves the folder as it was."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        prepare(of_corpus(**changes))
    assert sorted(Path().rglob("*")) == before
    return str(caught.value)


AWKWARD = st.text(min_size=1, max_size=60) | st.lists(st.sampled_from([
    END_OF_TEXT, " ", "\n", "\r\n", "\t", "\u3000", "\x85", "\u2028", "\0\1\2\3\4\5\6\7", "\x1c",
    "a", "é", "中", "'s", "123", "🙂", "e\u0301", "\ufeff", "\ufffd"]), min_size=1).map("".join)
DOCUMENTS = st.lists(AWKWARD, min_size=2, max_size=8, unique=True)


@pytest.fixture(scope="module")
def rank_file(tmp_path_factory):
    """GPT-2's ranks, or some trained here where they are missing."""
    if GPT2.is_file():
        return GPT2
    tokenizer = build_tokenizer("bpe:600", [prose(500, i) for i in range(9)])
    tokenizer.save(tmp_path_factory.mktemp("ranks"))
    return tmp_path_factory.getbasetemp() / "ranks0/ranks.tiktoken"


@SEEDED
@given(texts=DOCUMENTS, tokenizer=st.sampled_from(["byte", "char", "bpe:270", "ranks"]))
def test_any_records_come_back_unchanged_with_tiktokens_ids(texts, tokenizer, rank_file,
                                                            tmp_path_factory):
    folder = tmp_path_factory.mktemp("p")
    write_jsonl(folder / "a.jsonl", texts)
    with pytest.MonkeyPatch.context() as patch:
        in_small_pieces(patch)
        dataset = prepare(recipe(
            sources=[str(folder / "a.jsonl")], out=str(folder / "out"), split="documents",
            tokenizer=str(rank_file) if tokenizer == "ranks" else tokenizer))
    assert everything(dataset) == sorted(texts)
    encode, end = dataset.tokenizer._encoding.encode_ordinary, [dataset.tokenizer.end_of_text]
    for split, stream in (("train", dataset.train), ("val", dataset.val)):
        expected = [i for text in documents(dataset, split) for i in encode(text.decode()) + end]
        assert stream.read(0, len(stream)).tolist() == expected


@SEEDED
@given(texts=DOCUMENTS)
def test_any_text_files_come_back_unchanged_but_for_a_byte_order_mark(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("p")
    expected = sorted(text.removeprefix("\ufeff") for text in texts)
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_bytes(text.encode())
    try:
        dataset = prepare(recipe(sources=[str(folder)], tokenizer="byte", out=str(folder / "out"),
                                 split="documents"))
    except UserError as error:
        assert "split is empty" in str(error) and "" in expected
        return
    assert everything(dataset) == [text for text in expected if text]


@SEEDED
@given(files=st.lists(st.binary(min_size=1, max_size=50) | AWKWARD.map(
    lambda text: text.encode()[:-1] + b"x\xe4"), min_size=2, max_size=6, unique=True))
def test_any_bytes_come_back_with_what_is_no_text_replaced(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("p")
    for i, data in enumerate(files):
        (folder / f"{i}.txt").write_bytes(b"." + data)
    dataset = prepare(recipe(sources=[str(folder)], tokenizer="byte", out=str(folder / "out"),
                             split="documents", on_bad_text="replace"))
    assert everything(dataset) == sorted((b"." + data).decode("utf-8", "replace") for data in files)
    bad = sum((b"." + data).decode("utf-8", "ignore").encode() != b"." + data for data in files)
    assert dataset.manifest.bad_text == ({"replaced": bad} if bad else {})


@pytest.mark.parametrize("kind", KINDS)
def test_one_two_and_four_processes_write_the_same_folder(kind, monkeypatch):
    in_small_pieces(monkeypatch)
    monkeypatch.setattr(shard_writer, "SHARD_TOKENS", 900)
    changes = kind()
    for workers in (1, 2, 4):
        prepare(recipe(**changes, out=f"out{workers}", workers=workers))
        assert folder_bytes(f"out{workers}") == folder_bytes("out1")
    prepare(recipe(**changes | {"val_fraction": 0.2}, out="other"))
    assert folder_bytes("other") != folder_bytes("out1")
    assert sorted(path.name for path in Path().glob("o*[!t]")) == ["other", "out1", "out2", "out4"]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_depend_on_no_size_of_pieces_or_batches(kind, monkeypatch):
    changes = kind()
    whole = prepare(recipe(**changes, out="whole"))
    in_small_pieces(monkeypatch)
    pieced = prepare(recipe(**changes, out="pieced", workers=2))
    assert pieced.manifest.fingerprint == whole.manifest.fingerprint
    assert folder_bytes("pieced") == folder_bytes("whole")


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:270"])
@pytest.mark.usefixtures("_corpus")
def test_the_dataset_holds_every_document_whole_on_one_side(tokenizer):
    dataset = prepare(of_corpus(tokenizer=tokenizer))
    assert everything(dataset) == sorted(FILES.values())
    assert len(documents(dataset, "train")) > len(documents(dataset, "val")) > 0
    assert verify_dataset(Path("out")) == []


@pytest.mark.usefixtures("_corpus")
def test_the_manifest_says_what_is_there():
    manifest = prepare(of_corpus(name="mine", split="documents", val_fraction=0.3)).manifest
    assert (manifest.name, manifest.tokenizer.spec, manifest.dtype) == ("mine", "byte", "uint16")
    assert [source.path for source in manifest.sources] == ["corpus"]
    assert manifest.bad_text == {} and manifest.cleaning == {}
    total = {field: sum(getattr(info, field) for info in manifest.splits.values())
             for field in ("documents", "bytes", "tokens")}
    size = sum(len(text.encode()) for text in FILES.values())
    assert total == {"documents": 12, "bytes": size, "tokens": size + 12}
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "dataset.json", "tokenizer", "train-00000.bin", "train-00000.offsets", "val-00000.bin",
        "val-00000.offsets"]


def test_a_tokenizer_is_trained_on_the_training_split_alone():
    Path("one.txt").write_text("a" * 900 + "z" * 100)
    dataset = prepare(recipe(sources=["one.txt"], tokenizer="char"))
    assert dataset.tokenizer.encode("a") == [0]
    assert dataset.tokenizer.decode([1]) != "z"
    assert documents(dataset, "val") == [b"z" * 100]


@pytest.mark.usefixtures("_corpus")
def test_a_tokenizer_of_another_dataset_gives_the_same_ids():
    first = prepare(of_corpus(tokenizer="bpe:270", out="first"))
    shutil.copytree("first/tokenizer", "kept")
    Path("own.tiktoken").write_bytes(Path("first/tokenizer/ranks.tiktoken").read_bytes())
    for spec, said in (("first/tokenizer", "bpe:270"), ("kept", "bpe:270"),
                       ("own.tiktoken", "own.tiktoken")):
        dataset = prepare(of_corpus(tokenizer=spec, out=f"by-{said}-{spec[0]}"))
        assert dataset.manifest.tokenizer.spec == said
        assert dataset.train.read(0, 99).tolist() == first.train.read(0, 99).tolist()
        assert dataset.manifest.fingerprint == first.manifest.fingerprint
    damaged = Path("kept/ranks.tiktoken")
    damaged.write_bytes(b"".join(damaged.read_bytes().splitlines(keepends=True)[:-1]))
    assert "the tokenizer in kept is damaged" in refusal(tokenizer="kept")


def test_a_tokenizer_of_text_without_blanks_is_trained_twice_on_the_same_texts(capsys):
    write_jsonl(Path("a.jsonl"), ["x" * 3000 + str(i) for i in range(40)])
    dataset = prepare(recipe(sources=["a.jsonl"], tokenizer="bpe:300", drop_duplicates=True))
    assert max(map(len, dataset.tokenizer.ranks)) == 128
    assert "it is trained again with tokens of at most 128 bytes" in capsys.readouterr().err
    assert len(everything(dataset)) == 40


@pytest.mark.parametrize(("extra", "dtype"), [(65_279, "uint16"), (65_280, "uint32")])
@pytest.mark.usefixtures("_corpus")
def test_large_vocabularies_have_wider_ids(extra, dtype):
    """256 bytes, the extra tokens, and one for the end of text."""
    tokens = [bytes([b]) for b in range(256)] + [
        b"doc" + i.to_bytes(3, "big") for i in range(extra)]
    Path("own.tiktoken").write_bytes(b"".join(
        base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    dataset = prepare(of_corpus(tokenizer="own.tiktoken"))
    assert dataset.manifest.dtype == dtype
    assert dataset.tokenizer.end_of_text == extra + 256
    assert everything(dataset) == sorted(FILES.values())


@pytest.mark.usefixtures("_corpus")
def test_preparing_again_keeps_every_file(capsys):
    prepare(of_corpus())
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    again = prepare(of_corpus(workers=5, name="renamed"))
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    told = capsys.readouterr()
    assert "out is already prepared" in told.out and "note: files were" not in told.err
    assert len(again.train) > 0
    (Path("corpus") / "new.txt").write_text("new")
    prepare(of_corpus())
    assert "note: files were added, removed or changed since out was" in capsys.readouterr().err
    shutil.rmtree("corpus")
    prepare(of_corpus())  # a dataset stands without its sources


@pytest.mark.parametrize(("changes", "difference"), [
    ({"seed": 4}, "seed (0 there, 4 asked)"),
    ({"tokenizer": "char"}, "tokenizer ('byte' there, 'char' asked)"),
    ({"sources": ["corpus/*"]}, "sources (['corpus'] there, ['corpus/*'] asked)"),
    ({"on_bad_text": "skip"}, "on_bad_text ('error' there, 'skip' asked)")])
@pytest.mark.usefixtures("_corpus")
def test_preparing_another_recipe_into_the_same_folder_is_refused(changes, difference):
    prepare(of_corpus())
    before = folder_bytes("out")
    assert refusal(**changes) == (
        f"out holds a dataset made from another recipe: {difference}; choose another out=FOLDER, "
        "or remove that folder first")
    assert folder_bytes("out") == before


@pytest.mark.usefixtures("_corpus")
def test_a_folder_that_holds_something_else_is_left_alone():
    assert refusal(out="corpus") == (
        "corpus exists and is not a dataset; choose another out=FOLDER")
    assert refusal(out="corpus/00.txt").startswith("corpus/00.txt exists and is not a dataset")
    Path("out.partial").mkdir()
    (Path("out.partial") / "thesis.tex").write_text("years of work")
    assert refusal().startswith("out.partial exists, and is no preparation that was interrupted")
    shutil.rmtree("out.partial")
    Path("out.partial").touch()
    assert refusal().startswith("out.partial exists, and is no preparation that was interrupted")
    Path("out.partial").unlink()
    for folder in ("out", "out.partial"):
        Path(folder).mkdir()
    assert is_dataset(prepare(of_corpus()).folder)


@pytest.mark.usefixtures("_corpus")
def test_a_link_to_a_folder_elsewhere_is_filled_there():
    for target, there in (("disk", True), ("later", False)):
        if there:
            Path(target).mkdir()
        Path(f"to-{target}").symlink_to(target)
        prepare(of_corpus(out=f"to-{target}"))
        assert Path(f"to-{target}").is_symlink() and is_dataset(Path(target))
    assert sorted(path.name for path in Path().iterdir()) == [
        "corpus", "disk", "later", "to-disk", "to-later"]


@pytest.mark.usefixtures("_corpus")
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
    assert "split is empty" in refusal(sources=["mark.txt"])
    assert "split is empty" in refusal(sources=["mark.txt"], out="new/deeper/out")


@pytest.mark.usefixtures("_corpus")
def test_a_split_or_a_source_that_would_be_empty_is_refused():
    assert refusal(sources=["corpus/00.txt"], split="documents") == (
        "the val split is empty: 272 bytes in 1 documents are too little for val_fraction=0.1; "
        "give more text, or split=tail")
    assert is_dataset(prepare(of_corpus(sources=["corpus/00.txt"], split="tail")).folder)
    Path("blank.jsonl").write_text('{"text": ""}\n' * 3)
    assert refusal(sources=[{"path": "corpus", "weight": 1}, {"path": "blank.jsonl", "weight": 2}],
                   out="mixed") == ("the source blank.jsonl gave no text to training, which is to "
                                    "draw 2 parts from it; give it more text, or leave it out")


def add_bad_files() -> None:
    (Path("corpus") / "05b.txt").write_bytes(b"fine\nnot \xff fine\n")
    (Path("corpus") / "utf16.txt").write_bytes("wide\n".encode("utf-16"))


@pytest.mark.usefixtures("_corpus")
def test_invalid_text_is_an_error_with_file_and_line_and_nothing_is_left():
    add_bad_files()
    for tokenizer in ("byte", "char", "bpe:270"):
        for workers in (1, 2):
            assert refusal(tokenizer=tokenizer, workers=workers, out="new/deeper/out").startswith(
                "corpus/05b.txt, line 2: the text is not UTF-8")


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:270"])
@pytest.mark.usefixtures("_corpus")
def test_invalid_text_is_replaced_or_skipped_as_asked_and_counted(tokenizer, capsys):
    add_bad_files()
    replaced = prepare(of_corpus(tokenizer=tokenizer, on_bad_text="replace", out="replaced"))
    skipped = prepare(of_corpus(tokenizer=tokenizer, on_bad_text="skip", out="skipped"))
    assert replaced.manifest.bad_text == {"replaced": 1, "skipped": 1}  # UTF-16 is not mended
    assert skipped.manifest.bad_text == {"skipped": 2}
    assert "fine\nnot \ufffd fine\n" in everything(replaced)
    assert everything(skipped) == sorted(FILES.values())
    assert ("2 documents with bad text were skipped: skipped/bad_text.jsonl lists them"
            in capsys.readouterr().out)


def test_bad_text_whose_report_is_no_text_itself_is_written_all_the_same():
    """A key of half a surrogate pair is shown in the message about the record."""
    write_jsonl(Path("a.jsonl"), [prose(9, i) for i in range(9)])
    with Path("a.jsonl").open("a") as file:
        file.write('{"\\ud800": 1}\n')
    Path("a.jsonl").rename(os.fsdecode(b"a\xff.jsonl"))
    dataset = prepare(recipe(sources=["*.jsonl"], tokenizer="byte", on_bad_text="skip"))
    assert dataset.manifest.bad_text == {"skipped": 1}
    [line] = Path("out/bad_text.jsonl").read_text(encoding="utf-8").splitlines()
    assert "ud800" in json.dumps(json.loads(line)["problem"])
    assert verify_dataset(Path("out")) == []


def test_what_is_made_inside_a_source_is_no_part_of_it(monkeypatch, capsys):
    many_files()
    in_small_pieces(monkeypatch)
    inside = recipe(sources=["."], tokenizer="char")
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(PulledPlug):
            prepare(inside)
    assert Path("out.partial/tokenizer/encoding.json").exists()
    prepare(inside)
    assert "continuing after" in capsys.readouterr().err
    prepare(inside)
    assert "note: files were" not in capsys.readouterr().err
    assert len(everything(Dataset(Path("out")))) == 40


def hub_folder(kind: str) -> str:
    make, eos = hub_tokenizers.KINDS[kind]
    return str(hub_tokenizers.write_folder(Path("hub"), make(), eos))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", hub_tokenizers.KINDS)
@pytest.mark.usefixtures("_corpus")
def test_any_hugging_face_folder_gives_a_dataset_the_ids_of_its_documents(kind, workers,
                                                                          monkeypatch, capsys):
    in_small_pieces(monkeypatch)
    long = "\n".join(hub_tokenizers.corpus()).replace("\x00", "")
    Path("corpus/long.txt").write_text(long, encoding="utf-8")
    texts = {text.encode(): text for text in (*FILES.values(), long)}
    ours = build_tokenizer(hub_folder(kind))
    dataset = prepare(of_corpus(tokenizer="hub", workers=workers))
    assert dataset.tokenizer.fingerprint == ours.fingerprint
    stream, ends = dataset.train, [*dataset.train.document_starts[1:], len(dataset.train)]
    found = [stream.read(int(a), int(b)).tolist()
             for a, b in zip(stream.document_starts, ends, strict=True)]
    expected = [[*ours.encode(text), ours.end_of_text] for text in texts.values()]
    assert len(found) == len(FILES) - 1 + 1 and all(ids in expected for ids in found)
    assert ("in memory as a whole" in capsys.readouterr().err) == (kind == "unigram")


@pytest.mark.usefixtures("_corpus")
def test_a_preparation_by_whole_documents_is_continued_to_the_same_bytes(monkeypatch):
    in_small_pieces(monkeypatch)
    given = of_corpus(tokenizer=hub_folder("unigram"), workers=1)
    expected = folder_bytes(prepare(of_corpus(tokenizer="hub", workers=1, out="once")).folder)
    for batches in (2, 1):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(batches, patch)
            with pytest.raises(PulledPlug):
                prepare(given)
    assert folder_bytes(prepare(given).folder) == expected


UNWRITABLE = "one line\nand a\x04nother\U00040000 here\n"
NO_TOKEN = "the tokenizer hub has no token for the character U+0004"


@pytest.mark.usefixtures("_corpus")
def test_text_that_the_vocabulary_lacks_goes_by_the_policy_and_never_ends_a_document(capsys):
    Path("corpus/0x.txt").write_text(UNWRITABLE * 3, encoding="utf-8")
    write_jsonl(Path("corpus/y.jsonl"), ["sound", UNWRITABLE, "sound again"])
    tokenizer = hub_folder("smollm")
    with pytest.raises(UserError, match=f"^corpus/0x.txt, line 2: {re.escape(NO_TOKEN)}; mend "
                                        "the file, or set on_bad_text=replace or"):
        prepare(of_corpus(tokenizer=tokenizer))
    mended = prepare(of_corpus(tokenizer=tokenizer, on_bad_text="replace", out="mended"))
    marked = UNWRITABLE.replace("\x04", "\ufffd").replace("\U00040000", "\ufffd")
    assert {marked, marked * 3} < set(everything(mended))
    assert len(everything(mended)) == len(FILES) + 4
    assert mended.manifest.bad_text == {"replaced": 2}
    listed = [json.loads(line) for line in Path("mended/bad_text.jsonl").read_text().splitlines()]
    assert [(one["file"], one["line"], one["problem"], one["done"]) for one in listed] == [
        ("corpus/0x.txt", 2, NO_TOKEN, "replaced"), ("corpus/y.jsonl", 2, NO_TOKEN, "replaced")]
    left = prepare(of_corpus(tokenizer=tokenizer, on_bad_text="skip", out="left"))
    assert left.manifest.bad_text == {"skipped": 2}
    assert not any("nother" in text for text in everything(left))
    assert len(everything(left)) == len(FILES) + 2


@pytest.mark.usefixtures("_corpus")
def test_a_tokenizer_that_is_trained_can_write_everything():
    Path("corpus/0x.txt").write_text(UNWRITABLE, encoding="utf-8")
    assert UNWRITABLE in everything(prepare(of_corpus(tokenizer="bpe:300")))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.usefixtures("_corpus")
def test_a_hugging_face_tokenizer_that_changed_starts_a_preparation_afresh(file, monkeypatch,
                                                                           capsys):
    given = of_corpus(tokenizer=hub_folder("llama3"), workers=1)
    with pytest.MonkeyPatch.context() as patch:
        in_small_pieces(patch)
        stop_after(2, patch)
        with pytest.raises(PulledPlug):
            prepare(given)
    path = Path("hub") / file
    path.write_text(path.read_text() + "\n")
    prepare(given)
    assert "starting again" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["encode_arrays", "save"])
@pytest.mark.usefixtures("_corpus")
def test_an_interrupted_preparation_leaves_no_dataset_and_does_not_stop_the_next(
        method, error, monkeypatch):
    def fail(*args: object) -> None:
        raise error("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(RankTokenizer, method, fail)
        with pytest.raises(error, match="pulled the plug"):
            prepare(of_corpus())
    assert not Path("out").exists() and not is_dataset(Path("out.partial"))
    assert is_dataset(prepare(of_corpus()).folder)
    assert sorted(path.name for path in Path().iterdir()) == ["corpus", "out"]


@pytest.mark.usefixtures("_corpus")
def test_leftovers_of_writes_that_were_killed_are_no_part_of_the_dataset():
    Path("out.partial").mkdir()
    for name in ("lock", "journal.json.tmp-1", "dataset.json.tmp-22", "seen.sqlite-journal"):
        (Path("out.partial") / name).write_text("torn")
    Path("out.partial/tokenizer.tmp").mkdir()
    prepare(of_corpus(drop_duplicates=True))
    assert {path.name for path in Path("out").iterdir()} == {
        "dataset.json", "tokenizer", "train-00000.bin", "train-00000.offsets", "val-00000.bin",
        "val-00000.offsets"}


@pytest.mark.usefixtures("_corpus")
def test_a_second_preparation_at_the_same_time_is_refused():
    Path("out.partial").mkdir()
    with locked(Path("out.partial"), "wait"):
        assert refusal().startswith(f"out.partial is in use by process {os.getpid()} on ")
    assert is_dataset(prepare(of_corpus()).folder)


@pytest.mark.usefixtures("_corpus")
def test_trouble_with_the_list_of_seen_texts_is_one_line(monkeypatch):
    def fail(*args: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(SeenTexts, "save", fail)
        with pytest.raises(WorkFailed, match=r"^out\.partial/seen\.sqlite: database or disk is fu"):
            prepare(of_corpus(drop_duplicates=True))
    assert is_dataset(prepare(of_corpus(drop_duplicates=True)).folder)


@pytest.mark.usefixtures("_corpus")
def test_the_command_prepares_and_says_what_it_made(capsys):
    main(["corpus", "tokenizer=byte", "out=made/here"])
    told = capsys.readouterr().out
    assert "made/here: tokenizer byte, vocabulary 257" in told
    assert [line.split()[0] for line in told.splitlines()] == ["made/here:", "train", "val"]
    assert is_dataset(Path("made/here"))


def test_a_recipe_and_sources_do_not_go_together():
    with pytest.raises(UserError, match="give one recipe or a list of sources, not both"):
        recipe_from(["a.yaml", "corpus"])
    assert recipe_from(["some where/.My Text!.txt"]).name == "My-Text-"
    assert recipe_from(["-"]).name == "stdin"


@pytest.mark.usefixtures("_corpus")
def test_a_run_prepares_what_its_recipe_says_and_refuses_another(monkeypatch):
    Path("mine.yaml").write_text("sources: [corpus]\ntokenizer: byte\nout: made\nworkers: 1\n")
    assert open_or_prepare("mine.yaml").folder == Path("made")
    monkeypatch.setattr(preparation, "prepare", lambda recipe: pytest.fail("made again"))
    assert open_or_prepare("mine.yaml").folder == Path("made")
    assert open_or_prepare("made").folder == Path("made")
    Path("mine.yaml").write_text("sources: [corpus]\ntokenizer: char\nout: made\n")
    with pytest.raises(UserError, match="made holds a dataset made from another recipe"):
        open_or_prepare("mine.yaml")
    with pytest.raises(UserError, match="there is no dataset in none"):
        open_or_prepare("none")


def test_preparing_needs_no_torch():
    check = ("import sys; sys.path.insert(0, sys.argv[1]); import gpt, data.preparation; "
             "assert 'torch' not in sys.modules; gpt.GPT; assert 'torch' in sys.modules")
    done = subprocess.run([sys.executable, "-c", check, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
