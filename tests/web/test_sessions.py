"""What is kept of visitors stays within its bounds."""

from __future__ import annotations

import numpy as np

from clipseg_jax.web.photos import Photo
from clipseg_jax.web.sessions import Sessions


def photo(size=1000):
    pixels = np.zeros((size, 1, 3), np.uint8)
    return Photo("a.jpg", pixels, pixels.shape[:2])


def kept(**bounds):
    now = [0.0]
    gone = []
    sessions = Sessions(
        **{"most": 3, "most_bytes": 10**6, "idle_s": 60, **bounds}, clock=lambda: now[0]
    )
    sessions.forget = gone.append
    return sessions, now, gone


def test_one_for_each_tab():
    sessions, _, _ = kept()
    sessions.get("a").photo = photo()
    assert sessions.get("a").photo is not None
    assert sessions.get("b").photo is None
    assert sessions.nbytes == 3000


def test_number():
    sessions, _, gone = kept()
    first = sessions.get("a")
    for name in ("b", "c", "a", "d"):
        sessions.get(name)
    sessions.trim()
    assert len(sessions) == 3
    assert first not in gone  # used since


def test_bytes_and_the_newest_stays():
    sessions, _, gone = kept(most_bytes=5000)
    for name in ("a", "b"):
        sessions.get(name).photo = photo()
    sessions.trim()
    assert len(sessions) == 1
    assert sessions.get("b").photo is not None
    sessions.get("b").photo = photo(10_000)
    sessions.trim()
    assert sessions.get("b").photo is not None
    assert len(gone) == 1


def test_age():
    sessions, now, gone = kept()
    sessions.get("a").photo = photo()
    now[0] = 59
    sessions.trim()
    assert len(sessions) == 1
    now[0] = 61
    sessions.trim()
    assert len(sessions) == 0
    assert len(gone) == 1


def test_a_closed_tab():
    sessions, _, gone = kept()
    session = sessions.get("a")
    sessions.drop("a")
    sessions.drop("nobody")
    assert gone == [session]
    assert sessions.get("a") is not session
