"""What is done about bad text, and that every case is counted."""

from __future__ import annotations

import json

import pytest

from data.sources import bad_text as bad_text_module
from data.sources.bad_text import BadText, Incident, Tally
from gpt.errors import UserError


@pytest.mark.parametrize(("policy", "act"), [("error", "replaced"), ("error", "skipped"),
                                             ("skip", "replaced")])
def test_what_the_policy_does_not_allow_ends_in_one_line(policy, act):
    bad_text = BadText(policy)
    with pytest.raises(UserError) as caught:
        getattr(bad_text, act)("a.txt", 3, "it is wrong")
    assert str(caught.value) == ("a.txt, line 3: it is wrong; mend the file, or set "
                                 "on_bad_text=replace or on_bad_text=skip")
    assert not bad_text.tally.counts


@pytest.mark.parametrize(("policy", "act"), [("replace", "replaced"), ("replace", "skipped"),
                                             ("skip", "skipped")])
def test_what_the_policy_allows_is_counted_and_listed(policy, act):
    bad_text = BadText(policy)
    for line in (3, 5):
        getattr(bad_text, act)("a.txt", line, "it is wrong")
    assert bad_text.tally.counts == {act: 2}
    assert bad_text.tally.incidents == [Incident("a.txt", 3, "it is wrong", act),
                                        Incident("a.txt", 5, "it is wrong", act)]


def test_what_is_taken_is_taken_once():
    bad_text = BadText("skip")
    bad_text.skipped("a.txt", 1, "wrong")
    assert bad_text.take().counts == {"skipped": 1}
    assert bad_text.take() == Tally()


def test_however_many_cases_there_are_a_bounded_number_is_kept_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(bad_text_module, "MOST_INCIDENTS", 10)
    bad_text = BadText("skip")
    for line in range(1000):
        bad_text.skipped("a.txt", line, "wrong")
    assert bad_text.tally.counts == {"skipped": 1000}
    assert [incident.line for incident in bad_text.tally.incidents] == list(range(10))
    bad_text.take()
    bad_text.skipped("a.txt", 7, "wrong")
    assert len(bad_text.tally.incidents) == 1


def test_tallies_add_up_to_as_many_incidents_as_there_is_room_for(monkeypatch):
    monkeypatch.setattr(bad_text_module, "MOST_INCIDENTS", 4)
    total, one = Tally(), Tally()
    one.counts["skipped"] = 3
    one.incidents = [Incident("a.txt", line, "wrong", "skipped") for line in range(3)]
    for expected in (3, 4, 4):
        total.add(one)
        assert len(total.incidents) == expected
    assert total.counts == {"skipped": 9}
    monkeypatch.setattr(bad_text_module, "MOST_INCIDENTS", 2)
    total.add(one)  # less room than is taken
    assert len(total.incidents) == 4


def test_what_no_encoding_can_write_is_written_in_other_words():
    bad_text = BadText("skip")
    bad_text.skipped("a\udcff.txt", 1, "it has no field 'text' (its fields: \ud800)")
    [incident] = bad_text.tally.incidents
    assert incident == Incident("a\\udcff.txt", 1,
                                "it has no field 'text' (its fields: \\ud800)", "skipped")
    json.dumps(incident, ensure_ascii=False).encode()
