"""One run at a time in a folder of a bucket, which knows no locks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

from clipseg_jax.core.run_lock import NAME, in_use
from input_pipeline.places import read_object
from input_pipeline.writing import write_atomic

_RENEWED_S = 20.0
_SILENT_S = 75.0  # after which the other run counts as ended: three renewals
_LOOKED_S = 5.0
_log = logging.getLogger(__name__)


class BucketLock:
    """Context manager: while it is open, other runs of `folder` wait and are then refused.

    The object `.run.lock` names host and process. Its holder writes it anew every 20 seconds; a run
    that finds one watches it for 75 seconds, and takes it over if it does not change meanwhile, as
    after a kill. No clocks are compared. Of two runs that begin in the same second the later
    writer wins, and the other is refused.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._run = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> BucketLock:
        """Takes the lock.

        Raises:
          ValueError: another run uses the folder; names its host and process, and the lock.
          OSError: the bucket cannot be read or written.
        """
        found = self._content()
        if found:
            _log.warning("%s: watching for %.0f s whether its run is alive", self.path, _SILENT_S)
        end = time.monotonic() + _SILENT_S
        while found and time.monotonic() < end:
            time.sleep(_LOOKED_S)
            now = self._content()
            if now and now != found:
                raise in_use(self.path, _parsed(now))
            found = now
        self._write(0)
        time.sleep(min(_LOOKED_S, 1.0))  # what another one wrote in the same moment is there now
        holder = _parsed(self._content())
        if holder.get("run") != self._run:
            raise in_use(self.path, holder)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # the next run takes it over
            if _parsed(self._content()).get("run") == self._run:
                self.path.unlink()

    def _renew(self) -> None:
        number = 0
        while not self._ended.wait(_RENEWED_S):
            number += 1
            try:
                self._write(number)
            except OSError as error:
                _log.warning("%s", error)

    def _write(self, number: int) -> None:
        me = {
            "host": socket.gethostname(), "pid": os.getpid(), "run": self._run, "renewed": number,
        }  # fmt: skip
        content = json.dumps(me).encode()
        write_atomic(self.path, lambda file: file.write(content))

    def _content(self) -> bytes:
        """Of the lock; empty: there is none."""
        try:
            return read_object(self.path)
        except FileNotFoundError:
            return b""


def _parsed(content: bytes) -> dict:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
