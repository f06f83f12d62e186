"""Bodies and requests that no client should send, and the statuses that they may be answered with.

They are made when they are asked for: some are large.
"""

from __future__ import annotations

import json
from typing import Any

from tests.serve.launched import HEAD, request_of

BEGIN = b'{"model": "tiny", "prompt": '
GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
POST = HEAD % b"/v1/completions"
ASK = request_of(model="tiny", prompt="a", max_tokens=2)
CLOSE = b"connection: close\r\n"


def declared(size: int) -> bytes:
    """A request with a body of so many bytes."""
    return POST + CLOSE + b"content-length: %d\r\n\r\n" % size + bytes(size)


def chunked(size: int) -> bytes:
    """The same in chunks, so that its length is not known before."""
    part = b"%x\r\n" % 100_000 + bytes(100_000) + b"\r\n"
    return POST + CLOSE + b"transfer-encoding: chunked\r\n\r\n" + part * (size // 100_000
                                                                          ) + b"0\r\n\r\n"


def many(count: int, text: bytes) -> bytes:
    """So many members of an object or array; %d in them counts."""
    return b",".join(text % i if b"%d" in text else text for i in range(count))


def bodies() -> dict[str, tuple[str, bytes, set[int]]]:
    """name: (path, body, statuses)"""
    at = "/v1/completions"

    def asks(**fields: Any) -> bytes:
        return json.dumps({"model": "tiny", "prompt": "a"} | fields).encode()

    def schema(**content: Any) -> bytes:
        return asks(max_tokens=20, response_format={
            "type": "json_schema", "json_schema": {"name": "x", "schema": content}})

    refused = {
        "1,000,000 arrays in each other": b"[" * 1_000_000,
        "500,000 objects in each other": b'{"a":' * 500_000,
        "n of 10^9": asks(n=10**9), "max_tokens of 10^12": asks(max_tokens=10**12),
        "bad UTF-8": BEGIN + b'"\xff\xfe"}', "half a surrogate pair": BEGIN + rb'"\ud800"}',
        "NaN": BEGIN + b'"a", "temperature": NaN}', "1e999": BEGIN + b'"a", "temperature": 1e999}',
        "an integer of 401 digits": BEGIN + b'"a", "temperature": 1' + b"0" * 400 + b"}",
        "an integer of 10^6 digits": BEGIN + b'"a", "seed": ' + b"1" * 10**6 + b"}",
        "an object of 500,000 keys": b"{" + many(500_000, b'"%d": 1') + b"}",
        "10^5 biases of no token": BEGIN + b'"a", "logit_bias": {' + many(10**5, b'"x%d": 1')
        + b"}}",
        "a string of 3,900,000 quotes that does not end": BEGIN + b'"' + rb'\"' * 3_900_000,
        "2,600,000 empty arrays": BEGIN + b"[" + many(2_600_000, b"[]") + b"]}",
        "1,500,000 numbers that are no tokens": BEGIN + b"[" + many(1_500_000, b"1.5") + b"]}",
        "4,000,000 token ids": BEGIN + b"[" + many(4_000_000, b"1") + b"]}",
        "2,000,000 empty prompts": BEGIN + b"[" + many(2_000_000, b'""') + b"]}",
        "a prompt of 7 MB": asks(prompt="a" * 7_000_000),
        "20 stop texts": asks(stop=["a"] * 20), "nothing": b"", "null": b"null",
        "an expression of 2,000 brackets": asks(regex="(" * 2000 + ")" * 2000),
        "a schema of 200,000 values": schema(enum=[f"x{i}" for i in range(200_000)]),
        "a schema of 50,000 properties": schema(properties={f"x{i}": {} for i in range(50_000)}),
        "a schema elsewhere": schema(**{"$ref": "http://127.0.0.1:1/x"})}
    either = {
        "regex (a{1,1000}){1,1000}": asks(regex="(a{1,1000}){1,1000}"),
        "regex a{1000000}": asks(regex="a{1000000}"),
        "regex a{1000000}, 128 times": asks(regex="a{1000000}", n=128, max_tokens=2),
        "regex (a|b)*a(a|b){20}": asks(regex="(a|b)*a(a|b){20}"),
        "regex .*a.{200}": asks(regex=".*a.{200}"),
        "a schema that is itself": schema(**{"$ref": "#"}),
        "a seed of 4,000 digits": BEGIN + b'"a", "seed": 1' + b"0" * 4000 + b"}",
        "100,000 times the same key": b'{"model": "tiny", ' + b'"prompt": "a", ' * 10**5
        + b'"max_tokens": 1}'}
    found = {name: (at, data, {400}) for name, data in refused.items()}
    found |= {name: (at, data, {200, 400}) for name, data in either.items()}
    turns = [{"role": "user", "content": "a" * 500}, {"role": "assistant", "content": "b" * 200}]
    found["10,000 turns"] = ("/v1/chat/completions", json.dumps(
        {"model": "tiny", "messages": turns * 5000}).encode(), {400})
    found["7 MB to tokenize"] = ("/tokenize", asks(prompt="a" * 7_000_000), {200})
    return found


def requests() -> dict[str, tuple[bytes, set[int]]]:
    """name: (all that is sent, statuses of the first answer)"""
    refused = {
        "a bad request line": b"NONSENSE\r\n\r\n", "HTTP/0.9": b"GET /health\r\n\r\n",
        "null bytes": bytes(1000), "a null byte in a header": GET + b"a: \0\r\n\r\n",
        "https, spoken to http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        "two content-lengths": POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
        "a content-length of -1": POST + b"content-length: -1\r\n\r\n",
        "a content-length of 30 digits": POST + b"content-length: " + b"9" * 30 + b"\r\n\r\n",
        "content-length and transfer-encoding": POST + b"content-length: 5\r\ntransfer-encoding: "
        b"chunked\r\n\r\n0\r\n\r\n" + GET + b"\r\n",
        "two transfer-encodings": POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "a broken chunk": POST + b"transfer-encoding: chunked\r\n\r\nnonsense\r\n",
        "a broken chunk nobody reads": b"POST /x HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: "
        b"chunked\r\n\r\n1\r\na\r\nnonsense\r\n",
        "a header of 1 MB": GET + b"a: " + b"b" * 2**20 + b"\r\n\r\n",
        "a path of 1 MB": b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "two hosts": GET + b"host: other\r\n\r\n", "no host": b"GET /health HTTP/1.1\r\n\r\n"}
    found = {name: (data, {400}) for name, data in refused.items()}
    for method, status in (("HEAD", 200), ("OPTIONS", 405), ("TRACE", 405), ("CONNECT", 405),
                           ("X" * 20_000, 405)):
        found[method[:10]] = (GET.replace(b"GET", method.encode()) + CLOSE + b"\r\n", {status})
    found["10,000 headers"] = (GET + many(10_000, b"a%d: b\r\n").replace(b",", b"") + CLOSE
                               + b"\r\n", {200, 400, 431})
    for name, host in (("a host with half a bracket", b"[::1"), ("no name as host", b""),
                       ("another host", b"evil.example")):
        found[name] = (b"GET /x HTTP/1.1\r\nhost: " + host + b"\r\n" + CLOSE + b"\r\n", {421})
    found["HTTP/2"] = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 421})
    found["100 requests in one go"] = (ASK.replace(CLOSE, b"") * 99 + ASK, {200})
    found["nonsense behind a request"] = (ASK.replace(CLOSE, b"") + b"\0nonsense\r\n\r\n", {200})
    found["a body that is waited for"] = (ASK.replace(
        CLOSE, CLOSE + b"expect: 100-continue\r\n"), {100})
    found["an upgrade"] = (GET + b"upgrade: websocket\r\nconnection: upgrade\r\n\r\n", {200})
    found["a connection that is kept and not used"] = (GET + b"\r\n", {200})
    found["a body in zip"] = (POST + CLOSE + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\n"
                              b"\x1f\x8b\x08", {400})
    return found
