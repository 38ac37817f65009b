"""ONNX by jax2onnx, for runtimes that don't know JAX."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.interpreters import batching

from clipseg_jax.export.function import Function
from clipseg_jax.export.plain import plain


def check_onnx() -> None:
    """Checks that the packages are there.

    Raises:
      ValueError: they are not.
    """
    if not all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime"))):
        raise ValueError("ONNX needs jax2onnx and onnxruntime; pip install 'clipseg_jax[onnx]'")


def to_onnx(function: Function) -> bytes:
    """The function with its weights as an ONNX model for one image at a time.

    Raises:
      ValueError: it has an operation that the converter does not know.
    """
    if not hasattr(batching, "not_mapped"):
        # jax2onnx reads this name of earlier JAX at its import.
        setattr(batching, "not_mapped", None)  # noqa: B010
    import jax2onnx

    h, w = function.size
    images = jax.ShapeDtypeStruct((1, h, w, 3), jnp.uint8)
    # A list of operations, because the converter replaces functions of jax.numpy while it traces.
    operations = jaxpr_as_fun(jax.make_jaxpr(plain(function.call, images))(images))
    try:
        model = jax2onnx.to_onnx(
            operations,
            [images],
            model_name="segmenter",
            input_names=["images"],
            output_names=list(function.outputs),
        )
    # The converter has no error of its own.
    except Exception as error:
        raise ValueError(_refused("jax2onnx cannot convert this network", error)) from error
    return model.SerializeToString()


def run_onnx(content: bytes, images: np.ndarray) -> list[np.ndarray]:
    """What the model returns for images (1, h, w, 3) uint8, on the CPU.

    Raises:
      ValueError: ONNX Runtime cannot run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal ones; others are raised
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return session.run(None, {"images": images})
    except Exception as error:  # of a dozen classes without a common one
        raise ValueError(_refused("ONNX Runtime cannot run this network", error)) from error


def _refused(what: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{what} ({reason:.200}); export StableHLO, or another method or refinement"
