"""How long rows may be: memory and time follow from the examples, not from what a model could read.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt.configuration import FinetuneSection
from gpt.errors import UserError

TEXT_LENGTH = 1024  # of a piece of plain text where no other is asked for: enough for its context


@dataclass(frozen=True)
class Lengths:
    """The most tokens of a row.

    row: a conversation. text: a piece of plain text, or several examples in a row. limit: what
    conversations are measured by, in words.
    """

    row: int
    text: int
    limit: str

    @classmethod
    def of(cls, section: FinetuneSection, block_size: int) -> Lengths:
        """What finetune.max_length says. Raises UserError if the model reads no such rows."""
        asked = section.max_length
        if asked == "auto":
            return cls(block_size, min(block_size, TEXT_LENGTH),
                       f"the model's context of {block_size} tokens")
        if asked > block_size:
            raise UserError(f"finetune.max_length={asked} is more than the base model reads "
                            f"({block_size} tokens); lower it, or leave it out")
        return cls(asked, asked, f"the {asked} tokens of finetune.max_length")
