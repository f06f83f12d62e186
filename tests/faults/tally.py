"""What a row of faults gives: how often it was tried, and what did not hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Tally:
    """Tries of one row. lost: a line for each that did not end as it has to."""

    tries: int = 0
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what else the table is to say

    @property
    def survived(self) -> int:
        """How many ended as they have to."""
        return self.tries - len(self.lost)

    def expect(self, *problems: str | None) -> None:
        """Count a try, in which nothing is to be wrong."""
        self.tries += 1
        if found := [problem for problem in problems if problem]:
            self.lost.append("; ".join(found))

    def add(self, other: Tally) -> None:
        """Count another's tries as well."""
        self.tries += other.tries
        self.lost += other.lost
        self.notes += other.notes

    def as_json(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self)
