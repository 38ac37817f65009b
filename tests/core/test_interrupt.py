"""Signals: at once, after saving, and where the main thread does not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipseg_jax.core.interrupt import Interrupted, signals

ROOT = Path(__file__).resolve().parents[2]
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def wait_for_itself(number):
    with signals():
        os.kill(os.getpid(), number)
        time.sleep(10)


@BOTH
def test_at_once(number):
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        wait_for_itself(number)
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) == handler


@BOTH
def test_with_work_to_save(number, capfd):
    with signals() as outer, signals() as caught:
        assert caught is outer
        caught.defer()
        assert caught.stop() is None
        os.kill(os.getpid(), number)
        time.sleep(0.3)
        assert caught.stop() == number
        assert "stopping after this step" in capfd.readouterr().err
        with pytest.raises(Interrupted):
            caught.at_once()


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


BUSY = """
from clipseg_jax.core.interrupt import signals
with signals() as caught:
    caught.defer()
    print("ready", flush=True)
    while True:
        pass
"""


def start(code):
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert run.stdout.readline() == "ready\n"
    return run


def test_a_second_signal_ends_what_does_not_stop():
    run = start(BUSY)
    for wait in (0.3, 1.0):  # both are one, as `timeout` sends it
        run.send_signal(signal.SIGTERM)
        time.sleep(wait)
        assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 143
    assert "stopped at once" in errors


def test_a_second_signal_does_not_interrupt_what_cleans_up():
    with signals() as caught:
        with pytest.raises(Interrupted):
            caught.handle(signal.SIGINT, None)
        caught.handle(signal.SIGINT, None)  # is for `watch`, which ends the process
    with signals() as caught:
        caught.defer()
        caught.handle(signal.SIGINT, None)
        with pytest.raises(Interrupted):
            caught.at_once()
        caught.handle(signal.SIGINT, None)


IMPORTING = """
import runpy, sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            print("ready", flush=True)
            for _ in range(1200):  # a signal just before a call of sleep does not shorten it
                time.sleep(0.1)
sys.meta_path.insert(0, Slow())
runpy.run_module({!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    "module",
    [
        "clipseg_jax.main",
        "clipseg_jax.predict",
        "input_pipeline.prepare",
        "input_pipeline.records_build",
    ],
)
def test_commands_end_in_one_line_while_they_import(module):
    run = start(IMPORTING.format(module))
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert errors == "stopped; run the same command again to resume\n"


SWALLOWED = """
import time
from clipseg_jax.core.interrupt import signals

class Deaf:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(120)

with signals():
    Deaf()
"""


def test_the_process_ends_where_the_handlers_exception_would_be_lost():
    run = start(SWALLOWED)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors
