"""Fully connected (dense) CRFs on images, in JAX: the results of pydensecrf on any device.

energies = unary_from_softmax(scores)                        # (b, h, w, c)
marginals = jax.jit(dense_crf, static_argnums=2)(energies, images, CLIP_ES)
"""

from clipseg_jax.ops.crf.config import (
    CLIP_ES,
    DEEPLAB,
    UPSTREAM,
    WECLIP,
    WECLIP_LABEL,
    WECLIP_TEST,
    CRFConfig,
)
from clipseg_jax.ops.crf.mean_field import dense_crf, dense_crf_monitored
from clipseg_jax.ops.crf.unary import unary_from_labels, unary_from_softmax, wrapped_image

__all__ = [
    "CLIP_ES",
    "DEEPLAB",
    "UPSTREAM",
    "WECLIP",
    "WECLIP_LABEL",
    "WECLIP_TEST",
    "CRFConfig",
    "dense_crf",
    "dense_crf_monitored",
    "unary_from_labels",
    "unary_from_softmax",
    "wrapped_image",
]
