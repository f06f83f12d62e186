"""Modelfiles: what Ollama would render by them is what our own rendering is."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gpt.chat import FORMATS, Chat, ChatFormat, Message
from gpt.chat.format import Turn
from gpt.errors import UserError
from gpt.interop.gguf.modelfile import Modelfile, modelfile
from gpt.tokenizer import Boundaries, Tokenizer
from tests.finetuning.conversations import BYTES, CONTROLS, chat_of, with_controls
from tests.interop.gguf.ollama import Unknown, collated, prompt, read_modelfile, render
from tests.interop.models import chatty

FROM = "FROM ./x.gguf\n"
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from([
    "", " a ", "\n\n", "{{ .Content }}", "{", "}}", '"', '"""', "\\n", "{{- end -}}", "é 日本 👍",
    "\u00a0", "\u200b\r\t", "- ", *CONTROLS]))
# The first text that hypothesis ever draws takes it seconds.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def written(form: ChatFormat, tokenizer: Tokenizer | None = None) -> tuple[Chat, Modelfile]:
    chat = Chat(form, tokenizer or with_controls())
    return chat, modelfile("x.gguf", chat.own_tokenizer(), 64)


def ours(chat: Chat, messages: list[tuple[str, str]]) -> str:
    """Without begin-of-text, which llama.cpp puts there."""
    pieces = chat.pieces([Message(*one) for one in messages], asks=True)
    if (begin := chat.tokenizer.begin_of_text) is not None:
        assert chat.tokenizer.specials[pieces.pop(0).text] == begin
    return "".join(piece.text for piece in pieces)


@st.composite
def talks(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Turns of any order and content, as Ollama has them when it renders: neighbours differ."""
    roles = draw(st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=6))
    return collated([(role, draw(TEXTS)) for role in roles])


with_begin = with_controls()
with_begin._set_boundaries(Boundaries(256, 261))  # <|eot_id|> as begin-of-text


@pytest.mark.parametrize("tokenizer", [with_controls(), with_begin], ids=["", "begins"])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "plain"])
@pytest.mark.parametrize("system", [None, 'Be "kind"\n{{ .Content }} é.'], ids=["", "system"])
@PATIENT
@given(messages=talks())
def test_ollama_renders_any_conversation_as_we_do(name, system, tokenizer, messages):
    chat, file = written(FORMATS[name].model_copy(update={"default_system": system}), tokenizer)
    assert not file.remark
    assert prompt(file.text, messages) == ours(chat, messages)


TURNS = st.builds(Turn, before=TEXTS, after=TEXTS)


@PATIENT
@given(form=st.builds(ChatFormat, system=TURNS, user=TURNS, assistant=TURNS,
                      stop=st.sampled_from([None, *CONTROLS]), default_system=st.none() | TEXTS),
       begins=st.booleans(), messages=talks())
def test_formats_of_ones_own_are_rendered_as_we_do_or_left_to_the_gguf_file(form, begins, messages):
    assume(form != FORMATS["plain"])
    try:
        chat, file = written(form, with_begin if begins else None)
    except UserError:  # it happens to spell a control token that there is not
        assume(False)
    commands = [command for command, _ in read_modelfile(file.text)]
    if file.remark:
        assert form.default_system is not None and not {"TEMPLATE", "SYSTEM"} & set(commands)
    else:
        assert prompt(file.text, messages) == ours(chat, messages)


@pytest.mark.parametrize(("messages", "expected"), [
    ([("assistant", "a")], "!a!"), ([("system", ""), ("assistant", "a")], "!a!"),
    ([("user", ""), ("assistant", "a")], "\na!"), ([("assistant", "")], "!"),
    ([("system", "")], "!"), ([], "!")])
def test_what_would_begin_with_an_answer_or_nothing_begins_with_end_of_text(messages, expected):
    chat, file = written(ChatFormat(user=Turn(after="\n")))
    assert prompt(file.text, messages) == ours(chat, messages) == expected.replace(
        "!", "<|endoftext|>")


def test_chatml_is_written_as_its_users_know_it():
    assert written(FORMATS["chatml"].model_copy(update={"default_system": "Be kind."}))[1] == (
        FROM + 'TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" "developer" }}'
        "<|im_start|>system\n{{ .Content }}<|im_end|>\n"
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        '{{ end }}{{ end }}<|im_start|>assistant\n"""\nSYSTEM """Be kind."""\n'
        'PARAMETER num_ctx 64\nPARAMETER stop "<|endoftext|>"\nPARAMETER stop "<|im_end|>"\n', "")


def test_what_is_no_plain_text_is_a_string_of_go():
    _, file = written(ChatFormat(user=Turn(before='{{ "a" }}\\\n', after="\u00a0")))
    assert (r'{{ "{{ \"a\" }}\\\U0000000a" }}{{ .Content }}{{ "\U000000a0" }}') in file.text
    assert "\u00a0" not in file.text
    chat, file = written(ChatFormat(user=Turn(before='"""\n')))
    assert prompt(file.text, [("user", "a")]) == ours(chat, [("user", "a")]) == '"""\na'


@pytest.mark.parametrize("tokenizer", [BYTES, chat_of("plain").own_tokenizer()],
                         ids=["a base model", "plain"])
def test_a_prompt_that_nothing_stands_around_goes_in_as_it_is(tokenizer):
    file = modelfile("x.gguf", tokenizer, 64)
    assert file == (FROM + 'TEMPLATE """{{ .Prompt }}"""\nPARAMETER num_ctx 64\n'
                    'PARAMETER stop "<|endoftext|>"\n', "")
    for text in ("Hello", " {{ .Prompt }}\n", '"""'):
        assert prompt(file.text, [("user", text)]) == text == ours(chat_of(), [("user", text)])


def test_a_template_of_another_tool_is_left_to_the_gguf_file():
    text, remark = modelfile("x.gguf", chatty(), 64)
    assert text == FROM + ('PARAMETER num_ctx 64\nPARAMETER stop "<end>"\n'
                           'PARAMETER stop "<turn>"\n')
    assert remark == ("the Modelfile has no TEMPLATE, which cannot express a chat template of "
                      "another tool: Ollama takes the one in the GGUF file, which its older "
                      "versions cannot read")


@pytest.mark.parametrize(("system", "named"), [
    ("", "that is empty"), ('a """ b', 'with """ or'), ("a\u200bb", "cannot be printed"),
    ("a\rb", "cannot be printed")])
def test_a_default_system_message_that_ollama_would_change_is_named(system, named):
    _, file = written(FORMATS["turns"].model_copy(update={"default_system": system}))
    assert re.search(f"cannot express a default system message .*{named}", file.remark)
    assert file.text == FROM + 'PARAMETER num_ctx 64\nPARAMETER stop "<|endoftext|>"\n'


@pytest.mark.parametrize("text", [
    "FROM ./x\nADAPTER y", 'FROM "x', 'TEMPLATE """a"', "PARAMETER temperature 1", "from ./x"])
def test_commands_that_the_interpreter_does_not_know_are_refused(text):
    with pytest.raises(Unknown):
        read_modelfile(text)


@pytest.mark.parametrize("template", [
    "{{ .Messages", "{{ range .Messages }}", "{{ end }}", "{{ else }}", "{{- .Messages }}",
    "{{ range $i, $_ := .Messages }}{{ end }}", "{{ range .Messages }}{{ .Name }}{{ end }}",
    "{{ range .Messages }}{{ else }}{{ end }}", "{{ range .Messages }}{{ $a := true }}{{ end }}",
    "{{ if }}.Messages{{ end }}", "{{ if true }}.Messages{{ else }}{{ else }}{{ end }}",
    "{{ .Messages }}", "{{ len .Messages }}", "{{ .Messages | json }}", "{{ /* .Messages */ }}",
    '{{ eq "a" }}.Messages', "{{ if eq true true }}.Messages{{ end }}", "{{ true }}.Messages",
    '{{ "\\n" }}.Messages', '{{ "a" "b" }}.Messages', "{{ $a = true }}.Messages",
    "{{ if not (true }}.Messages{{ end }}", "{{ if (not true)) }}.Messages{{ end }}",
    "{{}}.Messages", "{{ $a }}.Messages", '{{ "a\nb" }}.Messages'])
def test_a_template_that_the_interpreter_does_not_know_is_refused(template):
    with pytest.raises((Unknown, TypeError)):
        render(template, [("user", "a")])


def test_the_interpreter_reads_and_renders_as_go_and_ollama_do():
    """By hand, from Go's documentation of text/template and Ollama's of Modelfiles."""
    assert render('{{ $a := false }}{{ range .Messages }}{{ if or (eq .Role "x" "user") $a }}'
                  '{{ .Content }}{{ $a = true }}{{ else if not $a }}-{{ else }}+{{ end }}{{ end }}'
                  '{{ "\\"\\\\\\U0000000a{{" }} }}', [("system", "s"), ("user", "{{ u }}"),
                                                  ("assistant", "a")]) == '-{{ u }}a"\\\n{{ }}'
    assert read_modelfile('FROM ./a\n\nTEMPLATE """ a"b\r\n"" \u00a0"""\nSYSTEM "x\n"y"\n'
                          'PARAMETER stop a b \n') == [
        ("FROM", "./a"), ("TEMPLATE", ' a"b\r\n"" '), ("SYSTEM", 'x\n"y'),
        ("PARAMETER stop", "a b")]
    assert read_modelfile('SYSTEM """a"""\nFROM b')[0] == ("SYSTEM", "a")
    assert collated([("user", "a"), ("user", "b"), ("system", "c")]) == [
        ("user", "a\n\nb"), ("system", "c")]
