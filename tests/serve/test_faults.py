"""Hostile clients, signals and load: short versions of benchmarks/serve_faults.py."""

from __future__ import annotations

import asyncio

import pytest

from gpt.serve import reading
from gpt.serve.errors import as_api_error
from gpt.serve.fields import Completion
from tests.serve.launched import (
    HEAD,
    ask,
    connected,
    request_of,
    talk,
)

BEGIN = b'{"model": "base", "prompt": '
GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
JSON = HEAD % b"/v1/completions"
ENDLESS = {"model": "base", "prompt": "a", "max_tokens": 190, "logit_bias": {"256": -100}}


@pytest.mark.parametrize(("data", "told"), [
    (BEGIN + b'"' + rb'\"' * 400_000, "no JSON"),  # a string that never ends: hours, if tried anew
    (BEGIN + b'"' + b"\\" * 800_001, "no JSON"),
    (BEGIN + b"[" + b"[]," * 1_000_000 + b"[]]}", "more than 100,000 objects and arrays"),
    (BEGIN + b"[" + b"1.5," * 1_000_000 + b"1]}", "prompt: Input should be a valid string"),
    (BEGIN + b"[" + b'"",' * 1_000_000 + b'""]}', "more than 128 prompts"),
    (b"{" + b",".join(b'"%d": 1' % i for i in range(100_000)) + b"}", "100,001 values of the body"),
    (BEGIN + b'"a", "logit_bias": {' + b",".join(b'"x%d": 1' % i for i in range(100_000)) + b"}}",
     "100,000 values of the body"),
    (BEGIN + b'"' + b"a" * 7_000_000 + b'"}', "7,000,000 characters")])
def test_what_is_made_to_take_long_is_refused_in_seconds(running, data, told):
    answer = asyncio.run(talk(running.port, request_of(body=data), 20))
    assert answer.status == 400 and told in answer.body.decode()


@pytest.mark.parametrize(("text", "deep"), [
    ("[" * 64 + "]" * 64, False), ("[" * 65 + "]" * 65, True),
    ('[{"a": ' * 32 + "1" + "}]" * 32, False),
    ('[{"a": ' * 33 + "1" + "}]" * 33, True), ("[" + "[]," * 99 + "[]]", False),
    ('["' + "[" * 40 + r'\"' + "[" * 40 + r'", "\\", []]', False),
    ("[" * 65, True), ("[" * 64, False)])
def test_depth_is_that_of_what_stands_outside_of_strings(text, deep):
    assert reading._is_deep(reading._brackets(text.encode())) is deep


def test_of_a_million_mistakes_one_is_kept():
    with pytest.raises(ValueError) as raised:
        Completion.model_validate({"model": "x", "prompt": [1.5] * 1_000_000})
    assert raised.value.error_count() < 10
    with pytest.raises(ValueError) as raised:
        Completion.model_validate({"model": "x"} | {str(i): 1 for i in range(20_000)})
    assert as_api_error(raised.value).message == "20,000 values of the body are wrong or unknown"


def test_larger_bodies_have_room_for_so_many_and_small_ones_always(running, monkeypatch):
    monkeypatch.setattr(reading, "ROOM", 250_000)
    large = request_of(model="base", prompt="a" * 150_000)

    async def tried():
        async with connected(running.port, large[:-1]) as (reader, writer):
            while not reading._held:
                await asyncio.sleep(0.01)
            refused = await talk(running.port, large)
            small = await ask(running.port, model="base", prompt="a")
            writer.write(large[-1:])
            first = await reader.read()
        return refused, small, first, await talk(running.port, large)

    refused, small, first, later = asyncio.run(tried())
    assert refused.status == 429 and b"retry-after: 1" in refused.headers
    assert small.status == 200 and b" 400 " in first[:20] and later.status == 400
    assert not reading._held
