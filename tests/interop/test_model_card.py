"""The README.md of an export: what it learned from, how well, under which licence."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from gpt.interop.model_card import About, about_checkpoint, model_card, public
from gpt.tokenizer import build_tokenizer
from tests.tiny import tiny_gpt


def head_of(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def run_folder(tmp_path, config: dict, *lines: dict):
    path = tmp_path / "my-run/checkpoints/step-00000004"
    path.mkdir(parents=True)
    (tmp_path / "my-run/config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "my-run/metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"event": "ev')
    return path


def evaluation(step: int, loss: float) -> dict:
    return {"event": "eval", "step": step, "val_loss": loss, "val_bits_per_byte": loss / 2}


def test_a_card_tells_data_metrics_and_licence_of_the_step_that_is_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = {"splits": {"train": {"documents": 9, "tokens": 1234, "bytes": 5678}},
               "sources": [{"path": "corpus/a"}]}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset.json").write_text(json.dumps(dataset))
    path = run_folder(tmp_path, {"data": {"dataset": "data"}}, evaluation(2, 3.0),
                      evaluation(4, 2.5), {"event": "train", "step": 5}, evaluation(6, 9.0))
    about = about_checkpoint(path, "apache-2.0")
    assert about == About("my-run", "apache-2.0",
                          ["pretrained on `data`",
                           "train: 9 documents, 1,234 tokens, 5,678 bytes", "source: `corpus/a`"],
                          {"val_loss": 2.5, "val_bits_per_byte": 1.25}, 4)
    card = model_card(about, tiny_gpt(vocab_size=257), build_tokenizer("byte"))
    head = head_of(card)
    assert head["license"] == "apache-2.0" and head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "text-generation"
    metrics = head["model-index"][0]["results"][0]["metrics"]
    assert metrics == [{"type": "val_loss", "value": 2.5},
                       {"type": "val_bits_per_byte", "value": 1.25}]
    for line in ("# my-run", "- pretrained on `data`", "- 4 training steps", "- apache-2.0",
                 "- loss on its validation split: 2.5000", "4 heads (2 for keys and values)",
                 "- bits per byte on its validation split: 1.2500", "- context of 32 tokens",
                 "- tokenizer `byte` with 257 ids", "2 layers", "width 32"):
        assert line in card


def test_the_dataset_of_a_recipe_is_found_where_the_recipe_puts_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("out: elsewhere\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/dataset.json").write_text(json.dumps(
        {"splits": {}, "sources": [{"path": "s"}]}))
    path = run_folder(tmp_path, {"data": {"dataset": "r.yaml"}})
    assert about_checkpoint(path, None).data == ["pretrained on `r.yaml`", "source: `s`"]


def test_a_fine_tuned_run_tells_what_it_came_from(tmp_path):
    path = run_folder(tmp_path, {"finetune": {"from": "openai-community/gpt2", "data": "t.jsonl"}})
    assert about_checkpoint(path, None).data == [
        "fine-tuned from `openai-community/gpt2` on `t.jsonl`"]


def test_what_is_not_known_is_said_and_not_made_up(tmp_path):
    folder = tmp_path / "alone"
    folder.mkdir()
    about = about_checkpoint(folder, None)
    assert about == About("alone")
    card = model_card(about, tiny_gpt(vocab_size=257), build_tokenizer("byte"))
    assert head_of(card)["license"] == "unknown" and "model-index" not in head_of(card)
    for line in ("- not recorded", "- no evaluation was recorded", "- not stated by the authors"):
        assert line in card
    assert "training steps" not in card


def test_names_come_from_the_folder_wherever_it_lies(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--openai-community--gpt2/snapshots/607a30d7"
    other = tmp_path / "checkpoints/best"
    for folder in (snapshot, other):
        folder.mkdir(parents=True)
    assert about_checkpoint(snapshot, None).name == "gpt2"
    assert about_checkpoint(other, None) == About("best")
    monkeypatch.chdir(tmp_path / "checkpoints")
    from pathlib import Path
    assert about_checkpoint(Path(), None).name == "checkpoints"


def test_a_licence_cannot_break_the_head_of_the_card():
    licence = "x\n---\nlicense: mit: [\""
    card = model_card(About("n: \"a", licence), tiny_gpt(vocab_size=257), build_tokenizer("byte"))
    assert yaml.safe_load(card.removeprefix("---\n").split("\n---\n")[0])["license"] == licence


def test_a_card_names_the_base_on_the_hub_and_no_path_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = run_folder(tmp_path, {"finetune": {"from": "some-lab/some-model",
                                              "data": "/home/me/secret/task.jsonl"}})
    about = about_checkpoint(path, None)
    card = model_card(about, tiny_gpt(vocab_size=257), build_tokenizer("byte"))
    assert head_of(card)["base_model"] == "some-lab/some-model"
    assert "- fine-tuned from `some-lab/some-model` on `task.jsonl`" in card and "/home" not in card


def test_the_base_is_found_by_way_of_other_runs_and_of_a_folders_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "downloads/theirs"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "some-lab/some-model"}))
    (tmp_path / "first").mkdir()
    (tmp_path / "first/config.yaml").write_text(yaml.safe_dump({"finetune": {"from": str(folder)}}))
    path = run_folder(tmp_path, {"finetune": {"from": f"{tmp_path}/first@best", "data": "t.csv"}})
    about = about_checkpoint(path, None)
    assert about.base_model == "some-lab/some-model"
    assert about.data == ["fine-tuned from `first@best` on `t.csv`"]
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "/tmp/elsewhere"}))
    assert about_checkpoint(path, None).base_model is None


@pytest.mark.parametrize(("name", "shown"), [
    ("/home/me/data/mine", "mine"), ("data/shakespeare", "shakespeare"), ("bpe:4096", "bpe:4096"),
    ("openai-community/gpt2", "openai-community/gpt2"), ("https://a.example/b/c.gz",) * 2])
def test_of_a_place_here_the_last_part_is_public(name, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert public(name) == shown


@pytest.mark.parametrize("config", [[1], {"finetune": [1]}, {"data": 5}, {"finetune": {"from": 5}},
                                    {"data": {"dataset": ["x"]}}, None])
def test_a_configuration_of_another_kind_tells_little(config, tmp_path):
    path = run_folder(tmp_path, config, evaluation(2, 3.0))
    assert about_checkpoint(path, None).metrics == {"val_loss": 3.0, "val_bits_per_byte": 1.5}


@pytest.mark.parametrize("line", ["[1]", "[" * 100_000, '{"event": "eval", "step": "x"}', "null",
                                  '{"event": "eval", "step": 3}', "\udcff".encode(
                                      "utf-8", "surrogateescape").decode("latin-1")])
def test_a_line_of_another_kind_is_no_evaluation(line, tmp_path):
    path = run_folder(tmp_path, {}, evaluation(2, 3.0))
    metrics = tmp_path / "my-run/metrics.jsonl"
    metrics.write_bytes(line.encode("latin-1") + b"\n" + metrics.read_bytes())
    assert about_checkpoint(path, None).metrics == {"val_loss": 3.0, "val_bits_per_byte": 1.5}


def test_a_dataset_that_is_damaged_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for text in ("{", "[]", '{"splits": [], "sources": 1}', '{"splits": {"train": 5}}'):
        (tmp_path / "data/dataset.json").write_text(text)
        path = run_folder(tmp_path, {"data": {"dataset": "data"}})
        assert about_checkpoint(path, None).data == ["pretrained on `data`"]
        shutil.rmtree(tmp_path / "my-run")


def test_a_run_that_came_from_itself_has_no_base(tmp_path):
    path = run_folder(tmp_path, {"finetune": {"from": str(tmp_path / "my-run"), "data": "a"}})
    assert about_checkpoint(path, None).base_model is None
