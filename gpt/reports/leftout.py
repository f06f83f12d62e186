"""What was left out of a dataset, and what evaluation text shares with it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from gpt.errors import UserError
from gpt.files import read_json, sha256_of
from gpt.reports.page import Html, details, figure, table
from gpt.shards import Manifest

OVERLAP, BAD_TEXT = "overlap.json", "bad_text.jsonl"
LISTED = 50  # documents with overlap
LONGEST = 300  # characters of what they share
# Steps of cleaning: what each is called, and the option of a recipe that asks for it.
CLEANING = {"duplicates": ("duplicates, left out", "drop_duplicates=true"),
            "too_short": ("too short, left out", "min_characters=N"),
            "too_long": ("too long, left out", "max_characters=N"),
            "normalized": ("in another Unicode form, changed", "normalize=NFC")}
_OFF = (None, False, 0, "none")


class _Shared(BaseModel):
    model_config = ConfigDict(strict=True)

    document: str
    ngrams: int
    shared: int
    first: str


class Overlap(BaseModel):
    """What overlap.json says: how much of an evaluation text stands in training, too."""

    model_config = ConfigDict(strict=True)

    n: int
    evaluation: str
    documents: int
    documents_with_overlap: int
    ngrams: int
    ngrams_shared: int
    training_documents_with_overlap: int
    one_in: int
    most: list[_Shared]


def read_overlap(folder: Path, manifest: Manifest) -> Overlap | str:
    """The report, or why there is none."""
    path = folder / OVERLAP
    if OVERLAP not in manifest.files:
        return ("What evaluation text shares with training was not looked for: overlap_with="
                "validation or overlap_with=FILE in a recipe does.")
    try:
        if sha256_of(path) == manifest.files[OVERLAP]:
            return Overlap.model_validate(read_json(path))
    except (OSError, UserError, ValidationError):
        pass
    return f"{path} is missing or damaged: prepare the dataset again."


def shown_overlap(found: Overlap | str) -> list[Html | str | None]:
    """The report as parts of a page."""
    if isinstance(found, str):
        return [found]
    share = 100 * found.ngrams_shared / max(1, found.ngrams)
    said = (f"{found.documents_with_overlap:,} of {found.documents:,} documents of "
            f"{found.evaluation} share {found.n} words in a row with training: "
            f"{found.ngrams_shared:,} of their {found.ngrams:,} {found.n}-grams ({share:.2f} %), "
            f"which stand in {found.training_documents_with_overlap:,} documents of training.")
    if found.one_in > 1:
        said += f" Of all {found.n}-grams one in {found.one_in} was looked for."
    rows = [(one.document, one.shared, one.ngrams, one.first[:LONGEST])
            for one in found.most[:LISTED]]
    most = table(("document", "shared", "of", "the first"), rows, "documents with overlap")
    return [said, details("The documents with the most", most) if most else None]


def cleaned(manifest: Manifest) -> dict[str, int | None]:
    """How many documents each step of cleaning changed or left out; None: nobody asked for it."""
    asked = {step: manifest.recipe.get(option.split("=")[0]) not in _OFF
             for step, (_, option) in CLEANING.items()}
    return {**manifest.cleaning, **{step: manifest.cleaning.get(step, 0) if on else None
                                    for step, on in asked.items()}}


def shown_cleaning(manifest: Manifest) -> Html | None:
    """Cleaning and bad text as a part of a page."""
    recipe, rows = manifest.recipe, []
    for step, count in cleaned(manifest).items():
        name, option = CLEANING.get(step, (step.replace("_", " "), ""))
        field = option.split("=")[0]
        value = "true" if recipe.get(field) is True else recipe.get(field)
        rows.append((name, "not looked for", f"would be with {option}") if count is None
                    else (name, figure(count), f"{field}={value}" if field else ""))
    policy = recipe.get("on_bad_text")
    rows += [(f"bad text, {done}", figure(count), f"on_bad_text={policy}; listed in {BAD_TEXT}")
             for done, count in manifest.bad_text.items()]
    if not manifest.bad_text:
        stopped = "; a preparation stops at it" * (policy == "error")
        rows.append(("bad text", "0", f"on_bad_text={policy}{stopped}"))
    return table(("", "documents", "as the recipe says"), rows, "what was left out or changed")
