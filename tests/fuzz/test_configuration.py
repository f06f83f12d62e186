"""Configurations, recipes and chat formats, as YAML and on the command line."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data.recipe import find_recipe, read_recipe
from gpt.chat import FORMATS, read_format
from gpt.configuration import FinetuneConfig, PretrainConfig, SamplingConfig, sampling_config
from gpt.configuration.command_line import parse_command_line, print_config
from gpt.configuration.strict_yaml import load_file
from gpt.errors import UserError
from tests.fuzz.inputs import TEXTS, VALUES, as_json, damaged, fuzzed, is_read, mutated

TOKENS = [b"&a ", b"*a", b"!!int ", b"!!python/name:os.system ", b"? ", b"- ", b"| ", b">-\n",
          b"\t",
          b"---\n", b"...\n", b"%YAML 1.1\n", b"{", b"]", b", ", b": ", b"<<: ", b"~", b"\\ud800",
          b'"\\ud800"', b'"\\0"', b"? [a, b]\n: 1\n", b"'", b"@", b"`", b"\xc2\x85", b"1e999",
          b".nan"]
RUN = {"run": {"name": "a", "out_dir": "runs", "seed": 3, "dtype": "float32"},
       "data": {"dataset": "data/stdlib"},
       "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64, "window_pattern": "SF",
                 "window": 8, "rope_scaling": {"factor": 2.0, "original_block_size": 16}},
       "train": {"steps": 10, "batch_size": 4}, "optim": {"name": "muon", "lr": 1e-3},
       "eval": {"every_steps": 5}, "log": {"sample_prompts": ["a", "b"]},
       "checkpoint": {"keep": 2}, "parallel": {"tensor": 1}}
TUNING = {"run": RUN["run"], "finetune": {"from": "runs/a", "data": "task.jsonl", "chat": "auto",
                                              "method": "lora"},
          "lora": {"rank": 4, "targets": ["all"]}, "train": {"epochs": 2}}
RECIPE = {"name": "mixed", "out": "data/mixed", "tokenizer": "bpe:300", "val_fraction": 0.1,
          "sources": [{"path": "a.txt", "weight": 0.5},
                      {"path": "b/*.jsonl", "weight": 2.0, "encoding": "latin-1"},
                      {"path": "c.json", "weight": 1, "text_field": "{a}: {b}", "max_tokens": 9}],
          "on_bad_text": "skip", "overlap_with": "validation"}


def yaml_files(value):
    """Files that were this value as YAML: JSON is YAML, too."""
    plain = yaml.safe_dump(value, sort_keys=False).encode()
    return st.one_of(mutated(value).map(as_json), mutated(value).map(as_json),
                     damaged(plain, TOKENS))


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config.yaml"


READERS = {
    "plain": (RUN, load_file),
    "pretraining": (RUN, lambda file: print_config(*understood(PretrainConfig, file))),
    "fine-tuning": (TUNING, lambda file: print_config(*understood(FinetuneConfig, file))),
    "recipe": (RECIPE, lambda file: read_recipe(file).identity),
    "recipe of a run": (RECIPE, lambda file: find_recipe(str(file))),
    "chat format": (FORMATS["chatml"].model_dump(), read_format)}


def understood(schema, file):
    found = parse_command_line(schema, [str(file)], "")
    return found.config, found.origins


@pytest.mark.parametrize("kind", READERS)
def test_any_yaml_is_read_or_refused(kind, file):
    value, read = READERS[kind]
    seen = set()

    @fuzzed(60)
    @given(yaml_files(value))
    def tried(data):
        file.write_bytes(data)
        seen.add(is_read(lambda: read(file)))

    tried()
    file.write_bytes(as_json(value))
    assert is_read(lambda: read(file)) and seen == {True, False}


WORDS = st.one_of(
    st.sampled_from(["model.n_layer=3", "--train.steps", "--train.steps=5", "run.name=b",
                     "log.sample_prompts=[a, b]", "--dry-run", "model.rope_scaling={factor: 3}",
                     "model.n_layer.x=3", "=", "a=", "--=", "-", "data=3", "run.seed=" + "9" * 5000,
                     "a" + ".a" * 5000 + "=1", 'run.name="\\ud800"', "run.name={a: *b}"]),
    st.builds("{}.{}={}".format, st.sampled_from(sorted(RUN)), st.sampled_from(
        sorted({name for section in RUN.values() for name in section})), TEXTS),
    TEXTS).map(lambda word: word.replace("\0", ""))


def test_any_command_line_is_understood_or_refused(file):
    file.write_bytes(as_json(RUN))
    seen = set()

    @fuzzed(100)
    @given(st.lists(WORDS, max_size=4))
    def tried(words):
        seen.add(is_read(lambda: parse_command_line(PretrainConfig, [str(file), *words], "")))

    tried()
    assert seen == {True, False}


def test_any_settings_of_sampling_are_taken_or_refused():
    seen = set()

    @fuzzed(100)
    @given(st.dictionaries(st.sampled_from([*SamplingConfig.model_fields, "x"]), VALUES,
                           max_size=3))
    def tried(settings):
        seen.add(is_read(lambda: sampling_config(**settings)))

    tried()
    assert seen == {True, False}


def test_what_nobody_catches_is_seen():
    for error in (ValueError("x"), RecursionError(), KeyError(1)):
        with pytest.raises(type(error)):
            is_read(lambda error=error: (_ for _ in ()).throw(error))
    with pytest.raises(MemoryError):
        is_read(lambda: bytearray(2**40))
    assert not is_read(lambda: (_ for _ in ()).throw(UserError("told")))
