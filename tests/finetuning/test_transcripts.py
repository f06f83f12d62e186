"""Preferences that are whole transcripts are split into messages and two last answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.chat import Message
from gpt.errors import UserError
from gpt.finetuning import read_task
from gpt.finetuning.examples import Preference
from tests.finetuning.conversations import answers_of

BEFORE = "\n\nHuman: Why?\n\nAssistant: So.\n\n Even more.\n\nHuman: And\n\nthen?\n\nAssistant: "
PROMPT = (Message("user", "Why?"), Message("assistant", "So.\n\n Even more."),
          Message("user", "And\n\nthen?"))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(chosen: Any, rejected: Any, **more: Any) -> Preference:
    record = {"chosen": chosen, "rejected": rejected, **more}
    Path("task.jsonl").write_text(json.dumps(record))
    (preference,) = read_task(Path("task.jsonl")).preferences
    return preference


def refusal(chosen: Any, rejected: Any, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(chosen, rejected, **more)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).removeprefix("task.jsonl, line 1: ")


@pytest.mark.parametrize("more", [{}, {"prompt": None}, {"prompt": ""}])
def test_a_record_of_hh_rlhf_is_split_before_the_last_answer(more):
    found = read(BEFORE + "Good.", BEFORE + "Bad.\n\nReally.", **more)
    assert found == Preference(PROMPT, *answers_of("Good.", "Bad.\n\nReally."),
                               "task.jsonl, line 1")


@pytest.mark.parametrize("answer", [
    "I heard a Human: say it.", "Human: one\nAssistant: two", "a\nHuman: b", "Assistant : c",
    "They wrote:\nAssistant: hello", "\n\nhuman: no", "the end.\n\nHumans: many"])
def test_a_name_elsewhere_than_after_an_empty_line_is_what_somebody_says(answer):
    found = read(BEFORE + "Good.", BEFORE + "So: " + answer)
    assert found == Preference(PROMPT, *answers_of("Good.", "So: " + answer), "task.jsonl, line 1")


@pytest.mark.parametrize(("user", "assistant"), [
    ("User", "Assistant"), ("USER", "ASSISTANT"), ("HUMAN", "ASSISTANT"), ("Human", "Assistant")])
@pytest.mark.parametrize("between", ["\n", "\n\n"])
def test_others_write_other_names_and_no_empty_lines(user, assistant, between):
    before = f"{user}: Q{between}{assistant}:\nA{between}{user}: R{between}{assistant}:"
    assert read(before + " good", before + " bad") == Preference(
        (Message("user", "Q"), Message("assistant", "A"), Message("user", "R")),
        *answers_of("good", "bad"), "task.jsonl, line 1")


def test_a_transcript_may_have_a_system_message_beside_it():
    assert read(BEFORE + "good", BEFORE + "bad", system="S").prompt[0] == Message("system", "S")


@pytest.mark.parametrize(("chosen", "rejected", "message"), [
    (BEFORE + "good", "\n\nHuman: Why?\n\nAssistant: Because.",
     "rejected answers another conversation than chosen; they may differ in the last message "
     "alone"),
    (BEFORE + "good", BEFORE + "bad\n\nHuman: Oh?\n\nAssistant: Yes.",
     "rejected answers another conversation than chosen"),
    (BEFORE + "good", "bad", "rejected answers another conversation than chosen"),
    (BEFORE + "good", BEFORE + "good", "rejected is the same as chosen"),
    (BEFORE + "good", "", "rejected is empty; write something there"),
    (BEFORE, BEFORE + "bad", "chosen is a transcript whose turn 4, the assistant's, is empty; "
                             "write something there, or take the record out"),
    ("\n\nHuman: \n\nAssistant: A", "\n\nHuman: Q\n\nAssistant: B",
     "chosen is a transcript whose turn 1, the user's, is empty"),
    (BEFORE + "good\n\nHuman: Thanks.", BEFORE + "bad",
     "chosen, turn 5, is the user's, and the last must be the assistant's"),
    ("\n\nHuman: Q\n\nAssistant: A\n\nAssistant: B", BEFORE + "bad",
     "chosen, turn 3, is the assistant's and must be the user's"),
    ("\n\nAssistant: Q\n\nHuman: A", BEFORE + "bad",
     "chosen, turn 1, is the assistant's and must be the user's"),
    ("Q? A.", "Q? B.", "prompt is missing (the fields are chosen, rejected); add it"),
    ("Human: Q", "Human: R", "prompt is missing"),
    ("Hello.\n\nHuman: Q\n\nAssistant: A", "Hello.\n\nHuman: Q\n\nAssistant: B",
     "prompt is missing")])
def test_transcripts_that_are_none_or_differ_too_early_are_refused(chosen, rejected, message):
    assert refusal(chosen, rejected).startswith(message)


def test_answers_to_a_prompt_are_texts_even_if_they_look_like_transcripts():
    found = read(BEFORE + "good", BEFORE + "bad", prompt="Continue.")
    assert found == Preference((Message("user", "Continue."),),
                               *answers_of(BEFORE + "good", BEFORE + "bad"), "task.jsonl, line 1")


SAID = st.text("Qa: \n", min_size=1, max_size=6).map(str.strip).filter(bool)


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(rounds=st.lists(st.tuples(SAID, SAID), max_size=3), last=SAID,
       answers=st.tuples(SAID, SAID).filter(lambda pair: pair[0] != pair[1]))
def test_any_conversation_comes_out_of_its_transcript(rounds, last, answers):
    before = "".join(f"\n\nHuman: {asked}\n\nAssistant: {said}" for asked, said in rounds)
    good, bad = (f"{before}\n\nHuman: {last}\n\nAssistant: {answer}" for answer in answers)
    found = read(good, bad)
    assert (found.chosen.content, found.rejected.content) == answers
    assert [message.content for message in found.prompt] == [
        *(said for pair in rounds for said in pair), last]
