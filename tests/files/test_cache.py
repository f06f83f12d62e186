"""What was made before is found again, and nobody else's word is taken for it."""

from __future__ import annotations

import stat

import pytest

from gpt.files import cache_folder, kept


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gpt-toolkit"


def never() -> bytes:
    raise AssertionError("it is known")


@pytest.mark.parametrize("data", [b"", b"some", b"\xff" * 100])
def test_what_takes_long_is_made_once(data, cache):
    assert kept("a", lambda: data) == data
    assert kept("a", never) == data
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:20],
    lambda data: data[:-1] + b"x", lambda data: b"x" + data[1:]])
def test_what_is_not_whole_is_made_again(damage, cache):
    kept("a", lambda: b"some bytes")
    (cache / "a").write_bytes(damage((cache / "a").read_bytes()))
    assert kept("a", lambda: b"others") == b"others"
    assert kept("a", never) == b"others"


def test_a_folder_that_others_write_to_is_not_believed(cache):
    kept("a", lambda: b"some")
    cache.chmod(0o777)
    assert cache_folder() is None and kept("a", lambda: b"others") == b"others"


def test_without_a_place_it_is_made_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder() is None
    assert kept("a", lambda: b"some") == b"some" and kept("a", lambda: b"others") == b"others"


def test_what_cannot_be_kept_is_made_all_the_same(monkeypatch, cache):
    def full(*_):
        raise OSError("no space left on device")
    monkeypatch.setattr("gpt.files.cache.write_atomically", full)
    assert kept("a", lambda: b"some") == b"some" and not list(cache.iterdir())
