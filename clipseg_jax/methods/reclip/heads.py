"""The heads that rectify CLIP: ReCLIP's position net and ReCLIP++'s bias decoder.

Spec reclip, sections 10 and 11. Both map what the frozen CLIP says, and the reference, to logits.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models.batch_norm import BatchNorm
from clipseg_jax.models.initializers import torch_linear, torch_uniform

Over = Literal["batch", "image"]


def cosines(features: Array, rows: Array) -> Array:
    """(..., e) and (c, e) -> (..., c) in full float32: what follows multiplies it by up to 1000."""
    return jnp.matmul(features, rows.T, precision="highest")


def _conv(inputs: int, outputs: int, side: int, rngs: nnx.Rngs) -> nnx.Conv:
    """A padded convolution with bias; Kaiming's normal over the fan out, PyTorch's bias."""
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
    """`x` (b, hp, wp, d), zero in the padding: as a convolution sees the border of an image."""
    return x if real is None else jnp.where(real[..., None], x, 0)


class PositionNet(nnx.Module):
    """ReCLIP's head: reference logits, plus what position embeddings alone say, are subtracted."""

    def __init__(self, width: int, embed_dim: int, classes: int, *, rngs: nnx.Rngs):
        """`width` of the position embeddings, `embed_dim` of the features."""
        middle = embed_dim // 2
        self.conv1, self.norm1 = _conv(width, embed_dim, 3, rngs), BatchNorm(embed_dim, rngs=rngs)
        self.conv2, self.norm2 = _conv(embed_dim, middle, 3, rngs), BatchNorm(middle, rngs=rngs)
        self.conv3, self.norm3 = _conv(middle, classes, 3, rngs), BatchNorm(classes, rngs=rngs)

    def positional(
        self,
        positions: Array,
        *,
        train: bool,
        stats_over: Over = "batch",
        num_copies: int = 1,
        real: Array | None = None,
    ) -> Array:
        """Positions (1 or b, hp, wp, d) -> their own logits (1 or b, hp, wp, c), at least 0.

        `copies`: one map stands for so many equal images (see BatchNorm).
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
        stats_over: Over = "image",
        real: Array | None = None,
    ) -> Array:
        """Rectified logits (b, hp, wp, c).

        Args:
          features: (b, hp, wp, e) unit; query: (b, hp, wp, c) their cosines with the class texts.
          positions: (1 or b, hp, wp, d); reference: (c, e).
          stats_over: what the batch norms take statistics over, see BatchNorm. With one position
            map for the batch, "batch" counts it once, "image" once for each image.
          real: (b, hp, wp) bool, False in the padding of a bucket; None: there is none.
        """
        num_copies = features.shape[0] // positions.shape[0] if stats_over == "image" else 1
        positional = self.positional(
            positions, train=train, stats_over=stats_over, num_copies=num_copies, real=real
        )
        return query - (cosines(features, reference) + positional)


class BiasDecoder(nnx.Module):
    """ReCLIP++'s head: the bias is a product of positions and reference; a decoder makes masks."""

    def __init__(self, width: int, embed_dim: int, classes: int, *, rngs: nnx.Rngs):
        """`width` of the position embeddings, `embed_dim` of the features."""
        self.pe_proj = torch_linear(width, embed_dim, rngs=rngs)
        self.decoder_conv = _conv(embed_dim + classes, classes, 5, rngs)
        self.decoder_norm = BatchNorm(classes, rngs=rngs)

    def bias(self, positions: Array, reference: Array) -> Array:
        """Positions (1 or b, hp, wp, d), reference (c, e) -> bias logits (1 or b, hp, wp, c)."""
        return cosines(self.pe_proj(positions), reference)

    def decode(
        self,
        features: Array,
        rectified: Array,
        *,
        train: bool,
        stats_over: Over = "image",
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
        stats_over: Over = "image",
        real: Array | None = None,
    ) -> Array:
        """Rectified logits (b, hp, wp, c); arguments as `PositionNet`'s."""
        rectified = query - self.bias(positions, reference)
        return self.decode(features, rectified, train=train, stats_over=stats_over, real=real)
