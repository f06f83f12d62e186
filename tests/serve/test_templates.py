"""Chats with a model that brought its own template: asked in it, and what requests say to it."""

from __future__ import annotations

import httpx
import pytest

from gpt.chat import Message, own_chat
from gpt.configuration import sampling_config
from gpt.serve import Place
from tests.chat.templates import WRITTEN
from tests.serve.conftest import Running, model_of

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def model_with(text):
    lm = model_of()
    lm.tokenizer.chat_template = text
    return lm


@pytest.fixture(scope="module")
def serving():
    plain = WRITTEN["no control tokens"][0]
    thinking = "{{ 'thinking ' ~ (enable_thinking | default('unsaid')) }}" + plain
    server = Running({"own": model_with(plain), "thinks": model_with(thinking),
                      "refuses": model_with("{{ raise_exception('no') }}"),
                      "broken": model_with("{% if %}")}, Place(port=0))
    yield server
    server.close()


def asked(serving, **body):
    return httpx.post(serving.url + "/v1/chat/completions", json={
        "messages": TURNS, "temperature": 0, "max_tokens": 8, **body})


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}])
def test_a_chat_is_written_by_the_models_own_template(serving, options):
    name = "thinks" if options else "own"
    lm = serving.lm(name)
    chat = own_chat(lm.tokenizer)
    prompt = chat.prompt([Message(turn["role"], turn["content"]) for turn in TURNS], options)
    expected = ("thinking False" if options else "") + (
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\n")
    assert lm.tokenizer.decode(prompt) == expected
    answer = asked(serving, model=name, **({"chat_template_kwargs": options} if options else {}))
    made = answer.json()
    request = lm.request(prompt, sampling_config(temperature=0, max_new_tokens=8))
    assert made["choices"][0]["message"]["content"] == "".join(
        piece.text for _, piece in lm.write([request]))
    assert made["usage"]["prompt_tokens"] == len(prompt)


@pytest.mark.parametrize(("model", "options", "told"), [
    ("own", {"enable_thinking": False}, "enable_thinking means nothing to the base model's own"),
    ("thinks", {"messages": "a"}, "messages is no option of a template"),
    ("refuses", None, "refuses this conversation: no"),
    ("broken", None, "refuses this conversation: Expected an expression")])
def test_what_a_template_cannot_write_is_the_requests_mistake(serving, model, options, told):
    answer = asked(serving, model=model, chat_template_kwargs=options)
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]
    completed = httpx.post(serving.url + "/v1/completions", json={
        "model": model, "prompt": "a", "max_tokens": 2})
    assert completed.status_code == 200
