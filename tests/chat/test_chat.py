"""Conversations become text, and text tokens, so that a mask is right by construction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings

from gpt.chat import FORMATS, Chat, ChatFormat, Message, choose_chat, converses_in, saved_format
from gpt.chat.format import Turn
from gpt.errors import UserError
from gpt.finetuning import Example
from gpt.finetuning.rows import encode_row
from gpt.tokenizer import Tokenizer, build_tokenizer, tokenizer_config, tokenizer_json
from tests.finetuning.conversations import BYTES, chat_of, conversations, pair, with_controls
from tests.tokenizer.hub_tokenizers import llama3, write_folder

ROUND = [Message("system", "Be kind."), Message("user", "Hello"),
         Message("assistant", "Hi!", learned=True), Message("user", "Why?"),
         Message("assistant", "So.", learned=True)]
RENDERED = {
    "plain": "Be kind.HelloHi!<|endoftext|>Why?So.<|endoftext|>",
    "turns": "Be kind.\n\nUser:\nHello\n\nAssistant:\nHi!<|endoftext|>User:\nWhy?\n\nAssistant:\n"
             "So.<|endoftext|>",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
              "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
              "<|im_start|>assistant\nSo.<|im_end|>\n",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
              "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
              "<|start_header_id|>assistant<|end_header_id|>\n\nHi!<|eot_id|>"
              "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
              "<|start_header_id|>assistant<|end_header_id|>\n\nSo.<|eot_id|>",
}
AROUND = {"plain": [("", ""), ("", ""), ("", "")],  # by hand: system, user, assistant
          "turns": [("", "\n\n"), ("User:\n", "\n\n"), ("Assistant:\n", "")],
          "chatml": [("<|im_start|>system\n", "<|im_end|>\n"), ("<|im_start|>user\n",
                     "<|im_end|>\n"), ("<|im_start|>assistant\n", "\n")],
          "llama3": [(f"<|start_header_id|>{role}<|end_header_id|>\n\n", end) for role, end in
                     (("system", "<|eot_id|>"), ("user", "<|eot_id|>"), ("assistant", ""))]}
STOPS = {"plain": "<|endoftext|>", "turns": "<|endoftext|>", "chatml": "<|im_end|>",
         "llama3": "<|eot_id|>"}


def text_of(chat: Chat, messages: list[Message], asks: bool = False) -> str:
    return "".join(piece.text for piece in chat.pieces(messages, asks))


def ids_with_controls(tokenizer: Tokenizer, text: str) -> list[int]:
    """Bytes, but names of control tokens as these."""
    for name, token in tokenizer.specials.items():
        if name in text:
            before, _, after = text.partition(name)
            return [*ids_with_controls(tokenizer, before), token,
                    *ids_with_controls(tokenizer, after)]
    return list(text.encode())


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_renders_as_its_users_know_it(name):
    assert text_of(chat_of(name), ROUND) == RENDERED[name]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=250)
@given(conversations())
def test_for_any_conversation_the_mask_is_what_a_second_reckoning_finds(name, example):
    chat, tokens, learned = chat_of(name), [], []
    names, around = chat.tokenizer.specials, dict(zip(("system", "user", "assistant"), AROUND[name],
                                                      strict=True))
    for message in example.messages:
        before, after = (ids_with_controls(chat.tokenizer, text) for text in around[message.role])
        content = list(message.content.encode("utf-8", "surrogatepass"))
        stop = [names[STOPS[name]]] if message.role == "assistant" else []
        tokens += [*before, *content, *stop, *after]
        learned += [*[False] * len(before), *[message.learned] * len([*content, *stop]),
                    *[False] * len(after)]
    row = encode_row(example, chat)
    assert row.tokens.tolist() == tokens
    assert row.learned.tolist() == learned


@pytest.mark.parametrize("name", FORMATS)
@given(conversations())
def test_a_prompt_is_the_beginning_of_its_rendering(name, example):
    chat, row = chat_of(name), encode_row(example, chat_of(name))
    prompt = chat.prompt(example.prompt)
    assert row.tokens[:len(prompt)].tolist() == prompt
    assert row.answer_start == len(prompt)


def test_with_merges_too_a_prompt_is_the_beginning_of_its_rendering(tmp_path):
    chat = Chat(FORMATS["turns"], build_tokenizer(str(write_folder(tmp_path, llama3(),
                                                                   "<|end_of_text|>"))))
    for content in (" def", "\n\ndef", "def main():\n", "\t"):
        row = encode_row(Example((*ROUND[:-1], Message("assistant", content, learned=True))), chat)
        prompt = chat.prompt(ROUND[:-1])
        assert row.tokens[:len(prompt)].tolist() == prompt
        assert row.tokens[0] == chat.tokenizer.begin_of_text


def test_text_that_spells_control_tokens_does_not_become_them():
    chat = chat_of("chatml")
    row = encode_row(pair("<|im_end|><|endoftext|>", "<|im_start|>"), chat)
    controls = set(chat.tokenizer.specials.values())
    found = [i for i in row.tokens.tolist() if i in controls]
    assert found == [257, 258, 257, 258]  # two starts and two ends: those of the format


def test_a_text_without_a_prompt_starts_like_a_document():
    row = encode_row(pair("", "abc"), chat_of())
    assert row.tokens.tolist() == [256, *b"abc", 256]
    assert row.learned.tolist() == [False, True, True, True, True]


def test_the_default_system_message_stands_where_none_is_given():
    form = FORMATS["turns"].model_copy(update={"default_system": "S"})
    chat = Chat(form, BYTES)
    assert text_of(chat, ROUND[1:2], asks=True) == "S\n\nUser:\nHello\n\nAssistant:\n"
    assert text_of(chat, ROUND[:2]).startswith("Be kind.")


def test_generation_ends_where_answers_end():
    chat = chat_of("chatml")
    assert set(chat.tokenizer.stop_tokens) == {256, 258}
    assert chat_of("turns").tokenizer.stop_tokens == (256,)
    assert chat.tokenizer.fingerprint != with_controls().fingerprint


def test_a_format_that_needs_other_control_tokens_is_refused():
    with pytest.raises(UserError, match=r"needs <\|im_start\|>, which is no control token"):
        Chat(FORMATS["chatml"], BYTES)
    with pytest.raises(UserError, match=r"needs <\|im_start\|>, .* \(it has <\|endoftext\|>, <"):
        Chat(FORMATS["chatml"], with_controls(["<|endoftext|>", "<|im_end|>"]))
    with pytest.raises(UserError, match=r"needs <\|user\|>"):
        Chat(ChatFormat(user=Turn(before="<|user|>")), BYTES)


def test_auto_is_plain_for_pairs_and_follows_the_tokenizer_for_conversations():
    assert choose_chat("auto", False, with_controls()).name == "plain"
    assert choose_chat("auto", True, BYTES).name == "turns"
    assert choose_chat("auto", True, with_controls()).name == "chatml"
    only_llama3 = with_controls(["<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>",
                                 "<|eot_id|>"])
    assert choose_chat("auto", True, only_llama3).name == "llama3"


def test_auto_goes_on_with_the_base_models_own_format():
    tokenizer, form = with_controls(), ChatFormat(user=Turn(before="Q: "))
    tokenizer.chat_format = form.model_dump_json()
    for chat in (choose_chat("auto", True, tokenizer), choose_chat("auto", False, tokenizer)):
        assert (chat.name, chat.format) == ("the base model's", form)
    assert saved_format(with_controls()) is None


def test_auto_keeps_how_the_base_model_reads_prompts():
    tokenizer = with_controls()
    form = FORMATS["plain"].model_copy(update={"prefix": "bidirectional"})
    tokenizer.chat_format = form.model_dump_json()
    assert choose_chat("auto", False, tokenizer).format == form


def test_a_format_around_turns_is_told_from_none():
    assert [converses_in(form) for form in (None, *FORMATS.values())] == [
        False, False, True, True, True]
    assert converses_in(ChatFormat(assistant=Turn(before="A: ")))


@pytest.mark.parametrize("name", FORMATS)
def test_the_template_takes_developers_for_the_system_and_refuses_other_roles(name, tmp_path):
    jinja2 = pytest.importorskip("jinja2")

    def refused(message: str) -> None:
        raise UserError(message)

    template = jinja2.Environment().from_string(chat_of(name).jinja())
    texts = [template.render(messages=[{"role": role, "content": "a"}], eos_token="!",
                             raise_exception=refused) for role in ("system", "developer")]
    assert texts[0] == texts[1] and "a" in texts[0]
    with pytest.raises(UserError, match="knows no role narrator"):
        template.render(messages=[{"role": "narrator", "content": "a"}], raise_exception=refused)


def test_a_format_comes_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text('user: {before: "Q: ", after: "\\n"}\nstop: "<|im_end|>"\n')
    chat = choose_chat(str(path), True, with_controls())
    assert (chat.name, chat.format.user.before, chat.stop) == (str(path), "Q: ", "<|im_end|>")


@pytest.mark.parametrize(("text", "message"), [
    ("users: {}", "users"), ("user: 3", "user"), ("stop: [a]", "stop")])
def test_a_wrong_format_is_named_with_its_field(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"mine\.yaml is no chat format: {message}"):
        choose_chat(str(path), True, BYTES)


def test_an_unknown_format_is_refused_with_those_that_exist():
    with pytest.raises(UserError, match="no chat format chat_ml: choose auto, plain, turns"):
        choose_chat("chat_ml", True, BYTES)


def opened(folder: Path, tokenizer: Tokenizer):
    transformers = pytest.importorskip("transformers")
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(tokenizer, 64)))
    if tokenizer.chat_template is not None:
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template)
    return transformers.AutoTokenizer.from_pretrained(folder)


HARD = [*ROUND, Message("user", "{{ eos_token }}{% raw %} é \" \\ \\n"),
        Message("assistant", "  spaces\n\n")]


@pytest.mark.parametrize("default_system", [None, 'a "quoted"\nline \\ é {{ x }}'])
@pytest.mark.parametrize("name", FORMATS)
def test_transformers_renders_conversations_as_we_do(name, default_system, tmp_path):
    form = FORMATS[name].model_copy(update={"default_system": default_system})
    chat = Chat(form, with_controls())
    chat.tokenizer.chat_template = chat.jinja()
    theirs = opened(tmp_path, chat.tokenizer)
    for messages in (HARD, HARD[1:], HARD[:2], HARD[1:2]):
        given = [{"role": m.role, "content": m.content} for m in messages]
        for asks in (False, True):
            assert theirs.apply_chat_template(
                given, tokenize=False, add_generation_prompt=asks) == text_of(chat, messages, asks)


def test_transformers_reads_a_rendered_prompt_as_the_same_ids(tmp_path):
    chat = chat_of("chatml")
    chat.tokenizer.chat_template = chat.jinja()
    theirs = opened(tmp_path, chat.tokenizer)
    given = [{"role": m.role, "content": m.content} for m in ROUND[:2]]
    ids = theirs.apply_chat_template(given, tokenize=True, add_generation_prompt=True)
    assert list(getattr(ids, "input_ids", ids)) == chat.prompt(ROUND[:2])


def test_where_texts_begin_with_a_token_the_template_does_too(tmp_path):
    llama = build_tokenizer(str(write_folder(tmp_path, llama3(), "<|end_of_text|>")))
    assert Chat(FORMATS["plain"], llama).jinja().startswith("{{- bos_token }}")
    assert "bos_token" not in chat_of().jinja()


def test_a_tokenizer_keeps_its_chat_format_when_it_is_saved(tmp_path):
    tokenizer = chat_of("turns").tokenizer
    tokenizer.chat_format = FORMATS["turns"].model_dump_json()
    tokenizer.save(tmp_path)
    assert saved_format(Tokenizer.load(tmp_path)) == FORMATS["turns"]


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000, "[1]"])
def test_a_saved_format_that_is_damaged_is_one_line(text):
    tokenizer = build_tokenizer("byte")
    tokenizer.chat_format = "{}"
    assert saved_format(tokenizer) == FORMATS["plain"]
    tokenizer.chat_format = text
    with pytest.raises(UserError, match=r"chat_format\.json is (damaged|no chat format)"):
        saved_format(tokenizer)
