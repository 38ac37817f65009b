"""Folders that the processes of one test run share: what takes long to make is made once."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest


def folder(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object] = lambda path: None
) -> Path:
    """A folder `name` that `make` has filled, in whichever process came first; not to be changed.

    pytest makes a fixture of a module anew in each process, and with parameters also whenever it
    comes back to one.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the run's, with a folder of each process
    path, done = base / "shared" / name, base / "shared" / f"{name}.done"
    path.parent.mkdir(exist_ok=True)
    with filelock.FileLock(base / "shared" / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(path, ignore_errors=True)  # of a process that did not finish
            path.mkdir()
            make(path)
            done.touch()
    return path
