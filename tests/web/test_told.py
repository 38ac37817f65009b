"""What visitors are told of errors."""

from __future__ import annotations

import gradio as gr
import jax
import pytest

from clipseg_jax.web.told import told


@pytest.mark.parametrize(
    ("error", "message", "logged"),
    [
        (ValueError("the <b>name</b>\nis wrong"), "the &lt;b&gt;name&lt;/b&gt; is wrong", False),
        (OSError("disk"), "disk", False),
        (
            MemoryError(),
            "The server is short of memory; take a smaller photo or fewer words.",
            True,
        ),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: x"),
            "The device is short of memory; take fewer words.",
            True,
        ),
        (
            KeyError("x"),
            "This page has an error of its own; the server&#x27;s log says which.",
            True,
        ),
        (gr.Error("as it is"), "as it is", False),
    ],
)
def test_what_visitors_are_told(error, message, logged, caplog):
    @told
    def at_once():
        raise error

    @told
    def step_by_step():
        yield 1
        raise error

    steps = step_by_step()
    assert next(steps) == 1
    for action in (at_once, lambda: next(steps)):
        caplog.clear()
        with pytest.raises(gr.Error) as caught:
            action()
        assert caught.value.message == message
        assert bool(caplog.records) == logged
