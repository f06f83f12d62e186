"""Where text comes from: which files, what of them, and pieces that encode like the whole."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data import sources
from data.sources import BadText, Document, list_documents, read_pieces
from gpt.errors import UserError
from gpt.tokenizer import _KNOWN_FILES as KNOWN_FILES
from gpt.tokenizer import Tokenizer, build_tokenizer

GPT2_RANKS = Path(__file__).resolve().parents[3] / "shared/data/gpt2.tiktoken"
STDLIB = Path(sysconfig.get_paths()["stdlib"])
SEEDED = settings(max_examples=60, derandomize=True, database=None, deadline=None)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path: str, content: str | bytes = "text") -> Document:
    """A file of the corpus."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return Document(path, file, file.stat().st_size)


def names(*given: str) -> list[str]:
    return [document.name for document in list_documents(list(given))]


def test_a_folder_yields_its_text_files_in_a_fixed_order_named_from_inside_it():
    for path in ("corpus/b.txt", "corpus/a/z.md", "corpus/a/c.PY", "corpus/picture.png",
                 "corpus/a/__pycache__/x.py", "corpus/.git/y.txt", "corpus/tests/t.py"):
        write(path)
    assert names("corpus") == ["b.txt", "a/c.PY", "a/z.md"]
    assert names(str(Path("corpus").resolve())) == names("corpus") == names("corpus/")


def test_a_named_file_is_taken_whatever_its_suffix():
    write("corpus/words.dat", "four")
    [document] = list_documents(["corpus/words.dat"])
    assert (document.name, document.size) == ("words.dat", 4)


def test_a_glob_yields_files_named_from_their_common_folder():
    for path in ("c/1/a.log", "c/2/b.log", "c/2/c.txt"):
        write(path)
    assert names("c/**/*.log") == ["1/a.log", "2/b.log"]
    assert names("c/2/*") == ["b.log", "c.txt"]


def test_sources_follow_one_another():
    for path in ("b/x.txt", "a/y.txt"):
        write(path)
    assert names("b", "a/y.txt") == ["x.txt", "y.txt"]


def test_the_python_library_is_there_without_its_tests_and_packages():
    documents = list_documents(["python-library"])
    assert len(documents) > 300
    assert all(document.path.suffix == ".py" for document in documents)
    assert "argparse.py" in {document.name for document in documents}
    assert not any({"test", "tests", "site-packages"} & set(document.path.relative_to(STDLIB).parts)
                   for document in documents)


@pytest.mark.parametrize("source", ["missing.txt", "missing/", "none/*.txt"])
def test_a_source_that_is_not_there_is_refused(source):
    with pytest.raises(UserError) as caught:
        list_documents([source])
    assert str(caught.value) == (f"the source {source} is no file or folder and matches no files; "
                                 "check the path (relative paths start at the current folder)")


def test_a_folder_without_text_is_refused_with_what_would_count():
    write("pictures/a.png")
    Path("empty").mkdir()
    for folder in ("pictures", "empty"):
        with pytest.raises(UserError, match=rf"the source {folder} has no text: no files with a "
                                            r"text suffix \(\.c, .*\) lie there; name files or a "
                                            r"glob such as 'corpus/\*\.log' instead"):
            list_documents([folder])
    assert names("pictures/*") == ["a.png"]


def pieces(content: str | bytes, policy: str = "error") -> list[str]:
    return list(read_pieces(write("piece.txt", content), BadText(policy)))


AWKWARD = st.text(st.sampled_from("aé中_1. '\n\r\t\u3000\x85\x1c\u2028-sS🙂\ufeff"), max_size=400)


@SEEDED
@given(text=AWKWARD, size=st.integers(1, 50))
def test_pieces_are_the_text(text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE_BYTES", size)
        found = pieces(text)
    assert "".join(found) == text.removeprefix("\ufeff")
    assert all(found)


@pytest.fixture(scope="module")
def some_text():
    return "\n".join((STDLIB / name).read_text(encoding="utf-8")
                     for name in ("ast.py", "heapq.py", "textwrap.py"))


PATTERNS = ["byte", "char", "bpe", "100256", "199998", "50256", "50280", "gpt2"]


@pytest.fixture(scope="module")
def tokenizers(some_text):
    """Every kind of pattern that a tokenizer of ours has."""
    bpe = build_tokenizer("bpe:600", [some_text])
    found = {"byte": build_tokenizer("byte"), "char": build_tokenizer("char", [some_text]),
             "bpe": bpe}
    for ranks, (pattern, _) in KNOWN_FILES.items():
        found[str(ranks)] = Tokenizer("t", bpe.ranks, pattern, bpe.specials)
    if GPT2_RANKS.is_file():
        found["gpt2"] = build_tokenizer(str(GPT2_RANKS))
    return found


@pytest.fixture(params=PATTERNS)
def tokenizer(request, tokenizers):
    if request.param not in tokenizers:
        pytest.skip(f"GPT-2's published ranks are not at {GPT2_RANKS}")
    return tokenizers[request.param]


def encode_pieces(tokenizer: Tokenizer, found: list[str]) -> list[int]:
    return [i for piece in found for i in tokenizer.encode(piece)]


@pytest.mark.parametrize("size", [512, 4096])
def test_pieces_of_real_text_encode_like_the_whole(size, tokenizer, some_text, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", size)
    found = pieces(some_text)
    assert len(found) > len(some_text) / size / 3
    assert encode_pieces(tokenizer, found) == tokenizer.encode(some_text)


BORDERS = st.lists(max_size=120, elements=st.sampled_from(
    ["\n", "\n\n", "\r\n", " \n", "\n ", "\t", "  ", " ", "a", "bc", "é", "1", "234", "'s", "_",
     ".", "!!", "\u3000", "\x1c", "\x85", "\u2028", "e\u0301", "don't", "x y"])).map("".join)


@settings(SEEDED, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=BORDERS, size=st.integers(4, 40))
@example(text="x\n\nyz" * 9, size=4)
def test_pieces_encode_like_the_whole_wherever_they_end(tokenizer, text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE_BYTES", size)
        found = pieces(text)
    if len(text) <= 16 * size:  # no cut was forced
        assert encode_pieces(tokenizer, found) == tokenizer.encode(text)


@pytest.mark.parametrize("name", ["bpe", "50256", "100256", "199998"])
def test_pieces_cut_anywhere_would_encode_otherwise(name, tokenizers, some_text):
    found = [some_text[i:i + 512] for i in range(0, len(some_text), 512)]
    assert encode_pieces(tokenizers[name], found) != tokenizers[name].encode(some_text)


def test_a_single_line_of_any_length_never_makes_a_piece_over_16_blocks(monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 1024)
    assert max(map(len, pieces("x" * 100_000))) <= 16 * 1024


def test_a_single_line_of_any_length_is_read_in_bounded_pieces(monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 1024)
    found = pieces("x" * 100_000)
    assert max(map(len, found)) <= 17 * 1024
    assert len(found) > 1 and "".join(found) == "x" * 100_000


def test_words_on_one_line_are_cut_between_words(monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 64)
    found = pieces("word and another " * 100)
    assert max(map(len, found)) < 128
    assert all(piece.startswith(" ") and not piece[1].isspace() for piece in found[1:-1])


def test_line_breaks_of_every_system_nul_and_blanks_are_kept():
    for text in ("a\r\nb\rc\n", "a\0b", " \n\t\n", "\u2028"):
        assert "".join(pieces(text)) == text


def test_a_byte_order_mark_is_dropped_at_the_start_alone():
    assert pieces(b"\xef\xbb\xbfa\xef\xbb\xbfb") == ["a\ufeffb"]


def test_an_empty_file_has_no_pieces():
    assert pieces("") == []


BAD = [(b"good\nfine\nbad \xff here\nmore\n", 3), ("é".encode()[:1], 1), (b"a\nb\xc3", 2),
       ("hi\nthere".encode("utf-16"), 1), ("a\n\udc80".encode("utf-8", "surrogatepass"), 2),
       (b"a\n" * 5000 + b"\xff", 5001)]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(("data", "line"), BAD)
def test_invalid_text_is_refused_with_file_and_line(data, line, size, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", max(size, len(data) // 100))
    with pytest.raises(UserError) as caught:
        pieces(data)
    assert str(caught.value).startswith(f"piece.txt, line {line}: the text is not UTF-8 (")
    assert str(caught.value).endswith("); mend the file, or set on_bad_text=replace or "
                                      "on_bad_text=skip")


@pytest.mark.parametrize(("data", "line"), BAD)
def test_invalid_text_is_replaced_and_its_document_counted_once(data, line):
    bad_text = BadText("replace")
    document = write("piece.txt", data)
    for _ in range(2):
        text = "".join(read_pieces(document, bad_text))
        assert text == data.decode("utf-8", "replace")
    assert bad_text.documents == {"replaced": 1}


@pytest.mark.parametrize(("data", "line"), BAD)
def test_a_document_with_invalid_text_is_skipped_whole_and_counted_once(data, line):
    bad_text = BadText("skip")
    document = write("piece.txt", data)
    assert list(read_pieces(document, bad_text)) == list(read_pieces(document, bad_text)) == []
    assert bad_text.documents == {"skipped": 1}


@pytest.mark.parametrize("policy", ["error", "replace", "skip"])
def test_valid_text_is_never_counted_even_if_it_holds_replacement_characters(policy):
    bad_text = BadText(policy)
    assert "".join(read_pieces(write("a.txt", "a\ufffdé"), bad_text)) == "a\ufffdé"
    assert bad_text.documents == {}


def test_two_documents_of_one_name_are_counted_apart():
    bad_text = BadText("skip")
    for folder in ("a", "b"):
        write(f"{folder}/same.txt", b"\xff")
    for document in list_documents(["a", "b"]):
        list(read_pieces(document, bad_text))
    assert bad_text.documents == {"skipped": 2}
