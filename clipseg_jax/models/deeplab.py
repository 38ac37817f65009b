"""DeepLab: a dilated ResNet with parallel dilated convolutions, the student of several systems.

Source: Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous
Convolution, and Fully Connected CRFs", 2017, in the form of ReCLIP and MaskCLIP+: the branches end
in features for CLIP's text rows instead of class scores. Spec reclip, section 15.1.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models.resnet import ConvNorm, DilatedResNet, DilatedResNetConfig

DILATIONS = (6, 12, 18, 24)


class DeepLab(nnx.Module):
    """`backbone`, and `aspp`: four dilated convolutions whose outputs are added."""

    def __init__(self, cfg: DilatedResNetConfig, features: int, *, rngs: nnx.Rngs):
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

        The features are sums after ReLU: none is negative. `sizes`: see `DilatedResNet`.
        """
        last = self.backbone(images, sizes, train=train)[-1]
        grids = None if sizes is None else self.grid_sizes(sizes)
        branches = [branch(last, grids, train=train) for branch in self.aspp]
        return functools.reduce(jnp.add, branches)
