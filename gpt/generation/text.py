"""From tokens to text as it grows: whole characters only, and nothing beyond a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence


def stream_text(pieces: Iterable[bytes], stop: Sequence[str] = ()) -> Iterator[str]:
    """Turn the bytes of tokens into text that can be shown at once.

    A character whose bytes are spread over tokens appears when it is complete. Text that may turn
    out to be the beginning of a stop text waits; a stop text itself is never shown and ends it all.
    """
    stop = [text for text in stop if text]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    waiting = ""
    for piece in pieces:
        waiting += decoder.decode(piece)
        found = [at for text in stop if (at := waiting.find(text)) >= 0]
        if found:
            if min(found):
                yield waiting[:min(found)]
            return
        keep = max((_overlap(waiting, text) for text in stop), default=0)
        ready, waiting = waiting[:len(waiting) - keep], waiting[len(waiting) - keep:]
        if ready:
            yield ready
    if rest := waiting + decoder.decode(b"", final=True):
        yield rest


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of text could begin `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
