"""Which files a source names: here, on standard input, behind addresses."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import sys
import sysconfig
import threading
import types
from pathlib import Path

import fsspec
import pytest

from data.recipe import Source
from data.sources.files import STANDARD_INPUT, File, list_files
from gpt.errors import UserError
from tests.data.sources.sample_files import files_of, read, refusal, write

STDLIB = Path(sysconfig.get_paths()["stdlib"])
TEXT = b"once upon a time\n"
SHA256 = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names(*paths: str, **fields) -> list[str]:
    return [file.name for file in files_of(*paths, **fields)]


# Folders, files, globs


def test_a_folder_yields_its_text_files_in_a_fixed_order_named_from_inside_it():
    for path in ("corpus/b.txt", "corpus/a/z.md", "corpus/a/c.PY", "corpus/d.jsonl.zst",
                 "corpus/a/__pycache__/x.py", "corpus/.git/y.txt", "corpus/.hidden.txt",
                 "corpus/tests/t.py"):
        write(path)
    assert names("corpus") == ["b.txt", "d.jsonl.zst", "a/c.PY", "a/z.md", "tests/t.py"]
    assert names(str(Path("corpus").resolve())) == names("corpus") == names("corpus/")


def test_what_a_folder_holds_besides_is_said_on_stderr(capsys):
    for path in ("c/a.txt", "c/b.png", "c/d.png", "c/deep/e.npy", "c/README", "c/wiki.zst"):
        write(path)
    assert names("c") == ["a.txt"]
    assert capsys.readouterr().err == (
        "note: 5 files in c have no known suffix and are left out (2 .png, 1 without suffix, "
        "1 .zst, 1 .npy); a glob such as 'c/**/*.log' takes any\n")
    assert names("c/a.txt") == ["a.txt"]
    assert capsys.readouterr().err == ""


def test_links_are_followed_to_files_alone_and_the_others_are_said(capsys):
    write("elsewhere/x.txt")
    write("c/a.txt")
    Path("c/file.txt").symlink_to(Path("elsewhere/x.txt").resolve())
    Path("c/folder").symlink_to(Path("elsewhere").resolve())
    Path("c/loop").symlink_to(Path("c").resolve())
    Path("c/gone.txt").symlink_to("nowhere")
    assert names("c") == ["a.txt", "file.txt"]
    assert "note: 3 files in c have no known suffix and are left out (3 link)" in (
        capsys.readouterr().err)
    Path("linked").symlink_to("elsewhere")
    assert names("linked") == ["x.txt"]  # a link that is named is meant


def test_a_folder_that_cannot_be_read_is_refused_and_not_passed_over(monkeypatch):
    write("c/a.txt")
    write("c/locked/b.txt")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    assert len(names("c")) == 2
    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal(names, "c") == ("cannot read c/locked: Permission denied; make it readable, or "
                                   "leave it out of the sources")


def test_a_named_file_is_taken_whatever_its_suffix():
    write("corpus/words.dat", "four")
    [file] = files_of("corpus/words.dat")
    assert (file.name, file.size, file.format, file.compression) == ("words.dat", 4, "text", None)


@pytest.mark.parametrize(("name", "form", "compression"), [
    ("a.txt", "text", None), ("a.rs", "text", None), ("a", "text", None), ("a.gz", "text", "gzip"),
    ("a.JSONL", "jsonl", None), ("a.ndjson.bz2", "jsonl", "bz2"), ("a.json.xz", "json", "xz"),
    ("a.csv.zst", "csv", "zstd"), ("a.tsv", "csv", None), ("a.parquet", "parquet", None),
    ("a.tar.txt.zstd", "text", "zstd"), ("a.log.GZ", "text", "gzip")])
def test_the_ending_tells_format_and_compression(name, form, compression):
    write(name)
    [file] = files_of(name)
    assert (file.format, file.compression) == (form, compression)
    [file] = files_of(name, format="parquet")
    assert (file.format, file.compression) == ("parquet", compression)


def test_a_glob_yields_any_files_named_from_its_fixed_part():
    for path in ("c/1/a.log", "c/2/b.log", "c/2/c.txt", "c/.hidden/d.log"):
        write(path)
    assert names("c/**/*.log") == ["1/a.log", "2/b.log"]
    assert names("c/2/*") == ["b.log", "c.txt"]
    assert names("*/1/*") == ["c/1/a.log"]
    assert names(str(Path("c").resolve() / "?/[ab].log")) == ["1/a.log", "2/b.log"]
    assert names("./c/../c/2/*.txt") == ["c.txt"]


def test_the_names_of_a_glob_stay_when_files_in_other_folders_are_added():
    write("c/1/a.log")
    assert names("c/**/*.log") == ["1/a.log"]
    write("c/2/b.log")
    assert names("c/**/*.log") == ["1/a.log", "2/b.log"]


def test_a_glob_that_meets_a_file_twice_gives_it_once():
    write("c/1/2/a.log")
    assert names("c/**/**/*.log") == ["1/2/a.log"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file():
    write("a[1].txt")
    write("a1.txt")
    assert names("a[1].txt") == ["a[1].txt"]


def test_sources_follow_one_another_and_files_know_theirs():
    for path in ("b/x.txt", "a/y.txt"):
        write(path)
    files = files_of("b", "a/y.txt")
    assert [(file.name, file.source) for file in files] == [("x.txt", 0), ("y.txt", 1)]


def test_the_python_library_is_there_without_its_tests_and_packages():
    files = files_of("python-library")
    assert len(files) > 300
    assert all(file.path.endswith(".py") for file in files)
    assert "argparse.py" in {file.name for file in files}
    assert not any({"test", "tests", "site-packages"} & set(Path(file.path).relative_to(
        STDLIB).parts) for file in files)


@pytest.mark.parametrize("source", ["missing.txt", "missing/", "none/*.txt", "a\0b", "[x", "//[x"])
def test_a_source_that_is_not_there_is_refused(source):
    assert refusal(files_of, source) == (
        f"the source {source} is no file or folder and matches no files; "
        "check the path (relative paths start at the current folder)")


def test_a_source_longer_than_any_file_name_is_refused():
    assert refusal(files_of, "x" * 300).endswith(
        "File name too long; make it readable, or leave it out of the sources")


def test_a_folder_without_text_is_refused_with_what_would_count():
    write("pictures/a.png")
    Path("empty").mkdir()
    for folder in ("pictures", "empty"):
        assert refusal(files_of, folder) == (
            f"the source {folder} has no text: no files with a known suffix (.c, .cpp, .go, .h, "
            ".html, .java, …) lie there; name files or a glob such as 'corpus/*.log' instead")
    assert names("pictures/*") == ["a.png"]


# Standard input


def standard_input(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(
        buffer=io.BytesIO(data), isatty=lambda: False))


def test_standard_input_is_kept_so_that_it_can_be_read_again(monkeypatch):
    standard_input(monkeypatch, TEXT)
    [file] = files_of(STANDARD_INPUT)
    assert (file.name, file.path, file.size) == ("stdin", "fetched/stdin", len(TEXT))
    assert files_of(STANDARD_INPUT) == [file]  # though it has nothing more to say
    assert read(file) == read(file) == [TEXT.decode()]


def test_what_standard_input_gives_now_replaces_what_an_interrupted_attempt_kept(monkeypatch):
    standard_input(monkeypatch, b"of before")
    files_of(STANDARD_INPUT)
    standard_input(monkeypatch, TEXT)
    [file] = files_of(STANDARD_INPUT)
    assert read(file) == [TEXT.decode()]
    assert sorted(path.name for path in Path("fetched").iterdir()) == ["stdin"]


def test_an_attempt_goes_on_with_what_was_kept_if_nothing_is_given_now(monkeypatch, capsys):
    standard_input(monkeypatch, TEXT)
    [file] = files_of(STANDARD_INPUT)
    for nothing in (None, types.SimpleNamespace(buffer=io.BytesIO(), isatty=lambda: True)):
        monkeypatch.setattr(sys, "stdin", nothing)
        assert files_of(STANDARD_INPUT) == [file] and read(file) == [TEXT.decode()]
        assert "going on with what it gave before" in capsys.readouterr().err


def test_standard_input_takes_a_format_and_a_hash(monkeypatch):
    standard_input(monkeypatch, b'{"text": "a"}\n')
    [file] = files_of(STANDARD_INPUT, format="jsonl")
    assert read(file) == ["a"]
    assert "is not the file that the recipe means" in refusal(
        files_of, STANDARD_INPUT, sha256=SHA256)


def test_a_process_without_standard_input_is_told_so(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert refusal(files_of, STANDARD_INPUT).startswith("there is no standard input to read; ")


# http and https


class Answers(http.server.BaseHTTPRequestHandler):
    """Serves `answers`: path → (status, headers, body)."""

    answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        status, headers, body = self.answers[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def _server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def host(_server, monkeypatch):
    """A host that serves TEXT as /a.txt, and some that it fails to serve."""
    monkeypatch.setenv("no_proxy", "*")
    length = {"Content-Length": str(len(TEXT))}
    chunked = {"Transfer-Encoding": "chunked"}
    Answers.asked.clear()
    Answers.answers = {
        "/a.txt": (200, length, TEXT), "/data/b.jsonl?download=1": (200, {}, b'{"text": "b"}'),
        "/": (200, {}, TEXT), "/short.txt": (200, {"Content-Length": "99"}, TEXT),
        "/wrong.txt": (200, {"Content-Length": "many"}, TEXT),
        "/chunks.txt": (200, chunked, b"5\r\nonce \r\n9\r\nupon"),
        "/gone.txt": (404, {"Content-Length": "0"}, b"")}
    return _server


def test_a_file_behind_an_address_is_fetched_whole_and_once(host, capsys):
    [file] = files_of(f"{host}/a.txt")
    assert (file.name, file.size, file.format) == ("a.txt", len(TEXT), "text")
    assert read(file) == [TEXT.decode()]
    assert capsys.readouterr().err == f"fetching {host}/a.txt\n"
    assert files_of(f"{host}/a.txt") == [file]
    assert Answers.asked == ["/a.txt"]


def test_files_of_one_name_behind_two_addresses_are_not_taken_for_each_other(host):
    Answers.answers["/a.txt?another"] = Answers.answers["/a.txt"]
    [first], [second] = files_of(f"{host}/a.txt"), files_of(f"{host}/a.txt?another")
    assert first.name == second.name and first.path != second.path
    assert Answers.asked == ["/a.txt", "/a.txt?another"]


def test_the_name_behind_an_address_is_that_of_its_path(host):
    [file] = files_of(f"{host}/data/b.jsonl?download=1")
    assert (file.name, file.format, read(file)) == ("b.jsonl", "jsonl", ["b"])
    [file] = files_of(host + "/")
    assert file.name and read(file) == [TEXT.decode()]


@pytest.mark.parametrize(("path", "reason"), [
    ("/short.txt", f"it broke off after {len(TEXT)} of 99 bytes"), ("/gone.txt", "Not Found"),
    ("/wrong.txt", "many"), ("/chunks.txt", "IncompleteRead"), ("/a b.txt", "control characters")])
def test_what_cannot_be_fetched_is_refused_in_one_line_and_nothing_is_left(host, path, reason):
    line = refusal(files_of, host + path)
    assert line.startswith(f"cannot fetch {host}{path} (") and reason in line
    assert line.endswith("); without a network, name your own copy as the source")
    assert not [path for path in Path().rglob("*") if path.is_file()]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.txt", "https://127.0.0.1:1/a.txt",
                                 "http://[x", "http://", "HTTPS://no.invalid/a", "http://a:b/c",
                                 "http://\u00e9/\u00e9"])
def test_without_a_network_an_address_is_refused_with_the_offline_alternative(url):
    assert refusal(files_of, url).startswith(f"cannot fetch {url} (")
    assert not [path for path in Path().rglob("*") if path.is_file()]


def test_a_path_with_an_address_is_fetched_when_it_is_missing(host):
    fields = {"url": f"{host}/a.txt", "sha256": SHA256}
    [file] = files_of("data/mine.txt", **fields)
    assert (file.path, file.name, read(file)) == ("data/mine.txt", "mine.txt", [TEXT.decode()])
    assert files_of("data/mine.txt", **fields) == [file]
    assert Answers.asked == ["/a.txt"]


def test_a_copy_of_ones_own_needs_no_network_but_must_have_the_hash():
    fields = {"url": "http://127.0.0.1:1/a.txt", "sha256": SHA256}
    write("mine.txt", TEXT)
    assert names("mine.txt", **fields) == ["mine.txt"]
    write("mine.txt", TEXT + b"!")
    other = hashlib.sha256(TEXT + b"!").hexdigest()
    assert refusal(files_of, "mine.txt", **fields) == (
        f"mine.txt is not the file that the recipe means: its SHA-256 is {other}, not {SHA256}; "
        "remove it to fetch it again, or leave sha256 out to take it as it is")


@pytest.mark.parametrize("as_copy", [False, True])
def test_a_file_that_was_fetched_must_have_the_hash(host, as_copy):
    url = f"{host}/a.txt"
    fields = {"path": "mine.txt", "url": url} if as_copy else {"path": url}
    assert list_files([Source(**fields, sha256=SHA256)], Path("fetched"))
    Path("mine.txt").unlink(missing_ok=True)
    Answers.answers["/a.txt"] = (200, {}, b"something else")
    with pytest.raises(UserError, match="is not the file that the recipe means"):
        list_files([Source(**fields, sha256=SHA256)], Path("elsewhere"))


# Other addresses, through fsspec


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    return files


def put(memory, path: str, data: bytes = TEXT) -> None:
    with memory.open(path, "wb") as file:
        file.write(data)


def test_a_file_behind_any_address_is_read_in_place(memory):
    put(memory, "/c/a.txt")
    [file] = files_of("memory://c/a.txt")
    assert (file.name, file.size, file.format) == ("a.txt", len(TEXT), "text")
    assert read(file) == [TEXT.decode()]
    assert not list(Path().iterdir())


def test_a_folder_behind_an_address_is_what_it_would_be_here(memory, capsys):
    for path in ("c/b.txt", "c/a/z.md", "c/a/p.png", "c/.git/y.txt", "c/__pycache__/x.py"):
        put(memory, f"/{path}")
        write(path)
    assert names("memory://c") == ["a/z.md", "b.txt"]
    assert sorted(names("c")) == names("memory://c/")
    assert "1 files in /c have no known suffix and are left out (1 .png)" in capsys.readouterr().err


def test_a_glob_behind_an_address_takes_any_suffix_and_no_folders(memory):
    for path in ("/c/1/a.log", "/c/2/b.log", "/c/2/folder.log/x.txt"):
        put(memory, path)
    assert names("memory://c/*/*.log") == ["1/a.log", "2/b.log"]
    assert names("memory://c/**/[ab].log") == ["1/a.log", "2/b.log"]
    assert names("memory://c/1/*") == ["a.log"]


@pytest.mark.parametrize("source", ["memory://none/a.txt", "memory://none/*.txt", "abc://x/y",
                                    "://", "memory://"])
def test_an_address_without_text_is_refused_in_one_line(source, memory):
    assert refusal(files_of, source).startswith(f"the source {source} ")


def test_an_unknown_kind_of_address_says_what_to_do():
    line = refusal(files_of, "abc://x/y")
    assert line.startswith("the source abc://x/y needs a library: Protocol not known: abc; pip "
                           "install 'gpt-toolkit[data]', or fetch the files")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert "pip install 'gpt-toolkit[data]'" in refusal(files_of, "memory://c/a.txt")


def test_whatever_the_library_of_an_address_raises_is_one_line(memory, monkeypatch):
    class NoCredentialsError(Exception):
        pass

    def refuse(*args, **fields):
        raise NoCredentialsError("Unable to locate\ncredentials")

    monkeypatch.setattr(type(memory), "info", refuse)
    with pytest.raises(UserError, match="cannot be read: NoCredentialsError: Unable to locate"):
        files_of("memory://c/a.txt")


def test_a_data_set_of_the_hub_is_one_file_of_unknown_size():
    [file] = files_of("owner/name", format="datasets", subset="en", subset_split="test",
                      revision="v1")
    assert file == File("owner/name", "owner/name", None, "datasets", None, 0, "text", (
        ("subset", "en"), ("split", "test"), ("revision", "v1")))
