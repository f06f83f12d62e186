"""Requests of every shape, drawn from /openapi.json and at random: none is the server's mistake."""

from __future__ import annotations

import json

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks

from gpt.serve import Place
from tests.serve.conftest import Running, model_of

POSTS = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/score", "/tokenize",
         "/detokenize"]
GETS = ["/v1/models", "/v1/models/{name}", "/tokenizer_info", "/health", "/ready", "/metrics",
        "/openapi.json"]
STATUSES = {200, 400, 404, 408, 413, 415, 429}
SECONDS = 5  # for any answer: what is asked of the model is kept short below
COUNTS = [25, pytest.param(200, marks=pytest.mark.slow)]
CLIENT = httpx.Client(timeout=SECONDS)


@pytest.fixture(scope="module")
def server():
    """A model that answers to every name, so that requests reach it."""
    server = Running({"chat": model_of("turns")}, Place(port=0, any_name=True))
    yield server
    server.close()


def drawn(count):
    """The same requests each time."""
    return settings(max_examples=count, derandomize=True, database=None, deadline=None,
                    suppress_health_check=list(HealthCheck))


def shortened(body):
    """Few tokens and texts, where many may be asked for."""
    most = {"max_tokens": 4, "max_completion_tokens": 4, "max_output_tokens": 4, "n": 3,
            "best_of": 3}
    if isinstance(body, dict):
        for name, value in most.items():
            if isinstance(body.get(name), int):
                body[name] = min(body[name], value)
    return body


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("path", "mode"), [
    *((path, mode) for path in POSTS for mode in GenerationMode),
    *((path, GenerationMode.POSITIVE) for path in GETS)])  # of which little can be asked wrongly
def test_what_the_description_allows_or_forbids_is_answered_as_it_says(server, path, mode, count):
    schema = schemathesis.openapi.from_dict(CLIENT.get(server.url + "/openapi.json").json())
    operation = schema[path]["POST" if path in POSTS else "GET"]
    statuses = set()

    @drawn(count)
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case):
        case.body = shortened(case.body)
        answer = case.call(base_url=server.url, timeout=SECONDS)
        statuses.add(answer.status_code)
        assert answer.status_code in STATUSES, answer.text
        case.validate_response(answer, checks=[
            checks.not_a_server_error, checks.status_code_conformance,
            checks.content_type_conformance, checks.response_schema_conformance])

    ask()
    assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses


NUMBERS = st.one_of(st.sampled_from([0, 1, 2, -1, 2**31, 2**63, 2**64, 10**30, 10**400, 0.0, -0.0,
                                     1e-300, 1e308]), st.integers(-5, 5), st.floats())
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(
    ["", "\0", "\ud800", "(", "[a-", "<|endoftext|>"]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4),
                            st.dictionaries(TEXTS, inner, max_size=4)), max_leaves=12)
GOOD = {"/v1/completions": {"prompt": "abc", "max_tokens": 3},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 3}, "/v1/score": {"text": "abc"},
        "/tokenize": {"prompt": "abc"}, "/detokenize": {"tokens": [1, 2]}}


def bodies(path, fields):
    """Bytes; JSON; and a request that would be answered, some of whose fields hold anything."""
    wrong = st.dictionaries(st.sampled_from(fields), VALUES, min_size=1, max_size=3)
    return st.one_of(
        st.binary(max_size=40), VALUES.map(json.dumps).map(str.encode),
        wrong.map(lambda changes: json.dumps(shortened(GOOD[path] | changes)).encode()))


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", POSTS)
def test_bodies_of_any_shape_are_answered_or_refused_with_an_error_object(server, path, count):
    described = CLIENT.get(server.url + "/openapi.json").json()
    content = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].rpartition("/")[2]
    statuses = set()

    @drawn(count)
    @given(bodies(path, sorted(described["components"]["schemas"][name]["properties"])))
    def ask(body):
        answer = CLIENT.post(server.url + path, content=body,
                             headers={"content-type": "application/json"})
        statuses.add(answer.status_code)
        assert answer.status_code in STATUSES, answer.text
        assert "server_error" not in answer.text  # in a stream, too
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error.keys() == {"message", "type", "param", "code"} and error["message"]

    ask()
    assert {200, 400} <= statuses
