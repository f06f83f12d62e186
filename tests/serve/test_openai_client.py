"""The official client, unmodified: what it is told is what the model says elsewhere."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.serve.conftest import answer_of


@pytest.fixture(scope="module")
def client(running):
    return openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0)


def completed(client, prompt="abc", **settings):
    return client.completions.create(model="base", prompt=prompt, **settings)


def test_models_are_listed_by_their_names(client):
    assert [model.id for model in client.models.list()] == ["base", "chat"]
    assert client.models.retrieve("chat").id == "chat"
    with pytest.raises(openai.NotFoundError, match="there are base, chat"):
        client.models.retrieve("other")


def test_texts_are_those_of_the_model(client, running):
    lm = running.lm("base")
    for settings in ({"temperature": 0}, {"seed": 5}, {"seed": 5, "top_p": 0.7},
                     {"temperature": 0.5, "seed": 2, "presence_penalty": 1.5},
                     {"temperature": 0, "frequency_penalty": 2},
                     {"seed": 3, "logit_bias": {"101": 50}}):
        expected = lm.generate("abc", max_new_tokens=30, **settings)
        whole = completed(client, max_tokens=30, **settings)
        assert whole.choices[0].text == expected
        parts = list(completed(client, max_tokens=30, stream=True, **settings))
        assert "".join(part.choices[0].text for part in parts) == expected
        assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_more_samplers_and_grammars_can_be_asked_for(client, running):
    lm = running.lm("base")
    for extra in ({"top_k": 3, "seed": 1}, {"min_p": 0.2, "seed": 1},
                  {"repetition_penalty": 2.0, "temperature": 0}, {"regex": "[a-c]{5}", "seed": 1}):
        known = {name: extra.pop(name) for name in ("seed", "temperature") if name in extra}
        made = completed(client, max_tokens=12, extra_body=extra, **known)
        assert made.choices[0].text == lm.generate("abc", max_new_tokens=12, **extra, **known)


def test_zero_null_and_absent_are_told_apart(client, running):
    lm, free = running.lm("base"), {"seed": 4, "max_tokens": 20}
    drawn = completed(client, **free).choices[0].text
    assert drawn == lm.generate("abc", seed=4, max_new_tokens=20)
    assert completed(client, **free, temperature=None).choices[0].text == drawn
    greedy = lm.generate("abc", temperature=0, max_new_tokens=20)
    assert greedy != drawn
    for zero in ({"temperature": 0}, {"top_p": 0}):
        assert completed(client, **free, **zero).choices[0].text == greedy
    assert completed(client, max_tokens=0).choices[0].text == ""
    assert len(completed(client, max_tokens=None, logprobs=0).choices[0].logprobs.tokens) <= 16
    told = completed(client, logprobs=0).choices[0].logprobs  # the written tokens alone
    assert told.top_logprobs == [{token: logprob} for token, logprob in zip(
        told.tokens, told.token_logprobs, strict=True)]
    assert completed(client).choices[0].logprobs is None


def test_every_choice_has_a_seed_of_its_own_as_samples_of_the_command_have(client, running):
    lm = running.lm("base")
    made = completed(client, prompt=["abc", "x"], n=3, seed=7, max_tokens=9)
    assert [choice.text for choice in made.choices] == [
        lm.generate(prompt, seed=7 + i, max_new_tokens=9) for prompt in ("abc", "x")
        for i in range(3)]
    assert [choice.index for choice in made.choices] == list(range(6))
    streamed = [""] * 6
    for part in completed(client, prompt=["abc", "x"], n=3, seed=7, max_tokens=9, stream=True):
        streamed[part.choices[0].index] += part.choices[0].text
    assert streamed == [choice.text for choice in made.choices]


def test_of_several_the_likeliest_are_returned(client):
    each = completed(client, n=6, seed=0, max_tokens=8, logprobs=0).choices
    ranked = sorted(each, key=lambda one: -sum(one.logprobs.token_logprobs)
                    / len(one.logprobs.tokens))
    best = completed(client, n=2, best_of=6, seed=0, max_tokens=8)
    assert [one.text for one in best.choices] == [one.text for one in ranked[:2]]
    assert best.usage.completion_tokens == sum(len(one.logprobs.tokens) for one in each)


def test_prompts_are_scored_as_the_model_scores_them(client, running):
    lm, text = running.lm("base"), "To be, or not"
    for prompt in (text, lm.prompt_tokens(text)):
        made = completed(client, prompt=prompt, echo=True, logprobs=1, max_tokens=0).choices[0]
        assert made.text == text and made.finish_reason == "length"
        scored = made.logprobs.token_logprobs
        assert scored[0] is None
        assert scored[1:] == pytest.approx(lm.score(text, begin=False)[1:], abs=1e-4)
        assert "".join(made.logprobs.tokens) == text
        assert made.logprobs.text_offset == list(range(len(text)))
    made = completed(client, prompt=text, echo=True, logprobs=1, max_tokens=4, temperature=0)
    told = made.choices[0].logprobs
    assert made.choices[0].text == text + lm.generate(text, temperature=0, max_new_tokens=4)
    for logprob, top in list(zip(told.token_logprobs, told.top_logprobs, strict=True))[-4:]:
        assert logprob == max(top.values())  # the likeliest, to the bit
    assert made.usage.prompt_tokens == len(text) and made.usage.completion_tokens == 4


def test_several_prompts_are_scored_each_by_itself(client, running):
    lm, texts = running.lm("base"), ["abc", "a longer text than that", "abc"]
    made = completed(client, prompt=texts, echo=True, logprobs=1, max_tokens=0)
    for text, choice in zip(texts, made.choices, strict=True):
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(
            lm.score(text, begin=False)[1:], abs=1e-4)


def test_a_stop_token_ends_a_text_and_is_no_part_of_it(client):
    made = completed(client, logit_bias={"256": 100}, logprobs=1, temperature=0)
    assert made.choices[0].text == "" and made.choices[0].finish_reason == "stop"
    assert made.usage.completion_tokens == 0 and made.choices[0].logprobs.tokens == []


def test_every_whole_number_is_a_seed(client):
    texts = [completed(client, seed=seed).choices[0].text
             for seed in (-9007199254740991, -9007199254740991, 9007199254740991, 0, 2**70 + 5)]
    assert texts[0] == texts[1] and len(set(texts)) == 4


def test_a_stop_text_ends_a_text_before_it(client, running):
    free = running.lm("base").generate("abc", seed=1, max_new_tokens=30)
    for stop in (free[5:7], [free[9], free[5:7]]):
        made = completed(client, seed=1, max_tokens=30, stop=stop).choices[0]
        assert made.finish_reason == "stop"
        assert made.text == running.lm("base").generate("abc", seed=1, max_new_tokens=30,
                                                        stop=stop)


# ----- Conversations

def test_answers_are_given_in_the_models_own_format(client, running):
    expected, length = answer_of(running.lm("chat"), ("system", "Be brief."), ("user", "Hello?"),
                                 temperature=0, max_new_tokens=20)
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "Hello?"}]}]
        made = client.chat.completions.create(model="chat", messages=messages, temperature=0,
                                              max_completion_tokens=20)
        assert made.choices[0].message.content == expected
        assert made.usage.prompt_tokens == length
        parts = list(client.chat.completions.create(
            model="chat", messages=messages, temperature=0, max_tokens=20, stream=True,
            stream_options={"include_usage": True}))
        assert "".join(part.choices[0].delta.content or ""
                       for part in parts if part.choices) == expected
        assert parts[0].choices[0].delta.role == "assistant"
        assert parts[-1].usage == made.usage and parts[-1].choices == []


def test_alternatives_of_each_token_are_told_with_their_bytes(client, running):
    made = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=6,
        logprobs=True, top_logprobs=3)
    content = made.choices[0].logprobs.content
    assert len(content) == made.usage.completion_tokens == 6
    for token in content:
        assert token.logprob == token.top_logprobs[0].logprob  # the likeliest, to the bit
        assert len(token.top_logprobs) == 3 and token.bytes == token.top_logprobs[0].bytes
    assert bytes(byte for token in content for byte in token.bytes).decode(
        errors="replace") == made.choices[0].message.content


def test_a_model_that_does_not_converse_says_so(client):
    with pytest.raises(openai.BadRequestError, match="base does not converse"):
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "Hi"}])


def test_responses_are_the_same_answers(client, running):
    expected, length = answer_of(running.lm("chat"), ("system", "Be brief."), ("user", "Hello?"),
                                 temperature=0, max_new_tokens=20)
    settings = {"model": "chat", "input": "Hello?", "instructions": "Be brief.", "temperature": 0,
                "max_output_tokens": 20, "metadata": {"a": "b"}}
    made = client.responses.create(**settings)
    assert made.output_text == expected and made.metadata == {"a": "b"}
    assert made.usage.input_tokens == length and made.status == "incomplete"
    events = list(client.responses.create(**settings, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events
                   if event.type == "response.output_text.delta") == expected
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == expected


def test_json_is_what_its_schema_asks_for(client):
    import json
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
              "additionalProperties": False}
    made = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "Hi"}], seed=1, max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert json.loads(made.choices[0].message.content)["a"] in (1, 2)


def test_an_answer_can_be_given_back_as_it_came(client, running):
    first, last = {"role": "user", "content": "Hello?"}, {"role": "user", "content": "Why?"}
    answer = client.chat.completions.create(model="chat", messages=[first], seed=1,
                                            max_tokens=9).choices[0].message
    expected, _ = answer_of(running.lm("chat"), ("user", "Hello?"), ("assistant", answer.content),
                            ("user", "Why?"), temperature=0, max_new_tokens=20)
    for given in (answer, answer.model_dump(), answer.to_dict() | {"annotations": []}):
        made = client.chat.completions.create(model="chat", messages=[first, given, last],
                                              temperature=0, max_tokens=20)
        assert made.choices[0].message.content == expected
    response = client.responses.create(model="chat", input="Hello?", top_logprobs=2,
                                       max_output_tokens=9, extra_body={"temperature": 0})
    expected, _ = answer_of(running.lm("chat"), ("user", "Hello?"),
                            ("assistant", response.output_text), ("user", "Why?"),
                            temperature=0, max_new_tokens=20)
    for output in (response.output, [item.model_dump() for item in response.output]):
        made = client.responses.create(model="chat", input=[first, *output, last], temperature=0,
                                       max_output_tokens=20)
        assert made.output_text == expected


def test_null_is_what_leaving_a_field_out_is_also_for_fields_that_are_not_known(client):
    nulls = dict.fromkeys(("n", "functions", "audio", "tools", "nonsense", "response_format"))
    asked = {"model": "chat", "messages": [{"role": "user", "content": "Hi", "name": None}],
             "seed": 1, "max_tokens": 5}
    made = [client.chat.completions.create(**asked, extra_body=extra).choices[0].message.content
            for extra in ({}, nulls)]
    assert made[0] == made[1]
    with pytest.raises(openai.BadRequestError, match="audio is unknown here"):
        client.chat.completions.create(**asked, extra_body={"audio": {}})


def test_fields_that_ask_for_what_happens_anyway_are_taken_with_no_other_value(client, caplog):
    def answer(**more):
        return client.chat.completions.create(model="chat", messages=[
            {"role": "user", "content": "Hi"}], seed=1, max_tokens=5, **more
            ).choices[0].message.content

    with caplog.at_level("INFO", "gpt.serve"):
        assert answer() == answer(reasoning_effort="none", verbosity="medium",
                                  prompt_cache_key="k", safety_identifier="somebody")
    assert "chat, for 'somebody': " in caplog.text
    for name, value in (("reasoning_effort", "high"), ("verbosity", "low"), ("store", True)):
        with pytest.raises(openai.BadRequestError, match=name):
            answer(**{name: value})


def test_a_response_includes_log_probabilities_if_it_is_told_to(client):
    asked = {"model": "chat", "input": "Hi", "temperature": 0, "max_output_tokens": 5}
    parts = [client.responses.create(**asked, **more).output[0].content[0] for more in (
        {"include": ["message.output_text.logprobs"]}, {"top_logprobs": 0}, {})]
    assert len(parts[0].logprobs) == 5 and parts[0].logprobs == parts[1].logprobs
    assert parts[2].logprobs == []


def test_a_request_that_names_no_model_is_for_the_first(running):
    for path, body in (("completions", {"prompt": "abc", "max_tokens": 3}),
                       ("score", {"text": "abc"})):
        answers = [httpx.post(f"{running.url}/v1/{path}", json=body | named).json()
                   for named in ({}, {"model": ""}, {"model": "base"})]
        assert [answer["model"] for answer in answers] == ["base"] * 3
    assert httpx.post(f"{running.url}/v1/completions", json={"model": "other"}).status_code == 404


# ----- Many at once

def test_the_same_seed_gives_the_same_text_whatever_the_load(client, running):
    lm = running.lm("base")
    prompts = [f"{'shared beginning ' * (i % 3) * 2}{i}" for i in range(24)]
    expected = [lm.generate(prompt, seed=i, max_new_tokens=25) for i, prompt in enumerate(prompts)]
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda i: _patient(lambda: completed(
            client, prompt=prompts[i], seed=i, max_tokens=25)), range(24)))
    assert [one.choices[0].text for one in made] == expected


def _patient(ask):
    for _ in range(100):
        try:
            return ask()
        except openai.RateLimitError:
            pass
    raise AssertionError("always busy")


def test_scores_of_a_text_are_those_of_score(client, running):
    lm, text = running.lm("base"), "Who's there?"
    found = httpx.post(f"{running.url}/v1/score", json={"model": "base", "text": text}).json()
    assert found["logprobs"] == pytest.approx(lm.score(text), abs=1e-4)
    assert math.isclose(found["total"], sum(lm.score(text)), abs_tol=1e-3)
    later = httpx.post(f"{running.url}/v1/score",
                       json={"model": "base", "text": text, "begin": False}).json()["logprobs"]
    assert later[0] is None
    assert later[1:] == pytest.approx(lm.score(text, begin=False)[1:], abs=1e-4)
