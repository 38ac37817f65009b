"""Two runs in one folder: the second is refused while the first lives, and only then."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from clipseg_jax.core.run_lock import RunLock

HOLD = """
import sys, time
from clipseg_jax.core.run_lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def no_flock(monkeypatch):
    """A file system without `flock`."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def holder(folder):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_ends_with_the_run(tmp_path):
    folder = tmp_path / "new"
    for _ in range(2):
        with RunLock(folder) as lock:
            about = json.loads(lock.path.read_text())
            assert (about["host"], about["pid"]) == (socket.gethostname(), os.getpid())
        assert not list(folder.iterdir())
    with pytest.raises(KeyError), RunLock(folder):
        raise KeyError
    assert not list(folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_living_run_is_named_and_a_killed_one_is_no_obstacle(tmp_path, number):
    process = holder(tmp_path)
    named = f"in use by a run on {socket.gethostname()}, process {process.pid}; .*delete .*lock"
    with pytest.raises(ValueError, match=named) as refused, RunLock(tmp_path):
        pass
    assert "\n" not in str(refused.value)
    assert (tmp_path / ".run.lock").exists()
    process.send_signal(number)
    process.wait()
    with RunLock(tmp_path):
        pass


def test_twice_in_one_process(tmp_path):
    with RunLock(tmp_path), pytest.raises(ValueError, match=f"process {os.getpid()}"):
        RunLock(tmp_path).__enter__()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\0", b'{"pid": "x"}', b"[" * 4000])
def test_a_damaged_lock_that_nobody_holds(tmp_path, content):
    (tmp_path / ".run.lock").write_bytes(content)
    with RunLock(tmp_path):
        pass


def record(folder, **changes):
    """The lock as a process of this host, long gone, left it."""
    about = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": "1"} | changes
    (folder / ".run.lock").write_text(json.dumps(about))


@pytest.mark.usefixtures("no_flock")
def test_without_flock_the_file_is_the_lock(tmp_path):
    with RunLock(tmp_path), pytest.raises(ValueError, match="in use"):
        RunLock(tmp_path).__enter__()
    for gone in (
        {},
        {"pid": os.getpid(), "started": "another"},  # the number is used again
        {"pid": 10**30},
    ):
        record(tmp_path, **gone)
        with RunLock(tmp_path):
            pass
    for unknown in ({"host": "elsewhere"}, {"pid": None}):
        record(tmp_path, **unknown)
        with pytest.raises(ValueError, match=r"in use .*; wait .*delete"):
            RunLock(tmp_path).__enter__()


def test_a_killed_run_of_another_host_is_logged(tmp_path, caplog):
    record(tmp_path, host="elsewhere")
    with RunLock(tmp_path):
        assert "a run on elsewhere did not end" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/\.run\.lock"):
        RunLock(blocked).__enter__()
    (tmp_path / ".run.lock").mkdir()
    with pytest.raises(OSError, match="cannot write"):
        RunLock(tmp_path).__enter__()
