"""DeepLabV2 with a ResNet-101, applied at three scales: the student of CLIP-ES.

Source: Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous
Convolution, and Fully Connected CRFs", 2017, in the form of its authors' Caffe model, which
deeplab-pytorch reproduces. Spec deeplab, sections 2 and 3.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models.convolutions import TapConv
from clipseg_jax.models.deeplab import DILATIONS
from clipseg_jax.models.resnet import RESNET101, DilatedResNet, DilatedResNetConfig
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, mask_padding
from clipseg_jax.ops.resize import resize, resize_within

BACKBONE = DilatedResNetConfig(blocks=RESNET101, variant="caffe")
SCALES = (0.5, 0.75)  # in addition to 1
# RGB, in pixel values 0 to 255.
MEAN, STD = (122.675, 116.669, 104.008), (1.0, 1.0, 1.0)
# Mean and deviation of pixel values by the variant of the ResNet, whose weights expect them.
STATISTICS = {
    "caffe": (MEAN, STD),
    "v1": (IMAGENET_MEAN, IMAGENET_STD),
    "v1c": (IMAGENET_MEAN, IMAGENET_STD),
}


class DeepLabV2(nnx.Module):
    """`backbone`, and `aspp`: four dilated convolutions to class scores, which are summed.

    Batch norms always use their running statistics, in training as well.
    """

    def __init__(self, classes: int, cfg: DilatedResNetConfig = BACKBONE, *, rngs: nnx.Rngs):
        self.backbone = DilatedResNet(cfg, rngs=rngs)
        self.aspp = nnx.List(
            TapConv(
                cfg.channels,
                classes,
                (3, 3),
                padding=d,
                kernel_dilation=d,
                dtype=cfg.dtype,
                kernel_init=nnx.initializers.normal(0.01),
                rngs=rngs,
            )
            for d in DILATIONS
        )

    def grid_sizes(self, sizes: Array) -> Array:
        """Rows and columns (b, 2) of the logits of images of `sizes` (b, 2) pixels."""
        return self.backbone.grid_sizes(sizes)

    def classify(self, images: Array, sizes: Array | None = None) -> Array:
        """Images (b, h, w, 3) -> logits (b, g, k, c) float32 at scale 1; `sizes`: see below."""
        x = self.backbone(images, sizes, train=False)[-1]
        x = mask_padding(x, None if sizes is None else self.grid_sizes(sizes))
        return functools.reduce(jnp.add, [branch(x).astype(jnp.float32) for branch in self.aspp])

    def __call__(self, images: Array, sizes: Array | None = None) -> tuple[Array, ...]:
        """Logits at scale 1, at each of `SCALES`, and their maximum at the size of the first.

        Args:
          images: RGB minus the mean (b, h, w, 3), at least 2 x 2 pixels.
          sizes: real rows and columns (b, 2) of padded images; None: no padding.

        Returns:
          (b, g, k, c) float32 each, undefined outside the real grids.
        """
        full = self.classify(images, sizes)
        outputs, highest = [full], full
        for scale in SCALES:
            small = None if sizes is None else scaled_sizes(sizes, scale)
            logits = self.classify(scaled_images(images, scale), small)
            outputs.append(logits)
            shape = (full.shape[1], full.shape[2])
            if sizes is None or small is None:
                logits = resize(logits, shape)
            else:
                grids = self.grid_sizes(small), self.grid_sizes(sizes)
                logits = resize_within(logits, *grids, shape)
            highest = jnp.maximum(highest, logits)
        return (*outputs, highest)


def scaled_images(images: Array, scale: float) -> Array:
    """Images (b, h, w, c) resized bilinearly by a scale factor.

    Positions follow from the factor itself, not from the ratio of the rounded sizes. With the
    factors `SCALES` no position inside a real size reads beyond the last real pixel, so padding
    needs no masking.
    """
    size = tuple(int(side * scale) for side in images.shape[1:3])
    return resize(images, size, scale_factor=(scale, scale))  # type: ignore[arg-type]


def scaled_sizes(sizes: Array, scale: float) -> Array:
    """Rows and columns (b, 2) of images of `sizes` (b, 2) at a scale, rounded down."""
    return jnp.floor(sizes * scale).astype(sizes.dtype)
