"""Hostile clients, signals and load: short versions of benchmarks/serve_faults.py."""

from __future__ import annotations

import asyncio
import os
import random
import re
import resource
import signal
import threading
import time

import psutil
import pytest

from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.generation.grammar import grammars
from gpt.serve import Place, connection, reading, server
from gpt.serve.protocol.errors import as_api_error
from gpt.serve.protocol.fields import Completion
from gpt.tokenizer import build_tokenizer
from tests.serve.conftest import Running, model_of
from tests.serve.launched import (
    HEAD,
    Launched,
    ask,
    connected,
    make_model,
    metrics,
    request_of,
    talk,
    until_idle,
)

BEGIN = b'{"model": "base", "prompt": '
GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
JSON = HEAD % b"/v1/completions"
ENDLESS = {"model": "base", "prompt": "a", "max_tokens": 190, "logit_bias": {"256": -100}}


@pytest.fixture
def other():
    """A server of this test alone."""
    started = Running({"base": model_of(seed=1)}, Place(port=0))
    yield started
    started.server.should_exit = True
    started._thread.join()


@pytest.mark.parametrize(("data", "told"), [
    (BEGIN + b'"' + rb'\"' * 400_000, "no JSON"),  # a string that never ends: hours, if tried anew
    (BEGIN + b'"' + b"\\" * 800_001, "no JSON"),
    (BEGIN + b"[" + b"[]," * 1_000_000 + b"[]]}", "more than 100,000 objects and arrays"),
    (BEGIN + b"[" + b"1.5," * 1_000_000 + b"1]}", "prompt: Input should be a valid string"),
    (BEGIN + b"[" + b'"",' * 1_000_000 + b'""]}', "more than 128 prompts"),
    (b"{" + b",".join(b'"%d": 1' % i for i in range(100_000)) + b"}",
     "100,000 values of the body are wrong"),
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


def test_whoever_reads_nothing_of_a_whole_answer_is_left_and_who_reads_slowly_is_not(
        running, monkeypatch):
    monkeypatch.setattr(connection, "READ_SECONDS", 0.4)
    asks = request_of("/tokenize", model="base", prompt="a" * 3_000_000)

    async def tried():
        async with (connected(running.port, asks, limit=4096) as (_, silent),
                    connected(running.port, asks, limit=2**20) as (reader, _)):
            silent.transport.pause_reading()
            size = 0
            while more := await reader.read(2**20):
                size += len(more)
                await asyncio.sleep(0.15)
            while running.server.server_state.connections:
                await asyncio.sleep(0.05)
        return size

    assert asyncio.run(asyncio.wait_for(tried(), 60)) > 12_000_000  # "97, " each


@pytest.mark.parametrize(("data", "status"), [
    (b"NONSENSE\r\n\r\n", 400), (b"GET /health\r\n\r\n", 400), (b"\0" * 100, 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # https, spoken to http
    (GET + b"a: \0\r\n\r\n", 400), (GET + b"a: " + b"b" * 2**20 + b"\r\n\r\n", 400),
    (GET + b"host: other\r\n\r\n", 400), (b"GET /health HTTP/1.1\r\n\r\n", 400),
    (b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 400),
    (b"HEAD /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 200),
    (b"TRACE /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 405),
    (b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404),
    (JSON + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", 400),
    (JSON + b"content-length: -1\r\n\r\n", 400),
    (JSON + b"content-length: " + b"9" * 30 + b"\r\n\r\n", 400),
    (JSON + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    (JSON + b"transfer-encoding: chunked\r\n\r\nnonsense\r\n", 400),
    (b"POST /nothing HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
     b"1\r\na\r\nnonsense\r\n", 400)])
def test_what_is_no_request_is_refused_and_its_connection_closed(running, caplog, data, status):
    answer = asyncio.run(talk(running.port, data, 20))
    assert answer.status == status and answer.seconds < 20
    assert not [record for record in caplog.records if record.exc_info]


def test_a_broken_chunk_behind_an_answer_ends_its_connection_and_is_no_mistake_of_ours(
        running, caplog):
    async def tried():
        async with connected(running.port, b"POST /nothing HTTP/1.1\r\nhost: localhost\r\n"
                             b"transfer-encoding: chunked\r\n\r\n") as (reader, writer):
            said = await reader.readuntil(b"}}")
            writer.write(b"nonsense\r\n")
            return said, await reader.read()

    said, more = asyncio.run(asyncio.wait_for(tried(), 20))
    assert b" 404 " in said[:20] and not more
    assert not [record for record in caplog.records if record.exc_info]


def test_a_request_with_two_kinds_of_length_is_refused_and_what_follows_it_unread(running):
    hidden = GET.replace(b"/health", b"/v1/models") + b"\r\n"
    answer = asyncio.run(talk(running.port, JSON + b"content-length: 5\r\ntransfer-encoding: "
                              b"chunked\r\n\r\n0\r\n\r\n" + hidden, 20))
    assert answer.status == 400 and b"not both" in answer.body
    assert answer.body.count(b"HTTP/1.1") == 0 and answer.seconds < 20


def test_requests_in_one_go_are_answered_in_order(running):
    asks = b"".join(request_of(model="base", prompt="a" * i, max_tokens=0).replace(
        b"connection: close\r\n", b"") for i in range(1, 20))
    answer = asyncio.run(talk(running.port, asks + GET + b"connection: close\r\n\r\n"))
    counts = re.findall(rb'"prompt_tokens": (\d+)', answer.body)
    assert [*map(int, counts)] == [*range(1, 20)] and answer.body.endswith(b'{"status": "ready"}')


def test_connections_leave_some_files_to_the_process(running, monkeypatch):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    monkeypatch.setattr(connection, "SPARE_FILES", most - 10)

    async def tried():
        opened = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(40)]
        await asyncio.sleep(0.3)
        there = len(running.server.server_state.connections)
        for _, writer in opened:
            writer.transport.abort()
        while running.server.server_state.connections:
            await asyncio.sleep(0.01)
        return there, await ask(running.port, model="base", prompt="a")

    there, answer = asyncio.run(tried())
    assert there == 10 and answer.status == 200


def test_a_hundred_texts_of_one_expression_make_one_grammar_of_it(monkeypatch):
    import llguidance
    made = []

    class Counted:
        def __getattr__(self, name):
            return getattr(matcher, name)

        def __call__(self, *arguments):
            made.append(arguments)
            return matcher(*arguments)

    matcher = llguidance.LLMatcher
    monkeypatch.setattr(llguidance, "LLMatcher", Counted())
    grammar = grammars(build_tokenizer("byte"))
    first, second, *_ = [grammar(SamplingConfig(regex="[ab]c")) for _ in range(100)]
    assert len(made) == 1
    first.accept(ord("a"))
    assert first.allowed()[ord("c")] and not second.allowed()[ord("c")]  # each its own place
    assert grammar(SamplingConfig(regex="d")).allowed().nonzero().tolist() == [[ord("d")]]
    with pytest.raises(UserError):
        grammar(SamplingConfig(regex="("))


def test_disconnects_at_random_moments_leave_nothing(running):
    draw = random.Random(0)

    async def tried():
        async def leave(stream):
            await ask(running.port, seconds=draw.random() / 4, stream=stream, n=2, **ENDLESS)

        for _ in range(6):
            await asyncio.gather(*(leave(i % 2 == 0) for i in range(4)))
        await until_idle(running.port)
        return await ask(running.port, model="base", prompt="a")

    assert asyncio.run(tried()).status == 200


def test_a_seed_gives_the_same_text_whatever_else_is_asked(running):
    fixed = {"model": "base", "prompt": "abc", "seed": 7, "max_tokens": 40}

    async def text(**changes):  # what is refused while the queue is full is asked again
        while (told := await ask(running.port, **fixed | changes)).status == 429:
            await asyncio.sleep(0.05)
        assert told.status == 200
        return told.text

    async def tried():
        alone = await text()
        others = [asyncio.create_task(ask(running.port, stream=i % 2 == 0, seed=i, n=1 + i % 2,
                                          **ENDLESS | {"prompt": "b" * i})) for i in range(1, 8)]
        among = [await text(stream=i % 2 == 0) for i in range(4)]
        other = await text(seed=8)
        return alone, among, other, [(await each).status for each in others]

    alone, among, other, statuses = asyncio.run(tried())
    assert among == [alone] * 4 and other != alone
    assert set(statuses) <= {200, 429} and 200 in statuses


def test_files_threads_and_tasks_are_as_many_after_requests_of_all_kinds(running):
    there = psutil.Process()

    async def some(count):
        for i in range(count):
            await asyncio.gather(
                ask(running.port, model="base", prompt="a", max_tokens=3, stream=i % 2 == 0),
                ask(running.port, model="base", prompt="a", n=10**9),
                ask(running.port, "/v1/score", model="base", text="abc"),
                ask(running.port, "/v1/chat/completions", model="chat", max_tokens=2,
                    messages=[{"role": "user", "content": "a"}]),
                ask(running.port, seconds=0.01, stream=True, **ENDLESS))
        await until_idle(running.port)
        while running.server.server_state.connections:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # a connection that was cut is closed a little later
        names = [thread.name for thread in threading.enumerate()]
        pool = [name for name in names if name.startswith("asyncio_")]  # grows as it is needed
        assert len(pool) <= min(32, (os.cpu_count() or 1) + 4), "as many as asyncio makes at most"
        return there.num_fds(), len(names) - len(pool), len(asyncio.all_tasks(running.loop))

    asyncio.run(some(5))
    before, after = asyncio.run(some(5)), asyncio.run(some(20))
    assert all(more <= few for more, few in zip(after, before, strict=True)), (before, after)


def test_a_second_signal_ends_the_thread_that_computes_too(other):
    """Else Python ends while torch computes, and the process aborts."""
    engines = {thread for thread in threading.enumerate() if thread.name == "engine"}
    other.lm("base").model.final_norm.register_forward_hook(lambda *call: time.sleep(0.05))

    async def tried():
        writing = asyncio.create_task(ask(other.port, stream=True, **ENDLESS | {"n": 8}))
        while not (await metrics(other.port))['gpt_rows{model="base"}']:
            await asyncio.sleep(0.01)
        for _ in range(2):  # the text takes ten seconds: it is still being written
            other.loop.call_soon_threadsafe(other.server.handle_exit, signal.SIGTERM, None)
        return await writing

    answer = asyncio.run(tried())
    other._thread.join(20)
    assert not answer.is_whole and other.server.cut_off
    assert len([thread for thread in engines if thread.is_alive()]) == len(engines) - 1


def test_a_text_that_is_not_finished_in_time_is_cut_off(monkeypatch):
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.3)
    started = Running({"base": model_of(seed=1)}, Place(port=0))

    async def tried():
        async with connected(started.port, JSON + b"content-length: 9\r\n\r\n") as (reader, _):
            await asyncio.sleep(0.2)
            started.server.should_exit = True
            return await reader.read()

    asyncio.run(asyncio.wait_for(tried(), 20))
    started._thread.join(20)
    assert started.server.cut_off and not started._thread.is_alive()


def test_a_signal_while_slow_clients_hold_connections_ends_the_process(tmp_path):
    """Those who send nothing are left at once; one that asks for an answer gets it."""
    async def tried(started):
        slow = [await asyncio.open_connection("127.0.0.1", started.port) for _ in range(20)]
        for _, writer in slow[:10]:
            writer.write(b"GET /hea")
        asks = asyncio.create_task(ask(started.port, prompt="a", max_tokens=500, stream=True,
                                       logit_bias={"256": -100}))
        while not (await metrics(started.port)).get('gpt_rows{model="tiny"}'):
            await asyncio.sleep(0.01)
        started.signal()
        answer = await asks
        for _, writer in slow:
            writer.transport.abort()
        return answer

    with Launched(make_model(tmp_path / "tiny")) as started:
        begun = time.monotonic()
        assert asyncio.run(tried(started)).is_whole
        assert started.code() == 0 and time.monotonic() - begun < server.GRACE_SECONDS
        assert not started.tracebacks
