"""FLOPs of products: known shapes, loops with their trips, branches, derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from clipseg_jax.compile.flops import product_flops

A, B = jnp.zeros((4, 8)), jnp.zeros((8, 16))
ONE = 2 * 4 * 8 * 16


def flops(function, *args):
    return product_flops(jax.jit(function).trace(*args).jaxpr.jaxpr)


def test_products_and_convolutions():
    assert flops(jnp.matmul, A, B) == ONE
    images, kernel = jnp.zeros((2, 9, 9, 3)), jnp.zeros((3, 3, 3, 5))

    def convolve(x, k):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (2, 2), "VALID", dimension_numbers=names)

    assert flops(convolve, images, kernel) == 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)


def test_a_loop_counts_with_its_trips():
    def loop(a, b):
        return jax.lax.scan(lambda c, _: (c + (a @ b).sum(), None), 0.0, length=7)[0]

    assert flops(loop, A, B) == 7 * ONE


def test_of_branches_the_dearest_and_of_forms_the_cheapest():
    def branches(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b + a @ b, lambda: a @ b)

    assert flops(branches, A, B) == 2 * ONE

    def forms(a, b):
        return jax.lax.platform_dependent(
            a, b, tpu=lambda a, b: (a @ b) @ b.T @ b, default=jnp.matmul
        )

    assert flops(forms, A, B) == ONE


def test_derivatives():
    def loss(a, b):
        return jnp.sum(jnp.sin(a @ b))

    assert flops(jax.grad(loss, (0, 1)), A, B) == 3 * ONE
    again = jax.checkpoint(loss)
    assert flops(jax.grad(again, (0, 1)), A, B) == pytest.approx(3 * ONE, abs=ONE)
