"""What is counted of a model's answers, and which weights learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpt.config import FinetuneConfig
from gpt.errors import UserError
from gpt.finetuning import Example, Message, choose_what_learns
from gpt.finetuning.measures import ROOM, answer_figures, label_accuracy, with_answers
from gpt.finetuning.rows import encode_row, side_by_side
from tests.finetuning.conversations import chat_of, pair
from tests.tiny import CPU, tiny_gpt

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

    assert answer_figures(ROWS, 3, answers) == {"exact_match": 2 / 3, "format_rate": 2 / 3}
    assert asked == [([97], 4 + ROOM), ([98], 4 + ROOM), ([99], 7 + ROOM)]


def test_no_more_prompts_are_answered_than_asked_for():
    assert answer_figures(ROWS, 1, lambda prompts, most: [("one", True)])["exact_match"] == 1.0
    assert answer_figures(ROWS, 0, lambda prompts, most: []) == {}


def test_a_text_without_a_prompt_is_not_answered():
    rows = [encode_row(pair("", "text"), chat_of())]
    assert answer_figures(rows, 5, lambda prompts, most: []) == {}


def test_an_answer_that_is_not_learned_is_not_asked_for():
    example = Example((Message("user", "a"), Message("assistant", "b", learned=True),
                       Message("user", "c"), Message("assistant", "d")))
    rows = [encode_row(example, chat_of())]
    assert answer_figures(rows, 5, lambda prompts, most: []) == {}


@pytest.mark.parametrize("prompt", ["abcdefgh" * 4, "ab"])
def test_labels_that_do_not_fit_behind_a_prompt_shorten_it_for_all(prompt):
    row = encode_row(labelled(prompt, "x"), chat_of())
    long, short = (np.frombuffer(text, np.uint8).astype(int) for text in (b"yes, indeed", b"n"))
    found = with_answers(row, [long, short], 32)
    starts = [each.answer_start for each in found]
    assert starts[0] == starts[1] == min(len(prompt), 33 - len(long))
    assert len(found[0]) <= 32
    assert [each.tokens[start:].tolist() for each, start in zip(found, starts, strict=True)] == [
        long.tolist(), short.tolist()]
    model = tiny_gpt(vocab_size=262)
    assert label_accuracy(model, [row], ("x", "yes, indeed"), chat_of(), CPU) in (0.0, 1.0)


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
