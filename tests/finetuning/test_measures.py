"""What is counted of a model's answers, and which weights learn."""

from __future__ import annotations

import pytest
import torch

from gpt.chat import Message
from gpt.configuration import FinetuneConfig, PreferenceConfig
from gpt.errors import UserError
from gpt.finetuning import (
    Example,
    Preference,
    answer_figures,
    choose_what_learns,
    label_accuracy,
    measures,
)
from gpt.finetuning.measures import ROOM, label_scores
from gpt.finetuning.preferences import encode_pairs, preference_figures, with_reference
from gpt.finetuning.rows import encode_row, side_by_side
from gpt.language_model import LanguageModel
from gpt.machine.device import Machine
from gpt.machine.signals import Interrupted
from gpt.model import KVCache
from tests.finetuning.conversations import BYTES, answers_of, chat_of, pair, with_controls
from tests.tiny import ARCHITECTURES, CPU, random_tokens, tiny_gpt

ROWS = [encode_row(pair(prompt, answer), chat_of())
        for prompt, answer in (("a", "one"), ("b", "two"), ("c", " three"))]


def config_of(**section) -> FinetuneConfig:
    lora = section.pop("lora", {})
    return FinetuneConfig(finetune={"from": "runs/a", "data": "b", **section}, lora=lora)


def test_exact_answers_and_answers_that_end_are_counted():
    said = {(97,): ("one", True), (98,): ("two", False), (99,): ("three\n", True)}
    asked = []

    def answers(prompts: list[list[int]], most: list[int]) -> list[tuple[str, bool]]:
        asked.extend(zip(prompts, most, strict=True))
        return [said[tuple(prompt)] for prompt in prompts]

    found = answer_figures(ROWS, 3, answers, BYTES)
    assert found.figures == {"exact_match": 2 / 3, "format_rate": 2 / 3}
    assert found.texts == [("a", "one"), ("b", "two")]
    assert asked == [([97], 4 + ROOM), ([98], 4 + ROOM), ([99], 7 + ROOM)]


def test_no_more_prompts_are_answered_than_asked_for():
    found = answer_figures(ROWS, 1, lambda prompts, most: [("one", True)], BYTES)
    assert found.figures["exact_match"] == 1.0
    assert answer_figures(ROWS, 0, lambda prompts, most: [], BYTES) == ({}, [])


def test_a_text_without_a_prompt_is_not_answered():
    rows = [encode_row(pair("", "text"), chat_of())]
    assert answer_figures(rows, 5, lambda prompts, most: [], BYTES) == ({}, [])


def test_an_answer_that_is_not_learned_is_not_asked_for():
    example = Example((Message("user", "a"), Message("assistant", "b", learned=True),
                       Message("user", "c"), Message("assistant", "d")))
    rows = [encode_row(example, chat_of())]
    assert answer_figures(rows, 5, lambda prompts, most: [], BYTES) == ({}, [])


@pytest.mark.parametrize("prompt", ["abcdefgh" * 4, "ab"])
def test_labels_that_do_not_fit_behind_a_prompt_shorten_it_for_all(prompt, monkeypatch):
    seen = []
    monkeypatch.setattr(measures, "label_scores", lambda model, prompt, answers, *rest: (
        seen.append((bytes(prompt.tolist()).decode(), len(answers))), [0.0] * len(answers))[1])
    row, labels = encode_row(labelled(prompt, "x"), chat_of()), ("x", "yes, indeed", "z")
    assert label_accuracy(tiny_gpt(vocab_size=262), [row], labels, chat_of(), CPU) == 1.0
    shortened = prompt[-(33 - len("yes, indeed") - 1):]
    assert seen == [(shortened, 3)]


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@torch.no_grad()
def test_answers_are_as_likely_as_when_each_is_read_alone(changes):
    model, prompt = tiny_gpt(**changes), random_tokens(9).numpy()
    cache = KVCache(model.config, 2, 32, CPU.device, CPU.dtype)  # two at a time
    cache.lengths[:] = 7  # what was there before
    answers = [random_tokens(n, seed=n).tolist() for n in (2, 5, 3)]
    for both_ways in (False, True):
        found = label_scores(model, prompt, answers, cache, CPU, both_ways)
        for answer, score in zip(answers, found, strict=True):
            tokens = torch.tensor([[*prompt, *answer]])
            marks = torch.arange(tokens.size(1) - 1).unsqueeze(0) < 9 if both_ways else None
            logprobs = model(tokens[:, :-1], prompts=marks).log_softmax(-1)[0, 8:]
            expected = float(logprobs[range(len(answer)), answer].sum())
            assert score == pytest.approx(expected, abs=1e-4)


def labelled(text: str, label: str) -> Example:
    return Example((Message("user", text), Message("assistant", label, learned=True)), "", label)


@pytest.mark.parametrize("prefix", ["causal", "bidirectional"])
def test_the_label_is_the_likeliest_of_all(prefix):
    model, labels = tiny_gpt(vocab_size=262), ("no", "perhaps", "yes")
    chat = chat_of()
    chat.format = chat.format.model_copy(update={"prefix": prefix})
    likeliest = []
    for text in ("ab", "c", "defg"):
        losses = []
        for label in labels:
            row = encode_row(labelled(text, label), chat)
            batch = side_by_side([[row]], marks_prompts=prefix == "bidirectional")
            logits = model(batch.inputs, prompts=batch.prompts)
            losses.append(float(torch.nn.functional.cross_entropy(
                logits[0], batch.targets[0], reduction="sum")))
        likeliest.append(labels[losses.index(min(losses))])
    rows = [encode_row(labelled(text, label), chat)
            for text, label in zip(("ab", "c", "defg"), likeliest, strict=True)]
    assert label_accuracy(model, rows, labels, chat, CPU) == 1.0
    wrong = [encode_row(labelled("ab", label), chat) for label in labels]
    assert label_accuracy(model, wrong, labels, chat, CPU) == pytest.approx(1 / 3)


def test_what_a_pattern_names_does_not_learn():
    model = choose_what_learns(tiny_gpt(), config_of(freeze=["embedding.*", "blocks.0.*"]), 0)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert "embedding.token_embedding.weight" in frozen
    assert {name.split(".")[1] for name in frozen if name.startswith("blocks")} == {"0"}
    assert "final_norm.weight" not in frozen


@pytest.mark.parametrize(("freeze", "message"), [
    (["block.0"], "no weight is called block.0; there are embedding.token_embedding.weight"),
    (["*"], "leaves nothing to learn")])
def test_patterns_that_cannot_be_meant_are_refused(freeze, message):
    with pytest.raises(UserError, match=message):
        choose_what_learns(tiny_gpt(), config_of(freeze=freeze), 0)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_with_adapters_these_alone_learn(method):
    model = choose_what_learns(tiny_gpt(), config_of(method=method), 0)
    learned = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert learned and all("lora" in name for name in learned)
    assert model.adapter.method == method


def test_adapters_are_drawn_from_the_runs_seed():
    found = [choose_what_learns(tiny_gpt(), config_of(method="lora"), 0).state_dict()
             for _ in range(2)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("how", ["zeros", "twins"])
def test_an_untrained_stop_token_is_refused_where_it_cannot_be_learned(how):
    model = tiny_gpt()
    with torch.no_grad():
        weight = model.output_weight
        weight[7] = 0 if how == "zeros" else weight[8]
    choose_what_learns(model, config_of(), 7)
    choose_what_learns(tiny_gpt(), config_of(method="lora"), 7)
    with pytest.raises(UserError, match="never learned the token that ends answers"):
        choose_what_learns(model, config_of(method="lora"), 7)


def test_a_signal_ends_what_is_measured():
    machine = Machine(CPU.device, CPU.dtype)
    model, rows = tiny_gpt(vocab_size=262), [encode_row(labelled("ab", "yes"), chat_of())]
    lm = LanguageModel(model, with_controls(), machine)
    preference = Preference((Message("user", "a"),), *answers_of("b", "c"))
    pairs, _ = encode_pairs([preference], chat_of(), 32)
    pairs = with_reference(pairs, model, machine)
    works = (lambda: label_accuracy(model, rows, ["no", "yes"], chat_of(), machine),
             lambda: lm.answers([[97]], [5]), lambda: with_reference(pairs, model, machine),
             lambda: preference_figures(model, pairs, PreferenceConfig(), machine))
    for work in works:
        work()
    machine.stop.signal_name = "SIGTERM"
    for work in works:
        with pytest.raises(Interrupted):
            work()
