"""Runs a recipe as a user does, as a process, and kills it at random times."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(config, workdir, settings, cache):
    """The command of a user, as a process of its own; `config` may be "file:string"."""
    name, colon, string = config.partition(":")
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    environment = {
        **os.environ,
        "CLIPSEG_JAX_CACHE": str(cache),
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [
            sys.executable, "-m", "clipseg_jax.main", f"--config=configs/{name}.py{colon}{string}",
            f"--workdir={workdir}", *arguments,
        ],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(run):
    """The exit code and what was printed."""
    text, _ = run.communicate(timeout=900)
    return run.returncode, text


def run_whole_and_killed(
    make: Callable[[Path], subprocess.Popen], folder: Path, kills: int
) -> tuple[Path, Path]:
    """The work directories of an unbroken run, and of one with `kills` kills that then went on.

    SIGKILL and SIGTERM in turn; `make` starts the command in a work directory. The unbroken run's
    second start finds everything done.
    """
    whole, broken = folder / "whole", folder / "broken"
    began = time.monotonic()
    code, text = finish(make(whole))
    length = time.monotonic() - began
    assert code == 0, text[-3000:]
    began = time.monotonic()
    code, text = finish(make(whole))
    start_up = time.monotonic() - began
    assert code == 0, text[-3000:]
    stages = json.loads((whole / "config.json").read_text())["stages"]
    assert text.count("done before") == len(stages)

    rng = random.Random(0)
    for i in range(kills):
        run = make(broken)
        try:
            # From the first imports to somewhere inside a stage.
            run.wait(start_up + rng.uniform(-0.3, 3.0) * length / kills)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGTERM if i % 2 else signal.SIGKILL)
        code, text = finish(run)
        assert code in (0, 143, -signal.SIGTERM, -signal.SIGKILL), text[-3000:]
    code, text = finish(make(broken))
    assert code == 0, text[-3000:]
    return whole, broken
