"""The gguf library's reader, which would read on for ever behind the end of a damaged file."""

from __future__ import annotations

from typing import Any

from gguf import GGUFReader


class BoundedReader(GGUFReader):
    """Raises ValueError where the header asks for more than the file has."""

    def _get(self, offset: int, dtype: Any, count: Any = 1, *order: Any, **named: Any) -> Any:
        found = super()._get(offset, dtype, count, *order, **named)
        if len(found) < int(count):
            raise ValueError(f"{count} numbers at byte {offset}, where it has {len(found)}")
        return found
