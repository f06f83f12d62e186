"""Text that cannot be used as it is: what is done about it, and a record of every case."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gpt.errors import UserError

Policy = Literal["error", "replace", "skip"]
MOST_INCIDENTS = 10_000  # that are kept and listed; all of them are counted


class Incident(NamedTuple):
    """One case of bad text, for people to look up."""

    file: str
    line: int  # of a text; the number of the record in formats without lines
    problem: str
    done: str  # replaced | skipped


@dataclass
class Tally:
    """What happened to documents on the way, in order; added up as they are written."""

    counts: Counter[str] = field(default_factory=Counter)
    incidents: list[Incident] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take over another tally's counts, and as many of its incidents as there is room for."""
        self.counts += other.counts
        self.incidents += other.incidents[:max(0, MOST_INCIDENTS - len(self.incidents))]


@dataclass
class BadText:
    """The policy for bad text. Cases are noted in `tally`, which its reader may take away."""

    policy: Policy
    tally: Tally = field(default_factory=Tally)

    def replaced(self, file: str, line: int, problem: str) -> None:
        """Note a document that was mended. Raises UserError under the policies error and skip."""
        if self.policy != "replace":
            raise self.error(file, line, problem)
        self._note(Incident(file, line, problem, "replaced"))

    def skipped(self, file: str, line: int, problem: str) -> None:
        """Note a document that is left out. Raises UserError under the policy error."""
        if self.policy == "error":
            raise self.error(file, line, problem)
        self._note(Incident(file, line, problem, "skipped"))

    def error(self, file: str, line: int, problem: str) -> UserError:
        """What ends a preparation under the policy error."""
        return UserError(f"{file}, line {line}: {problem}; mend the file, or set "
                         "on_bad_text=replace or on_bad_text=skip")

    def take(self) -> Tally:
        """The cases since the last call."""
        taken, self.tally = self.tally, Tally()
        return taken

    def _note(self, incident: Incident) -> None:
        self.tally.counts[incident.done] += 1
        if len(self.tally.incidents) < MOST_INCIDENTS:
            self.tally.incidents.append(incident._replace(
                file=_writable(incident.file), problem=_writable(incident.problem)))


def _writable(text: str) -> str:
    """A file's name or a record's field, whatever bytes they are made of."""
    return text.encode("utf-8", "backslashreplace").decode()
