"""Making a dataset, continuing to, or keeping it: whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data.documents.overlap import check_evaluation
from data.recipe import Recipe, find_recipe
from data.sharding.finishing import announce, finish, join_parts
from data.sharding.journal import JOURNAL
from data.sharding.making import SEEN, clear, corpus_hash, make_shards
from data.sharding.parts import PART, Share, finished_parts, parts_folder
from data.sources.files import FETCHED, File, list_files
from gpt.errors import UserError
from gpt.files import LOCK, InUse, flush_to_disk, locked, make_folder
from gpt.shards import MANIFEST, Dataset, is_dataset, read_manifest

if TYPE_CHECKING:
    from gpt.machine.ranks import Ranks


def open_or_prepare(dataset: str, share: Share | None = None) -> Dataset:
    """The dataset that a run names; it is prepared first if only its recipe is there."""
    recipe = find_recipe(dataset)
    if recipe is None:
        return Dataset(Path(dataset))
    if is_dataset(Path(recipe.out)):
        _refuse_another_dataset(recipe, Path(recipe.out))
        return Dataset(Path(recipe.out))
    print(f"{recipe.out} is not there yet: preparing it as the recipe {recipe.name} says")
    prepared = prepare(recipe, share)
    if prepared is None:
        raise UserError(f"{recipe.out} waits for other ranks' parts; start training when it is "
                        "there")
    return prepared


def open_everywhere(dataset: str, ranks: Ranks) -> Dataset:
    """`open_or_prepare` for processes that train together: rank 0 prepares what is missing, while
    the others wait."""
    def there() -> bool:
        recipe = find_recipe(dataset)
        return is_dataset(Path(dataset if recipe is None else recipe.out))

    if ranks.size > 1:
        ranks.first(lambda: open_or_prepare(dataset, Share()).folder, patiently=True)
        seen = ranks.all(there())
        if not all(seen):
            raise ranks.alike(UserError(
                f"{dataset} is prepared, and rank {seen.index(False)} does not see it: prepare it "
                "on every host, or in a folder that all of them share"))
    return open_or_prepare(dataset, Share())


def prepare(recipe: Recipe, share: Share | None = None) -> Dataset | None:
    """Make the dataset, continue it, or keep it if it is there. None: other ranks' parts lack.

    Everything is written into OUT.partial, which takes the name OUT when it is complete: an
    interrupted preparation never leaves a dataset. share: of the work; None: as the environment
    says. Raises UserError, and leaves nothing, if the sources have no usable text or `out` holds
    something else.
    """
    out, share = Path(recipe.out), share or Share.from_environment()
    out = out.resolve() if out.is_symlink() else out
    if is_dataset(out):
        _refuse_another_dataset(recipe, out)
        print(f"{out} is already prepared")
        return Dataset(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a dataset; choose another out=FOLDER")
    if recipe.drop_duplicates and any(source.max_tokens for source in recipe.sources[:-1]):
        raise UserError("drop_duplicates with max_tokens: which texts of a source that is not read "
                        "to its end count as seen is not certain; leave one of them out, or set "
                        "max_tokens on the last source alone")
    if share.world_size > 1:
        _prepare_part(recipe, share, out)
        if not finished_parts(out) and not is_dataset(out):
            print(f"{share.folder(out)} is ready; {out} is made when all {share.world_size} are")
            return None
    elif not finished_parts(out) and parts_folder(out).exists():
        raise UserError(f"{parts_folder(out)} holds parts of this dataset, and some are missing; "
                        "run the other ranks, or remove that folder to prepare it alone")
    try:
        _make(recipe, share, out)
    except InUse:
        if share.world_size == 1:
            raise
        print(f"{share.folder(out)} is ready; another rank makes {out}")
        return None
    return announce(Dataset(out))


def _make(recipe: Recipe, share: Share, out: Path) -> None:
    """Write the dataset, or join the parts that it was written in."""
    with _working_folder(out) as folder:
        if is_dataset(out):  # another process has just made it
            shutil.rmtree(folder, ignore_errors=True)
        elif parts := finished_parts(out):
            clear(folder)
            join_parts(recipe, parts, folder)
            _give_name(folder, out)
        else:
            check_evaluation(recipe, folder)
            finish(recipe, make_shards(recipe, _files(recipe, folder, out), share, folder), folder)
            _give_name(folder, out)
    shutil.rmtree(parts_folder(out), ignore_errors=True)


def _prepare_part(recipe: Recipe, share: Share, out: Path) -> None:
    """This rank's share of the files, as a folder beside the other ranks'."""
    part = share.folder(out)
    counting = [name for name, there in (
        ("drop_duplicates", recipe.drop_duplicates),
        ("max_tokens", any(source.max_tokens for source in recipe.sources))) if there]
    if counting:
        raise UserError(f"{counting[0]} looks at all documents, and each rank sees its own alone; "
                        f"prepare on one machine, or leave {counting[0]} out")
    if not (part / PART).is_file():
        with _working_folder(part) as folder:
            if (part / PART).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                return
            shards = make_shards(recipe, _files(recipe, folder, out), share, folder)
            finish(recipe, shards, folder, part=True)
            _give_name(folder, part)
    elif read_manifest(part, PART).recipe != recipe.identity:
        raise UserError(f"{part} was made with another recipe; remove it, or choose another "
                        "out=FOLDER")
    else:
        print(f"{part} is already prepared")


def _files(recipe: Recipe, folder: Path, out: Path) -> list[File]:
    """The sources' files, without what is being made of them."""
    ours = [_plain(path) for path in (out, _partial(out), parts_folder(out))]
    fetched = _plain(folder / FETCHED)
    files = []
    for file in list_files(recipe.sources, folder / FETCHED):
        path = _plain(Path(file.path))
        if path.is_relative_to(fetched) or not any(path.is_relative_to(own) for own in ours):
            files.append(file)
    if all(file.size == 0 for file in files):
        named = ", ".join(source.path for source in recipe.sources)
        raise UserError(f"the sources ({named}) are empty: there is no text to prepare")
    return files


def _plain(path: Path) -> Path:
    """An absolute path without `..`, by its letters alone."""
    return Path(os.path.normpath(path.absolute()))


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


@contextlib.contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """OUT.partial, locked. It stays if work in it can be continued, and goes after a UserError."""
    folder = _partial(out)
    _refuse_what_is_not_ours(folder)
    made = [parent for parent in folder.parents if not parent.exists()]  # innermost first
    make_folder(folder)
    with locked(folder, "choose another out=FOLDER"):
        try:
            yield folder
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # something else lies in it
                for parent in made:
                    parent.rmdir()
            raise


def _refuse_what_is_not_ours(folder: Path) -> None:
    """Look before anything in it is removed. (Once: another process may be at work there.)"""
    there = {folder.name} if folder.is_file() else set()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        there |= {path.name for path in folder.iterdir()
                  if not path.name.startswith(f"{JOURNAL}.tmp-")}  # all that a crash left, perhaps
    if there and not there & {LOCK, JOURNAL, FETCHED, MANIFEST, PART}:
        raise UserError(f"{folder} exists, and is no preparation that was interrupted; remove it, "
                        "or choose another out=FOLDER")


def _give_name(folder: Path, out: Path) -> None:
    """The last step: from now on the folder is the dataset."""
    for pattern in (FETCHED, JOURNAL, LOCK, f"{SEEN}*", "*.tmp*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    flush_to_disk(folder)
    if out.exists():
        out.rmdir()
    folder.rename(out)
    flush_to_disk(out.parent)


def _refuse_another_dataset(recipe: Recipe, out: Path) -> None:
    """Refuse another recipe's dataset; say so if the same recipe's files have changed since."""
    manifest = read_manifest(out)
    different = [f"{key} ({manifest.recipe.get(key)!r} there, {value!r} asked)"
                 for key, value in recipe.identity.items() if manifest.recipe.get(key) != value]
    if different:
        raise UserError(f"{out} holds a dataset made from another recipe: {', '.join(different)}; "
                        "choose another out=FOLDER, or remove that folder first")
    if any("://" in s.path or s.path == "-" or s.url or s.format == "datasets"
           for s in recipe.sources):
        return  # looking would mean fetching
    with contextlib.suppress(UserError, OSError):  # a dataset stands without its sources
        if manifest.corpus != corpus_hash(_files(recipe, _partial(out), out)):
            print(f"note: files were added, removed or changed since {out} was prepared; to "
                  "prepare them again, remove that folder or choose another out=FOLDER",
                  file=sys.stderr)
