"""Folders and files that another user owns: one line that names the path, and nothing is harmed."""

from __future__ import annotations

import os

import numpy as np
import pytest

from clipseg_jax.core.files import (
    check_writable,
    load_array,
    load_arrays,
    read_json,
    write_json,
)
from clipseg_jax.core.json_lines import append_partial, read_lines
from clipseg_jax.core.run_lock import RunLock
from clipseg_jax.core.writer import Writer

NOBODY = 65534
REMEDY = "delete it"


def error_of(function):
    """The error that `function` raises for a user who is not root, as "type: message"."""
    if os.getuid():
        return _error(function)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writer, _error(function).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


def _error(function):
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.fixture
def folder(tmp_path):
    """A folder that others may read, with files that they may not."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"step": 1}\n')
    (folder / "config.json").write_text("{}")
    np.save(folder / "rows.npy", np.zeros(3))
    np.savez(folder / "counts.npz", a=np.zeros(3))
    for path in folder.iterdir():
        path.chmod(0)
    folder.chmod(0o555)
    for parent in tmp_path.parents[:3]:
        if parent.stat().st_uid == os.getuid() and parent.name.startswith("pytest"):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    yield folder
    folder.chmod(0o755)


CASES = {
    ".run.lock": lambda folder: RunLock(folder).__enter__(),
    ".writable": lambda folder: check_writable(folder),
    "metrics.json": lambda folder: write_json(folder / "metrics.json", {}),
    "config.json": lambda folder: read_json(folder / "config.json", REMEDY),
    "rows.npy": lambda folder: load_array(folder / "rows.npy", REMEDY),
    "counts.npz": lambda folder: load_arrays(folder / "counts.npz", REMEDY, "a"),
    "train.jsonl": lambda folder: read_lines(folder / "train.jsonl"),
    "0.partial.jsonl": lambda folder: append_partial(folder),
    "new/tags": lambda folder: append_partial(folder / "new/tags"),
    "other.jsonl": lambda folder: Writer(folder, "other"),
}


@pytest.mark.parametrize("name", CASES)
def test_permission_denied_is_one_line_that_names_the_path(folder, name):
    said = error_of(lambda: CASES[name](folder))
    assert said.startswith(("CannotWrite: ", "PermissionError: ")), said
    assert name in said
    assert "ermission denied" in said
    assert "\n" not in said
    # A file of which nothing can be read is not called damaged: deleting it is no remedy.
    assert "damaged" not in said
