"""FLOPs of a traced program's products, counted in its jaxpr: the same on every platform.

XLA's own count takes a loop's body once and knows nothing of kernels. Here loops count with their
trips, and of alternatives (branches, kernels for other platforms) the one that is meant: the
dearest branch of `lax.cond`, the cheapest form of an op, which is the one without padding.
"""

from __future__ import annotations

import math
from typing import Any

from jax.extend import core


def product_flops(jaxpr: core.Jaxpr) -> float:
    """FLOPs (two a multiplication and addition) of all matrix products and convolutions."""
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        contracted, _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        out = math.prod(equation.outvars[0].aval.shape)
        return 2.0 * out * math.prod(left[axis] for axis in contracted[0])
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        holes = math.prod(params["lhs_dilation"])  # zeros between inputs are no work
        out = math.prod(equation.outvars[0].aval.shape)
        return 2.0 * out * math.prod(kernel) / out_features / holes
    if name == "cond":
        branches = [product_flops(branch.jaxpr) for branch in params["branches"]]
        forms = "branches_platforms" in params and params["branches_platforms"] is not None
        return min(branches) if forms else max(branches)
    if name == "pallas_call":
        estimate = params["cost_estimate"]
        return float(estimate.flops) if estimate else 0.0
    trips = params["length"] if name == "scan" else 1
    return trips * sum(product_flops(each) for each in _jaxprs(params))


def _jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    """The jaxprs among an equation's parameters, of which a call has one, a loop two."""
    found = []
    for name, value in params.items():
        if name.startswith(("jvp", "fwd", "bwd", "cond_")):  # of a custom derivative; not run here
            continue
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                found.append(each.jaxpr)
            elif isinstance(each, core.Jaxpr):
                found.append(each)
    return found
