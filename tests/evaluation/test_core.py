"""CORE on a small bundle, against an independent calculation: one text at a time, written out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from gpt.errors import UserError
from gpt.evaluation import Bundle, Core, core_score
from gpt.evaluation import core as module
from gpt.language_model import LanguageModel
from gpt.tokenizer import build_tokenizer
from tests.evaluation.bundles import QUESTIONS, write_bundle
from tests.tiny import CPU, ROOT, tiny_gpt

BYTES = build_tokenizer("byte", [])
PIECES = build_tokenizer("bpe:320", [(ROOT / "README.md").read_text()])
EXAMPLES = {"capitals": 2, "capitals_zeroshot": 0, "winograd": 0, "repeats": 3}
CHANCE = {"capitals": 0.25, "capitals_zeroshot": 0.25, "winograd": 0.5, "repeats": 0.0}


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_bundle(tmp_path / "eval_bundle")


def lm_of(tokenizer=BYTES, seed: int = 0, block_size: int = 512) -> LanguageModel:
    return LanguageModel(tiny_gpt(seed=seed, vocab_size=tokenizer.vocab_size,
                                  block_size=block_size), tokenizer, CPU)


def nats(lm: LanguageModel, text: str) -> tuple[list[int], list[float], list[bool]]:
    """Ids of a text behind the token that begins texts; the loss of each, and whether it was the
    likeliest; not known are those of the first, and of what does not fit before the others."""
    ids = [lm.tokenizer.end_of_text, *lm.tokenizer.encode(text)]
    over = max(0, len(ids) - lm.block_size - 1)
    read = ids[over:]
    with torch.no_grad():
        logprobs = lm.model(torch.tensor([read[:-1]]))[0].log_softmax(-1)
    losses = [-float(logprobs[i - 1, read[i]]) for i in range(1, len(read))]
    hits = [int(logprobs[i - 1].argmax()) == read[i] for i in range(1, len(read))]
    return ids, [float("nan")] * (over + 1) + losses, [False] * (over + 1) + hits


def shown(label: str, question: dict, option: int | None = None) -> str:
    """A question with an answer: the right one unless told otherwise."""
    option = question.get("gold") if option is None else option
    if label == "winograd":
        return question["context_options"][option] + " " + question["continuation"]
    if label == "repeats":
        return question["context"].strip() + " " + question["continuation"]
    delimiter = "\nAnswer: " if label == "capitals" else " "
    return question["query"] + delimiter + question["choices"][option]


def is_right(lm: LanguageModel, label: str, questions: list[dict], number: int) -> bool:
    question = questions[number]
    others = [i for i in range(len(questions)) if i != number]
    examples = random.Random(1234 + number).sample(others, EXAMPLES[label])
    before = "".join(shown(label, questions[i]) + "\n\n" for i in examples)
    if label == "repeats":
        ids, _, hits = nats(lm, before + shown(label, question))
        asked = [lm.tokenizer.end_of_text,
                 *lm.tokenizer.encode((before + question["context"].strip()).strip())]
        assert ids[:len(asked)] == asked
        return all(hits[len(asked):])
    options = len(question.get("choices") or question["context_options"])
    read = [nats(lm, before + shown(label, question, option)) for option in range(options)]
    means = []
    for ids, losses, _ in read:
        if label == "winograd":
            alike = next(n for n in range(1, len(ids)) if len({one[0][-n] for one in read}) > 1) - 1
            judged = losses[len(losses) - alike:]
        else:
            alike = next(n for n in range(len(ids)) if len({one[0][n] for one in read}) > 1)
            judged = losses[alike:]
        means.append(sum(judged) / len(judged))
    return means.index(min(means)) == question["gold"]


def assert_independent(lm: LanguageModel, found: Core) -> None:
    """All of it, calculated one text at a time."""
    centred = []
    for task in found.tasks:
        name = {"winograd": "language/winograd", "repeats": "language/repeats"}.get(
            task.label, "world/capitals")
        questions = list(QUESTIONS[f"{name}.jsonl"])
        random.Random(1337).shuffle(questions)
        right = [is_right(lm, task.label, questions, i) for i in range(len(questions))]
        assert task.questions == len(right)
        assert task.accuracy == pytest.approx(sum(right) / len(right))
        chance = CHANCE[task.label]
        centred.append((task.accuracy - chance) / (1 - chance))
        assert task.centred == pytest.approx(centred[-1])
    assert [task.label for task in found.tasks] == [*EXAMPLES]
    assert found.core == pytest.approx(sum(centred) / 4)
    assert found.interval.low < found.core < found.interval.high


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_the_score_is_that_of_an_independent_calculation(tokenizer, seed, folder):
    lm = lm_of(tokenizer, seed)
    found = core_score(lm, Bundle(folder))
    assert_independent(lm, found)


def test_a_continuation_is_right_where_each_of_its_tokens_is_the_likeliest(folder):
    change(folder, "core.yaml", "type: language_modeling",
           'type: language_modeling\n  continuation_delimiter: ""')
    lm = lm_of()

    def always_b(x: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(*x.shape[:-1], BYTES.vocab_size)
        scores[..., ord("b")] = 1.0
        return scores
    lm.model.logits = always_b
    assert core_score(lm, Bundle(folder)).tasks[-1].accuracy == pytest.approx(1 / 6)


def test_it_does_not_matter_how_many_questions_stand_in_memory(folder, monkeypatch):
    whole = core_score(lm_of(), Bundle(folder))
    monkeypatch.setattr(module, "AT_ONCE", 3)
    assert core_score(lm_of(), Bundle(folder)) == whole


def test_questions_can_be_fewer_and_the_first_stay_what_they_are(folder):
    bundle, lm = Bundle(folder), lm_of()
    few = core_score(lm, bundle, 3)
    assert [task.questions for task in few.tasks] == [3, 3, 3, 3]
    assert [task.questions for task in core_score(lm, bundle, 100).tasks] == [8, 8, 4, 6]


@pytest.mark.parametrize("block_size", [40, 200])
def test_long_prompts_lose_their_first_examples(folder, block_size):
    lm = lm_of(block_size=block_size)
    found = core_score(lm, Bundle(folder))
    assert_independent(lm, found)
    whole = core_score(lm_of(), Bundle(folder))
    assert block_size == 200 or found.tasks != whole.tasks


def change(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: (f / "core.yaml").unlink(), "is no bundle of CORE: it has no core.yaml; give the"),
    (lambda f: (f / "eval_meta_data.csv").unlink(), "it has no eval_meta_data.csv"),
    (lambda f: (f / "eval_data/world/capitals.jsonl").unlink(),
     "there is no eval_data/world/capitals.jsonl"),
    (lambda f: change(f, "core.yaml", "icl_tasks", "tasks"), "no sound icl_tasks"),
    (lambda f: change(f, "core.yaml", "type: schema", "type: essay"), "no sound icl_tasks"),
    (lambda f: change(f, "core.yaml", "num_fewshot: [2]", "num_fewshot: []"), "no sound icl_tasks"),
    (lambda f: (f / "core.yaml").write_text("icl_tasks: []"), "there is no task in core.yaml"),
    (lambda f: change(f, "eval_meta_data.csv", "winograd,", "other,"),
     "no row for winograd in eval_meta_data.csv"),
    (lambda f: change(f, "eval_meta_data.csv", "8,25,", "8,x,"), "no row for capitals in"),
    (lambda f: change(f, "eval_meta_data.csv", "Random", "Any"), "needs the columns Eval Task and"),
])
def test_what_is_missing_in_a_bundle_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        Bundle(folder)


@pytest.mark.parametrize(("line", "message"), [
    ("{", "repeats.jsonl, line 7 is no JSON"),
    ("[]", "line 7: a question of language_modeling has"),
    (json.dumps({"context": "a"}), "line 7: a question of language_modeling has context, cont")])
def test_a_damaged_question_is_named_by_its_line(folder, line, message):
    with (folder / "eval_data/language/repeats.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        core_score(lm_of(), Bundle(folder))


def test_an_answer_that_is_none_of_the_options_is_refused_and_so_are_too_few_questions(folder):
    path = folder / "eval_data/world/capitals.jsonl"
    path.write_text(path.read_text().replace('"gold": 3', '"gold": 4', 1))
    with pytest.raises(UserError, match="gold must be the number of one of its options"):
        core_score(lm_of(), Bundle(folder))
    path.write_text(json.dumps(QUESTIONS["world/capitals.jsonl"][0]) + "\n\n")
    with pytest.raises(UserError, match="has 1 questions, too few for 2 examples beside one"):
        core_score(lm_of(), Bundle(folder))


def test_the_hash_is_that_of_all_that_is_asked(folder):
    before = Bundle(folder).sha256
    (folder / "eval_data/other.jsonl").write_text("x")
    assert Bundle(folder).sha256 == before
    change(folder, "eval_data/language/repeats.jsonl", "aa", "zz")
    assert Bundle(folder).sha256 != before
