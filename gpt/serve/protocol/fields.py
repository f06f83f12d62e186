"""What clients may ask, field by field, in the names of OpenAI's API and a few of ours.

A field that is accepted has an effect, or asks for what happens anyway; others are refused by name.
Absent and null are the default; zero is zero.
Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpt.configuration import SamplingConfig

MOST_CHOICES = 128  # texts of one request
MOST_ALTERNATIVES = 20  # likeliest tokens told beside each one
MOST_ALTERNATIVES_TOLD = 1_000_000  # in one answer, which is made in memory
SEEDS = 2**63

Penalty = Annotated[float, Field(ge=-2, le=2)]
Choices = Annotated[int, Field(ge=1, le=MOST_CHOICES)]
Count = Annotated[int, Field(ge=0, le=2**31)]
Alternatives = Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Name = Annotated[str, Field(max_length=256)]
Nothing = Annotated[list[Any], Field(max_length=0)]
Ids = Annotated[list[int], Field(fail_fast=True)]  # millions may be wrong: the first is told


class Body(BaseModel):
    """A JSON object without unknown fields, in which no type stands for another."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        """Of any field: clients send all that they know, and give answers back with their nulls."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class StreamOptions(Body):
    """What a stream holds besides its pieces."""

    include_usage: bool | None = Field(None, description="a last chunk that counts tokens")
    include_obfuscation: Literal[False] | None = None


class NamedSchema(Body):
    """What json_schema holds."""

    name: Name
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What a text has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and only with it")
        return self

    @property
    def schema_text(self) -> str | None:
        """What SamplingConfig.json_schema takes."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.json_schema or {})
        return '{"type": "object"}' if self.type == "json_object" else None


class Drawing(Body):
    """How tokens are drawn, in every request for text."""

    model: Name = Field("", description="none: the first one that is served")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0: always the likeliest token; default 1")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    user: Name | None = Field(None, description="named in the server's log")
    safety_identifier: Name | None = Field(None, description="the same, as OpenAI calls it now")
    regex: Annotated[str, Field(max_length=10_000)] | None = Field(
        None, description="only text that this regular expression matches")
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: Name | None = Field(
        None, description="prompts are remembered by what they begin with, whatever the key")

    def drawing(self) -> dict[str, Any]:
        """What is not left to its default, as SamplingConfig takes it."""
        found = {name: getattr(self, name) for name in ("temperature", "top_k", "min_p", "regex")}
        # Nothing but the likeliest token is left of a top_p of 0.
        found["top_p"] = math.ulp(0.0) if self.top_p == 0 else self.top_p
        return found


class Sampling(Drawing):
    """The same, as completions and chats have it."""

    n: Choices | None = Field(None, description="texts, with seeds S, S + 1, …")
    max_tokens: Count | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(None, description="the same seed gives the same text")
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,8}$")],
                     Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="added to the scores of token ids")
    forced_tokens: Ids | None = Field(None, description="what the text begins with")
    response_format: ResponseFormat | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options go with stream=true, and only with it")
        return self

    def drawing(self) -> dict[str, Any]:
        """As SamplingConfig takes it."""
        found = super().drawing() | {name: getattr(self, name) for name in (
            "presence_penalty", "frequency_penalty", "repetition_penalty", "forced_tokens")}
        found["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        found["seed"] = None if self.seed is None else self.seed % SEEDS
        found["logit_bias"] = {int(i): bias for i, bias in (self.logit_bias or {}).items()}
        found["json_schema"] = self.response_format and self.response_format.schema_text
        return found

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with a count of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class Completion(Sampling):
    """POST /v1/completions"""

    prompt: (str | Ids | Annotated[list[str], Field(fail_fast=True)]
             | Annotated[list[Ids], Field(fail_fast=True)] | None) = Field(
        None, description="text or token ids, or several; none: the start of a document")
    best_of: Annotated[int, Field(ge=0, le=MOST_CHOICES)] | None = Field(
        None, description="texts of which the n likeliest, per token, are returned; 0: n")
    echo: bool | None = Field(None, description="the prompt as well, with its log-probabilities")
    logprobs: Alternatives | None = Field(
        None, description="log-probabilities of tokens, and so many of the likeliest beside them")
    suffix: None = None

    @model_validator(mode="after")
    def _chooses(self) -> Completion:
        if (isinstance(self.prompt, list) and len(self.prompt) > MOST_CHOICES
                and not isinstance(self.prompt[0], int)):
            raise ValueError(f"prompt holds more than {MOST_CHOICES} prompts")
        if self.best_of:
            if self.best_of < (self.n or 1):
                raise ValueError("best_of is less than n")
            if self.stream and self.best_of > (self.n or 1):
                raise ValueError("best_of is not for streams: which texts are best is known last")
        return self


class TextPart(Body):
    """A part of a message."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: Nothing | None = None
    logprobs: list[Any] | None = Field(None, description="of an answer that is given back")


class ChatMessage(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    type: Literal["message"] | None = None
    id: Name | None = Field(None, description="of an answer that is given back, as its status")
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    annotations: Nothing | None = None
    tool_calls: Nothing | None = None

    @property
    def text(self) -> str:
        """All parts."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatCompletion(Sampling):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    store: Literal[False] | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    # For the model's own template, as other servers take it: {"enable_thinking": false}
    chat_template_kwargs: dict[Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")],
                               bool | int | Annotated[str, Field(max_length=1000)]] | None = None

    @model_validator(mode="after")
    def _tells_alternatives(self) -> ChatCompletion:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs go with logprobs=true, and only with it")
        if self.parallel_tool_calls is not None and not self.tools:
            raise ValueError("parallel_tool_calls go with tools, which are not supported")
        return self


class TextFormat(NamedSchema):
    """What a response's text has to be."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name = ""


class TextOptions(Body):
    """`text` of a response."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Response(Drawing):
    """POST /v1/responses: text in, text out."""

    input: str | Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    top_logprobs: Alternatives | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    metadata: Annotated[dict[Name, Annotated[str, Field(max_length=512)]],
                        Field(max_length=16)] | None = Field(None, description="given back")
    text: TextOptions | None = None
    store: Literal[False] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None

    def drawing(self) -> dict[str, Any]:
        """As SamplingConfig takes it."""
        form = self.text.format if self.text and self.text.format else TextFormat(type="text")
        schema = {"json_object": '{"type": "object"}', "text": None}.get(
            form.type, json.dumps(form.json_schema or {}))
        return super().drawing() | {"json_schema": schema}


class Tokenize(Body):
    """POST /tokenize"""

    model: Name | None = None
    prompt: str
    add_special_tokens: bool | None = Field(
        None, description="what a prompt begins with, if the model has such a token; default true. "
                          "With false, the name of a control token alone is that token")


class Detokenize(Body):
    """POST /detokenize"""

    model: Name | None = None
    tokens: Ids


class Score(Body):
    """POST /v1/score: log-probabilities of a text that is given."""

    model: Name = ""
    text: str
    begin: bool | None = Field(None, description="as the beginning of a document; default true")


def config_of(drawing: dict[str, Any], most: int | None) -> SamplingConfig:
    """Settings of a request. Raises pydantic's ValidationError."""
    chosen = {name: value for name, value in drawing.items() if value is not None}
    return SamplingConfig(**chosen, **({} if most is None else {"max_new_tokens": most}))
