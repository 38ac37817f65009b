"""The process in which readers are tried: `python -m tests.fuzz.child`, one line for each input.

An input that makes the process hang or crash ends it, and the parent knows which one it was. What a
reader does besides reading is told by Python's audit hooks.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

_FORBIDDEN = (
    "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile",
    "pty.", "socket.", "ctypes.", "pickle.find_class", "code.__new__", "os.remove", "os.rename",
    "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate",
    "os.putenv", "shutil.", "webbrowser.", "urllib.", "signal.pthread_kill", "os.kill",
)  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_armed = False
_seen: list[str] = []
_folder = ""  # where a reader may write


def _hook(event: str, arguments: tuple) -> None:
    if not _armed:
        return
    told = f"{event}{arguments!r:.200}"
    if event.startswith(_FORBIDDEN):
        _seen.append(told)
    elif event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & _WRITES
        if writes and not (isinstance(path, str) and path.startswith(_folder)):
            _seen.append(told)
    elif event == "import":
        package = str(arguments[0]).partition(".")[0]
        if package not in sys.modules and package not in sys.stdlib_module_names:
            _seen.append(told)
    elif event == "exec" and getattr(arguments[0], "co_filename", "<").startswith("<"):
        _seen.append(told)


def _megabytes(field: str) -> float:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) / 1024


def attempt(reader: str, path: str, cpu_s: float, megabytes: float) -> dict:
    """Calls a reader ("module:function") with a path; what came of it, in plain values."""
    global _armed, _folder
    module, _, name = reader.partition(":")
    read = getattr(importlib.import_module(module), name)
    _folder = str(Path(path).parent)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here
    before = _megabytes("VmRSS")
    # Far above the bound, which is measured: what asks for more than this gets a MemoryError.
    limit = int((_megabytes("VmSize") + 2 * megabytes) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF ends the process, whatever it is doing
    began, _armed = time.process_time(), True
    try:
        read(Path(path))
        outcome = {"error": None}
    except Exception as error:
        outcome = {"error": type(error).__name__, "message": str(error)[:300_000]}
        outcome["causes"] = _causes(error)
    finally:
        _armed = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    outcome["cpu_s"] = time.process_time() - began
    outcome["megabytes"] = _megabytes("VmHWM") - before
    outcome["audit"] = list(_seen)
    _seen.clear()
    if outcome["megabytes"] > 50:
        gc.collect()
    return outcome


def _causes(error: BaseException) -> list[str]:
    """Names of the errors behind an error, itself first."""
    out: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(out) < 20:
        out.append(type(seen).__name__)
        seen = seen.__cause__ or seen.__context__
    return out


def main() -> None:
    """Answers one JSON line for each JSON line of standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what readers print goes to the log
    faulthandler.enable()
    sys.dont_write_bytecode = True  # of what a reader imports; it would count as its writing
    sys.addaudithook(_hook)
    for line in sys.stdin:
        answers.write(json.dumps(attempt(**json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
