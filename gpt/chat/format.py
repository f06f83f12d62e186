"""How a conversation becomes text: a format that is data, rendered here and as Jinja elsewhere.

What surrounds each role's turns may hold control tokens, by name; what people wrote never does,
whatever it spells.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from gpt.chat.messages import SYSTEM_ROLES, Message
from gpt.configuration import strict_yaml
from gpt.configuration.section import Section
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer


class Turn(Section):
    """What stands around one role's messages."""

    before: str = ""
    after: str = ""


class ChatFormat(Section):
    """The text around a conversation's turns. Control tokens in it are written by their names."""

    system: Turn = Field(default_factory=Turn)
    user: Turn = Field(default_factory=Turn)
    assistant: Turn = Field(default_factory=Turn, description="`after` follows the stop token")
    stop: str | None = Field(
        None, description="control token that ends an answer, and is learned; null: end-of-text")
    default_system: str | None = Field(
        None, description="system message of conversations that have none")
    prefix: Literal["causal", "bidirectional"] = Field(
        "causal", description="how what stands before the first answer is read")


_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
_TURN = "<|im_start|>{}\n"
FORMATS = {
    # Nothing in between: a prompt, and what follows it.
    "plain": ChatFormat(),
    # Headlines, for models whose only control token is end-of-text.
    "turns": ChatFormat(system=Turn(after="\n\n"), user=Turn(before="User:\n", after="\n\n"),
                        assistant=Turn(before="Assistant:\n")),
    "chatml": ChatFormat(
        **{role: Turn(before=_TURN.format(role), after="<|im_end|>\n")
           for role in ("system", "user")},
        assistant=Turn(before=_TURN.format("assistant"), after="\n"), stop="<|im_end|>"),
    "llama3": ChatFormat(
        **{role: Turn(before=_HEADER.format(role), after="<|eot_id|>")
           for role in ("system", "user")},
        assistant=Turn(before=_HEADER.format("assistant")), stop="<|eot_id|>"),
}


class Piece(NamedTuple):
    """A stretch of a rendered conversation.

    control: it is a control token's name. answer: an assistant wrote it. learned: the loss counts
    it.
    """

    text: str
    control: bool = False
    answer: bool = False
    learned: bool = False


class Chat:
    """A format, in the tokens of a tokenizer.

    Raises UserError if the format needs control tokens that the tokenizer does not have.
    """

    def __init__(self, form: ChatFormat, tokenizer: Tokenizer):
        self.format, self._names = form, tokenizer.specials
        names: dict[int | None, str] = {i: name for name, i in tokenizer.specials.items()}
        self._end, self._begin = names[tokenizer.end_of_text], names.get(tokenizer.begin_of_text)
        self.stop = form.stop or self._end
        if lacking := [name for name in _controls_of(form) if name not in self._names]:
            raise UserError(f"the chat format needs {lacking[0]}, which is no control token of the "
                            f"model's tokenizer ({_some(self._names)})")
        self.stop_token = self._names[self.stop]
        self.tokenizer = tokenizer.stopping_at(self.stop_token)
        self._controls = re.compile(
            "(" + "|".join(map(re.escape, sorted(self._names, key=len, reverse=True))) + ")")

    def pieces(self, messages: Sequence[Message], asks: bool = False) -> list[Piece]:
        """A conversation; asks: and what stands before the answer that comes next."""
        found = [Piece(self._begin, control=True)] if self._begin is not None else []
        default = self.format.default_system
        if default is not None and not (messages and messages[0].role == "system"):
            messages = [Message("system", default), *messages]
        for message in messages:
            found += self._turn(message)
        if asks:
            found += self._around(self.format.assistant.before)
        if not found or found[0].answer:  # the start of a document
            found.insert(0, Piece(self._end, control=True))
        return list(_joined(found))

    def _turn(self, message: Message) -> Iterator[Piece]:
        turn: Turn = getattr(self.format, message.role)
        yield from self._around(turn.before)
        answers = message.role == "assistant"
        if message.content:
            yield Piece(message.content, answer=answers, learned=message.learned)
        if answers:
            yield Piece(self.stop, control=True, learned=message.learned)
        yield from self._around(turn.after)

    def _around(self, text: str) -> Iterator[Piece]:
        """What a format says, with the control tokens in it."""
        for part in self._controls.split(text):
            if part:
                yield Piece(part, control=part in self._names)

    def encode(self, pieces: Iterable[Piece]) -> Iterator[tuple[list[int], bool]]:
        """Each piece's token ids, and whether they are learned."""
        encode = self.tokenizer.encode
        for piece in pieces:
            if piece.control:
                yield [self._names[piece.text]], piece.learned
            else:
                yield encode(piece.text), piece.learned
                encode = self.tokenizer.encode_behind

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids after which the model answers."""
        return [i for ids, _ in self.encode(self.pieces(messages, asks=True)) for i in ids]

    def own_tokenizer(self) -> Tokenizer:
        """The tokenizer as it is saved with a model that learned this format."""
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = self.jinja()
        tokenizer.chat_format = self.format.model_dump_json(indent=1)
        return tokenizer

    def jinja(self) -> str:
        """The same rendering for other tools, as a Jinja template."""
        form, begin = self.format, "{{- bos_token }}" if self._begin is not None else ""
        cases = "".join(
            f'{{%- {"el" if number else ""}if message["role"] in {list(roles)} %}}'
            + _shown(turn.before, 'message["content"]',
                     (form.stop or "eos_token", form.stop is None) if role == "assistant" else None,
                     turn.after)
            for number, (role, roles, turn) in enumerate(
                (("system", SYSTEM_ROLES, form.system), ("user", ["user"], form.user),
                 ("assistant", ["assistant"], form.assistant))))
        cases += ('{%- else %}{{- raise_exception("this model knows no role " ~ message["role"]) '
                  "}}")
        default = "" if form.default_system is None else (
            f'{{%- if messages[0]["role"] not in {list(SYSTEM_ROLES)} %}}'
            + _literal(form.system.before + form.default_system + form.system.after)
            + "{%- endif %}")
        return (f"{begin}{default}{{%- for message in messages %}}{cases}{{%- endif %}}"
                "{%- endfor %}" + _asking(form.assistant.before))


def _asking(text: str) -> str:
    return f"{{%- if add_generation_prompt %}}{_literal(text)}{{%- endif %}}" if text else ""


def _shown(before: str, content: str, stop: tuple[str, bool] | None, after: str) -> str:
    shown = _literal(before) + f"{{{{- {content} }}}}"
    if stop is not None:
        name, is_variable = stop
        shown += f"{{{{- {name} }}}}" if is_variable else _literal(name)
    return shown + _literal(after)


def _literal(text: str) -> str:
    """A Jinja expression that prints a text, whatever is in it."""
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighbouring texts as one, as other tools will encode them; but answers apart, as they are
    when a model writes them."""
    last: Piece | None = None
    for piece in pieces:
        if last is not None and not any((*last[1:], *piece[1:])):
            last = Piece(last.text + piece.text)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def choose_format(name: str, converses: bool, tokenizer: Tokenizer) -> tuple[str, ChatFormat]:
    """(name, format) by its name, or from a YAML file.

    auto: what the model was trained with. Where that is not known, or plain: plain for prompts and
    completions; for conversations (converses) by the control tokens that the tokenizer has, else
    turns.
    """
    if name == "auto":
        saved = saved_format(tokenizer)
        if saved is not None and saved != FORMATS["plain"]:
            return "the base model's", saved
        if not converses:
            return "plain", FORMATS["plain"]
        name = next((known for known in ("chatml", "llama3")
                     if set(_controls_of(FORMATS[known])) <= tokenizer.specials.keys()), "turns")
    if name in FORMATS:
        return name, FORMATS[name]
    path = Path(name)
    if not path.is_file():
        raise UserError(f"finetune.chat: there is no chat format {name}: choose auto, "
                        f"{', '.join(FORMATS)}, or the path of a YAML file")
    return name, read_format(path)


def read_format(file: Path) -> ChatFormat:
    """From YAML, or from JSON. Raises UserError."""
    return _validated(strict_yaml.load_file(file).values, str(file))


def saved_format(tokenizer: Tokenizer) -> ChatFormat | None:
    """The format that a model was trained with, where it is known."""
    if tokenizer.chat_format is None:
        return None
    return _validated(json.loads(tokenizer.chat_format), "the model's chat_format.json")


def converses_in(form: ChatFormat | None) -> bool:
    """Whether a format puts anything around the turns, so that a bare text is no question in it."""
    return form is not None and any(turn.before or turn.after
                                    for turn in (form.system, form.user, form.assistant))


def _validated(values: object, where: str) -> ChatFormat:
    try:
        return ChatFormat.model_validate(values or {})
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or "it"
        raise UserError(f"{where} is no chat format: {field}: {problem['msg'].lower()}; it has "
                        f"{', '.join(ChatFormat.model_fields)}") from error


def _controls_of(form: ChatFormat) -> list[str]:
    texts = [turn.before + turn.after for turn in (form.system, form.user, form.assistant)]
    return [*re.findall(r"<\|\w+\|>", "".join(texts)), *filter(None, [form.stop])]


def _some(names: Iterable[str]) -> str:
    first = sorted(names)[:6]
    return f"it has {', '.join(first)}{', …' if len(list(names)) > 6 else ''}"
