"""lm-eval, unmodified, asks a server: its measurements are the model's own."""

from __future__ import annotations

import pytest

from tests.lm_eval_tasks import offline, write_tasks
from tests.serve.conftest import answer_of

CONTEXTS = ["On a GPU:", "fine-tune", "# gpt"]  # which the model goes on from in ASCII
FIELDS = {
    "multiple_choice": 'doc_to_text: "{{context}}"\ndoc_to_choice: "{{choices}}"\n'
                       'doc_to_target: 0\ntarget_delimiter: ""\nmetric_list: [{metric: acc}]',
    "generate_until": 'doc_to_text: "{{context}}"\ndoc_to_target: ""\n'
                      'metric_list: [{metric: bypass}]\n'
                      'generation_kwargs: {until: ["qz"], max_gen_toks: 12}',
    "loglikelihood_rolling": 'doc_to_text: ""\ndoc_to_target: "{{context}}"\n'
                             'metric_list: [{metric: bits_per_byte}]'}


@pytest.fixture
def measured(running, tmp_path, monkeypatch):
    """Runs tasks of some kinds; gives (the data, the answers) of each."""
    offline(tmp_path, monkeypatch)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    def run(model, name, path, rows, *kinds, chat=False, **arguments):
        write_tasks(tmp_path, rows, {kind: FIELDS[kind] for kind in kinds})
        found = simple_evaluate(
            model, {"model": name, "base_url": f"{running.url}/v1/{path}", "max_length": 200,
                    **arguments},
            tasks=[f"our_{kind}" for kind in kinds], apply_chat_template=chat, bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False))
        return [[sample["resps"] for sample in sorted(
            found["samples"][f"our_{kind}"], key=lambda sample: sample["doc_id"])]
            for kind in kinds]

    return run


def test_lm_eval_measures_and_writes_what_the_model_does(running, measured):
    lm = running.lm("base")
    greedy = [lm.generate(context, temperature=0, max_new_tokens=3)
              for context in CONTEXTS]
    rows = [{"context": context, "choices": [text, text[:-1] + "~", "zzzz"]}
            for context, text in zip(CONTEXTS, greedy, strict=True)]
    choices, texts, whole = measured("local-completions", "base", "completions", rows,
                                     "multiple_choice", "generate_until", "loglikelihood_rolling")
    for row, answers, text, total in zip(rows, choices, texts, whole, strict=True):
        assert [answer[0][1] for answer in answers] == [True, False, False]
        for choice, answer in zip(row["choices"], answers, strict=True):
            length = len(lm.tokenizer.encode(row["context"]))
            scores = lm.score(row["context"] + choice, begin=False)[length:]
            assert answer[0][0] == pytest.approx(sum(scores), abs=1e-4 * len(scores))
        assert text[0][0] == lm.generate(row["context"], temperature=0, max_new_tokens=12,
                                         stop=["qz"])
        scores = lm.score(row["context"])  # the first token behind the end of a text before
        assert total[0][0] == pytest.approx(sum(scores), abs=1e-4 * len(scores))


@pytest.mark.parametrize("together", [{"batch_size": 3}, {"num_concurrent": 3}])
def test_requests_of_lm_eval_that_come_together_are_answered_alike(running, measured, together):
    lm = running.lm("base")
    rows = [{"context": context, "choices": ["abc", "d"]} for context in CONTEXTS]
    choices, texts = measured("local-completions", "base", "completions", rows,
                              "multiple_choice", "generate_until", **together)
    for row, answers, text in zip(rows, choices, texts, strict=True):
        for choice, answer in zip(row["choices"], answers, strict=True):
            scores = lm.score(row["context"] + choice, begin=False)[-len(choice):]
            assert answer[0][0] == pytest.approx(sum(scores), abs=1e-4 * len(scores))
        assert text[0][0] == lm.generate(row["context"], temperature=0, max_new_tokens=12,
                                         stop=["qz"])


def test_lm_eval_converses_in_the_models_own_format(running, measured):
    rows = [{"context": context} for context in CONTEXTS]
    [texts] = measured("local-chat-completions", "chat", "chat/completions", rows,
                       "generate_until", chat=True)
    for row, text in zip(rows, texts, strict=True):
        assert text[0][0] == answer_of(running.lm("chat"), ("user", row["context"]),
                                       temperature=0, max_new_tokens=12, stop=["qz"])[0]
