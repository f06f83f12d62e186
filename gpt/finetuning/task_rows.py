"""All that a fine-tuning task reads, ready to train on: its rows, in its chat format."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from gpt.batches import Endless, Mixture, Sequences, Shuffled, TokenizedText, Windows
from gpt.chat import AnyChat, Chat, Message, choose_chat
from gpt.configuration import FinetuneConfig, FinetuneSection, PreferenceConfig, RunConfig
from gpt.errors import UserError
from gpt.files import sha256_of
from gpt.finetuning.bad_text import DONE, written
from gpt.finetuning.examples import Example
from gpt.finetuning.formats import TaskData
from gpt.finetuning.lengths import Lengths
from gpt.finetuning.preferences import Pair, Pairs, encode_pairs, with_reference
from gpt.finetuning.rows import (
    PackedRows,
    PaddedRows,
    Row,
    Rows,
    encode_examples,
    first_rows,
    refuse_useless,
)
from gpt.finetuning.splits import held_out_fraction, labels_of, load_splits
from gpt.finetuning.tool_texts import has_tools, spoken
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.runs.folder import started_with
from gpt.shards import Dataset
from gpt.tokenizer import Tokenizer

CONVERSATIONS = ("messages", "sharegpt", "alpaca")


@dataclass(frozen=True)
class Split:
    """One side of the data: rows and, where preferences are learned, pairs of them.

    The rows of preferences are those of the preferred answers.
    """

    rows: Rows
    pairs: list[Pair]
    bad: str = ""  # what was done about text that the tokenizer cannot write

    @classmethod
    def of(cls, data: TaskData, chat: AnyChat, lengths: Lengths, section: FinetuneSection,
           name: str, bad: int) -> Split:
        """Encode. Raises UserError if too little of the data is left."""
        said = f"; {bad:,} with characters that have no token {DONE[section.on_bad_text]}"
        if data.preferences:
            pairs, too_long = encode_pairs(data.preferences, chat, lengths.row)
            split = cls(Rows([pair.chosen for pair in pairs], [pair.chosen for pair in too_long],
                             cut=0), pairs, said if bad else "")
        else:
            split = cls(encode_examples(data.examples, chat, lengths.row, section.long_rows,
                                        lengths.text), [], said if bad else "")
        if data.examples or data.preferences:
            refuse_useless(split.rows, f"the {name} data", lengths.limit, section.max_long_share)
        return split

    @property
    def longest(self) -> int:
        """Tokens of the longest row, or answer of a preference."""
        return max([*map(len, self.rows.rows), *(len(pair.rejected) for pair in self.pairs)])

    def describe(self) -> str:
        """How much there is, and what was left out."""
        tokens = sum(map(len, self.rows.rows))
        learned = sum(int(row.learned[1:].sum()) for row in self.rows.rows)
        what = "preferences" if self.pairs else "rows"
        line = f"{len(self.rows.rows):,} {what}, {tokens:,} tokens, {learned:,} of them learned"
        if self.rows.dropped:
            line += f"; {len(self.rows.dropped):,} that are too long left out"
        if self.rows.cut:
            line += f"; {self.rows.cut:,} cut, which are too long"
        return line + self.bad


@dataclass(frozen=True)
class TaskRows:
    """Training and validation data, and the chat format or template that they are in.

    labels: the classes, where the task is to name one. has_tools: whether some of what is learned
    calls functions, or could.
    """

    format: str
    chat: AnyChat
    train: Split
    val: Split
    labels: tuple[str, ...]
    lengths: Lengths
    block_size: int
    has_tools: bool

    @classmethod
    def load(cls, config: FinetuneConfig, tokenizer: Tokenizer, block_size: int) -> TaskRows:
        """Read, split and encode. Raises UserError for data that cannot be learned from."""
        section, lengths = config.finetune, Lengths.of(config.finetune, block_size)
        train, val = load_splits(section, config.run.seed)
        _refuse_what_has_no_use(config, train)
        chat = with_prefix(chat_for(section.chat, train, tokenizer, date_of(config.run)), section)
        tools = has_tools(train)
        (train, bad), (val, bad_val) = (written(spoken(one, chat), tokenizer, section.on_bad_text)
                                        for one in (train, val))
        if chat.reads_both_ways:
            _refuse_several_answers([*train.examples, *val.examples])
        labels = labels_of(train.examples)
        for example in val.examples:
            if example.label is not None and example.label not in labels:
                raise UserError(f"{example.where}: no training example has the label "
                                f"{example.label}; they have {', '.join(sorted(labels)[:8])}; add "
                                "some, or take it out of the validation data")
        chat.tokenizer = chat.own_tokenizer()
        return cls(train.format, chat,
                   Split.of(train, chat, lengths, section, "training", bad),
                   Split.of(val, chat, lengths, section, "validation", bad_val),
                   tuple(sorted(labels)), lengths, block_size, tools)

    @property
    def marks_prompts(self) -> bool:
        """Whether prompts are read in both directions."""
        return self.chat.reads_both_ways

    def longest(self, section: FinetuneSection) -> int:
        """Tokens of the longest sequence that training reads."""
        is_filled = section.packing or section.pretrain_data is not None
        return max(self.lengths.text, self.train.longest) if is_filled else self.train.longest

    def _cut_at(self, section: FinetuneSection) -> int:
        """The length that says where texts are cut, and what is left out."""
        by_text = self.format == "text" or section.packing or section.pretrain_data is not None
        return self.lengths.text if by_text else self.lengths.row

    def sequences(self, packing: bool) -> Sequences:
        """What training reads."""
        if self.train.pairs:
            return Pairs(self.train.pairs, self.marks_prompts)
        if packing:
            length = max(self.lengths.text, self.train.longest)
            return PackedRows(self.train.rows.rows, length, self.marks_prompts)
        return PaddedRows(self.train.rows.rows, self.marks_prompts)

    def source(self, config: FinetuneConfig) -> Endless:
        """What training reads at each index: this task's sequences, and others mixed in."""
        section, seed = config.finetune, config.run.seed
        own = self.sequences(section.packing)
        if section.pretrain_data is None:
            return Shuffled(own, seed)
        dataset, tokenizer = Dataset(Path(section.pretrain_data)), self.chat.tokenizer
        theirs = dataset.tokenizer
        for stop in set(tokenizer.stop_tokens) & set(theirs.specials.values()):
            theirs = theirs.stopping_at(stop)
        if theirs.fingerprint != tokenizer.fingerprint:
            raise UserError(f"{section.pretrain_data} was prepared with another tokenizer than the "
                            "base model's; prepare it again with that one")
        texts = Windows(TokenizedText.training(dataset), self.lengths.text)
        learned = sum(int(row.learned[1:].sum()) for row in self.train.rows.rows) / len(own)
        # So many of each that the share is one of all tokens that are learned.
        weights = [(1 - section.pretrain_share) / learned,
                   section.pretrain_share / texts.tokens_per_sequence]
        return Mixture([own, texts], weights, seed, epoch_of=0)

    def validation_rows(self, max_tokens: int | None) -> list[Row]:
        """Rows to score."""
        return first_rows(self.val.rows.rows, max_tokens)

    def prompt(self, text: str) -> list[int]:
        """The tokens of a user's message, after which the model answers."""
        return self.chat.prompt([Message("user", text)] if text else [])

    def score(self, model: GPT, machine: Machine, measuring: Machine) -> None:
        """Note what a model thinks of each answer of a preference, before it learns: of those that
        it learns from as training computes, of the others as evaluation does."""
        for split, on in ((self.train, machine), (self.val, measuring)):
            if split.pairs:
                split.pairs[:] = with_reference(split.pairs, model, on, self.marks_prompts)

    def identity(self, config: FinetuneConfig) -> dict[str, Any]:
        """What the result rests on."""
        section = config.finetune
        own: dict[str, Any] = section.model_dump(
            include={"packing", "long_rows", "method", "freeze"})
        if section.val_data is None:
            own["val_fraction"] = held_out_fraction(section)
        for name, file in (("data", section.data), ("val_data", section.val_data)):
            own[name] = file and sha256_of(Path(file))
        own |= {"format": self.format, "chat": self.chat.identity(self.has_tools)}
        if section.method != "full":
            own["lora"] = config.lora.model_dump()
        if section.on_bad_text != "error":
            own["on_bad_text"] = section.on_bad_text
        if (length := self._cut_at(section)) < self.block_size:
            own["max_length"] = length
        if self.train.pairs:
            own["preference"] = config.preference.model_dump()
        if section.pretrain_data is not None:
            own["pretrain_data"] = Dataset(Path(section.pretrain_data)).manifest.fingerprint
            own["pretrain_share"] = section.pretrain_share
        return {f"finetune.{name}": value for name, value in own.items()}

    def opening_lines(self) -> Iterator[str]:
        """What was read."""
        yield (f"examples: {self.format}; chat format: {self.chat.name}; answers end with "
               f"{self.chat.stop}")
        yield from self.chat.notes
        yield f"training: {self.train.describe()}"
        yield f"validation: {self.val.describe() if self.val.rows.rows else 'none'}"
        seen = {row.tokens.tobytes() for row in self.train.rows.rows}
        if again := sum(row.tokens.tobytes() in seen for row in self.val.rows.rows):
            yield (f"warning: {again:,} of them are training data, too, so the validation loss "
                   "will look better than it is")


def _refuse_what_has_no_use(config: FinetuneConfig, data: TaskData) -> None:
    section = config.finetune
    if data.preferences and section.pretrain_data is not None:
        raise UserError("finetune.pretrain_data cannot be mixed with preferences, which have "
                        "another loss; learn from one after the other")
    if data.preferences and section.packing:
        raise UserError("finetune.packing is not for preferences, whose two answers stand side by "
                        "side")
    if data.preferences and section.long_rows == "cut":
        raise UserError("finetune.long_rows=cut is not for preferences: both answers of a pair "
                        "have to stand behind the same prompt")
    if not data.preferences and config.preference != PreferenceConfig():
        raise UserError(f"preference.* is for data with chosen and rejected answers, not for "
                        f"{data.format}")


def _refuse_several_answers(examples: Sequence[Example]) -> None:
    for example in examples:
        if sum(message.learned for message in example.messages) > 1:
            raise UserError(f"{example.where} has several answers to learn, and a prompt that is "
                            "read in both directions must not hold one; use "
                            "finetune.prefix=causal, or one example for each answer")


def chat_for(name: str, data: TaskData, tokenizer: Tokenizer, today: str = "") -> AnyChat:
    """What the data are written in; plain texts stay plain. today: as templates are told it."""
    if name == "auto" and data.format == "text":
        name = "plain"
    return choose_chat(name, converses(data), tokenizer, today)


def date_of(run: RunConfig) -> str:
    """The day that chat templates are told: today, or that on which the run began."""
    began = started_with(run, "finetune.chat")
    if isinstance(began, dict) and isinstance(began.get("date"), str):
        with contextlib.suppress(ValueError):
            return date.fromisoformat(began["date"]).isoformat()
    return date.today().isoformat()


def with_prefix(chat: AnyChat, section: FinetuneSection) -> AnyChat:
    """The chat with prompts read as finetune.prefix says."""
    if section.prefix is None or (section.prefix == "causal" and not chat.reads_both_ways):
        return chat
    if not isinstance(chat, Chat):
        raise UserError(f"finetune.prefix={section.prefix} is for formats that are data, and this "
                        f"is {chat.name}; choose finetune.chat")
    form = chat.format.model_copy(update={"prefix": section.prefix})
    return Chat(form, chat.tokenizer, chat.name)


def converses(data: TaskData) -> bool:
    """Whether turns need text around them to be told apart."""
    prompts = [each.prompt for each in data.examples] + [each.prompt for each in data.preferences]
    return data.format in CONVERSATIONS or any(len(prompt) > 1 for prompt in prompts)


def sequences_per_step(per_step: int, examples: int, sequences: int) -> int:
    """As many sequences as hold so many examples, of all those that there are."""
    return max(1, round(per_step * sequences / examples))
