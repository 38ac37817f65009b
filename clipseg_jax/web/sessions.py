"""What the server keeps of each visitor, within bounds of number, bytes and age."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from clipseg_jax.web.photos import Photo
from clipseg_jax.web.results import Result


@dataclasses.dataclass(eq=False)
class Session:
    """One tab of a browser: its photo, the result of its last run, and the files it is shown."""

    photo: Photo | None = None
    result: Result | None = None
    chosen: int | None = None  # the class whose heat map is shown
    files: dict[str, list[Path]] = dataclasses.field(default_factory=dict)  # the newest, by kind
    upload: Path | None = None  # the file that was dropped, until its photo is shown
    used: float = 0.0  # when

    @property
    def nbytes(self) -> int:
        """Of its arrays."""
        photo = 0 if self.photo is None else self.photo.pixels.nbytes
        return photo + (0 if self.result is None else self.result.nbytes)


class Sessions:
    """The sessions by the browser's name for each; what is used least goes first.

    Args:
      most: sessions.
      most_bytes: of all photos and results.
      idle_s: seconds without use after which a session goes.
      clock: seconds.
    """

    def __init__(
        self,
        *,
        most: int,
        most_bytes: int,
        idle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._most, self._most_bytes, self._idle_s = most, most_bytes, idle_s
        self._clock = clock
        self.forget: Callable[[Session], None] = lambda session: None  # of each that goes
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def nbytes(self) -> int:
        """Of the arrays of all sessions."""
        with self._lock:
            return sum(session.nbytes for session in self._sessions.values())

    def get(self, name: str) -> Session:
        """The session of a browser's tab; a new one if there is none (any more)."""
        with self._lock:
            session = self._sessions.setdefault(name, Session())
            self._sessions.move_to_end(name)
            session.used = self._clock()
            return session

    def trim(self) -> None:
        """Lets go what is too old or too much; the newest session stays."""
        with self._lock:
            gone = []
            total = sum(session.nbytes for session in self._sessions.values())
            oldest = self._clock() - self._idle_s
            for name, session in list(self._sessions.items()):
                few = len(self._sessions) <= self._most and total <= self._most_bytes
                newest = len(self._sessions) == 1
                if session.used >= oldest and (few or newest):
                    break
                total -= session.nbytes
                gone.append(self._sessions.pop(name))
        for session in gone:
            self.forget(session)

    def drop(self, name: str) -> None:
        """Lets a session go, whose tab was closed."""
        with self._lock:
            session = self._sessions.pop(name, None)
        if session is not None:
            self.forget(session)
