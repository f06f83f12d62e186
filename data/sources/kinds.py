"""What the first bytes of a file say that it is, where it is not the text that its name promises.

Real text has line ends, tabs, form feeds, escapes and now and then a zero byte; only what no text
has is called something else.
"""

from __future__ import annotations

import codecs

SAMPLE_BYTES = 1 << 13  # of the beginning, which are looked at: about as many as git takes
_FEWEST = 256  # odd bytes that make a case: short texts of any bytes are read as they are
_LOOKS_WIDE = 64  # bytes from which on zeros in every other place are no accident

# Zero and control bytes, but for what text is laid out with, and what separates fields of records.
_ODD = bytes([*range(0x08), *range(0x0e, 0x1b), 0x7f])
_MOST_ODD = 0.3  # a larger share is no text, as Perl's -B has it; of 26 kinds less is enough
_MOST_MIXED, _MANY_KINDS = 0.05, 12  # (a random byte is odd in one case of twelve)

_OFFICE = "a zip archive or an office file (.docx, .xlsx, .odt)"
_KINDS = {
    b"%PDF-": "a PDF file", b"PK\x03\x04": _OFFICE, b"PK\x05\x06": _OFFICE, b"PK\x07\x08": _OFFICE,
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an office file (.doc, .xls, .ppt)",
    b"\x1f\x8b\x08": "a gzip file whose name lacks .gz",
    b"BZh": "a bzip2 file whose name lacks .bz2",
    b"\xfd7zXZ\0": "an xz file whose name lacks .xz",
    b"\x28\xb5\x2f\xfd": "a Zstandard file whose name lacks .zst",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!\x1a\x07": "a RAR archive",
    b"PAR1": "a parquet file whose name lacks .parquet", b"SQLite format 3\0": "an SQLite database",
    b"\x89PNG\r\n\x1a\n": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"GIF8": "a GIF image",
    b"\x7fELF": "a program", b"\x93NUMPY": "a NumPy array"}
_MARKS = tuple(_KINDS)
_TAR_MARK = slice(257, 262)

_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"),
                     (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
                     (codecs.BOM_UTF16_BE, "utf-16"))


def why_no_text(sample: bytes, encoding: str) -> str | None:
    """What is wrong with a file that begins with these bytes; None if it may be text.

    sample: SAMPLE_BYTES of it, or all. encoding: what the text is said to be in.
    """
    if kind := _kind(sample):
        return f"it is {kind}, not text"
    if (found := _encoding(sample, encoding)) is not None:
        return f"the text is not {shown(encoding)} but {shown(found)}: set encoding={found}"
    if _lacks_mark(sample, encoding):
        return (f"the text has no byte-order mark, which {shown(encoding)} begins with: set "
                f"encoding={encoding}-le, or {encoding}-be")
    text = sample if encoding == "utf-8" else _letters(sample, encoding)
    rest = text.translate(None, _ODD)
    odd = len(text) - len(rest)
    is_mixed = odd > _MOST_MIXED * len(text) and len({*text} & {*_ODD}) >= _MANY_KINDS
    if odd >= _FEWEST and (is_mixed or odd > _MOST_ODD * len(text)):
        return f"it is binary data, not text (zero and control bytes: {odd / len(text):.0%})"
    return None


def shown(encoding: str) -> str:
    """An encoding's name in a sentence."""
    return encoding.upper() if encoding.startswith("utf") else encoding


def _kind(sample: bytes) -> str | None:
    if sample[_TAR_MARK] == b"ustar" and b"\0" in sample[:_TAR_MARK.start]:
        return "a tar archive whose name lacks .tar"
    if not sample.startswith(_MARKS):
        return None
    mark = next(mark for mark in _MARKS if sample.startswith(mark))
    # A text may begin with letters that are a mark, too.
    is_sure = mark == b"%PDF-" or sample.translate(None, _ODD) != sample
    return _KINDS[mark] if is_sure else None


def _encoding(sample: bytes, said: str) -> str | None:
    """The encoding that a text is in for certain, if it is another one than is said."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return None if said.startswith(encoding) else encoding
    if len(sample) < _LOOKS_WIDE or said.startswith("utf-32"):
        return None
    has_zeros = b"\0" in sample
    if said.startswith("utf-16"):
        return None if has_zeros or not _is_utf8(sample) else "utf-8"
    if not has_zeros:
        return None
    zeros = [sample[i::2].count(0) / (len(sample) // 2) for i in (0, 1)]
    for low, high, name in ((zeros[0], zeros[1], "utf-16-le"), (zeros[1], zeros[0], "utf-16-be")):
        if low < _MOST_MIXED and high > 1 - _MOST_ODD:  # letters of Latin scripts, and blanks
            return name
    return None


def _lacks_mark(sample: bytes, encoding: str) -> bool:
    """Whether Python's decoder would stop at its beginning, in whatever way bytes are mended."""
    width = {"utf-16": 2, "utf-32": 4}.get(encoding, 0)
    return bool(width) and len(sample) >= width and not any(
        sample.startswith(mark) for mark, name in _BYTE_ORDER_MARKS if name == encoding)


def _is_utf8(sample: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
    return True


def _letters(sample: bytes, encoding: str) -> bytes:
    """A byte for each character: itself or, of what is not ASCII, a question mark."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    return decoder.decode(sample).encode("ascii", "replace")
