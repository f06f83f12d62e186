"""Which files a source names: folders, globs, standard input, URLs, the Python library.

A file has a name that does not depend on where the corpus lies (its path inside the source), so
that a split by name stays the same on every machine.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import sys
import sysconfig
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from data.recipe import Source
from gpt.errors import UserError
from gpt.files import sha256_of

PYTHON_LIBRARY = "python-library"
STANDARD_INPUT = "-"
FETCHED = "fetched"  # what standard input and URLs gave, kept until the dataset is made
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
RECORD_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv",
                  ".tsv": "csv", ".parquet": "parquet"}
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".xml", ".yaml", ".toml", ".c",
                 ".h", ".cpp", ".rs", ".go", ".java", ".js", ".ts", ".sh"}
ARCHIVES = {".tar": "tar", ".zip": "zip"}
_PACKED_TARS = {".tgz": "gzip", ".tbz": "bz2", ".tbz2": "bz2", ".txz": "xz", ".tzst": "zstd"}
SOME_SUFFIXES = f"{', '.join(sorted(TEXT_SUFFIXES)[:6])}, …"
_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
_NEVER = {"__pycache__"}
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class File:
    """One file of a corpus, a member of an archive, or one data set of the Hub."""

    name: str
    path: str  # on disk, or a URL; of a member, its own behind that of the archive
    size: int | None  # bytes as stored; None where only reading would tell
    format: str  # text | jsonl | json | csv | parquet | datasets | tar | zip
    compression: str | None
    source: int  # its place in the recipe's sources
    text_field: str
    options: tuple[tuple[str, str | None], ...] = ()  # for the library that reads it
    encoding: str = "utf-8"  # of its text; parquet and the Hub have their own
    opener: Callable[[], Any] | None = field(default=None, compare=False)  # of a member's bytes

    @property
    def is_one_document(self) -> bool:
        """Whether the whole file is one text."""
        return self.format == "text"

    @property
    def is_archive(self) -> bool:
        """Whether it holds files."""
        return self.format in ARCHIVES.values()


def list_files(sources: list[Source], fetched: Path) -> list[File]:
    """All files of all sources, in order. Raises UserError for a source without any.

    fetched: folder that standard input and http(s) URLs are kept in until the dataset is made.
    """
    files: list[File] = []
    for number, source in enumerate(sources):
        found = list(_files_of(source, number, fetched))
        if not found:
            raise UserError(f"the source {source.path} has no text: no files with a known suffix "
                            f"({SOME_SUFFIXES}) lie there; name files or a glob such as "
                            "'corpus/*.log' instead")
        files += found
    return files


def _files_of(source: Source, number: int, fetched: Path) -> Iterator[File]:
    path = source.path
    if source.format == "datasets":
        options = (("subset", source.subset), ("split", source.subset_split),
                   ("revision", source.revision))
        yield File(path, path, None, "datasets", None, number, source.text_field, options)
    elif path == PYTHON_LIBRARY:
        root = Path(sysconfig.get_paths()["stdlib"])
        yield from (_file(p, _inside(root, p), source, number)
                    for p in _walk(root, _NOT_THE_LIBRARY) if p.suffix == ".py" and p.is_file())
    elif path == STANDARD_INPUT:
        yield _checked(_file(_keep_standard_input(fetched), "stdin", source, number), source)
    elif path.lower().startswith(("http://", "https://")):
        name = PurePosixPath(re.split("[?#]", path)[0]).name
        local = _fetch(path, fetched / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}-{name}")
        yield _checked(_file(local, name, source, number), source)
    elif "://" in path:
        yield from _remote_files(source, number)
    else:
        try:
            yield from (_checked(file, source) for file in _local_files(source, number))
        except OSError as error:
            raise UserError(f"cannot read {error.filename or path}: {error.strerror}; make it "
                            "readable, or leave it out of the sources") from error


def _local_files(source: Source, number: int) -> Iterator[File]:
    path = Path(source.path)
    if source.url:
        _fetch(source.url, path, f"put the file at {path}, or ")
    if path.is_dir():
        yield from _files_in_folder(path, source, number)
    elif path.is_file():
        yield _file(path, path.name, source, number)
    else:
        matches = sorted({*glob(source.path, recursive=True)})  # noqa: PTH207 (absolute patterns)
        paths = [Path(match) for match in matches if Path(match).is_file()]
        if not paths:
            raise UserError(f"the source {source.path} is no file or folder and matches no files; "
                            "check the path (relative paths start at the current folder)")
        base = Path(_before_magic(source.path))
        yield from (_file(p, _inside(base, p), source, number) for p in paths)


def _before_magic(pattern: str) -> str:
    """The folder that a glob starts from: names inside it stay when files are added."""
    parts = PurePosixPath(pattern).parts
    return str(PurePosixPath(*takewhile(lambda part: not has_magic(part), parts)))


def _files_in_folder(root: Path, source: Source, number: int) -> Iterator[File]:
    """Links to folders are not followed, so that none is read twice or without end."""
    names = map(str, _walk(root, set()))
    for path in map(Path, _with_known_suffix(names, str(root), os.path.isfile)):
        yield _file(path, _inside(root, path), source, number)


def _with_known_suffix(paths: Iterable[str], root: str,
                       is_file: Callable[[str], bool]) -> Iterator[str]:
    """Those with a known suffix; how many others there are is said, not passed over."""
    left_out: Counter[str] = Counter()
    for path in paths:
        if not is_file(path):
            left_out["link"] += 1
        elif is_known(path) or _archive_format(path):
            yield path
        else:
            left_out[PurePosixPath(path).suffix or "without suffix"] += 1
    tell_left_out(left_out, root, f"a glob such as '{root}/**/*.log' takes any")


def is_known(path: str) -> bool:
    """Whether its suffix says that a file is text or records, packed or not."""
    suffix, _ = _suffixes(path)
    return suffix in TEXT_SUFFIXES or suffix in RECORD_FORMATS


def tell_left_out(left_out: Counter[str], where: str, advice: str) -> None:
    """Say how many files, by their suffix, are not read, if there are any."""
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common(5))
        tqdm.write(f"note: {left_out.total()} files in {where} have no known suffix and are left "
                   f"out ({kinds}{', …' if len(left_out) > 5 else ''}); {advice}", sys.stderr)


def _walk(root: Path, without: set[str]) -> Iterator[Path]:
    """Files that are not hidden, in order, and links whatever they lead to."""
    for folder, folders, names in os.walk(root, onerror=_fail):
        links = [f for f in folders if Path(folder, f).is_symlink()]
        folders[:] = sorted(f for f in folders if f not in without and is_wanted(f))
        yield from (Path(folder, name) for name in sorted([*names, *links]) if is_wanted(name))


def _fail(error: OSError) -> None:
    raise error  # os.walk would pass over a folder that it cannot read


def is_wanted(name: str) -> bool:
    """Whether a file or folder of that name is one that people see."""
    return not name.startswith(".") and name not in _NEVER


def _inside(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _suffixes(name: str) -> tuple[str, str | None]:
    """(the suffix that tells the format, the compression around it)"""
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    if path.suffix in _PACKED_TARS:
        return ".tar", _PACKED_TARS[path.suffix]
    return (path.with_suffix("").suffix if compression else path.suffix), compression


def _archive_format(name: str) -> str | None:
    """The kind of archive that a name means; a zip archive is not packed once more."""
    suffix, compression = _suffixes(name)
    return None if suffix == ".zip" and compression else ARCHIVES.get(suffix)


def _file(path: Path, name: str, source: Source, number: int) -> File:
    return described(str(path), name, path.stat().st_size, source, number)


def described(path: str, name: str, size: int | None, source: Source, number: int) -> File:
    """A file by what its name says. Of an archive, a format that is named is its members'."""
    suffix, compression = _suffixes(path)
    form = RECORD_FORMATS.get(suffix, "text") if source.format == "auto" else source.format
    form = _archive_format(path) or form
    options = (("delimiter", "\t" if suffix == ".tsv" else None),) if form == "csv" else ()
    return File(name, path, size, form, compression, number, source.text_field, options,
                source.encoding)


def _remote_files(source: Source, number: int) -> Iterator[File]:
    """Files behind any URL that fsspec knows."""
    try:
        import fsspec
        fs, root = fsspec.core.url_to_fs(source.path)
        base, found = _remote_listing(fs, root)
    except (ImportError, ValueError) as error:
        raise UserError(f"the source {source.path} needs a library: {error}; pip install "
                        "'gpt-toolkit[data]', or fetch the files and name their folder") from error
    except Exception as error:  # whatever the network and its libraries raise
        raise UserError(f"the source {source.path} cannot be read: {type(error).__name__}: {error};"
                        " check the address, or fetch the files and name their folder") from error
    for path, info in sorted(found.items()):
        name = PurePosixPath(path).relative_to(base).as_posix()
        yield described(fs.unstrip_protocol(path), name, info.get("size"), source, number)


def _remote_listing(fs: Any, root: str) -> tuple[str, dict[str, Any]]:
    """(the folder that names start from, what fsspec says of each file by its path)"""
    if has_magic(root):
        found = fs.glob(root, detail=True)
        files = {path: info for path, info in found.items() if info["type"] == "file"}
        return _before_magic(root), files
    info = fs.info(root)
    if info["type"] != "directory":
        return str(PurePosixPath(info["name"]).parent), {info["name"]: info}
    found = fs.find(root, detail=True)
    visible = [path for path in sorted(found)
               if all(map(is_wanted, PurePosixPath(path).relative_to(root).parts))]
    known = _with_known_suffix(visible, root, found.__contains__)
    return root, {path: found[path] for path in known}


def _keep_standard_input(folder: Path) -> Path:
    """Standard input can be read once; a preparation may have to read twice, or be continued.

    What it gives now counts. If that is nothing, what an interrupted attempt kept goes on.
    """
    kept, new = folder / "stdin", folder / "stdin.new"
    if sys.stdin is not None and not (sys.stdin.isatty() and kept.exists()):
        if sys.stdin.isatty():
            print("reading text from standard input, to its end (Ctrl-D)", file=sys.stderr)
        _write_whole(sys.stdin.buffer, new)
        if new.stat().st_size or not kept.exists():
            return new.replace(kept)
        new.unlink()
    if not kept.exists():
        raise UserError("there is no standard input to read; name files as the sources")
    print("note: standard input gives nothing; going on with what it gave before",
          file=sys.stderr)
    return kept


def _fetch(url: str, target: Path, advice: str = "") -> Path:
    """Download a file, unless it is there. Raises UserError, with what to do, if that fails."""
    if target.exists():
        return target
    print(f"fetching {url}", file=sys.stderr)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            _write_whole(answer, target, answer.headers.get("Content-Length"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"cannot fetch {url} ({reason}); without a network, {advice}name your own "
                        "copy as the source") from error
    return target


def _write_whole(stream: Any, target: Path, length: str | None = None) -> None:
    """Copy a stream into a file that has its name only when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
        if length is not None and unfinished.stat().st_size != int(length):
            raise OSError(f"it broke off after {unfinished.stat().st_size} of {length} bytes")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _checked(file: File, source: Source) -> File:
    """Refuse a file that does not hash to what the recipe says."""
    if source.sha256 is not None and (found := sha256_of(Path(file.path))) != source.sha256:
        raise UserError(f"{file.path} is not the file that the recipe means: its SHA-256 is "
                        f"{found}, not {source.sha256}; remove it to fetch it again, or leave "
                        "sha256 out to take it as it is")
    return file
