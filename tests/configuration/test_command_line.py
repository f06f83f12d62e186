"""From a command line to a configuration, and from an error to an exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpt.configuration import (
    FinetuneConfig,
    PretrainConfig,
    help_text,
    parse_command_line,
    split_arguments,
)
from gpt.configuration.command_line import field_paths
from gpt.configuration.strict_yaml import load_text
from gpt.errors import Stopped, TrainingFailed, UserError, run_command

ROOT = Path(__file__).resolve().parents[2]
BASE = "data:\n  dataset: corpus\n"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def parse(*argv: str, text: str = BASE, file: str = "small.yaml", schema=PretrainConfig):
    Path(file).write_text(text)
    return parse_command_line(schema, [file, *argv], "usage: python train.py")


def refusal(*argv: str, **given) -> str:
    """The one line that this command line is refused with."""
    with pytest.raises(UserError) as caught:
        parse(*argv, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_come_from_defaults_then_the_file_then_the_command_line():
    text = BASE + "train:\n  steps: 10\n  batch_size: 4\n"
    command = parse("train.steps=20", text=text)
    assert command.config.train.grad_clip == 1.0
    assert command.config.train.batch_size == 4
    assert command.config.train.steps == 20
    assert command.origins["train.batch_size"] == "small.yaml, line 5"
    assert command.origins["train.steps"] == "command line"
    assert parse(text=text).config.train.steps == 10
    assert parse().config.train.batch_size == "auto"


@pytest.mark.parametrize("words", [
    ["train.steps=7"], ["--train.steps=7"], ["--train.steps", "7"],
    ["train.steps=5", "--train.steps", "7"]])
def test_overrides_are_accepted_in_every_spelling_and_the_last_one_counts(words):
    assert parse(*words).config.train.steps == 7
    assert parse(*words, "optim.lr=1e-4").config.optim.lr == 1e-4


def test_overrides_may_stand_before_the_file_and_without_one():
    Path("small.yaml").write_text(BASE)
    usage = "usage"
    assert parse_command_line(PretrainConfig, ["train.steps=2", "small.yaml"],
                              usage).config.train.steps == 2
    command = parse_command_line(PretrainConfig, ["data.dataset=x"], usage)
    assert command.file is None and command.config.data.dataset == "x"


def test_the_layout_may_be_left_open_by_one_word_and_sizes_be_given_all_the_same():
    left_open = parse(text=BASE + "parallel: auto\n").config.parallel
    assert left_open == parse().config.parallel == parse("parallel=auto").config.parallel
    assert (left_open.replicate, left_open.shard, left_open.tensor) == ("auto",) * 3
    assert parse("parallel.shard=2", text=BASE + "parallel: auto\n").config.parallel.shard == 2
    assert parse("parallel.shard=auto", text=BASE + "parallel:\n  shard: 2\n"
                 ).config.parallel == left_open
    assert "parallel: input should be " in refusal(text=BASE + "parallel: full\n")
    assert "cannot set data.dataset: data is not a section" in refusal(
        "data.dataset=x", text="data: auto\n")


@pytest.mark.parametrize(("word", "value"), [
    ("log.sample_prompts=[a, 'b c']", ["a", "b c"]), ("log.sample_prompts=['1']", ["1"]),
    ("log.sample_prompts=[]", [])])
def test_lists_are_written_as_in_yaml(word, value):
    assert parse(word).config.log.sample_prompts == value


def test_quotes_make_text_of_a_number_and_an_empty_value_is_null():
    assert refusal("run.name=2024") == (
        "command line: run.name: input should be a valid string (given: 2024)")
    assert parse('run.name="2024"').config.run.name == "2024"
    assert parse("eval.every_steps=").config.eval.every_steps is None


def test_text_with_an_equals_sign_is_kept_whole_and_a_file_may_have_one_in_its_name():
    assert parse("run.out_dir=a=b").config.run.out_dir == "a=b"
    Path("a=b").write_text("")
    assert split_arguments(["a=b", "c=d"]) == (["a=b"], {"c": "d"})


@pytest.mark.parametrize("word", ["https://host/a?b=c", "s3://bucket/x=1/*.gz", "data/a=b.txt",
                                  "hf://datasets/o/n/lang=en", "=x", "1=2"])
def test_what_cannot_be_a_field_before_an_equals_sign_is_a_word(word):
    assert split_arguments([word, "c=d"]) == ([word], {"c": "d"})


def test_an_address_may_be_the_value_of_a_field():
    assert split_arguments(["sources.0.path=https://host/a?b=c", "--x.y", "s3://b/c=d"]) == (
        [], {"sources.0.path": "https://host/a?b=c", "x.y": "s3://b/c=d"})


@pytest.mark.parametrize("words", [["--train-steps=5"], ["--train-steps", "5"]])
def test_an_option_that_is_no_field_is_refused_as_one_and_not_taken_for_a_file(words):
    assert refusal(*words) == (
        "command line: there is no field train-steps; did you mean train.steps?")


def test_an_override_may_be_longer_than_a_file_name():
    prompt = "a" * 300
    assert parse(f"log.sample_prompts=[{prompt}]").config.log.sample_prompts == [prompt]


def test_a_run_is_named_after_its_file_unless_it_says_so():
    command = parse()
    assert command.config.run.name == "small"
    assert command.origins["run.name"] == "the name of small.yaml"
    assert parse("run.name=other").config.run.name == "other"
    assert parse(text=BASE + "run: {name: third}").config.run.name == "third"
    assert refusal(file="my run.yaml").startswith("the name of my run.yaml: run.name: string")


def test_a_section_whose_fields_are_all_commented_out_has_its_defaults():
    assert parse(text=BASE + "train:\n#  steps: 5\n").config.train.steps is None


@pytest.mark.parametrize(("argv", "line"), [
    (["train.stepz=5"], "command line: there is no field train.stepz; did you mean train.steps?"),
    (["steps=5"], "command line: there is no field steps; did you mean train.steps?"),
    (["optim.n_layer=5"],
     "command line: there is no field optim.n_layer; did you mean model.n_layer?"),
    (["qqqqqqqqq=5"], "command line: there is no field qqqqqqqqq; --help lists all fields"),
    (["modle.n_layer=5"], "command line: there is no field modle; did you mean model?"),
    (["train.steps=ten"], "command line: train.steps: input should be a valid integer, unable to "
                          "parse string as an integer (given: 'ten')"),
    (["train.steps=0"],
     "command line: train.steps: input should be greater than or equal to 1 (given: 0)"),
    (["train=5"], "command line: train: input should be a valid dictionary or instance of "
                  "TrainConfig (given: 5)"),
    (["train.steps"], "one configuration file is expected, not 2: small.yaml train.steps"),
    (["--train.steps"], "--train.steps needs a value: --train.steps VALUE, or train.steps=VALUE; "
                        "--help lists all fields"),
    (["log.sample_prompts=[a"], "the value of log.sample_prompts, line 1: not valid YAML: expected "
                                "',' or ']', but got '<stream end>'"),
    (["train=", "train.steps=5"], "cannot set train.steps: train is not a section")])
def test_a_wrong_command_line_is_one_line_that_says_what_to_do(argv, line):
    assert refusal(*argv) == line


@pytest.mark.parametrize(("text", "line"), [
    ("train:\n  stepz: 5\n",
     "small.yaml, line 4: there is no field train.stepz; did you mean train.steps?"),
    ("trian:\n  steps: 5\n", "small.yaml, line 3: there is no field trian; did you mean train?"),
    ("train:\n  batch_size: many\n",
     "small.yaml, line 4: train.batch_size: input should be a valid integer, unable to parse "
     "string as an integer (given: 'many')"),
    ("run:\n  device: tpu\n", "small.yaml, line 4: run.device: input should be 'auto', 'cpu', "
                              "'cuda' or 'mps' (given: 'tpu')"),
    ("optim:\n  lr: .nan\n",
     "small.yaml, line 4: optim.lr: input should be a finite number (given: nan)"),
    ("train:\n  steps: 1\n  steps: 2\n",
     "small.yaml, line 5: the key 'steps' stands twice; remove one"),
    ("train: !!python/object:object {}\n", None), ("train: &a {}\nlog: *a\n", None)])
def test_a_wrong_file_is_one_line_with_file_and_line(text, line):
    found = refusal(text=BASE + text)
    assert "small.yaml, line " in found if line is None else found == line
    assert [path.name for path in Path().iterdir()] == ["small.yaml"]


def test_a_file_that_is_not_made_of_sections_is_refused():
    assert refusal(text="- a\n- b\n") == (
        "small.yaml, line 1: a configuration is made of 'section:' and fields")


def test_a_missing_file_is_named_with_the_nearest_one_there():
    Path("quickstart.yaml").write_text(BASE)
    with pytest.raises(UserError, match=r"no configuration file quickstrat\.yaml; did you mean "
                                        r"quickstart\.yaml\?"):
        parse_command_line(PretrainConfig, ["quickstrat.yaml"], "usage")
    with pytest.raises(UserError, match=r"there is no configuration file zzz\.json$"):
        parse_command_line(PretrainConfig, ["zzz.json"], "usage")


def test_required_fields_are_asked_for():
    assert refusal(schema=FinetuneConfig, text="finetune: {data: d.jsonl}") == (
        "finetune.from is missing: give finetune.from=VALUE, or set it in the YAML file")
    with pytest.raises(UserError, match=r"^data(\.dataset)? is missing: give data"):
        parse_command_line(PretrainConfig, [], "usage")


def test_a_missing_section_is_asked_for_by_the_field_that_fills_it():
    with pytest.raises(UserError, match=r"^data\.dataset is missing: give data\.dataset=VALUE"):
        parse_command_line(PretrainConfig, [], "usage")


def test_a_dotted_key_in_the_file_is_explained():
    assert "did you mean train.steps?" not in refusal(text=BASE + "train.steps: 5\n")


def test_fields_that_do_not_fit_together_are_blamed_on_who_set_them():
    assert refusal("model.n_head=7").startswith("command line: model: n_embd (768) must be")


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str
    format: str = "auto"
    weight: float | None = None


class Listing(BaseModel):
    """A configuration with a list of sections."""

    model_config = ConfigDict(extra="forbid")

    items: list[Item] = Field(description="some of them")
    split: str = "auto"

    @model_validator(mode="after")
    def _fits_together(self) -> Listing:
        if len({item.path for item in self.items}) < len(self.items):
            raise ValueError("a path stands twice")
        return self


@pytest.mark.parametrize(("text", "line"), [
    ("items:\n- path: a\n- path: b\n  formatt: text\n",
     "small.yaml, line 4: there is no field items.1.formatt; did you mean items.1.format?"),
    ("items:\n- path: a\n  weight: heavy\n",
     "small.yaml, line 3: items.0.weight: input should be a valid number, unable to parse string "
     "as a number (given: 'heavy')"),
    ("items:\n- format: text\n",
     "items.0.path is missing: give items.0.path=VALUE, or set it in the YAML file"),
    ("items:\n- a\n", "small.yaml, line 2: items.0: input should be a valid dictionary or "
                      "instance of Item (given: 'a')"),
    ("items:\n- path: a\n- path: a\n",
     "small.yaml, line 1: the configuration: a path stands twice")])
def test_a_mistake_inside_a_list_is_named_with_its_place_and_line(text, line):
    assert refusal(text=text, schema=Listing) == line


def test_what_does_not_fit_together_is_blamed_on_the_command_line_if_that_said_any_of_it():
    assert refusal("split=x", text="items:\n- path: a\n- path: a\n", schema=Listing) == (
        "command line: the configuration: a path stands twice")


def test_help_lists_the_fields_of_the_items_of_a_list():
    told = help_text(Listing, "usage")
    assert "\n  items                          list of Item; required\n" in told
    assert "\n  items.N.format                 text; default \"auto\"" in told


@pytest.mark.parametrize("schema", [PretrainConfig, FinetuneConfig])
def test_help_lists_every_field_with_type_default_and_meaning(schema, capsys):
    with pytest.raises(SystemExit) as left:
        parse_command_line(schema, ["nonsense.yaml", "x=y", "--help"], "usage: python train.py")
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: python train.py"
    paths = field_paths(schema)
    assert len(paths) > 25
    for path, info in paths.items():
        at = next(i for i, line in enumerate(lines) if line.split()[:1] == [path])
        _, kind, *default = lines[at].replace(";", " ; ", 1).split()
        assert kind != ";" and any(word in ("default", "derived", "required") for word in default)
        if info.description:
            assert info.description in lines[at + 1]
    for flag in ("--print-config", "--dry-run"):
        assert any(line.strip().startswith(flag) for line in lines)


@pytest.mark.parametrize(("path", "described"), [
    ("model.n_layer", "integer; default 12"), ("model.n_kv_head", "integer; derived"),
    ("optim.lr", "number | auto; default \"auto\""), ("data.dataset", "text; required"),
    ("eval.max_tokens", "integer | null; default null"), ("run.compile", "auto | true | false; "),
    ("log.sample_prompts", "list of text; default [\"\"]"),
    ("model.qk_norm", "bool | across_heads; default true"),
    ("model.bias", "bool | list of qkv_proj | out_proj | up_proj | down_proj | norm | lm_head;")])
def test_help_describes_types_in_plain_words(path, described, capsys):
    with pytest.raises(SystemExit):
        parse_command_line(PretrainConfig, ["-h"], "usage")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == [path])
    assert line.split(maxsplit=1)[1].startswith(described)


def test_print_config_shows_every_value_and_where_it_came_from(capsys):
    with pytest.raises(SystemExit) as left:
        parse("--print-config", "--train.steps", "9", text=BASE + "model:\n  n_layer: 2\n")
    printed = capsys.readouterr().out
    assert left.value.code == 0
    for line in ('  name: "small"  # the name of small.yaml', "  steps: 9  # command line",
                 "  n_layer: 2  # small.yaml, line 4", "  n_kv_head: 6  # default",
                 '  dataset: "corpus"  # small.yaml, line 2'):
        assert line in printed.splitlines()
    dials = {"model.preset", "model.depth"}  # stand in the fields that they set
    assert set(load_text(printed, "printed").lines) - {""} >= {
        path for path in field_paths(PretrainConfig)
        if path not in dials and not path.startswith("model.rope_scaling.")}


def test_print_config_says_what_a_preset_or_the_depth_set(capsys):
    for dial, lines in (("preset=gpt2-medium", ["  n_layer: 24  # gpt2-medium",
                                                "  n_embd: 96  # command line"]),
                        ("depth=3", ["  n_layer: 3  # model.depth=3",
                                     "  n_embd: 96  # command line"])):
        with pytest.raises(SystemExit):
            parse("--print-config", f"model.{dial}", "model.n_embd=96")
        printed = capsys.readouterr().out.splitlines()
        assert set(lines) <= set(printed)


@pytest.mark.parametrize("overrides", [
    [], ["optim.lr=1e-5", "run.out_dir='a: # b'", "log.sample_prompts=['\"', \"é\", '- x']",
         "eval.every_steps=null", "run.compile=false"]])
def test_a_printed_configuration_is_a_configuration_file_for_the_same_run(overrides, capsys):
    with pytest.raises(SystemExit):
        parse("--print-config", *overrides)
    printed = capsys.readouterr().out
    assert parse(file="again.yaml", text=printed).config == parse(*overrides).config


def test_a_dry_run_is_told_to_the_caller():
    assert parse("--dry-run").flags == {"--dry-run"}
    assert parse().flags == set()


def failing(error: BaseException):
    def command(argv: list[str]) -> None:
        raise error
    return command


@pytest.mark.parametrize(("error", "code", "line"), [
    (UserError("x is wrong;\n  write y"), 2, "error: x is wrong; write y\n"),
    (UserError("no file " + "x" * 10**6 + "; name one"), 2,
     "error: no file " + "x" * 2992 + " […] " + "x" * 790 + "; name one\n"),
    (TrainingFailed("the loss of step 3 is nan"), 1, "failed: the loss of step 3 is nan\n"),
    (Stopped("stopped by SIGTERM"), 75, "stopped by SIGTERM\n"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
    (BrokenPipeError(32, "Broken pipe"), 1, "failed: input or output: Broken pipe\n")])
def test_errors_leave_with_their_exit_code_and_one_line(error, code, line, capsys):
    with pytest.raises(SystemExit) as left:
        run_command(failing(error))
    assert left.value.code == code
    assert capsys.readouterr().err == line


def test_mistakes_of_our_own_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(failing(ZeroDivisionError()))


def test_a_command_gets_the_arguments_of_its_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "a", "b=c"])
    seen: list[list[str]] = []
    run_command(seen.append)
    assert seen == [["a", "b=c"]]


def test_a_reader_that_leaves_early_is_no_failure():
    program = ("import sys; sys.path.insert(0, sys.argv[1])\n"
               "from gpt.errors import run_command\n"
               "def main(argv):\n"
               "    for i in range(10**6): print(i)\n"
               "run_command(main)\n")
    writer = subprocess.Popen([sys.executable, "-c", program, str(ROOT)], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert (writer.stderr.read(), writer.wait()) == (b"", 0)
