"""A function as few and simple operations on its inputs, as converters to other formats want it.

What depends on weights and sizes alone is computed here, once; functions within functions are
inlined; loops over what is known are unrolled; reading at known positions is `take` of the flat
array.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

# Operations that only call a function, and the parameters that hold it.
_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call"),
}
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def plain(call: Callable[..., Any], *inputs: jax.ShapeDtypeStruct) -> Callable[..., list[Array]]:
    """A function of arrays like `inputs` that returns what `call` does, as a flat list."""
    closed = jax.make_jaxpr(call)(*inputs)

    def run(*arrays: Array) -> list[Array]:
        return _evaluate(closed, arrays)

    return run


def _evaluate(closed: Any, arguments: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, of which some arguments are known and the others traced."""
    constants = closed.consts if isinstance(closed, ClosedJaxpr) else ()
    jaxpr = closed.jaxpr if isinstance(closed, ClosedJaxpr) else closed
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)

    def read(atoms: Sequence[Any]) -> list[Any]:
        return [each.val if isinstance(each, Literal) else values[each] for each in atoms]

    for equation in jaxpr.eqns:
        inputs = read(equation.invars)
        if all(map(_is_known, inputs)):
            with jax.ensure_compile_time_eval():
                outputs = _bind(equation, inputs)
        else:
            name = equation.primitive.name
            outputs = (_call if name in _CALLS else _RULES.get(name, _bind))(equation, inputs)
        values |= zip(equation.outvars, outputs, strict=True)
    return read(jaxpr.outvars)


def _is_known(value: Any) -> bool:
    return not isinstance(value, Tracer)


def _bind(equation: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    parameters = equation.primitive.get_bind_params(equation.params)
    outputs = equation.primitive.bind(*inputs, **parameters)
    return outputs if equation.primitive.multiple_results else [outputs]


def _call(equation: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    body = next(equation.params[name] for name in _CALLED if name in equation.params)
    return _evaluate(body, inputs)


def _scan(equation: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """A loop of known length: unrolled where what changes from step to step is partly known."""
    given = equation.params
    body, length = given["jaxpr"], given["length"]
    first, second = given["num_consts"], given["num_consts"] + given["num_carry"]
    constants, carry, xs = inputs[:first], list(inputs[first:second]), inputs[second:]
    if not any(map(_is_known, (*carry, *xs))):

        def step(carry: list[Array], each: list[Array]) -> tuple[list[Array], list[Array]]:
            outputs = _evaluate(body, [*constants, *carry, *each])
            return outputs[: len(carry)], outputs[len(carry) :]

        carry, ys = jax.lax.scan(step, carry, list(xs), length, given["reverse"])
        return [*carry, *ys]
    steps = []
    for i in reversed(range(length)) if given["reverse"] else range(length):
        outputs = _evaluate(body, [*constants, *carry, *(each[i] for each in xs)])
        carry = outputs[: len(carry)]
        steps.append(outputs[len(carry) :])
    if given["reverse"]:
        steps.reverse()
    return [*carry, *(jnp.concatenate([y[None] for y in ys]) for ys in zip(*steps, strict=True))]


def _while(equation: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """A loop: unrolled as long as its end does not depend on what is traced."""
    given = equation.params
    first, second = given["cond_nconsts"], given["cond_nconsts"] + given["body_nconsts"]
    of_condition, of_body, carry = inputs[:first], inputs[first:second], list(inputs[second:])
    while True:
        (goes_on,) = _evaluate(given["cond_jaxpr"], [*of_condition, *carry])
        if not _is_known(goes_on):
            break
        if not goes_on:
            return carry
        carry = _evaluate(given["body_jaxpr"], [*of_body, *carry])
    return jax.lax.while_loop(
        lambda carry: _evaluate(given["cond_jaxpr"], [*of_condition, *carry])[0],
        lambda carry: _evaluate(given["body_jaxpr"], [*of_body, *carry]),
        carry,
    )


def _cond(equation: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    index, *arguments = inputs
    branches = equation.params["branches"]
    if _is_known(index):
        return _evaluate(branches[int(np.clip(index, 0, len(branches) - 1))], arguments)
    outputs = [_evaluate(branch, arguments) for branch in branches]
    return [jax.lax.select_n(index, *each) for each in zip(*outputs, strict=True)]


def _gather(equation: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """Reads at known positions; the same read of the array's own positions says which they are."""
    values, positions = inputs
    if not _is_known(positions):
        return _bind(equation, inputs)
    with jax.ensure_compile_time_eval():
        own = np.arange(values.size, dtype=np.int32).reshape(values.shape)
        parameters = {**equation.params, "fill_value": -1}
        index = np.asarray(equation.primitive.bind(own, positions, **parameters))
    flat = values.reshape(-1)
    taken = jnp.take(flat, np.maximum(index, 0).reshape(-1), axis=0, mode="clip")
    result = taken.reshape(index.shape)
    if index.size and index.min() < 0:
        fill = equation.params["fill_value"]
        result = jnp.where(index < 0, jnp.nan if fill is None else fill, result)
    return [result]


def _stack(equation: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    axis = equation.params["axis"]
    return [jax.lax.concatenate([jax.lax.expand_dims(each, [axis]) for each in inputs], axis)]


def _unstack(equation: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    axis = equation.params["axis"]
    return [
        jax.lax.index_in_dim(inputs[0], i, axis, keepdims=False)
        for i in range(inputs[0].shape[axis])
    ]


def _concatenate(equation: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    axis = equation.params["dimension"]
    return [jax.lax.concatenate([each for each in inputs if each.shape[axis]], axis)]


def _max_pool(equation: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """The largest of the window's elements, each a strided slice: jax2onnx takes channels first."""
    (x,), given = inputs, equation.params
    window, strides = given["window_dimensions"], given["window_strides"]
    dilation = given["window_dilation"]
    assert all(each == 1 for each in given["base_dilation"]), "no network here has one"
    lowest = np.asarray(-np.inf, x.dtype)
    x = jax.lax.pad(x, lowest, [(before, after, 0) for before, after in given["padding"]])
    shape = equation.outvars[0].aval.shape  # type: ignore[attr-defined]
    last = [(n - 1) * stride + 1 for n, stride in zip(shape, strides, strict=True)]
    starts = ([i * by for i in range(n)] for n, by in zip(window, dilation, strict=True))
    slices = [
        jax.lax.slice(x, start, [a + n for a, n in zip(start, last, strict=True)], strides)
        for start in itertools.product(*starts)
    ]
    return [functools.reduce(jax.lax.max, slices)]


_RULES = {
    "reduce_window_max": _max_pool,
    "stack": _stack,
    "unstack": _unstack,
    "concatenate": _concatenate,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "gather": _gather,
}
