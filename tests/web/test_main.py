"""The command: its mistakes in one line, and its end."""

from __future__ import annotations

import builtins
import importlib.util
import signal
import socket

import pytest

from clipseg_jax.web import __main__ as command
from tests.web.served import Served, Visitor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port is 70000; give a whole number from 0 to 65535"),
        (["--max-megapixels", "500"], "--max-megapixels is 500"),
        (["--max-megabytes", "0"], "--max-megabytes is 0"),
        (["--model", "none.pt"], "--model none.pt does not exist"),
        (["--models", "/none"], "--models /none is no folder"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1:7860"),
    ],
)
def test_mistakes(arguments, message, capsys):
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert command.main(["--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1:{port} (Address already in use)" in capsys.readouterr().err


def test_without_gradio(monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gradio" else find_spec(name)
    )
    monkeypatch.setattr(builtins, "__import__", refused(builtins.__import__))
    assert command.main([]) == 2
    assert capsys.readouterr().err == (
        "error: the page needs gradio; pip install 'clipseg_jax[web]'\n"
    )


def refused(real):
    def import_(name, *arguments):
        assert not name.startswith("gradio")
        return real(name, *arguments)

    return import_


@pytest.mark.slow
def test_ctrl_c_ends_it_at_once_and_leaves_nothing(tmp_path):
    """While it compiles for the first visitor, and another one's connection is open."""
    served = Served(tmp_path)
    visitor = Visitor(served.url, "a")
    visitor.run_at_once(visitor.event(None, "load"), [])
    words = ", ".join("abcdefg")
    data = [words, "sky", "demo", "naclip", "crf", 0, 0.6]
    assert visitor.send(visitor.event("go", "click"), data)[0] == 200
    assert served.files()
    assert served.stop(signal.SIGINT, seconds=5) == 130
    assert served.files() == []
    assert "Traceback" not in served.output
    assert served.output.splitlines()[-1] == "the page is closed"
    assert served.passes == 0
