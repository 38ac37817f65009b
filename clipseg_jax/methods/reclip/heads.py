"""The heads that rectify CLIP's logits: ReCLIP's position net and ReCLIP++'s bias decoder.

Spec reclip, sections 10 and 11. Inputs of both are the frozen CLIP's outputs and the reference.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models.batch_norm import BatchNorm
from clipseg_jax.models.initializers import torch_linear, torch_uniform

StatsOver = Literal["batch", "image"]


def cosines(features: Array, embeddings: Array) -> Array:
    """Products (..., c) of unit vectors (..., e) and (c, e), in full float32.

    They are multiplied by up to 1000 later.
    """
    return jnp.matmul(features, embeddings.T, precision="highest")


def _conv(inputs: int, outputs: int, side: int, rngs: nnx.Rngs) -> nnx.Conv:
    """A padded convolution with bias; Kaiming normal (fan out), and PyTorch's default bias."""
    return nnx.Conv(
        inputs,
        outputs,
        (side, side),
        padding=side // 2,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        bias_init=torch_uniform(inputs * side * side),
        rngs=rngs,
    )


def apply_mask(x: Array, real: Array | None) -> Array:
    """`x` (b, hp, wp, d) with 0 where `real` (b, hp, wp) is False; None: `x` as it is."""
    return x if real is None else jnp.where(real[..., None], x, 0)


class PositionNet(nnx.Module):
    """ReCLIP's head: subtracts reference logits and logits of position embeddings (section 10)."""

    def __init__(self, width: int, embed_dim: int, classes: int, *, rngs: nnx.Rngs):
        """`width`: of the position embeddings; `embed_dim`: of the features."""
        middle = embed_dim // 2
        self.conv1, self.norm1 = _conv(width, embed_dim, 3, rngs), BatchNorm(embed_dim, rngs=rngs)
        self.conv2, self.norm2 = _conv(embed_dim, middle, 3, rngs), BatchNorm(middle, rngs=rngs)
        self.conv3, self.norm3 = _conv(middle, classes, 3, rngs), BatchNorm(classes, rngs=rngs)

    def positional(
        self,
        positions: Array,
        *,
        train: bool,
        stats_over: StatsOver = "batch",
        num_copies: int = 1,
        real: Array | None = None,
    ) -> Array:
        """Position embeddings (1 or b, hp, wp, d) -> logits (1 or b, hp, wp, c), at least 0.

        `num_copies`: equal images that each map stands for in the statistics, see BatchNorm.
        """
        x = positions
        for conv, norm in (
            (self.conv1, self.norm1),
            (self.conv2, self.norm2),
            (self.conv3, self.norm3),
        ):
            x = conv(apply_mask(x, real))
            x = nnx.relu(norm(x, train=train, stats_over=stats_over, num_copies=num_copies))
        return x

    def __call__(
        self,
        features: Array,
        query: Array,
        positions: Array,
        reference: Array,
        *,
        train: bool,
        stats_over: StatsOver = "image",
        real: Array | None = None,
    ) -> Array:
        """Rectified logits (b, hp, wp, c).

        Args:
          features: (b, hp, wp, e), unit vectors.
          query: (b, hp, wp, c), cosines of features and class texts.
          positions: (1 or b, hp, wp, d), position embeddings.
          reference: (c, e).
          train: whether batch norms use and update the statistics of this batch.
          stats_over: axes of the batch statistics, see BatchNorm. One position map for the batch
            counts once with "batch" and once for each image with "image".
          real: (b, hp, wp) bool, False in the padding; None: no image is padded.
        """
        num_copies = features.shape[0] // positions.shape[0] if stats_over == "image" else 1
        positional = self.positional(
            positions, train=train, stats_over=stats_over, num_copies=num_copies, real=real
        )
        return query - (cosines(features, reference) + positional)


class BiasDecoder(nnx.Module):
    """ReCLIP++'s head: subtracts a bias, then decodes features and logits (section 11).

    The bias logits are products of projected position embeddings and the reference.
    """

    def __init__(self, width: int, embed_dim: int, classes: int, *, rngs: nnx.Rngs):
        """`width`: of the position embeddings; `embed_dim`: of the features."""
        self.pe_proj = torch_linear(width, embed_dim, rngs=rngs)
        self.decoder_conv = _conv(embed_dim + classes, classes, 5, rngs)
        self.decoder_norm = BatchNorm(classes, rngs=rngs)

    def bias(self, positions: Array, reference: Array) -> Array:
        """Bias logits (1 or b, hp, wp, c) of positions (1 or b, hp, wp, d), reference (c, e)."""
        return cosines(self.pe_proj(positions), reference)

    def decode(
        self,
        features: Array,
        rectified: Array,
        *,
        train: bool,
        stats_over: StatsOver = "image",
        real: Array | None = None,
    ) -> Array:
        """Features (b, hp, wp, e) and rectified logits (b, hp, wp, c) -> logits (b, hp, wp, c)."""
        x = jnp.concatenate([features, rectified], axis=-1)
        return self.decoder_norm(
            self.decoder_conv(apply_mask(x, real)), train=train, stats_over=stats_over
        )

    def __call__(
        self,
        features: Array,
        query: Array,
        positions: Array,
        reference: Array,
        *,
        train: bool,
        stats_over: StatsOver = "image",
        real: Array | None = None,
    ) -> Array:
        """Rectified logits (b, hp, wp, c); arguments as `PositionNet`'s."""
        rectified = query - self.bias(positions, reference)
        return self.decode(features, rectified, train=train, stats_over=stats_over, real=real)
