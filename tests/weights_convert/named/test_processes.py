"""Real processes that want the same file at the same time, and one that is killed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest

from weights_convert.named.find import find_cached

DATA = bytes(range(256)) * 12_000
HALF = 1_572_864  # a whole number of blocks


@pytest.fixture
def run(server, cache):
    """Starts `python -m weights_convert download` of a file that the server holds half back."""
    server.files["/toy.pt"] = DATA
    server.faults.gate_at = HALF
    started = []

    def start():
        name = f"{server.url}/toy.pt#sha256={hashlib.sha256(DATA).hexdigest()}"
        command = [sys.executable, "-m", "weights_convert", "download", name]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=os.environ, **pipes))
        return started[-1]

    yield start
    server.gate.set()
    for process in started:
        process.kill()
        process.communicate()


def whole(cache):
    (path,) = cache.glob("weights/*/toy.pt")
    return hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(DATA).digest()


def until_half(cache):
    """Waits until the first process has written what the server gives."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if any(path.stat().st_size >= HALF for path in cache.glob("weights/*/toy.pt.part")):
            return
        time.sleep(0.05)
    raise AssertionError("nothing arrived")


@pytest.mark.slow
def test_two_at_once_download_once(run, server, cache):
    first, line = run(), ""
    assert first.stderr.readline().startswith("downloading toy.pt from http://")
    second = run()
    line = second.stderr.readline()
    assert f"waiting for process {first.pid} on " in line
    assert line.endswith(", which downloads it\n")
    server.gate.set()
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.endswith("toy.pt (3,072,000 bytes)\n")
    assert [path for path, _ in server.asked] == ["/toy.pt"]
    assert whole(cache)


@pytest.mark.slow
def test_one_is_killed_and_the_next_goes_on(run, server, cache):
    first = run()
    first.stderr.readline()
    second = run()
    assert "waiting for process" in second.stderr.readline()
    until_half(cache)
    first.kill()
    assert second.stderr.readline().startswith("downloading toy.pt from http://")
    server.gate.set()
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert server.asked == [("/toy.pt", ""), ("/toy.pt", f"bytes={HALF}-")]
    assert whole(cache)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)]
)
def test_what_a_signal_leaves_is_no_whole_file_and_is_gone_on_with(
    run, server, cache, number, status
):
    first = run()
    until_half(cache)
    first.send_signal(number)
    _, err = first.communicate(timeout=60)
    assert first.returncode == status, err
    assert "Traceback" not in err
    assert find_cached(first.args[-1]) is None
    assert not [*cache.glob("weights/*/toy.pt")]
    server.gate.set()
    _, err = (second := run()).communicate(timeout=60)
    assert second.returncode == 0, err
    assert server.asked == [("/toy.pt", ""), ("/toy.pt", f"bytes={HALF}-")]
    assert whole(cache)
    assert [path.name for path in cache.glob("weights/*/toy.pt.part*")] == []
