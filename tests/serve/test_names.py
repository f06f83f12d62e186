"""Which model answers to which name, and which checkpoint of it."""

from __future__ import annotations

import gc
import shutil
import threading
import time
import weakref

import httpx
import pytest

from gpt import language_model
from gpt.language_model import load
from gpt.runs import checkpoint
from gpt.serve import Opening, Place, mark_runs, serve_models, watching
from gpt.tokenizer import build_tokenizer
from tests.serve.conftest import LIMITS, Running, model_of
from tests.tiny import tiny_gpt

ASKED = {"prompt": "abc", "max_tokens": 5, "temperature": 0}


def asked(running, **body):
    return httpx.post(running.url + "/v1/completions", json=ASKED | body, timeout=60)


def until_checkpoint(running, name):
    for _ in range(200):
        if running.models["run"].checkpoint == name:
            return
        time.sleep(0.05)
    raise AssertionError(running.models["run"].checkpoint)


def test_the_first_model_answers_to_other_names_too():
    running = Running({"base": model_of(), "second": model_of(seed=1)},
                      Place(port=0, aliases=("gpt-4o-mini",)))
    try:
        texts = {name: asked(running, model=name).json() for name in
                 ("base", "second", "gpt-4o-mini")}
        assert texts["gpt-4o-mini"]["choices"] == texts["base"]["choices"]
        assert texts["second"]["choices"] != texts["base"]["choices"]
        assert texts["gpt-4o-mini"]["model"] == "gpt-4o-mini"
        assert asked(running, model="other").status_code == 404
        listed = httpx.get(running.url + "/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["base", "second", "gpt-4o-mini"]
    finally:
        running.close()


def test_any_name_is_the_first_models_if_that_is_wanted():
    running = Running({"base": model_of(), "second": model_of(seed=1)},
                      Place(port=0, any_name=True))
    try:
        assert asked(running, model="x").json()["choices"] == asked(
            running, model="base").json()["choices"] != asked(
            running, model="second").json()["choices"]
    finally:
        running.close()


@pytest.fixture
def training(tmp_path):
    """A run's folder with one checkpoint, and another one that is to come."""
    for seed, name in enumerate(("step-00000010", "coming")):
        model = tiny_gpt(seed=seed, vocab_size=257, block_size=200)
        checkpoint.save_model(tmp_path / name, model, build_tokenizer("byte"), "random")
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (tmp_path / "step-00000010").rename(folder / "step-00000010")
    return tmp_path


def test_a_new_checkpoint_takes_the_place_of_the_old_one_which_ends_its_texts(
        training, monkeypatch):
    monkeypatch.setattr(watching, "EVERY", 0.05)
    how, run = Opening("cpu", "float32"), training / "run"
    models = serve_models([str(run)], LIMITS, how)
    mark_runs(models)
    running, models = Running(models, Place(port=0), how), None  # which would keep the old one
    texts = {}
    long = threading.Thread(target=lambda: texts.update(asked(
        running, max_tokens=190, logit_bias={"256": -100}).json()))
    try:
        old, first = running.lm("run"), asked(running).json()["choices"][0]["text"]
        writer = weakref.ref(running.models["run"].writer)
        long.start()
        while 'gpt_rows{model="run"} 1.0' not in httpx.get(running.url + "/metrics").text:
            time.sleep(0.005)
        shutil.copytree(training / "coming", run / "checkpoints" / "unfinished")
        (run / "checkpoints" / "step-00000015").mkdir()  # which is nothing
        (run / "checkpoints" / "unfinished").rename(run / "checkpoints" / "step-00000020")
        until_checkpoint(running, "step-00000020")
        second = asked(running).json()["choices"][0]["text"]
        long.join()
        assert second == load(training / "coming", "cpu").generate(
            "abc", max_new_tokens=5, temperature=0) != first
        assert texts["choices"][0]["text"] == old.generate(
            "abc", max_new_tokens=190, temperature=0, logit_bias={256: -100})
        for _ in range(100):
            if gc.collect() >= 0 and writer() is None:
                break
            time.sleep(0.05)
        assert writer() is None  # nor its keys and values
        shown = httpx.get(running.url + "/v1/models/run").json()
        assert (shown["checkpoint"], shown["watched"]) == ("step-00000020", True)
    finally:
        running.close()


def test_a_checkpoint_that_there_is_no_room_for_yet_is_tried_again(training, monkeypatch):
    tries = []

    def opened(*given):
        tries.append(given)
        if len(tries) == 1:
            raise MemoryError("no room")
        return language_model.opened(*given)

    monkeypatch.setattr(watching, "EVERY", 0.05)
    monkeypatch.setattr(watching, "opened", opened)
    how, run = Opening("cpu", "float32"), training / "run"
    running = Running(serve_models([str(run)], LIMITS, how), Place(port=0), how)
    try:
        (training / "coming").rename(run / "checkpoints" / "step-00000020")
        until_checkpoint(running, "step-00000020")
    finally:
        running.close()


def test_a_checkpoint_that_cannot_be_read_is_passed_over(training, monkeypatch):
    monkeypatch.setattr(watching, "EVERY", 0.05)
    how, run = Opening("cpu", "float32"), training / "run"
    running = Running(serve_models([str(run)], LIMITS, how), Place(port=0), how)
    try:
        first = asked(running).json()["choices"]
        (run / "checkpoints" / "step-00000015").mkdir()
        shutil.rmtree(run / "checkpoints" / "step-00000010")  # none of them is sound now
        time.sleep(0.5)
        assert asked(running).json()["choices"] == first
        assert running.models["run"].checkpoint == "step-00000010"
        (training / "coming").rename(run / "checkpoints" / "step-00000020")
        until_checkpoint(running, "step-00000020")  # and the next one is served
        assert asked(running).json()["choices"] != first
    finally:
        running.close()
