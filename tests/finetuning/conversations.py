"""Conversations, and tokenizers with the control tokens of chats, that tests share."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from gpt.chat import FORMATS, Chat, Message
from gpt.finetuning import Example
from gpt.tokenizer import Tokenizer, build_tokenizer
from gpt.tokenizer.rank_tokenizer import RankTokenizer

BYTES = build_tokenizer("byte")
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>",
            "<|end_header_id|>", "<|eot_id|>")


def with_controls(names: Sequence[str] = CONTROLS) -> Tokenizer:
    """Bytes and these control tokens."""
    assert isinstance(BYTES, RankTokenizer)
    return RankTokenizer("bytes with controls", BYTES.ranks, BYTES.pattern,
                         {name: 256 + i for i, name in enumerate(names)})


def chat_of(name: str = "plain", tokenizer: Tokenizer | None = None) -> Chat:
    """A named format, in bytes unless said otherwise."""
    return Chat(FORMATS[name], tokenizer or with_controls())


def pair(prompt: str, completion: str, where: str = "") -> Example:
    """A prompt and its completion."""
    asked = (Message("user", prompt),) if prompt else ()
    return Example((*asked, Message("assistant", completion, learned=True)), where)


def answers_of(*texts: str) -> tuple[Message, ...]:
    """Answers to one prompt, as preferences hold them."""
    return tuple(Message("assistant", text, learned=True) for text in texts)


CONTENTS = st.one_of(st.text(min_size=1, max_size=12),
                     st.sampled_from([*CONTROLS, "User:\n", "Assistant:\n", "\n\n", " a"]))


@st.composite
def conversations(draw: st.DrawFn) -> Example:
    """A system message or none, then users and assistants in turn; some answers are learned."""
    turns = draw(st.lists(st.tuples(CONTENTS, CONTENTS, st.booleans()), min_size=1, max_size=4))
    messages = [Message("system", draw(CONTENTS))] if draw(st.booleans()) else []
    for number, (asked, answered, learned) in enumerate(turns):
        messages += [Message("user", asked),
                     Message("assistant", answered, learned or number == len(turns) - 1)]
    return Example(tuple(messages))
