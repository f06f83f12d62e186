"""How text is generated: settings of a request, validated."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from gpt.configuration.section import Section
from gpt.errors import UserError

TokenId = Annotated[int, Field(ge=0)]
Penalty = Annotated[float, Field(ge=-100, le=100)]


class SamplingConfig(Section):
    """How the next token is chosen, and when to stop."""

    max_new_tokens: Annotated[int, Field(ge=0)] = Field(256, description="at most this many tokens")
    min_new_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="no end before this many tokens")
    temperature: Annotated[float, Field(ge=0, le=1e4)] = Field(
        1.0, description="0: always the likeliest token; 1: the model's own distribution")
    top_k: Annotated[int, Field(ge=0)] | None = Field(
        None, description="choose among the k likeliest tokens; 0: among all")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="choose among the fewest tokens whose probabilities reach p")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="choose among tokens at least p times as likely as the likeliest")
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = Field(
        1.0, description="divides the scores of tokens that occurred; 1: off (arXiv:1909.05858)")
    presence_penalty: Penalty = Field(
        0.0, description="taken off the scores of tokens that were generated before")
    frequency_penalty: Penalty = Field(
        0.0, description="taken off a token's score for each time it was generated before")
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-1e4, le=1e4)]] = Field(
        {}, description="added to the scores of token ids: ID=X")
    banned_tokens: list[TokenId] = Field([], description="token ids that are never chosen")
    forced_tokens: list[TokenId] = Field([], description="token ids that the text begins with")
    json_schema: str | None = Field(
        None, description="only text that is JSON of this schema; {} is any JSON")
    regex: str | None = Field(None, description="only text that this regular expression matches")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="end before the first of these texts")
    beams: Annotated[int, Field(ge=1)] | None = Field(
        None, description="instead of drawing, find the likeliest text by following so many at a "
                          "time")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="the same seed gives the same text; none: a new one each time")
    begin: bool = Field(
        False, description="read the prompt as the beginning of a document, as scores of a text "
                           "are computed; else as a text that may stand anywhere")
    slide: bool = Field(False, description="at the end of the context, go on from its last half")

    @property
    def filters(self) -> tuple[float | None, ...]:
        """What `choose` depends on: requests that agree on it can be drawn for together."""
        return self.temperature, self.top_k, self.top_p, self.min_p

    @field_validator("top_k")
    @classmethod
    def _all_is_no_choice(cls, top_k: int | None) -> int | None:
        return top_k or None

    @field_validator("temperature")
    @classmethod
    def _not_all_but_zero(cls, temperature: float) -> float:
        if 0 < temperature < 1e-4:
            raise ValueError("give 0 for the likeliest token, or at least 0.0001")
        return temperature

    @model_validator(mode="after")
    def _fits_together(self) -> SamplingConfig:
        allowed = {"beams", "max_new_tokens", "begin"}
        changed = sorted(name for name in self.model_fields_set - allowed
                         if getattr(self, name) != type(self).model_fields[name].default)
        if self.beams is not None and changed:
            raise ValueError(f"beams follow the model's own probabilities; leave out {changed[0]}")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens="
                             f"{self.max_new_tokens}")
        if self.json_schema is not None and self.regex is not None:
            raise ValueError("give json_schema or regex, not both")
        if self.min_new_tokens and (self.json_schema is not None or self.regex is not None):
            raise ValueError("min_new_tokens is not for json_schema and regex, which say where a "
                             "text may end")
        return self

    @field_validator("json_schema")
    @classmethod
    def _schema_is_json(cls, schema: str | None) -> str | None:
        if schema is not None and not isinstance(_parsed(schema), (dict, bool)):
            raise ValueError("a JSON schema is an object, such as {\"type\": \"object\"}")
        return schema


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON ({error})") from error


def sampling_config(**settings: Any) -> SamplingConfig:
    """Validated settings; `stop` may be one text. Raises UserError naming the wrong one."""
    if isinstance(settings.get("stop"), str):
        settings["stop"] = [settings["stop"]]
    try:
        return SamplingConfig(**settings)
    except ValidationError as error:
        problem = error.errors()[0]
        if not problem["loc"]:  # of settings that do not go together
            raise UserError(problem["msg"].removeprefix("Value error, ")) from error
        name = ".".join(map(str, problem["loc"][:1]))
        if problem["type"] == "extra_forbidden":
            known = ", ".join(SamplingConfig.model_fields)
            raise UserError(f"there is no setting {name}; choose from {known}") from error
        message = problem["msg"].removeprefix("Value error, ").lower()
        raise UserError(f"{name}: {message} (given: {problem['input']!r})") from error
