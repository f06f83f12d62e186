"""LangChain, unmodified, asks a server: what it is told is what the model says elsewhere."""

from __future__ import annotations

import asyncio

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

from tests.serve.conftest import answer_of, pieces_of

READABLE = {i: -100 for i in range(257) if not (chr(i).isascii() and chr(i).isalnum())}
LIKELIEST = {"temperature": 0, "max_new_tokens": 20}
MESSAGES = [SystemMessage("Be brief."), HumanMessage("Hello?")]


@pytest.fixture
def common(running):
    return {"base_url": running.url + "/v1", "api_key": "none", "max_retries": 0,
            "temperature": 0}


@pytest.fixture
def chat(common):
    return ChatOpenAI(model="chat", max_completion_tokens=20, logit_bias=READABLE, **common)


def test_langchain_completes_whole_streamed_and_several_as_the_model_does(running, common):
    async def at_once():
        return await asyncio.gather(*map(llm.ainvoke, expected))

    lm = running.lm("base")
    llm = OpenAI(model="base", max_tokens=20, **common,
                 logit_bias={str(i): bias for i, bias in READABLE.items()})
    expected = {prompt: lm.generate(prompt, temperature=0, max_new_tokens=20, logit_bias=READABLE)
                for prompt in ("abc", "Who's there?")}
    for prompt, text in expected.items():
        assert llm.invoke(prompt) == text
        assert "".join(llm.stream(prompt)) == text
    assert asyncio.run(at_once()) == [*expected.values()]
    made = llm.generate([*expected])
    assert [[each.text for each in texts] for texts in made.generations] == [
        [text] for text in expected.values()]
    read = sum(len(lm.tokenizer.encode(prompt)) for prompt in expected)
    assert made.llm_output["token_usage"]["prompt_tokens"] == read
    assert llm.bind(stop=[expected["abc"][4:6]]).invoke("abc") == expected["abc"][:4]


def test_langchain_converses_whole_and_streamed_as_the_model_does(running, chat):
    lm = running.lm("chat")
    expected, length = answer_of(lm, ("system", "Be brief."), ("user", "Hello?"),
                                 **LIKELIEST, logit_bias=READABLE)
    made = chat.invoke(MESSAGES)
    assert made.content == expected and made.response_metadata["finish_reason"] == "length"
    assert made.usage_metadata["input_tokens"] == length
    assert made.usage_metadata["output_tokens"] == 20
    parts = list(chat.stream(MESSAGES, stream_usage=True))
    whole = sum(parts[1:], parts[0])
    assert whole.content == expected and whole.usage_metadata == made.usage_metadata
    later, _ = answer_of(lm, ("system", "Be brief."), ("user", "Hello?"), ("assistant", expected),
                         ("user", "Why?"), **LIKELIEST, logit_bias=READABLE)
    for answer in (made, whole, AIMessage(expected)):  # given back as it came
        assert chat.invoke([*MESSAGES, answer, HumanMessage("Why?")]).content == later
    assert later != expected


def test_langchain_is_told_log_probabilities(running, common):
    chat = ChatOpenAI(model="chat", max_tokens=20, **common)
    bound = chat.bind(logprobs=True, top_logprobs=3)
    told = bound.invoke(MESSAGES).response_metadata["logprobs"]["content"]
    pieces, _ = pieces_of(running.lm("chat"), ("system", "Be brief."), ("user", "Hello?"),
                          **LIKELIEST)
    assert [token["logprob"] for token in told] == pytest.approx(
        [piece.new.logprob for piece in pieces], abs=1e-4)
    for token in told:
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]  # the likeliest, to the bit
    streamed = [each for part in bound.stream(MESSAGES)
                for each in (part.response_metadata.get("logprobs") or {}).get("content") or ()]
    assert streamed == told


def test_langchain_is_answered_through_responses_too(running, common):
    chat = ChatOpenAI(model="chat", use_responses_api=True, max_tokens=20, **common)
    expected, length = answer_of(running.lm("chat"), ("system", "Be brief."), ("user", "Hello?"),
                                 **LIKELIEST)
    made = chat.invoke(MESSAGES)
    assert made.text == expected and made.usage_metadata["input_tokens"] == length
    assert "".join(part.text for part in chat.stream(MESSAGES)) == expected
    later, _ = answer_of(running.lm("chat"), ("system", "Be brief."), ("user", "Hello?"),
                         ("assistant", expected), ("user", "Why?"), **LIKELIEST)
    assert chat.invoke([*MESSAGES, made, HumanMessage("Why?")]).text == later


def test_langchain_has_objects_of_a_schema_made(common):
    class Answer(BaseModel):
        """What is asked for."""

        yes: bool
        size: int = Field(ge=1, le=3)

    chat = ChatOpenAI(model="chat", max_tokens=60, logit_bias=dict.fromkeys(b" \n\r\t", -100),
                      **common)  # a model that knows nothing would fill the space that JSON allows
    made = chat.with_structured_output(Answer, method="json_schema").invoke(MESSAGES)
    assert isinstance(made, Answer)
    with pytest.raises(openai.BadRequestError, match="tools"):  # which no model here knows
        chat.with_structured_output(Answer, method="function_calling").invoke(MESSAGES)
