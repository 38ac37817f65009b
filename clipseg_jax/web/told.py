"""What visitors are told of errors: one line each."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import gradio as gr
import jax

from clipseg_jax.core.html import escape
from input_pipeline.text_lists import one_line

P = ParamSpec("P")
T = TypeVar("T")


def told(action: Callable[P, T]) -> Callable[P, T]:
    """`action`, a function or generator, whose errors reach the visitor as one line."""
    if inspect.isgeneratorfunction(action):

        @functools.wraps(action)
        def step_by_step(*args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
            with _telling():
                yield from action(*args, **kwargs)  # type: ignore[misc]

        return step_by_step  # type: ignore[return-value]

    @functools.wraps(action)
    def at_once(*args: P.args, **kwargs: P.kwargs) -> T:
        with _telling():
            return action(*args, **kwargs)

    return at_once


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Errors become Gradio's, with one line; those that are our own are logged as well."""
    try:
        yield
        return
    except gr.Error:
        raise
    except (ValueError, OSError) as error:
        text, ours = one_line(error), False
    except MemoryError:
        text, ours = "The server is short of memory; take a smaller photo or fewer words.", True
    except jax.errors.JaxRuntimeError as error:
        short = "RESOURCE_EXHAUSTED" in str(error) or "ut of memory" in str(error)
        text = "The computation failed; the server's log says why."
        text = "The device is short of memory; take fewer words." if short else text
        ours = True
    except Exception:
        text, ours = "This page has an error of its own; the server's log says which.", True
    if ours:
        logging.getLogger(__name__).exception("error of the page")
    # Gradio shows the message as HTML.
    raise gr.Error(escape(text), duration=20, print_exception=False)
