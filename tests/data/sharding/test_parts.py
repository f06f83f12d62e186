"""Preparing on many machines: the parts together are what one would have made alone."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from data import preparation
from data.preparation import prepare
from data.prepare import main
from data.sharding import finishing, parts
from data.sharding.parts import PART, Share, finished_parts
from data.sources.files import File
from gpt.errors import UserError
from gpt.files import locked
from gpt.shards import (
    Dataset,
    is_dataset,
    map_shards,
    read_manifest,
    verify_dataset,
    write_manifest,
)
from tests.data.corpora import (
    bad_text,
    documents,
    folder_bytes,
    in_small_pieces,
    many_files,
    mixture,
    one_file,
    recipe,
    records,
)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    in_small_pieces(monkeypatch)


def as_rank(rank: object, world_size: object, changes: dict, **more) -> Dataset | None:
    """Prepare as one of several processes would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(rank))
        patch.setenv("WORLD_SIZE", str(world_size))
        return prepare(recipe(**changes | more))


def without_quotas() -> dict:
    changes = mixture()
    sources = [{k: v for k, v in s.items() if k != "max_tokens"} for s in changes["sources"]]
    return changes | {"sources": sources}


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("kind", [many_files, one_file, records, without_quotas, bad_text])
def test_parts_joined_are_the_dataset_that_one_process_makes(kind, world_size, capsys):
    changes = kind()
    alone = prepare(recipe(**changes, out="alone"))
    order = [*range(1, world_size), 0]
    for rank in order[:-1]:
        assert as_rank(rank, world_size, changes) is None
        assert not Path("out").exists()
    assert "out is made when all" in capsys.readouterr().out
    joined = as_rank(0, world_size, changes)
    for split in ("train", "val"):
        assert documents(joined, split) == documents(alone, split)
        one, other = (map_shards(d.folder, d.manifest, split) for d in (joined, alone))
        assert one.read(0, len(one)).tolist() == other.read(0, len(other)).tolist()
        assert one.document_starts.tolist() == other.document_starts.tolist()
    assert [[w.stream.read(0, len(w.stream)).tolist(), w.weight] for w in joined.mixture] == [
        [w.stream.read(0, len(w.stream)).tolist(), w.weight] for w in alone.mixture]
    ours, theirs = (d.manifest.model_dump(exclude={"splits": {"train": {"shards"}, "val": {
        "shards"}}, "sha256": True}) for d in (joined, alone))
    assert ours == theirs
    assert verify_dataset(Path("out")) == []
    assert sorted(path.name for path in Path().glob("out*")) == ["out"]
    if kind is bad_text:
        name = finishing.BAD_TEXT
        assert (Path("out") / name).read_bytes() == (Path("alone") / name).read_bytes()


def test_files_are_shared_out_in_order_and_by_size():
    def files(*sizes: int | None) -> list[File]:
        return [File(str(i), "", size, "text", None, 0, "text") for i, size in enumerate(sizes)]

    def shared(world_size: int, *sizes: int | None) -> list[list[int]]:
        return [Share(rank, world_size).files(files(*sizes)) for rank in range(world_size)]

    assert shared(2, 10, 10, 10, 10) == [[0, 1], [2, 3]]
    assert shared(2, 30, 10, 10, 10) == [[0], [1, 2, 3]]
    assert shared(3, 5) == [[], [0], []]
    assert shared(2, None, None, None, 5) == [[0, 1], [2, 3]]
    assert shared(2, 0, 0, 0, 0) == [[0, 1], [2, 3]]
    for world_size in (1, 2, 3, 7, 64):
        sizes = [(7 * i) % 50 * 10**i % 10**15 for i in range(40)]
        assert [i for share in shared(world_size, *sizes) for i in share] == list(range(40))


@pytest.mark.parametrize(("rank", "world_size"), [
    ("2", "2"), ("-1", "2"), ("x", "2"), ("0", "two"), ("", "1"), ("0", "0"), ("1.0", "2"),
    ("²", "5"), ("9" * 5000, "9" * 5001)])
def test_a_rank_that_is_none_is_one_line(rank, world_size):
    with pytest.raises(UserError, match="in the environment do not name a share"):
        as_rank(rank, world_size, many_files())
    assert sorted(path.name for path in Path().iterdir()) == ["corpus"]


@pytest.mark.parametrize(("changes", "name"), [
    ({"drop_duplicates": True}, "drop_duplicates"),
    ({"sources": [{"path": "corpus", "max_tokens": 100}]}, "max_tokens")])
def test_what_needs_all_documents_is_refused(changes, name):
    with pytest.raises(UserError, match=f"^{name} looks at all documents"):
        as_rank(0, 2, many_files() | changes)
    assert not list(Path().glob("out*"))


def test_a_part_is_no_dataset_and_alone_one_does_not_go_on_without_the_others():
    changes = many_files()
    as_rank(0, 2, changes)
    [part] = Path("out.parts").iterdir()
    assert part.name == "part-00000-of-00002" and not is_dataset(part)
    with pytest.raises(UserError, match="there is no dataset in"):
        Dataset(part)
    with pytest.raises(UserError, match=r"out\.parts holds parts of this dataset, and some are "
                                        "missing; run the other ranks, or remove that folder"):
        prepare(recipe(**changes))
    assert folder_bytes(part)["part.json"] and not Path("out").exists()


def test_a_rank_that_comes_again_keeps_its_part(capsys):
    changes = many_files()
    as_rank(1, 2, changes)
    before = folder_bytes("out.parts")
    assert as_rank(1, 2, changes) is None
    assert "part-00001-of-00002 is already prepared" in capsys.readouterr().out
    assert folder_bytes("out.parts") == before
    assert as_rank(0, 2, changes) is not None
    assert as_rank(1, 2, changes) is not None  # and now the whole is there


def test_parts_whose_joining_was_interrupted_are_joined_by_whoever_comes_next(monkeypatch):
    changes = many_files()
    as_rank(0, 2, changes)
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_give_name", lambda *args: 1 / 0 if "parts" not in str(
            args[1]) else args[0].rename(args[1]))
        with pytest.raises(ZeroDivisionError):
            as_rank(1, 2, changes)
    assert Path("out.partial/dataset.json").exists() and not Path("out").exists()
    (Path("out.partial") / "train-00099.bin").write_text("a leftover")
    dataset = prepare(recipe(**changes))
    assert verify_dataset(dataset.folder) == []
    assert sorted(path.name for path in Path().glob("out*")) == ["out"]
    assert not (Path("out") / "train-00099.bin").exists()


def test_an_unfinished_part_is_no_part():
    """As left by a kill between writing its manifest and giving it its name."""
    changes = many_files()
    as_rank(0, 2, changes)
    shutil.copytree("out.parts/part-00000-of-00002", "out.parts/part-00001-of-00002.partial")
    assert finished_parts(Path("out")) == []
    assert as_rank(1, 2, changes) is not None


def test_parts_of_several_world_sizes_are_not_mixed():
    changes = many_files()
    prepare(recipe(**changes, out="alone"))
    as_rank(1, 2, changes)
    as_rank(0, 3, changes)
    assert as_rank(1, 3, changes) is None  # three parts of the text are there, but not all of it
    dataset = as_rank(2, 3, changes)
    assert dataset.manifest.splits["train"].documents == Dataset(
        Path("alone")).manifest.splits["train"].documents
    assert not Path("out.parts").exists()


def test_parts_of_another_recipe_are_refused():
    changes = many_files()
    as_rank(0, 2, changes)
    before = folder_bytes("out.parts")
    with pytest.raises(UserError, match="part-00000-of-00002 was made with another recipe"):
        as_rank(0, 2, changes, seed=5)
    with pytest.raises(UserError, match=r"was made with another (recipe|tokenizer) than"):
        as_rank(1, 2, changes, seed=5)
    assert folder_bytes("out.parts/part-00000-of-00002").items() <= {
        k.removeprefix("part-00000-of-00002/"): v for k, v in before.items()}.items()
    assert not Path("out").exists() and not Path("out.partial").exists()


def test_a_part_that_lists_fewer_sources_is_refused():
    changes = many_files() | {"tokenizer": "byte"}
    as_rank(0, 2, changes)
    part = Path("out.parts/part-00000-of-00002")
    manifest = read_manifest(part, PART)
    manifest.sources.clear()
    write_manifest(part, manifest, PART)
    with pytest.raises(UserError, match=r"lists 1 sources, and .*-00002 0; remove it"):
        as_rank(1, 2, changes)


def test_parts_of_other_files_are_refused():
    changes = many_files() | {"tokenizer": "byte"}
    as_rank(0, 2, changes)
    Path("corpus/new.txt").write_text("one more")
    with pytest.raises(UserError, match="was made with another corpus than"):
        as_rank(1, 2, changes)


def test_when_two_finish_at_once_one_joins_and_the_other_leaves_it_to_it(capsys):
    changes = many_files()
    as_rank(0, 2, changes)
    Path("out.partial").mkdir()
    with locked(Path("out.partial"), "wait"):
        assert as_rank(1, 2, changes) is None
    assert "another rank makes out" in capsys.readouterr().out
    assert prepare(recipe(**changes)) is not None


def test_who_comes_late_to_the_joining_leaves_nothing_behind(monkeypatch):
    changes = many_files()
    as_rank(0, 2, changes)
    real = preparation.finished_parts

    def overtaken(out: Path) -> list[Path]:
        found = real(out)
        if found and not out.exists():  # another rank sees them too, and is faster
            monkeypatch.setattr(preparation, "finished_parts", real)
            prepare(recipe(**changes))
        return found

    monkeypatch.setattr(preparation, "finished_parts", overtaken)
    assert as_rank(1, 2, changes) is not None
    assert sorted(path.name for path in Path().glob("out*")) == ["out"]


def test_ranks_that_run_at_once_make_one_dataset():
    """Threads share an environment, so each is told its share directly."""
    changes, made, failed = many_files(), [], []
    prepare(recipe(**changes, out="alone"))
    local = threading.local()

    def work(rank: int) -> None:
        local.share = Share(rank, 4)
        try:
            made.append(prepare(recipe(**changes)))
        except BaseException as error:
            failed.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Share, "from_environment", classmethod(lambda cls: local.share))
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed and any(made)
    assert documents(Dataset(Path("out")), "train") == documents(Dataset(Path("alone")), "train")
    assert sorted(path.name for path in Path().glob("out*")) == ["out"]


def test_shards_are_copied_where_they_cannot_be_linked(monkeypatch):
    def fail(*args: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(parts.os, "link", fail)
    changes = many_files()
    as_rank(0, 2, changes)
    assert verify_dataset(as_rank(1, 2, changes).folder) == []


def test_a_line_of_the_report_stays_one_line():
    """U+2028 ends a line for Python's splitlines, and for no reader of JSON lines."""
    Path("corpus").mkdir()
    for i in range(6):
        (Path("corpus") / f"\u2028{i}.txt").write_bytes(b"fine text\n" * 5 + b"\xff" * (i % 2))
    changes = {"sources": ["corpus"], "tokenizer": "byte", "on_bad_text": "replace"}
    for rank in (0, 1):
        as_rank(rank, 2, changes)
    lines = (Path("out") / finishing.BAD_TEXT).read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["file"] for line in lines[:-1]] == [
        f"corpus/\u2028{i}.txt" for i in (1, 3, 5)]


def test_the_command_says_what_is_still_missing(monkeypatch, capsys):
    many_files()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    main(["corpus", "tokenizer=byte", "out=out"])
    assert capsys.readouterr().out == (
        "out.parts/part-00001-of-00002 is ready; out is made when all 2 are\n")
    assert read_manifest(Path("out.parts/part-00001-of-00002"), "part.json").name == "corpus"
