"""Dilated ResNets with bottlenecks: backbones of the students that are trained on CLIP's labels.

Their batch norm is trained, unlike that of CLIP's own ResNets (`models.clip.resnet`).
Source: He et al. 2016; "v1c" of He et al. 2019 (three small convolutions for a stem); dilation
instead of strides: Chen et al. 2017. Spec reclip, section 15.1; spec maskclip, section 11; the
variant "caffe": spec deeplab, section 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models.batch_norm import BatchNorm
from clipseg_jax.models.convolutions import ConvNorm, conv, halve
from clipseg_jax.ops.image import mask_padding

RESNET50 = (3, 4, 6, 3)
RESNET101 = (3, 4, 23, 3)


@dataclasses.dataclass(frozen=True)
class DilatedResNetConfig:
    """Architecture of a dilated ResNet; tuples have one entry per stage."""

    blocks: tuple[int, ...] = RESNET50
    width: int = 64  # channels of the stem's output and of the first stage's 3x3 convolutions
    strides: tuple[int, ...] = (1, 2, 1, 1)  # after the stem's stride of 4
    dilations: tuple[int, ...] = (1, 1, 2, 4)  # of the 3x3 convolutions
    # "v1c": a stem of three 3x3 convolutions; stride in the 3x3 of a block; the first block of a
    # stage has half the dilation, at least 1. "v1" (torchvision): a stem of one 7x7, otherwise the
    # same. "caffe" (DeepLab's authors): one 7x7, a pool that rounds sizes up, stride in the first
    # 1x1, one dilation for all blocks of a stage.
    variant: Literal["v1c", "v1", "caffe"] = "v1c"
    dtype: str = "float32"  # of maps and products; parameters and statistics stay float32

    @property
    def channels(self) -> int:
        """Channels of the last stage's output."""
        return 4 * self.width * 2 ** (len(self.blocks) - 1)


class Bottleneck(nnx.Module):
    """1x1, dilated 3x3 and 1x1 convolutions, added to the input or its projection.

    The stride is in the 3x3, or with `stride_first` in the first 1x1.
    """

    def __init__(
        self,
        c_in: int,
        planes: int,
        stride: int,
        dilation: int,
        dtype: str,
        *,
        stride_first: bool = False,
        rngs: nnx.Rngs,
    ):
        self.stride, self.stride_first = stride, stride_first
        c_out = 4 * planes
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = conv(c_in, planes, 1, stride=first, dtype=dtype, rngs=rngs)
        self.norm1 = BatchNorm(planes, rngs=rngs)
        self.conv2 = conv(
            planes, planes, 3, stride=second, dilation=dilation, dtype=dtype, rngs=rngs
        )
        self.norm2 = BatchNorm(planes, rngs=rngs)
        self.conv3 = conv(planes, c_out, 1, dtype=dtype, rngs=rngs)
        self.norm3 = BatchNorm(c_out, rngs=rngs)
        self.projects = stride > 1 or c_in != c_out
        if self.projects:
            self.shortcut_conv = conv(c_in, c_out, 1, stride=stride, dtype=dtype, rngs=rngs)
            self.shortcut_norm = BatchNorm(c_out, rngs=rngs)

    def __call__(self, x: Array, sizes: Array | None = None, *, train: bool) -> Array:
        """Maps (b, h, w, c_in) -> (b, ceil(h / stride), ceil(w / stride), 4 * planes)."""
        out = nnx.relu(self.norm1(self.conv1(x), train=train))
        if self.stride_first:
            sizes = halve(sizes, self.stride)
        out = nnx.relu(self.norm2(self.conv2(mask_padding(out, sizes)), train=train))
        out = self.norm3(self.conv3(out), train=train)
        if self.projects:
            x = self.shortcut_norm(self.shortcut_conv(x), train=train)
        return nnx.relu(out + x)


class DilatedResNet(nnx.Module):
    """A ResNet on images of any size; with the default strides its output has stride 8.

    Images are normalised float NHWC. `sizes` (b, 2) int32, for evaluation only, are the real rows
    and columns of padded images; padding then does not influence real positions.
    """

    def __init__(self, cfg: DilatedResNetConfig, *, rngs: nnx.Rngs):
        if cfg.variant not in ("v1c", "v1", "caffe"):
            raise ValueError(f"unknown ResNet variant {cfg.variant!r}; choose v1c, v1 or caffe")
        self.cfg = cfg
        half, dtype, caffe = cfg.width // 2, cfg.dtype, cfg.variant == "caffe"
        if cfg.variant != "v1c":
            stem = [ConvNorm(3, cfg.width, 7, stride=2, dtype=dtype, rngs=rngs)]
        else:
            stem = [
                ConvNorm(3, half, 3, stride=2, dtype=dtype, rngs=rngs),
                ConvNorm(half, half, 3, dtype=dtype, rngs=rngs),
                ConvNorm(half, cfg.width, 3, dtype=dtype, rngs=rngs),
            ]
        self.stem = nnx.List(stem)
        layers = []
        c_in = cfg.width
        for stage, blocks in enumerate(cfg.blocks):
            planes, dilation = cfg.width * 2**stage, cfg.dilations[stage]
            stage_blocks = []
            for i in range(blocks):
                stride = cfg.strides[stage] if i == 0 else 1
                block_dilation = max(dilation // 2, 1) if i == 0 and not caffe else dilation
                stage_blocks.append(
                    Bottleneck(
                        c_in, planes, stride, block_dilation, dtype, stride_first=caffe, rngs=rngs
                    )
                )
                c_in = 4 * planes
            layers.append(nnx.List(stage_blocks))
        self.layers = nnx.List(layers)

    def grid_sizes(self, sizes: Array, stages: int | None = None) -> Array:
        """Rows and columns (b, 2) of the last stage for images of `sizes` (b, 2) pixels.

        With `stages`, of that many stages.
        """
        sizes = self._pooled(-(-sizes // 2))
        for stride in self.cfg.strides[:stages]:
            sizes = -(-sizes // stride)
        return sizes

    def _pooled(self, sizes: Array) -> Array:
        """Rows and columns after the stem's pool."""
        return sizes // 2 + 1 if self.cfg.variant == "caffe" else -(-sizes // 2)

    def begin(
        self, images: Array, sizes: Array | None = None, *, train: bool
    ) -> tuple[Array, Array | None]:
        """Images (b, h, w, 3) -> the stem's pooled maps (b, h', w', width) and their real sizes."""
        x = self.stem[0](images, sizes, train=train)
        sizes = halve(sizes)
        for unit in self.stem[1:]:
            x = unit(x, sizes, train=train)
        # Values are not negative, so zeros mask padding for a maximum as well. "caffe" includes a
        # last window that begins within the map, even if it ends beyond the padding.
        after = 2 if self.cfg.variant == "caffe" else 1
        x = nnx.max_pool(
            mask_padding(x, sizes), (3, 3), strides=(2, 2), padding=((1, after), (1, after))
        )
        return x, None if sizes is None else self._pooled(sizes)

    def __call__(
        self, images: Array, sizes: Array | None = None, *, train: bool
    ) -> tuple[Array, ...]:
        """Images (b, h, w, 3) -> the output of each stage (b, h', w', 4 * width * 2**stage)."""
        x, sizes = self.begin(images, sizes, train=train)
        out = []
        for first, *others in self.layers:
            x = first(x, sizes, train=train)
            sizes = halve(sizes, first.stride)
            x = _scan_blocks(others, x, sizes, train=train)
            out.append(x)
        return tuple(out)


def _scan_blocks(
    blocks: Sequence[Bottleneck], x: Array, sizes: Array | None, *, train: bool
) -> Array:
    """Applies equal blocks sequentially to maps (b, h, w, c).

    A scan over their stacked parameters: XLA compiles one block instead of 22 of a ResNet-101. Not
    in bfloat16, which is for accelerators: they would wait for maps to be written into the stack
    that the gradient reads, a tenth of a step.
    """
    if len(blocks) < 2 or x.dtype == jnp.bfloat16:
        for block in blocks:
            x = block(x, sizes, train=train)
        return x
    graphs, states = zip(*map(nnx.split, blocks), strict=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def one(x: Array, state: nnx.State) -> tuple[Array, nnx.State]:
        block = nnx.merge(graphs[0], state)
        x = block(x, sizes, train=train)
        return x, nnx.state(block, nnx.BatchStat)

    x, statistics = jax.lax.scan(one, x, stacked)
    if train:
        for i, block in enumerate(blocks):
            nnx.update(block, jax.tree.map(lambda leaf, i=i: leaf[i], statistics))
    return x
