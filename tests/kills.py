"""Runs recipes as users do, as processes, kills them at random moments, and compares results."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What may differ between two runs of the same results: clocks, and what only serves resumption.
_CLOCKS = (*("seconds", "images_per_second", "step_seconds", "data_wait", "checkpoint_seconds"),)
_UNCOMPARED = ("tensorboard", "checkpoints", "runs.jsonl", "report.html")

# Exit codes of a run that a signal ended: 128 + n by the program, -n by the system.
ENDED = {
    number: {0, 128 + number, -number} for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
}

# Starts the command in a work directory; with `stages`, these alone.
Make = Callable[..., "Run"]


class Run:
    """A command that runs, and the lines that it has printed so far."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def wait_for(self, line: str, seconds: float = 600) -> bool:
        """Whether the command printed `line`; False where it ended before."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ended = self.process.poll() is not None
            if any(line == each.strip() for each in self.lines):
                return True
            if ended:
                return False
            time.sleep(0.05)
        raise AssertionError(f"no {line!r} within {seconds} s: {''.join(self.lines)[-3000:]}")

    def kill(self, number: signal.Signals, rank: int | None = None) -> None:
        """Sends a signal to the command; `rank`: to that process of several."""
        pid = self.process.pid if rank is None else _process_of_rank(self.process.pid, rank)
        if pid is not None:
            os.kill(pid, number)

    def finish(self, seconds: float = 900) -> tuple[int, str]:
        """The exit code and what was printed."""
        code = self.process.wait(seconds)
        self._reader.join(30)
        return code, "".join(self.lines)


def start(
    config: str,
    workdir: Path,
    settings: Mapping[str, object],
    cache: Path,
    processes: int = 1,
    stages: Sequence[str] | None = None,
) -> Run:
    """The command of a user in processes of its own; `config` may be "file:string"."""
    if stages:
        settings = {**settings, "stages": ",".join(stages)}
    name, colon, string = config.partition(":")
    command = [sys.executable, "-m", "clipseg_jax.main"]
    if processes > 1:
        command = ["bash", str(ROOT / "launch/local.sh"), str(processes)]
    return Run(
        subprocess.Popen(
            [
                *command, f"--config=configs/{name}.py{colon}{string}", f"--workdir={workdir}",
                *(f"--config.{key}={value}" for key, value in settings.items()),
            ],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={
                **os.environ, "CLIPSEG_JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu",
                "PYTHON": sys.executable, "LOGS": str(cache),
            },
        )
    )  # fmt: skip


def run_whole(make: Make, workdir: Path) -> dict[str, float]:
    """An unbroken run; returns the seconds of its stages. A second start finds all of them done."""
    for _ in range(2):
        code, text = make(workdir).finish()
        assert code == 0, text[-3000:]
    stages = json.loads((workdir / "config.json").read_text())["stages"]
    assert text.count("done before") == len(stages)
    return {name: json.loads((workdir / f"{name}.done.json").read_text())["seconds"]
            for name in stages}  # fmt: skip


def run_killed(
    make: Make, workdir: Path, stages: Mapping[str, float], kills: int, *, processes: int = 1
) -> list[str]:
    """Kills runs in `workdir` at random moments of `stages` in turn, then lets one end.

    A run that is to be killed in a stage ends with that stage, so that a kill that comes too late
    costs none of the later ones.

    SIGKILL, SIGTERM and SIGINT in turn; with several processes a SIGKILL meets one of them, the
    other signals the command.

    Returns:
      One line for each kill: its signal, stage and exit code.
    """
    rng = random.Random(0)
    names, done = list(stages), []
    for i in range(kills):
        # The first of as many equal parts of the stages, so that all are met in their order.
        stage = names[i * len(names) // kills]
        number = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[i % 3]
        run = make(workdir, stages=names[: names.index(stage) + 1])
        if run.wait_for(f"stage {stage}"):
            # The programs are compiled by now, so that a stage is shorter than in the whole run.
            time.sleep(rng.uniform(0, stages[stage] / 2))
            one = processes > 1 and number == signal.SIGKILL
            run.kill(number, rng.randrange(processes) if one else None)
        code, text = run.finish(120 if processes > 1 else 900)
        done.append(f"{number.name} in {stage}: exit code {code}")
        # A process whose peer is gone ends with a code of its own.
        assert code in ENDED[number] or (processes > 1 and code > 0), f"{done[-1]}\n{text[-3000:]}"
    code, text = make(workdir).finish()
    assert code == 0, text[-3000:]
    return done


def differences(whole: Path, broken: Path) -> Iterator[str]:
    """Paths of results that are not equal byte for byte, clocks aside, or left in one run alone."""
    one, two = (
        {
            path.relative_to(folder)
            for path in folder.rglob("*")
            if path.is_file() and path.relative_to(folder).parts[0] not in _UNCOMPARED
        }
        for folder in (whole, broken)
    )
    yield from (f"{path} is in one of them" for path in sorted(one ^ two))
    yield from (f"{path} is hidden" for path in sorted(two) if path.name.startswith("."))
    for path in sorted(one & two):
        if _content(whole, path) != _content(broken, path):
            yield f"{path} differs"


def _content(folder: Path, path: Path) -> object:
    """The bytes of a file, without the name of its folder; of records without their clocks."""
    content = (folder / path).read_bytes().replace(str(folder).encode(), b"")
    if path.name.endswith(".done.json"):
        return _without_clocks(json.loads(content))
    if path.suffix == ".jsonl":
        return [_without_clocks(json.loads(line)) for line in content.splitlines()]
    return content


def _without_clocks(record: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in record.items() if key not in _CLOCKS}


def _process_of_rank(parent: int, rank: int) -> int | None:
    """The process `--process=rank` that the launch script `parent` started; None: it has ended."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for pid in children:
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"--process={rank}".encode() in arguments:
            return int(pid)
    return None
