"""What an unfinished preparation has safely on disk, so that it can be continued."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from data.sources.bad_text import Incident, Tally
from gpt.errors import UserError
from gpt.files import read_json, write_json
from gpt.shards import SourceInfo, Split, WriterState

JOURNAL = "journal.json"


class Journal(BaseModel):
    """The state after some piece of the corpus.

    key: what the preparation rests on; with another one it starts again.
    place: (file, piece in it) of the next piece to write.
    """

    model_config = ConfigDict(extra="forbid")

    key: str
    place: tuple[int, int] = (0, 0)
    stored: int = 0  # bytes read so far, as stored
    writers: dict[Split, WriterState] = {}
    sources: list[SourceInfo] = []
    counts: dict[str, int] = {}
    incidents: list[Incident] = []
    complete: bool = False

    @property
    def tally(self) -> Tally:
        """What happened to documents so far."""
        tally = Tally(incidents=list(self.incidents))
        tally.counts.update(self.counts)
        return tally

    def save(self, folder: Path) -> None:
        """Replace what was written before."""
        write_json(folder / JOURNAL, self.model_dump())

    @classmethod
    def load(cls, folder: Path, key: str) -> Journal | None:
        """What a folder's journal says; None if there is none that fits the key."""
        if not (folder / JOURNAL).is_file():
            return None
        try:
            journal = cls.model_validate(read_json(folder / JOURNAL))
        except (UserError, ValidationError):
            return None
        return journal if journal.key == key else None
