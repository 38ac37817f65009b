"""Tries a reader of foreign files with thousands of damaged ones, under limits of time and memory.

The only right outcomes are a result and the documented error, of one readable message that names
the file. A test module gives seeds and a function of a path at its top level:

    def read(path): ...

    @pytest.mark.parametrize("inputs", INPUTS)
    def test_read(inputs):
        check_reader(read, [seed_bytes], inputs, ("CheckpointError",), suffix=".pt")
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.fuzz.mutations import mutated

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".cache" / "fuzz"  # inputs with a wrong outcome
INPUTS = [300, pytest.param(10_000, marks=pytest.mark.long)]  # of each reader
CPU_S = 10.0
LEAST_BYTES = 10**9  # allowed beside what the process has; or `TIMES_FILE` the file
TIMES_FILE = 2.5
_WALL_S = 120.0  # for a reader that waits and uses no CPU
_ENOUGH = 5  # failures, after which no more inputs are tried

Folder = Mapping[str, bytes]  # files of an input that is a folder, by their names


class Counts(NamedTuple):
    """What came of the inputs."""

    inputs: int
    read: int
    refused: dict[str, int]  # by the error's name
    failures: list[str]
    most_cpu_s: float
    most_megabytes: float


class _Child:
    """The process of `tests.fuzz.child`, started again after an input that ended it."""

    def __init__(self):
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process: subprocess.Popen | None = None
        atexit.register(self.end)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | str:
        """The answer for an input, or how the process ended."""
        if self.process is None:
            self.log.truncate(0)
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.child"], cwd=ROOT, env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            )  # fmt: skip
        process = self.process
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        if not select.select([process.stdout], [], [], _WALL_S)[0]:
            self.end()
            return f"no answer after {_WALL_S:.0f} s"
        if line := process.stdout.readline():
            return json.loads(line)
        code = process.wait()
        self.end()
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 1500))
        if code == -signal.SIGPROF:
            return f"hangs: more than {CPU_S:g} s of CPU"
        log = self.log.read().decode(errors="replace")
        return f"ends the process, exit {code}\n{log}"

    def end(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@functools.cache
def _child() -> _Child:
    return _Child()


def check_reader(
    read: Callable[[Path], Any],
    seeds: Sequence[bytes | Folder],
    inputs: int,
    allowed: tuple[str, ...],
    *,
    suffix: str = "",
    repair: Callable[[bytes], bytes] | None = None,
    names_file: bool = True,
) -> Counts:
    """Calls `read` with the seeds, which it must read, and with `inputs` changed ones.

    Args:
      read: a function at the top level of a module; it gets the path of a file, or of a folder for
        seeds that are folders. It may write beside it.
      seeds: sound files of some kilobytes.
      allowed: names of the documented errors; a subclass has another name.
      suffix: of the files' names.
      repair: makes a changed file's checksum right, so that what lies behind it is reached.
      names_file: whether an error's message names the file (for a folder: the folder).

    Raises:
      AssertionError: lists the inputs with another outcome; each is kept in `KEPT`.
    """
    reader = f"{read.__module__}:{read.__qualname__}"
    found: Counter[str] = Counter()
    failures: list[str] = []
    most_cpu = most_megabytes = 0.0
    with tempfile.TemporaryDirectory(prefix="fuzz_") as temporary:
        for number in range(-len(seeds), inputs):
            content = seeds[number] if number < 0 else _input(seeds, number, repair)
            path = Path(temporary) / f"{number % 10**6:06}{suffix}"
            _write(path, content)
            answer = _child().ask(_request(reader, path, content))
            fault = _fault(answer, allowed, path.name if names_file else "")
            if number < 0 and not fault and answer["error"]:
                fault = f"refuses its seed: {answer['message']}"
            if fault:
                kept = KEPT / f"{read.__name__}_{path.name}"
                kept.parent.mkdir(parents=True, exist_ok=True)
                _write(kept, content)
                failures.append(f"input {number} ({kept}): {fault}")
                if len(failures) == _ENOUGH:
                    break
            if not isinstance(answer, str):
                found[answer["error"] or "read"] += number >= 0
                if number >= 0:
                    most_cpu = max(most_cpu, answer["cpu_s"])
                    most_megabytes = max(most_megabytes, answer["megabytes"])
            _remove(path)
    counts = Counts(
        max(0, number + 1), found.pop("read", 0), dict(found), failures, most_cpu, most_megabytes
    )
    print(f"{reader}: {counts}")
    assert not failures, f"{reader}: {len(failures)} faults\n" + "\n".join(failures)
    return counts


def _input(seeds: Sequence, number: int, repair: Callable[[bytes], bytes] | None) -> Any:
    """Input `number`; of a folder, one file is changed."""
    seed = seeds[number % len(seeds)]
    if isinstance(seed, bytes):
        data = mutated([s for s in seeds if isinstance(s, bytes)], number)
        return repair(data) if repair else data
    names = sorted(seed)
    name = names[np.random.default_rng([number]).integers(len(names))]
    # A seed's number must lead to this very file: it is the only one.
    return {**seed, name: mutated([seed[name]], number)}


def _request(reader: str, path: Path, content: bytes | Folder) -> dict[str, Any]:
    size = len(content) if isinstance(content, bytes) else sum(map(len, content.values()))
    allowed = max(LEAST_BYTES, TIMES_FILE * size)
    return {"reader": reader, "path": str(path), "cpu_s": CPU_S, "megabytes": allowed / 2**20}


def _fault(answer: dict[str, Any] | str, allowed: tuple[str, ...], name: str) -> str:
    """What is wrong with an outcome; empty if nothing is."""
    if isinstance(answer, str):
        return answer
    if answer["audit"]:
        return f"did more than read: {answer['audit'][:3]}"
    if answer["megabytes"] > LEAST_BYTES / 2**20:  # seeds are small: 2.5 files are below it
        return f"took {answer['megabytes']:.0f} MB"
    error = answer["error"]
    if error is None:
        return ""
    message = answer["message"]
    if error not in allowed:
        return f"{error}: {message[:300]}"
    if "MemoryError" in answer["causes"]:
        return f"asked for more memory than allowed, then {error}: {message[:300]}"
    if name not in message:
        return f"the message does not name the file: {message[:300]}"
    if len(message) > 100_000 or not _lines_printable(message):
        return f"a message of {len(message)} letters that no terminal shows: {message[:300]!r}"
    return ""


def _lines_printable(message: str) -> bool:
    return all(line.isprintable() for line in message.split("\n"))


def _write(path: Path, content: bytes | Folder) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    path.mkdir(exist_ok=True)
    for name, data in content.items():
        (path / name).write_bytes(data)


def _remove(path: Path) -> None:
    """A new name for each input: what a reader maps may still be in use."""
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink()
