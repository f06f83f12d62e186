"""What was worked out before is found again, and nobody else's word is taken for it."""

from __future__ import annotations

import stat

import pytest

from gpt.files import cache_folder, remembered


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gpt-toolkit"


def never() -> bool:
    raise AssertionError("it is known")


@pytest.mark.parametrize("answer", [True, False])
def test_an_answer_is_found_once(answer, cache):
    assert remembered("a", lambda: answer) is answer
    assert remembered("a", never) is answer
    assert (cache / "a").read_text() == ("yes" if answer else "no")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.mark.parametrize("data", [b"", b"maybe", b"\xff\xfe"])
def test_what_is_no_answer_is_found_again(data, cache):
    remembered("a", lambda: True)
    (cache / "a").write_bytes(data)
    assert remembered("a", lambda: False) is False
    assert remembered("a", never) is False


def test_a_folder_that_others_write_to_is_not_believed(cache):
    remembered("a", lambda: True)
    cache.chmod(0o777)
    assert cache_folder() is None and remembered("a", lambda: False) is False


def test_without_a_place_it_is_found_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder() is None
    assert remembered("a", lambda: True) and not remembered("a", lambda: False)


def test_an_answer_that_cannot_be_kept_is_an_answer(monkeypatch, cache):
    def full(*_):
        raise OSError("no space left on device")
    monkeypatch.setattr("gpt.files.cache.write_atomically", full)
    assert remembered("a", lambda: True) and not list(cache.iterdir())
