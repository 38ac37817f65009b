"""Exit codes of errors."""

from __future__ import annotations

import errno
import signal

import jax
import pytest

from clipseg_jax.core.command import exit_code
from clipseg_jax.core.interrupt import Interrupted
from input_pipeline.writing import CannotWrite


def cannot_write(number):
    error = CannotWrite("cannot write there")
    error.__cause__ = OSError(number, "why")
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("wrong"), 2),
        (FileNotFoundError(errno.ENOENT, "No such file"), 2),
        (PermissionError(errno.EACCES, "denied"), 2),
        (OSError(errno.EROFS, "Read-only"), 2),
        (cannot_write(errno.EACCES), 2),
        (cannot_write(errno.ENOSPC), 74),
        (OSError(errno.EIO, "Input/output error"), 74),
        (OSError(errno.ESTALE, "Stale file handle"), 74),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), 74),
        (Interrupted(number=signal.SIGTERM), 143),
        (Interrupted(number=signal.SIGINT), 130),
        (KeyboardInterrupt(), 130),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 74),
        (jax.errors.JaxRuntimeError("INTERNAL: YNNPACK operation failed: error"), 74),
    ],
    ids=repr,
)
def test_exit_codes(error, code, capsys):
    def fail():
        raise error

    assert exit_code(fail) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_package_of_the_extra(capsys):
    def fail():
        raise ModuleNotFoundError("No module named 'cv2'", name="cv2")

    assert exit_code(fail) == 2
    assert "pip install 'clipseg_jax[data]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [RuntimeError("Unable to initialize backend 'foo'"), AssertionError()], ids=repr
)
def test_platforms_that_are_not_here(error, capsys, monkeypatch):
    def fail():
        raise error

    with pytest.raises(type(error)):  # JAX has devices: a mistake of ours, with a traceback
        exit_code(fail)
    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "foo")
    assert exit_code(fail) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: JAX_PLATFORMS is 'foo', and JAX finds no such devices")
    assert said.count("\n") == 1
