"""Two real processes, one of which ends early: the other follows soon, with the same exit code."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipseg_jax.core.processes import PEER_LOST

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import sys, time
import jax
index, port, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_platforms", "cpu")
from clipseg_jax.core import processes
from clipseg_jax.core.command import exit_code
from clipseg_jax.core.interrupt import signals
processes._HEARTBEAT_S = 10

def work():
    processes.initialize(f"localhost:{port}", 2, index)
    processes.barrier("joined")
    print("joined", flush=True)
    if index == 1 and what == "error":
        raise ValueError("no such thing")
    if index == 1 and what == "crash":
        raise RuntimeError("a bug")
    if index == 0 and what == "collective":
        processes.barrier("never reached by the other")
    if what != "finish":
        time.sleep(120)

with signals():
    code = processes.end_together(lambda: exit_code(lambda: processes.exit_if_peer_lost(work)))
sys.exit(code)
"""


def run(what, number=None, victims=()):
    """Exit codes, errors, and seconds from the signal to the end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(i), str(port), what],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    for worker in workers:
        assert any(line == "joined\n" for line in worker.stdout), worker.stderr.read()[-2000:]
    time.sleep(1)
    began = time.monotonic()
    for victim in victims:
        workers[victim].send_signal(number)
    errors = [worker.communicate(timeout=90)[1] for worker in workers]
    return [worker.returncode for worker in workers], errors, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "number", "victims", "code"),
    [
        ("finish", None, (), 0),
        ("error", None, (), 2),
        ("crash", None, (), 1),
        ("sleep", signal.SIGTERM, (0,), 143),
        ("sleep", signal.SIGTERM, (1,), 143),
        ("sleep", signal.SIGINT, (0, 1), 130),
        ("collective", signal.SIGTERM, (0,), 143),
    ],
)
def test_all_end_with_one_code(what, number, victims, code):
    codes, errors, seconds = run(what, number, victims)
    assert codes == [code, code], errors
    assert seconds < 30
    if what == "error":
        assert "error: no such thing" in errors[1]
        assert "process 1 ended with code 2" in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "victim"), [("sleep", 0), ("sleep", 1), ("collective", 1)])
def test_a_killed_process_is_told_by_the_other(what, victim):
    codes, errors, _ = run(what, signal.SIGKILL, (victim,))
    assert codes[1 - victim] == PEER_LOST, errors
    last = errors[1 - victim].strip().splitlines()[-1]
    assert last.startswith(f"error: process {1 - victim} of 2 ")
    assert "lost" in last
    assert "it resumes from the last checkpoint" in last
