"""Files that are whole or absent, and what killed runs leave."""

from __future__ import annotations

import os

import pytest

from input_pipeline.writing import CannotWrite, remove_temporary, write_atomic


def killed(file):
    file.write(b"half")
    os._exit(9)


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    folder = tmp_path / "deep" / "er"
    whole = write_atomic(folder / "whole.png", lambda file: file.write(b"whole"))
    (folder / ".hidden.original").write_bytes(b"not ours")
    child = os.fork()
    if not child:
        write_atomic(folder / "half.png", killed)
    os.waitpid(child, 0)
    assert len(list(folder.iterdir())) == 3
    assert remove_temporary(tmp_path) == 1
    assert sorted(path.name for path in folder.iterdir()) == [".hidden.original", "whole.png"]
    assert whole.read_bytes() == b"whole"
    assert remove_temporary(tmp_path) == 0


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path):
    path = write_atomic(tmp_path / ("é" * 127), lambda file: file.write(b"x"))
    assert path.read_bytes() == b"x"
    with pytest.raises(CannotWrite, match="cannot write"):
        write_atomic(tmp_path / ("x" * 256), lambda file: file.write(b"x"))
    assert len(list(tmp_path.iterdir())) == 1
