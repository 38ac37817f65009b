"""One row's process: its log, signals, and what its end says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from clipseg_jax.reproduce import runs
from tests.core.test_run_lock import holder


def execute(code, log, signals=None, show=print):
    command = [sys.executable, "-c", f"import sys; {code}"]
    return runs.run(command, log, signals or runs.Signals(), show)


def test_log_has_what_it_prints_and_the_command(tmp_path):
    log = tmp_path / "row/log.txt"
    code = "print('one'); print('two', file=sys.stderr); sys.exit(3)"
    assert execute(code, log)[0] == 3
    assert execute("print('again')", log)[0] == 0
    text = log.read_text()
    assert text.count(sys.executable) == 2
    assert text.endswith("again\n")
    assert {"one", "two"} < {*text.splitlines()}


def test_the_last_line_is_shown_each_second(tmp_path):
    shown = []
    code = "print('a\\rstep 3\\x1b[2J', flush=True); import time; time.sleep(2.5)"
    assert execute(code, tmp_path / "log.txt", show=shown.append)[0] == 0
    assert shown
    assert shown[-1] == "step 3\\x1b[2J"  # steers no terminal


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('error: no labels; unpack them'); sys.exit(2)", "no labels; unpack them"),
        ("print('error: first'); print('-> remedy'); sys.exit(2)", "first"),
        ("raise KeyError('x')", "exit code 1: KeyError: 'x'"),
        ("sys.exit(5)", "exit code 5: it printed nothing"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL; was there too little memory?"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
    ],
)  # fmt: skip
def test_why_a_run_failed(code, reason, tmp_path):
    log = tmp_path / "log.txt"
    execute("print('error: of an earlier run')", log)
    assert execute(code, log)[1] == reason


SLEEP = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))
print('ready', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_go_to_the_run(number, tmp_path):
    log = tmp_path / "log.txt"
    code = SLEEP.replace("SIGTERM", number.name)

    def stop():
        while "ready" not in (log.read_text() if log.exists() else "").splitlines():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=stop)
    thread.start()
    with runs.Signals() as signals:
        assert execute(code, log, signals)[0] == 143
    thread.join()
    assert signals.number == number
    assert log.read_text().endswith("saved\n")
    assert signal.getsignal(number) is before


def test_a_signal_before_the_run_stops_it(tmp_path):
    with runs.Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert execute("import time; time.sleep(60)", tmp_path / "log.txt", signals)[0] != 0


def test_waits_for_a_run_that_outlived_its_command(tmp_path, capsys):
    process = holder(tmp_path)
    threading.Timer(1.5, process.kill).start()
    started = time.monotonic()
    runs.wait_for_other(tmp_path, runs.Signals())
    assert time.monotonic() - started > 1
    assert process.wait(10) == -signal.SIGKILL
    out = capsys.readouterr().out
    assert out.count(f"process {process.pid}; waiting for its end") == 1


def test_waiting_ends_with_a_signal(tmp_path):
    process = holder(tmp_path)
    with runs.Signals() as signals:
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM]).start()
        runs.wait_for_other(tmp_path, signals)
    assert signals.number == signal.SIGTERM
    process.kill()
    process.wait(10)


def test_ignored_signals_stay_ignored():
    """As `nohup` and a script's background jobs have it."""
    code = (
        "import signal, os; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from clipseg_jax.reproduce.runs import Signals\n"
        "with Signals() as signals: os.kill(os.getpid(), signal.SIGINT)\n"
        "assert signals.number is None"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
