"""What clients must not be able to do, and what they are told."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import tracemalloc

import httpx
import pytest

from gpt.serve import Place, connection, reading
from gpt.serve.protocol import texts
from gpt.serve.protocol.errors import ApiError
from tests.serve.conftest import Running, model_of

CLIENT = httpx.Client(timeout=60)  # making one takes a while


def asked(running, path="/v1/completions", **body):
    return CLIENT.post(running.url + path, json={"model": "base", "prompt": "abc"} | body)


@pytest.mark.parametrize(("body", "status", "param", "told"), [
    ({"n": 10**9}, 400, "n", "less than or equal to 128"),
    ({"n": 2, "prompt": ["a"] * 100}, 400, "n", "200 texts"),
    ({"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
    ({"max_tokens": "5"}, 400, "max_tokens", "valid integer"),
    ({"max_tokens": True}, 400, "max_tokens", "valid integer"),
    ({"temperature": 2.5}, 400, "temperature", "less than or equal to 2"),
    ({"temperature": 0.00001}, 400, "temperature", "give 0"),
    ({"suffix": "x"}, 400, "suffix", ""),
    ({"nonsense": 1}, 400, "nonsense", "unknown here"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias", ""),
    ({"logit_bias": {"9999": 1}}, 400, "logit_bias", "no token 9999"),
    ({"prompt": [1, 99999]}, 400, "prompt", "no token 99999"),
    ({"prompt": [1, -1]}, 400, "prompt", "no token -1"),
    ({"prompt": "a" * 300}, 400, None, "this server reads 200"),
    ({"prompt": {"a": 1}}, 400, "prompt", ""),
    ({"stop": [""]}, 400, "stop", ""),
    ({"stop": ["a"] * 20}, 400, "stop", ""),
    ({"model": "other"}, 404, "model", "there are base, chat"),
    ({"stream_options": {"include_usage": True}}, 400, None, "stream=true"),
    ({"best_of": 2, "n": 3}, 400, None, "less than n"),
    ({"best_of": 2, "stream": True}, 400, None, "not for streams"),
    ({"regex": "("}, 400, "regex", ""),
    ({"response_format": {"type": "json_schema"}}, 400, "response_format", "json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"type": "nonsense"}}}}, 400, "json_schema", "")])
def test_wrong_fields_are_named(running, body, status, param, told):
    answer = asked(running, **body)
    error = answer.json()["error"]
    assert answer.status_code == status and told in error["message"]
    assert (error["param"] or "").partition(".")[0] == (param or "")
    assert set(error) == {"message", "type", "param", "code"}


def test_an_answer_has_no_more_alternatives_than_memory_is_meant_for(running, monkeypatch):
    monkeypatch.setattr(texts, "MOST_ALTERNATIVES_TOLD", 2 * 20 * 5)
    assert asked(running, n=2, logprobs=20, max_tokens=5).status_code == 200
    for more in ({"max_tokens": 6}, {"n": 3}, {"echo": True, "max_tokens": 1}):
        answer = asked(running, **({"n": 2, "logprobs": 20, "max_tokens": 5} | more))
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "logprobs"
        assert "alternatives" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("data", "status"), [
    (b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (b'{"a": NaN}', 400),
    (b"\xff\xfe{}", 400), (b'{"model": "base", "prompt": "\xff"}', 400),
    (b'{"model": "base", "prompt": "\\ud800"}', 400), (b'{"a": ' + b"9" * 5000 + b"}", 400),
    (b'{"a":' * 100_000, 400), (b"[" * 1_000_000, 400),
    (b'{"prompt": "' + b"a" * (reading.LARGEST + 1) + b'"}', 413)])
def test_bodies_that_are_no_json_or_too_large_are_refused_at_once(running, data, status):
    begun = time.monotonic()
    answer = CLIENT.post(running.url + "/v1/completions", content=data,
                        headers={"content-type": "application/json"})
    assert answer.status_code == status and answer.json()["error"]["message"]
    assert time.monotonic() - begun < 5


def test_a_body_that_is_too_large_is_not_kept_in_memory():
    class Sent:
        async def stream(self):
            for _ in range(100):
                yield bytes(2**20)

    tracemalloc.start()
    with pytest.raises(ApiError, match="larger than"):
        asyncio.run(reading._bytes_of(Sent()))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < reading.LARGEST + 4 * 2**20


def test_pages_of_other_origins_cannot_ask(running):
    """They can send a form or a text unasked, or have a name of theirs lead here."""
    answer = CLIENT.post(running.url + "/v1/completions", content=b"{}",
                        headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    for host, status in (("evil.example", 421), ("127.0.0.1.evil.example:80", 421), ("", 421),
                         ("localhost:1", 200), ("[::1]:80", 200), ("127.0.0.1", 200)):
        assert CLIENT.get(running.url + "/v1/models",
                         headers={"host": host}).status_code == status, host
    assert "access-control-allow-origin" not in CLIENT.get(
        running.url + "/v1/models", headers={"origin": "https://example.org"}).headers


def test_a_key_is_asked_for_and_origins_are_let_in_by_name():
    guarded = Running({"base": model_of()}, Place(port=0, key="secret",
                                                  origins=("https://example.org",)))
    try:
        address = guarded.url + "/v1/models"
        for given in (None, "Bearer wrong", "secret2", "Bearer secre", "Bearer ü"):
            headers = {} if given is None else {"authorization": given.encode()}
            answer = CLIENT.get(address, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert CLIENT.get(address, headers={"authorization": "Bearer secret"}).status_code == 200
        for path, status in (("/health", 200), ("/", 200), ("/playground/main.js", 200),
                             ("/playground/nothing", 404), ("/metrics", 401)):
            assert CLIENT.get(guarded.url + path).status_code == status, path
        for path in ("/playground/tokens", "/v1/completions", "/tokenize"):
            assert CLIENT.post(guarded.url + path, json={}).status_code == 401, path
        asks = {"origin": "https://example.org", "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type"}
        assert CLIENT.options(address, headers=asks).status_code == 200
        assert CLIENT.options(address, headers=asks | {"origin": "https://other.org"}
                             ).status_code == 400
    finally:
        guarded.close()


def test_slow_headers_and_slow_bodies_are_given_up_while_others_are_answered(running, monkeypatch):
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(reading, "SECONDS", 0.5)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    slow = []
    for data in (b"", b"POST /v1", head + b"content-length: 50\r\n\r\n{") * 20:
        slow.append(socket.create_connection(("127.0.0.1", running.port)))
        slow[-1].sendall(data)
    begun = time.monotonic()
    assert asked(running, max_tokens=3).status_code == 200
    for one in slow:
        one.settimeout(5)
        assert b" 408 " in one.recv(1000)
        one.close()
    assert time.monotonic() - begun < 5


def test_more_texts_than_may_wait_are_refused_with_a_time_to_come_back(running):
    with CLIENT.stream("POST", running.url + "/v1/completions", json={
            "model": "base", "prompt": "a", "n": 128, "max_tokens": 190, "stream": True,
            "logit_bias": {"256": -100}}) as busy:
        lines = busy.iter_lines()  # kept: without it the client leaves
        next(lines)
        refused = asked(running)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
    for _ in range(100):  # its reader has left: all of its texts are forgotten
        if asked(running, max_tokens=1).status_code == 200:
            return
        time.sleep(0.05)
    raise AssertionError("the texts of a client that left go on")


def test_a_client_that_does_not_read_is_left(running, monkeypatch):
    monkeypatch.setattr(connection, "READ_SECONDS", 0.5)
    body = json.dumps({"model": "base", "prompt": "a", "n": 128, "max_tokens": 190, "stream": True,
                       "logprobs": 20, "logit_bias": {"256": -100}}).encode()
    before = len(asyncio.all_tasks(running.loop))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", running.port))
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: "
                       b"application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        begun = time.monotonic()
        while not _metrics(running)['gpt_rows{model="base"}']:
            time.sleep(0.01)
        while _metrics(running)['gpt_rows{model="base"}'] or len(
                asyncio.all_tasks(running.loop)) > before + 1:
            time.sleep(0.05)
            assert time.monotonic() - begun < 100
    written = _written(running)
    assert asked(running, max_tokens=1).status_code == 200 and written > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_step_that_fails_ends_its_texts_and_nothing_else(running, monkeypatch, stream):
    def fails():
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(running.models["base"].writer, "step", fails)
    answer = asked(running, max_tokens=5, stream=stream)
    error = (json.loads(answer.text.removeprefix("data: ")) if stream else answer.json())["error"]
    assert answer.status_code == (200 if stream else 500)
    assert error["message"] == "the model could not go on: RuntimeError: out of memory"
    assert error["type"] == "server_error"
    assert asked(running, max_tokens=5).status_code == 200


def test_nothing_is_left_of_a_client_that_does_not_wait_for_its_answer(running):
    def busy():
        found = _metrics(running)
        return found['gpt_rows{model="base"}'] + found['gpt_queue{model="base"}']

    before = len(asyncio.all_tasks(running.loop))
    body = json.dumps({"model": "base", "prompt": "a", "n": 20, "max_tokens": 190,
                       "logit_bias": {"256": -100}}).encode()
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: "
                       b"application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        while not busy():
            time.sleep(0.001)
    began = _written(running)
    for _ in range(100):
        if not busy() and len(asyncio.all_tasks(running.loop)) <= before + 1:  # ours asks
            assert _written(running) < began + 3800
            return
        time.sleep(0.05)
    raise AssertionError(asyncio.all_tasks(running.loop))


def test_what_is_counted_can_be_read(running):
    before = _metrics(running)
    asked(running, prompt="abcd", max_tokens=3, logit_bias={"256": -100})
    asked(running, n=0)
    after = _metrics(running)

    def more(name):
        return after.get(name, 0) - before.get(name, 0)

    assert more('gpt_tokens_total{kind="read",model="base"}') == 4
    assert more('gpt_tokens_total{kind="written",model="base"}') == 3
    assert more('gpt_requests_total{model="base",status="200"}') == 1
    assert more('gpt_time_to_first_token_seconds_count{model="base"}') == 1
    assert more('gpt_time_per_token_seconds_count{model="base"}') == 2
    assert after['gpt_rows{model="base"}'] == after['gpt_queue{model="base"}'] == 0


def _written(running):
    return _metrics(running).get('gpt_tokens_total{kind="written",model="base"}', 0)


def _metrics(running):
    lines = CLIENT.get(running.url + "/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines
                                                      if not line.startswith("#"))}


def test_the_description_names_every_address_and_field(running):
    described = CLIENT.get(running.url + "/openapi.json").json()
    routes = {route.path.replace(":path", "") for route in running.server.config.app.routes}
    page = {path for path in routes if path == "/" or path.endswith((".js", ".css"))}
    assert set(described["paths"]) == routes - page
    fields = described["components"]["schemas"]["Completion"]
    assert fields["additionalProperties"] is False and "best_of" in fields["properties"]
    json.dumps(described)


def test_addresses_and_methods_that_are_not_there_are_errors_like_others(running):
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405),
                                 ("POST", "/v1/models", 405)):
        answer = CLIENT.request(method, running.url + path)
        assert answer.status_code == status and path in answer.json()["error"]["message"]


def test_tokens_and_texts_become_each_other(running):
    tokens = asked(running, "/tokenize", prompt="héllo").json()
    assert tokens["count"] == 6
    back = CLIENT.post(running.url + "/detokenize",
                      json={"model": "base", "tokens": tokens["tokens"]}).json()
    assert back["prompt"] == "héllo"
    wrong = CLIENT.post(running.url + "/detokenize", json={"tokens": [5, 10**6]})
    assert wrong.status_code == 400 and "1000000" in wrong.json()["error"]["message"]


def test_the_tokens_that_texts_end_with_can_be_looked_up_by_name(running):
    """And nothing but a lookup makes a control token of a text."""
    end = CLIENT.get(running.url + "/tokenizer_info").json()["eos_token"]
    for prompt, more, expected in ((end, {"add_special_tokens": False}, [256]),
                                   (end, {}, [*end.encode()]),
                                   (end + " ", {"add_special_tokens": False}, [*end.encode(), 32])):
        found = asked(running, "/tokenize", prompt=prompt, **more).json()
        assert found["tokens"] == expected and found["count"] == len(expected)
    assert asked(running, prompt=end, max_tokens=1).json()["usage"]["prompt_tokens"] == len(end)


def looked(running, **body):
    """What /playground/tokens tells of each token."""
    answer = CLIENT.post(running.url + "/playground/tokens", json={
        "model": "base", "prompt": "a", "max_tokens": 1, "stream": True} | body)
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line[6:7] == "{"]


def test_what_is_looked_at_says_what_ends_a_text_and_what_a_chosen_token_completes(running):
    end = running.lm("base").tokenizer.end_of_text
    token, = looked(running, logit_bias={str(end): 100.0}, alternatives=5)
    assert {place[0]: place[4] for place in token["places"]}[end] is True
    assert sum(place[4] for place in token["places"]) == 1
    assert token["token"] == end and token["end"] == "stop" and "last" not in token
    assert [looked(running, written=written)[0]["last"] for written in (
        [0x62], [0xc3], [0xc3, 0xa9], [0xc3, 0x62])] == ["b", "", "é", "\ufffdb"]
    assert ["last" in token for token in looked(running, written=[0x62], max_tokens=3,
                                                logit_bias={str(end): -100.0})
            ] == [True, False, False]


@pytest.mark.parametrize(("body", "told"), [
    ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "not both"),
    ({"stream": False}, "stream"), ({"max_tokens": 0}, "max_tokens"), ({"written": [999]}, "999"),
    ({"messages": [{"role": "user", "content": "a"}]}, "does not converse")])
def test_what_cannot_be_looked_at_is_refused(running, body, told):
    answer = CLIENT.post(running.url + "/playground/tokens",
                         json={"model": "base", "stream": True} | body)
    assert answer.status_code == 400 and told in answer.text
