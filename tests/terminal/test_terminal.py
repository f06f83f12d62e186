"""What sample.py reads and shows: options, prompts, texts in order, JSON, conversations."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
import torch

import sample
from gpt.chat import FORMATS, Message
from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.generation import Generation, Piece, PromptLookup, Request
from gpt.language_model import LanguageModel
from gpt.runs import checkpoint
from gpt.terminal.chat import Conversation, converse
from gpt.terminal.options import parse, read_prompts
from gpt.terminal.show import Sample, closing_line, generate, record, write
from gpt.tokenizer import build_tokenizer
from tests.finetuning.conversations import with_controls
from tests.tiny import CPU, tiny_gpt

pytestmark = pytest.mark.auto

TOKENIZER = build_tokenizer("byte")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    checkpoint.save_model(path, tiny_gpt(vocab_size=257, block_size=200), TOKENIZER, "random")
    return str(path)


def lm_of(form=None, **changes):
    tokenizer = build_tokenizer("byte")
    if form is not None:
        tokenizer.chat_format = form.model_dump_json()
    return LanguageModel(tiny_gpt(vocab_size=257, **{"block_size": 200, **changes}), tokenizer, CPU)


def sampled(capsys, folder, *words):
    sample.main([folder, *words, "--device", "cpu"])
    return capsys.readouterr()


# ----- Options

def test_every_setting_is_an_option():
    config = parse(["r", "--max-new-tokens", "3", "--min-new-tokens", "1", "--temperature", "0.5",
                    "--top-k", "4", "--top-p", "0.9", "--min-p", "0.1", "--repetition-penalty",
                    "1.1", "--presence-penalty", "0.2", "--frequency-penalty", "0.3",
                    "--logit-bias", "3=1.5", "7=-2", "--banned-tokens", "5", "6",
                    "--forced-tokens", "1", "--stop", "a", "b", "--stop", "c", "--seed", "9",
                    "--slide"], "").config
    assert config == SamplingConfig(
        max_new_tokens=3, min_new_tokens=1, temperature=0.5, top_k=4, top_p=0.9, min_p=0.1,
        repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.3,
        logit_bias={3: 1.5, 7: -2.0}, banned_tokens=[5, 6], forced_tokens=[1],
        stop=["a", "b", "c"], seed=9, slide=True)
    assert parse(["r", "--regex", "x+"], "").config == SamplingConfig(regex="x+")
    assert parse(["r"], "").config == SamplingConfig()
    assert parse(["r", "--beams", "4"], "").config.beams == 4


def test_a_schema_is_a_text_or_a_file(tmp_path):
    (tmp_path / "s.json").write_text('{"type": "object"}')
    for given in ('{"type": "object"}', str(tmp_path / "s.json")):
        assert parse(["r", "--json-schema", given], "").config.json_schema == '{"type": "object"}'
    with pytest.raises(UserError, match=r"cannot read the schema none\.json"):
        parse(["r", "--json-schema", "none.json"], "")


@pytest.mark.parametrize(("words", "message"), [
    (["--temperature", "nan"], "temperature"), (["--temperature", "inf"], "temperature"),
    (["--num-samples", "0"], "--num-samples must be at least 1"),
    (["--system", "x"], "--system is for --chat"), (["--chat", "--json"], "--json is not for"),
    (["--chat", "--num-samples", "2"], "--num-samples is not for --chat"),
    (["--chat", "--logprobs"], "--logprobs is not for"),
    (["--beams", "2", "--draft", "prompt"], "--draft is not for --beams"),
    (["--beams", "2", "--num-samples", "2"], "--num-samples is not for --beams"),
    (["--beams", "2", "--top-k", "3"], "leave out top_k"),
    (["--beams", "2", "--stop", "x"], "leave out stop"),
    (["--min-new-tokens", "9", "--max-new-tokens", "3"], "min_new_tokens=9 is more than"),
    (["--regex", "a", "--json-schema", "{}"], "json_schema or regex, not both"),
    (["--regex", "a", "--min-new-tokens", "3"], "say where a text may end"),
    (["--frequency-penalty", "1e39"], "frequency_penalty"),
    (["--logit-bias", "3=1e39"], "logit_bias"),
    (["--temperature", "1e-50"], "at least 0.0001"), (["--temperature", "1e39"], "temperature")])
def test_wrong_options_are_named(words, message):
    with pytest.raises(UserError, match=message):
        parse(["r", *words], "")


@pytest.mark.parametrize("words", [["--logit-bias", "x"], ["--logit-bias", "3"],
                                   ["--chat", "--prompt", "x"], ["--banned-tokens", "x"],
                                   ["--beams", "2.5"], ["--max-new", "3"]])
def test_options_that_cannot_be_read_are_one_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["r", *words], "")
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert words[-2 if words[0] == "--chat" else 0] in line


def test_prompts_come_from_lines_or_records(tmp_path):
    (tmp_path / "p.txt").write_bytes("one\nzwei ü\n".encode() + b"\xff\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "one\\ntwo", "id": 3}\n\n{"prompt": ""}\n')
    assert read_prompts(parse(["r", "--prompts", str(tmp_path / "p.txt")], "")) == [
        b"one", "zwei ü".encode(), b"\xff"]
    assert read_prompts(parse(["r", "--prompts", str(tmp_path / "p.jsonl")], "")) == [
        "one\ntwo", ""]
    for text in ("[1]", '{"text": "a"}', "no json", '{"prompt": 3}', "[" * 100_000):
        (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n' + text + "\n")
        with pytest.raises(UserError, match=r"bad\.jsonl, line 2"):
            read_prompts(parse(["r", "--prompts", str(tmp_path / "bad.jsonl")], ""))
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(UserError, match="has no prompts"):
        read_prompts(parse(["r", "--prompts", str(tmp_path / "none.txt")], ""))


@pytest.mark.parametrize("schema", [' {"type": "object"}', "true", "false"])
def test_a_schema_that_is_a_text_is_no_file(schema):
    assert parse(["r", "--json-schema", schema], "").config.json_schema == schema


def test_a_schema_in_a_file_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "true.json").write_text('{"type": "array"}')
    options = parse(["r", "--json-schema", "true.json"], "")
    assert options.config.json_schema == '{"type": "array"}'


def test_the_largest_seed_is_read_to_its_last_digit():
    assert parse(["r", "--seed", str(2**63 - 1)], "").config.seed == 2**63 - 1
    with pytest.raises(UserError, match="seed"):
        parse(["r", "--seed", str(2**63)], "")


@pytest.mark.parametrize(("words", "terminal", "expected"), [
    (["--prompt", "given"], False, "given"), (["--prompt-file", "{file}"], False, b"of a file"),
    (["--prompt-file", "-"], True, b"piped"), ([], False, b"piped"), ([], True, "")])
def test_a_prompt_is_given_or_in_a_file_or_piped(words, terminal, expected, tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_bytes(b"of a file")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"piped"),
                                                     isatty=lambda: terminal))
    words = [word.format(file=tmp_path / "p.txt") for word in words]
    assert read_prompts(parse(["r", *words], "")) == [expected]


def test_spaces_around_a_line_belong_to_its_prompt(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"  def f():\nthe \n")
    assert read_prompts(parse(["r", "--prompts", str(tmp_path / "p.txt")], "")) == [
        b"  def f():", b"the "]


# ----- Texts

def test_texts_are_shown_in_order_however_they_come():
    lm = lm_of()
    samples = [Sample(lm.request([i], SamplingConfig(seed=i, max_new_tokens=count)))
               for i, count in enumerate((9, 2, 0, 5))]
    shown = []
    for one, text in generate(lm, samples):
        if not shown or shown[-1][0] is not one:
            shown.append((one, ""))
        shown[-1] = one, shown[-1][1] + text
    assert [one for one, _ in shown] == samples
    assert [text for _, text in shown] == [one.text for one in samples]
    assert [len(one.made) for one in samples] == [9, 2, 0, 5]
    assert all(0 <= one.first_seconds <= one.seconds for one in samples if one.made)


def test_prompts_and_samples_are_printed_with_lines_between(capsys, folder, tmp_path):
    (tmp_path / "p.txt").write_text("ab\ncd\n")
    out, err = sampled(capsys, folder, "--prompts", str(tmp_path / "p.txt"), "--num-samples", "2",
                       "--seed", "3", "--max-new-tokens", "4")
    texts = out.split("\n---------------\n")
    assert [text[:2] for text in texts] == ["ab", "ab", "cd", "cd"] and texts[0] != texts[1]
    assert err.startswith("(16 tokens in 4 texts, ") and "max-new-tokens reached)" in err
    alone, _ = sampled(capsys, folder, "--prompt", "cd", "--seed", "4", "--max-new-tokens", "4")
    assert texts[3] == alone


def test_json_has_tokens_log_probabilities_and_timing(capsys, folder):
    out, err = sampled(capsys, folder, "--prompt", "ab", "--json", "--num-samples", "2", "--seed",
                       "5", "--max-new-tokens", "6")
    first, second = map(json.loads, out.splitlines())
    assert (first["seed"], second["seed"], first["prompt"]) == (5, 6, "ab") and err == ""
    assert first["prompt_tokens"] == [97, 98] and first["tokens"] != second["tokens"]
    assert len(first["tokens"]) == len(first["logprobs"]) == 6 and first["end"] == "length"
    assert TOKENIZER.decode(first["tokens"]) == first["completion"]
    assert 0 < first["first_token_seconds"] <= first["seconds"]


def test_log_probabilities_are_listed_below_a_text(capsys, folder):
    out, _ = sampled(capsys, folder, "--prompt", "ab", "--logprobs", "--seed", "5",
                     "--max-new-tokens", "3")
    lines = out.rstrip("\n").split("\n")[-3:]
    assert all(float(line.split()[0]) < 0 for line in lines)


def test_no_tokens_are_no_division_by_zero(capsys, folder):
    out, err = sampled(capsys, folder, "--prompt", "ab", "--max-new-tokens", "0")
    assert out == "ab\n" and err == "(no tokens)\n"
    out, _ = sampled(capsys, folder, "--prompt", "ab", "--max-new-tokens", "0", "--json")
    assert json.loads(out)["tokens"] == [] and json.loads(out)["first_token_seconds"] is None


def sample_of(count, first, last, end):
    return Sample(Request([1]), made=[Generation(97, -1.0)] * count, end=end, first_seconds=first,
                  seconds=last)


def test_the_closing_line_sums_texts_up_that_were_written_side_by_side():
    texts = [sample_of(6, 0.5, 2.0, "length"), sample_of(2, 1.0, 4.0, "length")]
    assert closing_line(texts) == ("(8 tokens in 2 texts, 2 per second, the first after 0.50 s; "
                                   "max-new-tokens reached)")
    texts[1].end = "stop"
    assert closing_line(texts).endswith("the first after 0.50 s)")
    assert closing_line([sample_of(1, 0.0, 0.0, "stop")]).endswith("0.00 s; came to its end)")


def test_a_texts_first_token_keeps_its_time():
    one = Sample(Request([1]))
    for seconds in (0.5, 2.0):
        one.add(Piece("a", Generation(97, -1.0), None), seconds)
    assert (one.text, one.first_seconds, one.seconds) == ("aa", 0.5, 2.0)


def test_records_are_json_that_every_program_reads(capsys, folder):
    made = [Generation(98, -torch.inf), Generation(99, -0.5)]
    found = record(lm_of(), Sample(Request([97]), made=made))
    assert json.loads(json.dumps(found, allow_nan=False))["logprobs"] == [None, -0.5]
    out, _ = sampled(capsys, folder, "--prompt", "ü", "--json", "--max-new-tokens", "1")
    assert '"prompt": "ü"' in out


def test_nothing_stands_before_a_text_without_a_prompt(capsys, folder):
    out, _ = sampled(capsys, folder, "--prompt", "", "--max-new-tokens", "2", "--seed", "1")
    assert "endoftext" not in out


def test_log_probabilities_are_listed_where_they_are_asked_for_alone(capsys, folder):
    words = ("--prompt", "ab", "--seed", "5", "--max-new-tokens", "3")
    plain, _ = sampled(capsys, folder, *words)
    listed, _ = sampled(capsys, folder, *words, "--logprobs")
    assert listed.startswith(plain) and listed[len(plain):].count("\n") == 3


def test_what_a_terminal_cannot_show_is_replaced(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="ascii"))
    write("aü")
    assert shown.getvalue() == b"a?"


# ----- Conversations

def test_a_conversation_is_rendered_as_the_model_was_trained():
    lm = lm_of(FORMATS["turns"])
    talk = Conversation(lm, SamplingConfig(max_new_tokens=4, seed=0), "Be kind.")
    assert talk.notice is None
    first = talk.answer("Hello").text
    request, left_out = talk.prompt("Again")
    stop = lm.tokenizer.end_of_text
    assert left_out == 0 and request.prefix == 0 and request.prompt == [
        *b"Be kind.\n\nUser:\nHello\n\nAssistant:\n", *lm.tokenizer.encode(first), stop,
        *b"User:\nAgain\n\nAssistant:\n"]
    talk.answer("Again")
    assert [turn.role for turn in talk.turns] == ["user", "assistant"] * 2
    talk.undo()
    assert [turn.content for turn in talk.turns] == ["Hello", first]


def test_what_does_not_fit_is_left_out_from_the_beginning(capsys):
    lm = lm_of(FORMATS["turns"], block_size=100)
    talk = Conversation(lm, SamplingConfig(max_new_tokens=10, seed=0), None)
    for number in range(6):
        talk.answer(f"message {number}")
    assert "messages do not fit" in capsys.readouterr().err
    request, left_out = talk.prompt("the last")
    said = bytes(token for token in request.prompt if token < 256).decode(errors="replace")
    assert left_out >= 8 and len(request.prompt) <= 90
    assert f"message {left_out // 2 - 1}" not in said and "the last" in said
    with pytest.raises(UserError, match=r"the message has .* tokens"):
        talk.answer("x" * 100)
    assert len(talk.turns) == 12


def test_only_what_precedes_the_first_answer_is_read_in_both_directions():
    lm = lm_of(FORMATS["turns"].model_copy(update={"prefix": "bidirectional"}))
    talk = Conversation(lm, SamplingConfig(max_new_tokens=4, seed=0), None)
    first, _ = talk.prompt("Hello")
    assert first.prefix == len(first.prompt)
    talk.answer("Hello")
    second, _ = talk.prompt("Again")
    assert second.prefix == len(first.prompt) < len(second.prompt)


def test_what_goes_wrong_in_an_answer_leaves_the_conversation_as_it_was():
    talk = Conversation(lm_of(), SamplingConfig(forced_tokens=[9999]), None)
    with pytest.raises(UserError, match="no token 9999"):
        talk.answer("Hello")
    assert talk.turns == []


@pytest.mark.parametrize("form", [None, FORMATS["plain"]])
def test_a_model_without_a_format_talks_in_turns_and_stops_before_the_next(form):
    talk = Conversation(lm_of(form), SamplingConfig(stop=["x"]), None)
    assert talk.notice == ("this model was not trained to converse: turns are written as "
                           "turns")
    assert talk._config.stop == ["x", "\nUser:"]


def test_a_model_is_asked_in_its_own_template():
    lm = lm_of()
    lm.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}\n{% endfor %}")
    talk = Conversation(lm, SamplingConfig(max_new_tokens=4), "be kind")
    assert talk.notice is None and talk._config.stop == []
    request, _ = talk.prompt("hi")
    assert lm.tokenizer.decode(request.prompt) == "system: be kind\nuser: hi\n"


def test_a_talk_on_standard_input(capsys, folder, monkeypatch):
    lines = iter(["Hello", "", "/undo", "Hello", "/clear", "Hello", "/quit", "never"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    out, err = sampled(capsys, folder, "--chat", "--max-new-tokens", "5", "--seed", "1")
    assert err.count(" per second") == 3 and next(lines) == "never"
    answers = out.split("\n")[:-1]  # the same question to a conversation that is empty each time
    assert len(answers) == 3 and len(set(answers)) == 1


@pytest.mark.parametrize(("count", "room"), [(10, 90), (50, 75)])
def test_a_message_has_room_for_all_but_an_answer_or_a_quarter(count, room):
    lm = lm_of(FORMATS["turns"], block_size=100)
    talk = Conversation(lm, SamplingConfig(max_new_tokens=count), None)
    around = len(talk.prompt("")[0].prompt)
    request, _ = talk.prompt("x" * (room - around))
    assert len(request.prompt) == room
    with pytest.raises(UserError, match=f"the message has {room + 1} tokens .* room for {room}"):
        talk.prompt("x" * (room - around + 1))


def test_a_shortened_talk_begins_with_the_system_message_and_the_first_question_left(capsys):
    form = FORMATS["turns"].model_copy(update={"prefix": "bidirectional"})
    talk = Conversation(lm_of(form, block_size=100), SamplingConfig(max_new_tokens=10), "Be kind.")
    talk.turns = [Message(role, text) for role, text in (
        ("user", "a" * 30), ("assistant", "yes"), ("user", "bcd"), ("assistant", "no"))]
    request, left_out = talk.prompt("and?")
    assert left_out == 2 and request.prompt[:request.prefix] == [
        *b"Be kind.\n\nUser:\nbcd\n\nAssistant:\n"]
    talk.answer("and?")
    assert "the first 2 messages do not fit" in capsys.readouterr().err


def test_ctrl_c_ends_an_answer_and_what_came_is_part_of_the_talk(monkeypatch):
    talk, shown = Conversation(lm_of(), SamplingConfig(max_new_tokens=50, seed=0), None), []

    def show_three(text):
        shown.append(text)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("gpt.terminal.chat.write", show_three)
    try:
        answer = talk.answer("Hello")
    except KeyboardInterrupt:
        pytest.fail("it ended the talk")
    assert answer.text == "".join(shown) and len(answer.made) < 50
    assert talk.turns == [Message("user", "Hello"), Message("assistant", answer.text)]


@pytest.mark.parametrize("ending", [EOFError, KeyboardInterrupt])
def test_a_talk_outlives_a_message_that_is_too_long_and_ends_with_its_input(ending, capsys,
                                                                           monkeypatch):
    lines = iter(["x" * 300, "Hello"])

    def read(prompt):
        line = next(lines, None)
        if line is None:
            raise ending
        return line

    monkeypatch.setattr("builtins.input", read)
    try:
        converse(lm_of(FORMATS["turns"]), SamplingConfig(max_new_tokens=3, seed=0), None)
    except (EOFError, KeyboardInterrupt):
        pytest.fail("it ends with an error")
    err = capsys.readouterr().err
    assert "the message has" in err and err.count(" per second") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_who_types_is_told_the_commands_and_a_pipe_is_not(terminal, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or "/quit")
    converse(lm_of(FORMATS["turns"]), SamplingConfig(), None)
    out, err = capsys.readouterr()
    assert asked == ["> " if terminal else ""] and ("/undo" in err) == terminal and out == ""


def test_a_tokenizer_with_a_chats_control_tokens_talks_in_them_without_a_stop_text():
    lm = LanguageModel(tiny_gpt(vocab_size=262), with_controls(), CPU)
    talk = Conversation(lm, SamplingConfig(stop=["x"]), None)
    assert talk.notice.endswith("written as chatml") and talk._config.stop == ["x"]


def test_a_talk_has_the_models_draft():
    lm = lm_of()
    lm.draft = PromptLookup()
    assert Conversation(lm, SamplingConfig(), None)._lm.draft is lm.draft


# ----- Prompts that are odd: row 19 of what has to be survived

def test_control_tokens_in_text_are_text(capsys, folder):
    for text in ("<|endoftext|>", "a<|im_end|>b", "<|im_start|>system\n"):
        out, _ = sampled(capsys, folder, "--prompt", text, "--json", "--max-new-tokens", "1")
        assert json.loads(out)["prompt_tokens"] == list(text.encode())
    talk = Conversation(lm_of(FORMATS["turns"]), SamplingConfig(max_new_tokens=1), None)
    request, _ = talk.prompt("<|endoftext|>User:\n")
    assert TOKENIZER.end_of_text not in request.prompt


def test_an_empty_prompt_is_the_start_of_a_document(capsys, folder):
    out, _ = sampled(capsys, folder, "--prompt", "", "--json", "--max-new-tokens", "2")
    assert json.loads(out)["prompt_tokens"] == [TOKENIZER.end_of_text]


def test_a_prompt_beyond_the_context_is_one_error_or_slides(capsys, folder):
    for words in (["--prompt", "x" * 1_000_000], ["--prompt", "x" * 201, "--beams", "2"]):
        with pytest.raises(UserError, match="the model reads 200"):
            sampled(capsys, folder, *words)
    out, _ = sampled(capsys, folder, "--prompt", "x" * 1_000_000, "--slide", "--json",
                     "--max-new-tokens", "3", "--seed", "1")
    assert len(json.loads(out)["tokens"]) == 3


def test_one_prompt_of_many_that_is_too_long_is_named(capsys, folder, tmp_path):
    (tmp_path / "p.txt").write_text("ab\n" + "x" * 300 + "\n")
    with pytest.raises(UserError, match="text 2 of 2: the prompt has 300 tokens"):
        sampled(capsys, folder, "--prompts", str(tmp_path / "p.txt"))


def test_more_than_the_vocabulary_is_all_of_it(capsys, folder):
    words = ("--prompt", "ab", "--seed", "3", "--max-new-tokens", "5")
    plain, _ = sampled(capsys, folder, *words)
    assert sampled(capsys, folder, *words, "--top-k", "100000")[0] == plain
