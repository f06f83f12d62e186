"""What a request changes in the scores: each control by its definition, and in whole texts."""

from __future__ import annotations

import pytest
import torch

from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.generation import Engine, Request
from gpt.generation import controls as controls_module
from gpt.generation.controls import Controls, penalise_repetition
from tests.tiny import CPU, generate_tokens, tiny_gpt

SCORES = torch.tensor([0.5, 2.0, 1.0, -1.0, 0.0])
DEVICE = torch.device("cpu")


def controls(prompt=(0,), stop_tokens=(4,), grammar=None, **settings):
    return Controls(SamplingConfig(**settings), prompt, stop_tokens, 5, DEVICE, grammar)


def after(made, prompt=(0,), **settings):
    """The scores that a request sees once it has made these tokens."""
    one = controls(prompt, **settings)
    for token in made:
        one.accept(token)
    return one.apply(SCORES.clone()).tolist()


def generated(model, prompt, **settings):
    config = SamplingConfig(temperature=0, **settings)
    return [new.token for new in generate_tokens(model, prompt, config, CPU, (60,))]


def test_a_repetition_penalty_lowers_scores_of_either_sign_in_prompt_and_text():
    seen = torch.tensor([False, True, False, True, False])
    assert penalise_repetition(SCORES, 2.0, seen).tolist() == [0.5, 1.0, 1.0, -2.0, 0.0]
    assert torch.equal(penalise_repetition(SCORES, 1.0, seen), SCORES)
    assert after([1], prompt=(3,), repetition_penalty=2.0) == [0.5, 1.0, 1.0, -2.0, 0.0]


def test_presence_and_frequency_count_what_was_generated_and_not_the_prompt():
    assert after([1, 1, 2], presence_penalty=0.5) == [0.5, 1.5, 0.5, -1.0, 0.0]
    assert after([1, 1, 2], frequency_penalty=0.5) == [0.5, 1.0, 0.5, -1.0, 0.0]
    assert after([1], frequency_penalty=-1.0)[1] == 3.0


def test_biases_and_bans():
    assert after([], logit_bias={0: 3.0, 2: -1.0}) == [3.5, 2.0, 0.0, -1.0, 0.0]
    assert after([], banned_tokens=[1, 2]) == [0.5, -torch.inf, -torch.inf, -1.0, 0.0]


def test_stop_tokens_wait_for_the_first_tokens():
    assert after([], min_new_tokens=2)[4] == after([0], min_new_tokens=2)[4] == -torch.inf
    assert after([0, 0], min_new_tokens=2)[4] == 0.0


def test_forced_tokens_come_first_whatever_the_model_thinks():
    first = after([], forced_tokens=[3, 0], banned_tokens=[3])
    assert first == [-torch.inf, -torch.inf, -torch.inf, 0.0, -torch.inf]
    assert after([3], forced_tokens=[3, 0])[0] == 0.0
    assert after([3, 0], forced_tokens=[3, 0]) == SCORES.tolist()


class OnlyEven:
    """A grammar whose vocabulary is shorter than the model's."""

    def __init__(self):
        self.seen = []

    def allowed(self):
        return torch.tensor([True, False, True, False])

    def accept(self, token):
        self.seen.append(token)


def test_a_grammar_says_what_is_left_and_hears_what_came():
    grammar = OnlyEven()
    one = controls(grammar=grammar)
    assert one.apply(SCORES.clone()).tolist() == [0.5, -torch.inf, 1.0, -torch.inf, -torch.inf]
    one.accept(2)
    assert grammar.seen == [2]


def test_a_text_that_cannot_go_on_ends():
    assert after([], banned_tokens=[0, 1, 2, 3, 4]) == [-torch.inf] * 4 + [0.0]
    with pytest.raises(UserError, match=r"no token is left .* banned_tokens"):
        controls(stop_tokens=(), banned_tokens=[0, 1, 2, 3, 4]).apply(SCORES.clone())


@pytest.mark.parametrize("settings", [
    {"logit_bias": {61: 1.0}}, {"banned_tokens": [61]}, {"forced_tokens": [3, 61]}])
def test_a_token_that_does_not_exist_is_refused_before_anything_is_made(settings):
    engine = Engine(tiny_gpt(), CPU)
    with pytest.raises(UserError, match=f"{next(iter(settings))}: there is no token 61; ids lie in "
                       "0 to 60"):
        engine.submit(Request([1], SamplingConfig(**settings)))
    assert not engine.busy


def test_only_requests_that_change_scores_have_controls():
    assert not Controls.needed(SamplingConfig(temperature=0.5, top_k=3, seed=1))
    for settings in ({"logit_bias": {1: 1.0}}, {"banned_tokens": [1]}, {"forced_tokens": [1]},
                     {"repetition_penalty": 1.1}, {"presence_penalty": 0.1},
                     {"frequency_penalty": 0.1}, {"min_new_tokens": 1}, {"json_schema": "{}"},
                     {"regex": "a"}):
        assert Controls.needed(SamplingConfig(**settings)), settings


def test_every_setting_is_a_filter_a_control_or_read_by_the_engine():
    """A new one that is forgotten in the first two would not act, or act on a neighbour."""
    filters = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1}
    for name, value in filters.items():
        assert SamplingConfig(**{name: value}).filters != SamplingConfig().filters, name
    engine = {"max_new_tokens", "stop", "beams", "seed", "slide"}
    before = {"begin"}  # a prompt is what it says
    fields = set(SamplingConfig.model_fields)
    assert filters.keys() | controls_module._FIELDS | engine | before == fields
    assert len(SamplingConfig().filters) == len(filters)


def test_controls_act_on_whole_texts_alone_and_beside_others():
    model = tiny_gpt()
    free = generated(model, [4], max_new_tokens=8)
    settings = [{"banned_tokens": free[:2]}, {"forced_tokens": [9, 8, 7]},
                {"frequency_penalty": 50.0}, {"logit_bias": {11: 100.0}}, {}]
    alone = [generated(model, [4], max_new_tokens=8, **each) for each in settings]
    assert not {*free[:2]} & {*alone[0]} and alone[1][:3] == [9, 8, 7]
    assert len({*alone[2]}) == 8 and alone[3] == [11] * 8 and alone[4] == free
    made = [[] for _ in settings]
    for index, new in Engine(model, CPU, rows=3).run([
            Request([4], SamplingConfig(temperature=0, max_new_tokens=8, **each))
            for each in settings]):
        made[index].append(new.token)
    assert made == alone


def test_a_text_that_must_be_longer_does_not_stop_early():
    made = {least: generated(tiny_gpt(), [4], max_new_tokens=9, min_new_tokens=least,
                             logit_bias={60: 1000.0}) for least in (0, 5)}
    assert made[0] == [60]
    assert len(made[5]) == 6 and made[5][-1] == 60 and 60 not in made[5][:-1]


def test_a_ban_outweighs_a_bias_and_a_bias_comes_before_the_repetition_penalty():
    assert after([], banned_tokens=[1], logit_bias={1: 100.0})[1] == -torch.inf
    assert after([], prompt=(1,), logit_bias={1: 2.0}, repetition_penalty=2.0)[1] == 2.0


def test_a_grammar_may_know_more_tokens_than_the_model_has():
    class Longer(OnlyEven):
        def allowed(self):
            return torch.tensor([True, False, True, False, True, True, True])

    found = controls(grammar=Longer()).apply(SCORES.clone())
    assert found.tolist() == [0.5, -torch.inf, 1.0, -torch.inf, 0.0]


def test_where_no_token_is_left_the_error_says_after_how_many():
    one = controls(stop_tokens=(), banned_tokens=[0, 1, 2, 3, 4])
    for count in range(3):
        with pytest.raises(UserError, match=f"left to choose after {count} new tokens"):
            one.apply(SCORES.clone())
        one.accept(0)
