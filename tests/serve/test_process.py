"""python -m gpt serve, as a process: what it says, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch

import finetune
from gpt.chat import FORMATS
from gpt.errors import UserError
from gpt.language_model import load
from gpt.runs import checkpoint
from gpt.serve import Limits, Opening, serve_models
from gpt.tokenizer import build_tokenizer
from gpt.verbs import serving
from tests.tiny import ROOT, as_in_a_terminal, call_main, script_environment, tiny_gpt

OPENING = Opening("cpu", "float32")
LONG = {"model": "tiny", "prompt": "a", "max_tokens": 3000, "stream": True,
        "logit_bias": {"256": -100}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Slow enough to be interrupted."""
    path = tmp_path_factory.mktemp("served") / "tiny"
    tokenizer = build_tokenizer("byte")
    tokenizer.chat_format = FORMATS["turns"].model_dump_json()
    model = tiny_gpt(vocab_size=257, block_size=4096, n_embd=64, n_layer=4)
    checkpoint.save_model(path, model, tokenizer, "random")
    return path


class Started:
    """The command, once it listens."""

    def __init__(self, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpt", "serve", *map(str, words)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=script_environment(),
            preexec_fn=as_in_a_terminal)
        self.line = self.process.stdout.readline()
        found = re.search(r"at (\S+)/v1", self.line)
        assert found, self.line + self.process.stderr.read()
        self.url = found[1]

    def ended(self):
        _, told = self.process.communicate(timeout=60)
        self.said = told
        return self.process.returncode, told.strip().splitlines()[-1] if told.strip() else ""


def written(started, body, found, errors):
    """Streams a text; what came of it goes into `found`."""
    try:
        with httpx.stream("POST", started.url + "/v1/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    found.append(json.loads(line[6:]))
                elif line:
                    found.append(line)
    except httpx.HTTPError as error:
        errors.append(error)


def begun(started, body):
    """(thread, what comes, errors) of a text that has begun."""
    found, errors = [], []
    thread = threading.Thread(target=written, args=(started, body, found, errors))
    thread.start()
    while not found:
        time.sleep(0.01)
        assert thread.is_alive()
    return thread, found, errors


def test_a_signal_lets_texts_be_finished_and_takes_no_more(folder):
    started = Started(folder, "--port", 0)
    assert started.line.startswith("serving tiny at http://127.0.0.1:")
    thread, found, errors = begun(started, LONG | {"max_tokens": 400})
    started.process.send_signal(signal.SIGTERM)
    with pytest.raises(httpx.ConnectError):  # as soon as it has heard
        for _ in range(100):
            with contextlib.suppress(httpx.ReadError, httpx.RemoteProtocolError):
                httpx.get(started.url + "/health")  # one that was to be accepted next is cut off
            time.sleep(0.1)
    thread.join()
    assert found[-1] == "data: [DONE]" and not errors
    assert found[-2]["choices"][0]["finish_reason"] == "length"
    code, told = started.ended()
    assert code == 0 and "Traceback" not in told


def test_a_second_signal_cuts_them_off_with_code_75(folder):
    started = Started(folder, "--port", 0)
    thread, found, _ = begun(started, LONG)
    answers = []
    whole = threading.Thread(target=lambda: answers.append(httpx.post(
        started.url + "/v1/completions", json=LONG | {"stream": False}, timeout=60)))
    whole.start()
    while 'gpt_rows{model="tiny"} 2.0' not in httpx.get(started.url + "/metrics").text:
        time.sleep(0.01)
    for _ in range(2):
        started.process.send_signal(signal.SIGINT)
        time.sleep(1)
    code, told = started.ended()
    thread.join()
    whole.join()
    assert found[-1]["error"]["code"] == "server_stopping" and code == 75
    assert [answer.status_code for answer in answers] == [503]
    assert told == "stopped by SIGINT; texts that were being written are cut off"
    assert "Traceback" not in started.said


@pytest.mark.parametrize(("words", "told"), [
    (["--host", "0.0.0.0"], "give --api-key, or --insecure"),
    (["--rows", "0"], "--rows 0: give at least 1"),
    (["--api-key", ""], "the key is empty"), (["--api-key-file", "nowhere"], "--api-key-file"),
    (["--tls-cert", "x"], "--tls-cert and --tls-key go together"),
    (["--tls-cert", "x", "--tls-key", "y"], "--tls-cert x, --tls-key y: No such file"),
    (["--tls-cert", __file__, "--tls-key", __file__], "give a certificate and its key as PEM"),
    (["--cors", "example.org"], "--cors example.org: give an origin"),
    (["--host", "256.1.1.1", "--insecure"], "cannot listen at 256.1.1.1"),
    (["--port", "99999"], "cannot listen at 127.0.0.1:99999"),
    (["--watch"], "--watch is for the folder of a run"),
    (["--served-model-name", "tiny"], "--served-model-name tiny: a model is called so already"),
    (["other=nowhere"], "nowhere"), (["{folder}"], "two models are to be called tiny")])
def test_what_cannot_be_is_one_line(folder, words, told):
    parser = argparse.ArgumentParser()
    serving.add_arguments(parser)
    words = [word.format(folder=folder) for word in words]
    with pytest.raises(UserError, match=re.escape(told)):
        serving.run(parser.parse_args([str(folder), *words]))


def test_keys_and_values_that_no_device_holds_are_refused(folder, monkeypatch):
    from gpt.serve import models
    model = load(str(folder), "cpu", "float32").model
    cache = model.new_cache(1, 1, torch.device("cpu"), torch.float32)
    token = sum(space.nbytes for space in (*cache.keys, *cache.values))
    weights = sum(each.nbytes for each in model.parameters())
    needed = (3 + 4) * 4096 * token  # three texts, four contexts of prompts
    for names, there, fits in ((["tiny"], weights + needed, True),
                               (["tiny"], weights + needed - 1, False),
                               (["tiny", "again"], weights + 2 * needed, True),
                               (["tiny", "again"], weights + 2 * needed - 1, False)):
        monkeypatch.setattr(models, "memory_bytes", lambda device, there=there: there)
        specs = [f"{name}={folder}" for name in names]  # which share their weights
        if fits:
            served = serve_models(specs, Limits(rows=3), OPENING)
            assert [each.kept_bytes for each in served.values()] == [needed] * len(names)
            continue
        with pytest.raises(UserError, match=f"{names[-1]}: keys and values of 3 texts of 4,096"):
            serve_models(specs, Limits(rows=3), OPENING)


def test_a_package_that_is_missing_is_named_with_the_way_to_get_it():
    done = subprocess.run([sys.executable, "-c", (
        "import sys; sys.modules['starlette'] = None; sys.argv = ['gpt', 'serve', 'run']\n"
        "from gpt.__main__ import main; from gpt.errors import run_command; run_command(main)")],
        cwd=ROOT, capture_output=True, text=True, env=script_environment(), timeout=120)
    assert (done.returncode, done.stderr) == (2, (
        "error: serving needs the package starlette: pip install 'gpt-toolkit[serve]'\n"))


def test_a_port_that_is_taken_is_one_line(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [sys.executable, "-m", "gpt", "serve", str(folder), "--port",
             str(taken.getsockname()[1])], cwd=ROOT, capture_output=True, text=True,
            env=script_environment(), timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: cannot listen at 127.0.0.1:")


def test_adapters_of_one_base_share_its_weights_and_answer_as_they_do_alone(
        tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint.save_model(Path("base"), tiny_gpt(vocab_size=257, block_size=64),
                          build_tokenizer("byte"), "random")
    Path("task.jsonl").write_text("".join(
        json.dumps({"prompt": f"{i} and ", "completion": f"{i}."}) + "\n" for i in range(20)))
    for name in ("a", "b"):
        code, _, errors = call_main(
            finetune, "finetune.from=base", "finetune.data=task.jsonl", f"run.name={name}",
            "finetune.method=lora", "optim.lr=0.05", f"train.steps={3 + 2 * (name == 'b')}",
            "optim.warmup_steps=0", "finetune.answers=0", "run.dtype=float32",
            monkeypatch=monkeypatch, capsys=capsys)
        assert code == 0, errors
    models = serve_models(["base", "a=runs/a", "b=runs/b"], Limits(), OPENING)
    matrices = {name: served.lm.model.blocks[0].feedforward.down_proj.weight.data_ptr()
                for name, served in models.items()}
    assert len(set(matrices.values())) == 1
    texts = {name: models[name].lm.generate("3 and ", temperature=0, max_new_tokens=12)
             for name in models}
    assert len(set(texts.values())) == 3
    assert texts == {name: load(run, "cpu", "float32").generate(
        "3 and ", temperature=0, max_new_tokens=12)
        for name, run in (("base", "base"), ("a", "runs/a"), ("b", "runs/b"))}
    alone = serve_models(["a=runs/a"], Limits(), OPENING)["a"]
    assert alone.lm.model.adapter is None  # merged, which is faster


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_with_a_certificate_it_speaks_https(folder, tmp_path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                    "-keyout", key, "-out", certificate, "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    started = Started(folder, "--port", 0, "--tls-cert", certificate, "--tls-key", key)
    address = started.url.replace("127.0.0.1", "localhost")
    assert address.startswith("https://")
    trusting = ssl.create_default_context(cafile=certificate)
    assert httpx.get(address + "/v1/models", verify=trusting).json()["data"][0]["id"] == "tiny"
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(address + "/v1/models")
    started.process.send_signal(signal.SIGTERM)
    assert started.ended()[0] == 0
