"""DeepLab: a dilated ResNet with parallel dilated convolutions, the student of several methods.

Its output are features to compare with text embeddings, not class scores. `DeepLab` is version 2
in the form of ReCLIP and MaskCLIP+ (Chen et al., "DeepLab: Semantic Image Segmentation with
Deep Convolutional Nets, Atrous Convolution, and Fully Connected CRFs", 2017), `DeepLabV3Plus` is
version 3 with a decoder (Chen et al., "Encoder-Decoder with Atrous Separable Convolution for
Semantic Image Segmentation", 2018). Spec reclip, section 15.1; spec maskclip, section 11.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models.convolutions import ConvNorm
from clipseg_jax.models.resnet import DilatedResNet, DilatedResNetConfig
from clipseg_jax.ops.image import mask_padding
from clipseg_jax.ops.resize import resize, resize_within

DILATIONS = (6, 12, 18, 24)
DILATIONS_V3 = (1, 12, 24, 36)
_LOW_LEVEL = 48  # channels of the first stage's projection for the decoder


class DeepLab(nnx.Module):
    """DeepLabV2: `backbone`, and `aspp`: four dilated convolutions whose outputs are added."""

    def __init__(self, cfg: DilatedResNetConfig, features: int, *, rngs: nnx.Rngs):
        self.features = features
        self.backbone = DilatedResNet(cfg, rngs=rngs)
        self.aspp = nnx.List(
            ConvNorm(cfg.channels, features, 3, dilation=d, dtype=cfg.dtype, rngs=rngs)
            for d in DILATIONS
        )

    def grid_sizes(self, sizes: Array) -> Array:
        """Rows and columns (b, 2) of the features of images of `sizes` (b, 2) pixels."""
        return self.backbone.grid_sizes(sizes)

    def __call__(self, images: Array, sizes: Array | None = None, *, train: bool) -> Array:
        """Normalised images (b, h, w, 3) -> features (b, ceil(h / 8), ceil(w / 8), e) float32.

        The features are sums of ReLU outputs, so they are not negative. `sizes`: see
        `DilatedResNet`.
        """
        last = self.backbone(images, sizes, train=train)[-1]
        grids = None if sizes is None else self.grid_sizes(sizes)
        branches = [branch(last, grids, train=train) for branch in self.aspp]
        return functools.reduce(jnp.add, [each.astype(jnp.float32) for each in branches])


class SeparableConvNorm(nnx.Module):
    """A depthwise 3x3 convolution, then a 1x1; each followed by batch norm and ReLU."""

    def __init__(self, c_in: int, c_out: int, *, dilation: int = 1, dtype: str, rngs: nnx.Rngs):
        self.depthwise = ConvNorm(
            c_in, c_in, 3, dilation=dilation, groups=c_in, dtype=dtype, rngs=rngs
        )
        self.pointwise = ConvNorm(c_in, c_out, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, sizes: Array | None = None, *, train: bool) -> Array:
        """Maps (b, h, w, c_in) -> (b, h, w, c_out); `sizes` (b, 2): real size of `x`."""
        return self.pointwise(self.depthwise(x, sizes, train=train), sizes, train=train)


class DeepLabV3Plus(nnx.Module):
    """DeepLabV3+ on `backbone`.

    The last stage passes `image_pool` and `aspp`, which `bottleneck` fuses; the first stage passes
    `low_level`; `decoder` combines both.
    """

    def __init__(self, cfg: DilatedResNetConfig, features: int, *, rngs: nnx.Rngs):
        self.features = features
        self.backbone = DilatedResNet(cfg, rngs=rngs)
        c_in, dtype = cfg.channels, cfg.dtype
        self.image_pool = ConvNorm(c_in, features, 1, dtype=dtype, rngs=rngs)
        self.aspp = nnx.List(
            [
                ConvNorm(c_in, features, 1, dtype=dtype, rngs=rngs),
                *(
                    SeparableConvNorm(c_in, features, dilation=d, dtype=dtype, rngs=rngs)
                    for d in DILATIONS_V3[1:]
                ),
            ]
        )
        joined = (1 + len(DILATIONS_V3)) * features
        self.bottleneck = ConvNorm(joined, features, 3, dtype=dtype, rngs=rngs)
        self.low_level = ConvNorm(4 * cfg.width, _LOW_LEVEL, 1, dtype=dtype, rngs=rngs)
        self.decoder = nnx.List(
            SeparableConvNorm(c, features, dtype=dtype, rngs=rngs)
            for c in (features + _LOW_LEVEL, features)
        )

    def grid_sizes(self, sizes: Array) -> Array:
        """Rows and columns (b, 2) of the features of images of `sizes` (b, 2) pixels."""
        return self.backbone.grid_sizes(sizes, stages=1)

    def __call__(self, images: Array, sizes: Array | None = None, *, train: bool) -> Array:
        """Normalised images (b, h, w, 3) -> features (b, ceil(h / 4), ceil(w / 4), e) float32.

        The features are not negative. `sizes`: see `DilatedResNet`.
        """
        first, *_, last = self.backbone(images, sizes, train=train)
        grids = None if sizes is None else self.backbone.grid_sizes(sizes)
        pooled = self.image_pool(_mean(last, grids), train=train)
        branches = [jnp.broadcast_to(pooled, (*last.shape[:3], pooled.shape[-1]))]
        branches += [branch(last, grids, train=train) for branch in self.aspp]
        x = self.bottleneck(jnp.concatenate(branches, axis=-1), grids, train=train)
        shape = (first.shape[1], first.shape[2])
        low = self.low_level(first, train=train)
        if sizes is None or grids is None:
            fine, x = None, resize(x, shape)
        else:
            fine = self.grid_sizes(sizes)
            x = resize_within(x, grids, fine, shape)
        x = jnp.concatenate([x, low], axis=-1)
        for unit in self.decoder:
            x = unit(x, fine, train=train)
        return x.astype(jnp.float32)


def _mean(x: Array, sizes: Array | None) -> Array:
    """Mean (b, 1, 1, c) over the real positions of maps (b, h, w, c)."""
    if sizes is None:
        return jnp.mean(x, axis=(1, 2), keepdims=True)
    count = jnp.prod(sizes, axis=-1)[:, None, None, None]
    return jnp.sum(mask_padding(x, sizes), axis=(1, 2), keepdims=True) / count
