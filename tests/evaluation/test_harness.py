"""lm-eval's tasks give what lm-eval's own class for transformers gives of the same model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import gpt
from gpt import __main__ as verbs
from gpt.errors import UserError
from gpt.interop import export_huggingface
from gpt.interop.model_card import About
from gpt.language_model import LanguageModel
from tests.interop.models import bpe, saved
from tests.lm_eval_tasks import offline, write_tasks
from tests.tiny import ARCHITECTURES, CPU, ROOT, call_main, tiny_gpt

TEXTS = ["the thing that thinks", "1234 times: naïve café", "On a GPU: ",
         (ROOT / "README.md").read_text()[:1500]]  # far more than the model reads
SHOT = "num_fewshot: 1\nfewshot_split: test\n"
FIELDS = {
    "multiple_choice": SHOT + 'doc_to_text: "{{text}}"\ndoc_to_choice: "{{choices}}"\n'
                       "doc_to_target: 1\nmetric_list: [{metric: acc}, {metric: acc_norm}]",
    "generate_until": SHOT + 'doc_to_text: "{{text}}"\ndoc_to_target: "{{choices[0]}}"\n'
                      "metric_list: [{metric: exact_match}]\n"
                      'generation_kwargs: {until: ["e", "zz"], max_gen_toks: 12}',
    "loglikelihood_rolling": 'doc_to_text: ""\ndoc_to_target: "{{text}}"\nnum_fewshot: 0\n'
                             "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]"}


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> list[str]:
    """Files of three kinds of tasks, whose data lie beside them."""
    offline(tmp_path, monkeypatch)
    rows = [{"text": text, "choices": [" the", " it is", text[:3], "é"]} for text in TEXTS]
    return write_tasks(tmp_path, rows, FIELDS)


@pytest.mark.parametrize("architecture", ["default", "gpt2"])
def test_results_are_those_of_the_exported_model_in_transformers(architecture, tasks, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from gpt.evaluation.harness import HarnessModel
    folder, tokenizer = tmp_path / "model", bpe()
    model = tiny_gpt(vocab_size=tokenizer.vocab_size, block_size=128, **ARCHITECTURES[architecture])
    export_huggingface(model, tokenizer, folder, About("tiny"))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    theirs, ours = (simple_evaluate(
        model, tasks=[f"our_{kind}" for kind in FIELDS], task_manager=manager, bootstrap_iters=0)
        for model in (HFLM(str(folder), device="cpu", dtype="float32", batch_size=2),
                      HarnessModel(LanguageModel(model, tokenizer, CPU))))
    for kind in FIELDS:
        told = [sorted(found["samples"][f"our_{kind}"], key=lambda one: one["doc_id"])
                for found in (theirs, ours)]
        for one, other in zip(*told, strict=True):
            for a, b in zip(one["resps"], other["resps"], strict=True):
                if kind == "generate_until":
                    assert a == b
                elif kind == "multiple_choice":
                    assert a[0][0] == pytest.approx(b[0][0], abs=2e-3) and a[0][1] == b[0][1]
                else:
                    assert a[0] == pytest.approx(b[0], rel=1e-5)
        assert ours["results"][f"our_{kind}"].keys() == theirs["results"][f"our_{kind}"].keys()
        for metric, value in theirs["results"][f"our_{kind}"].items():
            if isinstance(value, float):
                assert ours["results"][f"our_{kind}"][metric] == pytest.approx(value, rel=1e-5)
    texts = [one["resps"][0][0] for one in ours["samples"]["our_generate_until"]]
    assert len(set(texts)) > 1 and not any("e" in text for text in texts)


def test_the_verb_shows_lm_evals_table_and_gives_its_results(tasks, tmp_path, monkeypatch, capsys):
    _, folder = saved("gpt2", tmp_path / "model")
    words = ("evaluate", folder, "--tasks", ",".join(tasks[:1]), "--limit=2", "--num-fewshot=0")
    code, out, err = call_main(verbs, *words, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, err
    assert "our_multiple_choice" in out and "acc_norm" in out and "weights " in out
    code, out, err = call_main(verbs, *words, "--json", monkeypatch=monkeypatch, capsys=capsys)
    found = json.loads(out)
    assert found["results"]["our_multiple_choice"]["acc,none"] in (0.0, 0.5, 1.0)
    assert found["n-shot"]["our_multiple_choice"] == 0
    assert found["n-samples"]["our_multiple_choice"]["effective"] == 2
    assert found["subject"]["name"] == str(folder)


@pytest.mark.parametrize(("given", "message"), [
    ("no_such_task_anywhere", r"--tasks no_such_task_anywhere: cannot be read \("),
    ("none.yaml", "--tasks: cannot read none.yaml: "),
    ("without.yaml", "--tasks: without.yaml has no line `task: NAME`")])
def test_tasks_that_are_not_there_are_one_line(given, message, tmp_path, monkeypatch):
    from gpt.evaluation import harness
    monkeypatch.chdir(tmp_path)
    known = harness.TaskManager  # all of lm-eval's take seconds to list
    monkeypatch.setattr(harness, "TaskManager", lambda **more: known(
        **more | {"include_defaults": False}))
    Path("without.yaml").write_text("dataset_path: json\n")
    with pytest.raises(UserError, match=message):
        harness.run_tasks(None, [given])


def test_more_new_tokens_than_the_model_reads_are_refused(tmp_path):
    from gpt.evaluation.harness import HarnessModel
    _, folder = saved("gpt2", tmp_path / "model")
    model = HarnessModel(gpt.load(folder, device="cpu"))
    asked = SimpleNamespace(args=("a", {"until": [], "max_gen_toks": 128}))
    with pytest.raises(UserError, match="asks for 128 new tokens, and the model reads 128 in all"):
        model.generate_until([asked])
