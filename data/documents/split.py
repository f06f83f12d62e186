"""Which text is held out for validation, and the corpus as pieces on their way to a split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Protocol

from data.documents.corpus import Corpus, Document, stored_bytes
from data.documents.writable import writable
from data.sources.bad_text import BadText, Tally
from gpt.errors import UserError
from gpt.shards import Split, held_out_names, is_held_out
from gpt.tokenizer import Tokenizer

SMALL_CORPUS = 16 << 20  # stored bytes; below, documents are listed before they are split


@dataclass(slots=True)
class Piece:
    """A stretch of one document's text, and whether the document starts or ends with it.

    place: (file, number of the piece in it). stored: bytes of the file read since the piece before.
    tally: what happened to documents since then. A file ends with a piece without text.
    """

    split: Split
    text: str
    place: tuple[int, int]
    stored: int = 0
    tally: Tally = field(default_factory=Tally)
    starts: bool = False
    ends: bool = False


Part = tuple[int, Split, str]  # the document's place in its file, and a stretch of its text


class Rule(Protocol):
    """Decides where text goes."""

    def parts(self, documents: Iterable[Document], bad_text: BadText) -> Iterator[Part]:
        """The text of a file's documents, each stretch with its split."""
        ...


@dataclass
class ByName:
    """Documents go where a hash of their name says."""

    fraction: float
    seed: int
    held_out: set[str] | None  # None: of a corpus too large to list

    def parts(self, documents: Iterable[Document], bad_text: BadText) -> Iterator[Part]:
        """Each document on one side."""
        for document in documents:
            out = (document.name in self.held_out if self.held_out is not None
                   else is_held_out(document.name, self.fraction, self.seed))
            for text in document.pieces(bad_text):
                yield document.place[1], "val" if out else "train", text


@dataclass
class ByPlace:
    """Text goes to validation from a place on, in bytes of text."""

    cut: int
    starts: dict[int, int]  # where each file starts

    def parts(self, documents: Iterable[Document], bad_text: BadText) -> Iterator[Part]:
        """Documents, one of them cut in two where the place lies in it."""
        position = None
        for document in documents:
            file, number = document.place
            position = self.starts[file] if position is None else position
            for text in document.pieces(bad_text):
                data = text.encode()
                head = data[:max(0, self.cut - position)].decode(errors="ignore")
                position += len(data)
                if head:
                    yield number, "train", head
                if len(head) < len(text):
                    yield number, "val", text[len(head):]


class SplitPlan:
    """Decides for every stretch of a corpus where it goes, before any of it is read.

    A mixture is split source by source, any other corpus as a whole.
    """

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        self.tokenizer: Tokenizer | None = None  # once it is known: what must be able to write it
        self._rules: dict[int, Rule] = {}
        for group in self._groups():
            self._rules |= dict.fromkeys(group, _rule_for(corpus, group))

    def _groups(self) -> list[list[int]]:
        """Files that are split together."""
        everything = list(range(len(self.corpus.files)))
        if not self.corpus.recipe.is_mixture:
            return [everything]
        return [[i for i in everything if self.corpus.files[i].source == source]
                for source in range(len(self.corpus.recipe.sources))]

    def pieces(self, number: int, bad_text: BadText) -> Iterator[Piece]:
        """A file's pieces in order, and one without text at its end."""
        meter, read = self.corpus.meter, 0
        meter.follow(None)  # not the file before
        previous: Piece | None = None
        document = -1
        parts = self._rules[number].parts(self._documents(number, bad_text), bad_text)
        for i, (new, split, text) in enumerate(parts):
            piece = Piece(split, text, (number, i), max(0, meter.position - read), bad_text.take())
            read += piece.stored
            piece.starts = previous is None or new != document or previous.split != split
            if previous is not None:
                previous.ends = piece.starts
                yield previous
            previous, document = piece, new
        if previous is not None:
            previous.ends = True
            yield previous
        rest = max(0, (self.corpus.files[number].size or 0) - read)
        after = previous.place[1] + 1 if previous is not None else 0
        yield Piece("train", "", (number, after), rest, bad_text.take())

    def _documents(self, number: int, bad_text: BadText) -> Iterator[Document]:
        for document in self.corpus.documents(number, bad_text):
            yield document if self.tokenizer is None else writable(document, self.tokenizer)


def _rule_for(corpus: Corpus, group: Sequence[int]) -> Rule:
    recipe = corpus.recipe
    names = _names(corpus, group)
    if recipe.split == "tail" or (recipe.split == "auto" and _is_one(corpus, group, names)):
        return _by_place(corpus, group)
    held_out = None if names is None else held_out_names(names, recipe.val_fraction, recipe.seed)
    return ByName(recipe.val_fraction, recipe.seed, held_out)


def _names(corpus: Corpus, group: Sequence[int]) -> list[str] | None:
    """The documents' names, if they can be had without reading much."""
    files = [corpus.files[i] for i in group]
    if all(file.is_one_document for file in files):
        return [file.name for file in files]
    size = stored_bytes(files)
    if size is None or size > SMALL_CORPUS:
        return None
    unnoted = BadText(corpus.recipe.on_bad_text)
    return [document.name for i in group for document in corpus.documents(i, unnoted)]


def _is_one(corpus: Corpus, group: Sequence[int], names: list[str] | None) -> bool:
    """Whether there is a single document; of a large archive the second tells."""
    if names is not None:
        return len(names) == 1
    if not any(corpus.files[i].is_archive for i in group):
        return False
    unnoted = BadText(corpus.recipe.on_bad_text)
    every = (document for i in group for document in corpus.documents(i, unnoted))
    return len(list(islice(every, 2))) == 1


def _by_place(corpus: Corpus, group: Sequence[int]) -> ByPlace:
    recipe = corpus.recipe
    if any(recipe.sources[corpus.files[i].source].max_tokens for i in group):
        raise UserError("max_tokens and split=tail (the default for a single document) do not go "
                        "together: where the tail begins would depend on the tokens; choose "
                        "split=documents, or leave max_tokens out")
    sizes = _text_bytes(corpus, group)
    starts = accumulate(sizes, initial=0)
    return ByPlace(int(sum(sizes) * (1 - recipe.val_fraction)), dict(zip(group, starts,
                                                                         strict=False)))


def _text_bytes(corpus: Corpus, group: Sequence[int]) -> list[int]:
    """Bytes of text in each file; where their sizes do not tell, by reading them."""
    files = [corpus.files[i] for i in group]
    policy = corpus.recipe.on_bad_text
    if (all(file.is_one_document and file.compression is None and file.encoding == "utf-8"
            for file in files)
            and policy == "error" and not corpus.cleans and corpus.recipe.normalize == "none"):
        return [file.size or 0 for file in files]
    return [sum(len(text.encode()) for document in corpus.documents(i, BadText(policy))
                for text in document.pieces(BadText(policy))) for i in group]
