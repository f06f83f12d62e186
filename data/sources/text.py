"""A file of plain text as a stream of pieces, whatever its size."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from data.sources.bad_text import BadText
from data.sources.files import File
from data.sources.streams import BrokenFile, Meter, NoText, open_text, read_block
from data.sources.transcoding import in_terms_of

PIECE_BYTES = 1 << 17  # small enough for the processor's caches, large enough for a process
MOST_PIECES = 8  # that are kept together for want of a place to cut


def read_text(file: File, bad_text: BadText, meter: Meter) -> Iterator[str]:
    """A text file in pieces of about a hundred kilobytes.

    Pieces are cut where every tokenizer cuts too, so that encoding them one by one gives the tokens
    of the whole. A byte-order mark is dropped. Text that is not in its encoding, or a compressed
    file that breaks off, goes by the policy: an error, mended, or nothing at all of the file. Of a
    file that is no text at all there is nothing to mend.
    """
    if bad_text.policy == "skip" and (found := first_problem(file)):
        bad_text.skipped(file.path, *found)
        return
    yield from cut_pieces(_noted(file, bad_text, meter))


def in_pieces(text: str) -> Iterator[str]:
    """A text that is in memory, in pieces as `read_text` would cut it."""
    return cut_pieces(text[i:i + PIECE_BYTES] for i in range(0, len(text), PIECE_BYTES))


def cut_pieces(texts: Iterable[str]) -> Iterator[str]:
    """The same text, cut at safe places only, and only where more of it follows."""
    kept = ""
    for text in filter(None, texts):
        if cut := safe_cut(kept):
            yield kept[:cut]
        kept = kept[cut:] + text
    if kept:
        yield kept


def _noted(file: File, bad_text: BadText, meter: Meter) -> Iterator[str]:
    """The text of a file; that it had to be mended is noted once."""
    looked = False  # the whole file: whatever was mended in it is found the first time
    for text, is_suspect in _decoded(file, bad_text, meter):
        if is_suspect and not looked:
            looked = True
            if found := first_problem(file):
                bad_text.replaced(file.path, *found)
        yield text


def _decoded(file: File, bad_text: BadText, meter: Meter) -> Iterator[tuple[str, bool]]:
    """(text, whether it may have been mended) block by block."""
    mends = bad_text.policy == "replace"
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace" if mends else "strict")
    with open_text(file, meter) as stream:
        try:
            for block in _blocks(stream):
                text = decoder.decode(block, final=not block)
                yield text, mends and "\ufffd" in text
        except NoText as error:
            bad_text.skipped(file.path, 1, str(error))
        except (UnicodeDecodeError, BrokenFile) as error:
            if not mends:
                raise bad_text.error(file.path, *(first_problem(file) or (1, str(error)))
                                     ) from error
            yield decoder.decode(b"", final=True), True


def first_problem(file: File) -> tuple[int, str] | None:
    """(line, what is wrong there) of the first place that is not sound text; None if all is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with open_text(file) as stream:
        try:
            for block in _blocks(stream):
                line += decoder.decode(block, final=not block).count("\n")
        except UnicodeDecodeError as error:
            problem = in_terms_of(file.encoding, f"the text is not UTF-8 ({error.reason})")
            return line + error.object[:error.start].count(b"\n"), problem
        except BrokenFile as error:
            return line, str(error)
    return None


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """All of a stream; the last block is empty."""
    block = b"-"
    while block:
        block = read_block(stream, PIECE_BYTES)
        yield block


_SAFE = re.compile(r"(?<=[^\W_])(?=\s)|(?<=\S\n)(?=[^\W_])")
_LOOK_BACK = (1 << 10, 1 << 16)


def safe_cut(text: str) -> int:
    """The last place where text may be cut without changing its tokens; 0 if none is near its end.

    Between a word and the blank after it, or between a single line end and the word after it:
    there the patterns of all our tokenizers end a piece, and no two characters normalise to one. A
    text of MOST_PIECES pieces without such a place is cut at its end, to bound memory.
    """
    is_long = len(text) >= MOST_PIECES * PIECE_BYTES
    for look_back in (*_LOOK_BACK, len(text)) if is_long else _LOOK_BACK:
        cut = 0
        for match in _SAFE.finditer(text, max(0, len(text) - look_back)):
            cut = match.end()
        if cut:
            return cut
    return len(text) if is_long else 0
