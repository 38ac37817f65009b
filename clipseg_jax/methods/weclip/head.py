"""What WeCLIP and WTCLIP train: all layers of a frozen CLIP fused, and a decoder to class logits.

Zhang et al., "Frozen CLIP: A Strong Backbone for Weakly Supervised Semantic Segmentation", 2024;
spec weclip, section 4; spec wtclip, section 2. WTCLIP is the same with a gate and a wavelet block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models.clip.transformer import Transformer
from clipseg_jax.models.initializers import torch_linear, torch_uniform
from clipseg_jax.ops.image import mask_padding
from clipseg_jax.ops.wavelet import depthwise, haar, inverse_haar

_SIDE = 3  # of the wavelet block's depthwise kernels


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Sizes, and the two blocks that WTCLIP adds."""

    width: int = 256
    layers: int = 3
    heads: int = 8
    dropout: float = 0.1  # share of fused channels dropped in training, each for an image's all
    gate: bool = False  # weigh each patch before fusing
    wavelet_levels: int = 0  # of the wavelet block before the classifier; 0: no such block


WECLIP = HeadConfig()
WTCLIP = HeadConfig(gate=True, wavelet_levels=1)


class Decoded(NamedTuple):
    """What the head says of a batch on its grid of patches."""

    logits: Array  # (b, hp, wp, classes)
    fused: Array  # (b, n, width), dropout applied


class Adapter(nnx.Module):
    """A perceptron of one CLIP layer's tokens: linear, ReLU, linear."""

    def __init__(self, inputs: int, width: int, *, rngs: nnx.Rngs):
        self.proj = torch_linear(inputs, width, rngs=rngs)
        self.proj_2 = torch_linear(width, width, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        """(b, n, d) -> (b, n, width)."""
        return self.proj_2(jax.nn.relu(self.proj(tokens)))


class Fusion(nnx.Module):
    """One adapter for each layer; their outputs side by side, gated if so configured, projected."""

    def __init__(self, inputs: int, layers: int, cfg: HeadConfig, *, rngs: nnx.Rngs):
        self.adapters = nnx.List(Adapter(inputs, cfg.width, rngs=rngs) for _ in range(layers))
        self.gate = torch_linear(layers * cfg.width, 1, rngs=rngs) if cfg.gate else None
        self.fuse = torch_linear(layers * cfg.width, cfg.width, rngs=rngs)

    def __call__(self, layers: Sequence[Array]) -> Array:
        """Patch tokens (b, n, d) of each layer -> (b, n, width)."""
        adapted = [adapt(x) for adapt, x in zip(self.adapters, layers, strict=True)]
        x = jnp.concatenate(adapted, axis=-1)
        if self.gate is not None:
            x = x * jax.nn.sigmoid(self.gate(x))
        return self.fuse(x)


class Depthwise(nnx.Module):
    """A depthwise convolution whose channels are scaled."""

    def __init__(self, channels: int, scale: float, *, use_bias: bool, rngs: nnx.Rngs):
        uniform = torch_uniform(_SIDE * _SIDE)
        self.kernel = nnx.Param(uniform(rngs.params(), (_SIDE, _SIDE, channels)))
        self.bias = nnx.Param(uniform(rngs.params(), (channels,))) if use_bias else None
        self.scale = nnx.Param(jnp.full((channels,), scale, jnp.float32))

    def __call__(self, x: Array) -> Array:
        """(b, h, w, channels), the same."""
        y = depthwise(x, self.kernel[...])
        y = y if self.bias is None else y + self.bias[...]
        return self.scale[...] * y


class WaveletBlock(nnx.Module):
    """A depthwise convolution of a map and of its Haar bands, summed, then mixed by a linear layer.

    Finder et al. 2024; spec wtclip, section 2.2. A small kernel on bands of every level sees far.
    """

    def __init__(self, width: int, levels: int, *, rngs: nnx.Rngs):
        self.base = Depthwise(width, 1.0, use_bias=True, rngs=rngs)
        self.bands = nnx.List(
            Depthwise(4 * width, 0.1, use_bias=False, rngs=rngs) for _ in range(levels)
        )
        self.pointwise = torch_linear(width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """(b, h, w, width), the same; padding of the maps must be zero."""
        return self.pointwise(self.convolve(x))

    def convolve(self, x: Array) -> Array:
        """The block without its last linear layer."""
        return self.base(x) + self._by_bands(x, 0)

    def _by_bands(self, x: Array, level: int) -> Array:
        h, w, c = x.shape[1:]
        bands = haar(jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))))
        convolved = self.bands[level](bands.reshape(*bands.shape[:3], 4 * c)).reshape(bands.shape)
        if level + 1 < len(self.bands):  # the next level sees the low band before its convolution
            lower = self._by_bands(bands[..., 0], level + 1)
            convolved = convolved.at[..., 0].add(lower)
        return inverse_haar(convolved)[:, :h, :w]


class Decoder(nnx.Module):
    """A transformer without positions over the fused tokens, then a classifier of each."""

    def __init__(self, classes: int, cfg: HeadConfig, *, rngs: nnx.Rngs):
        self.transformer = Transformer(
            cfg.width,
            cfg.layers,
            cfg.heads,
            activation="quick_gelu",
            eps=1e-5,
            dtype="float32",
            rngs=rngs,
        )
        _as_torch_starts(self.transformer, rngs)
        levels = cfg.wavelet_levels
        self.wavelet = WaveletBlock(cfg.width, levels, rngs=rngs) if levels else None
        self.classifier = torch_linear(cfg.width, classes, rngs=rngs)

    def __call__(
        self, fused: Array, bias: Array | None, shape: tuple[int, int], grids: Array | None
    ) -> Array:
        """Tokens (b, n, width) on the patch grid `shape` -> logits (b, *shape, classes).

        `bias` (b, 1, n) and `grids` (b, 2) tell patches from padding.
        """
        x, _ = self.transformer(fused, bias)
        x = x.reshape(x.shape[0], *shape, -1)
        if self.wavelet is not None:
            x = self.wavelet(mask_padding(x, grids))
        return self.classifier(x)


class Head(nnx.Module):
    """Fusion and decoder; `inputs` and `layers` are the CLIP's width and the blocks that it reads.

    Class 0 is the background.
    """

    def __init__(
        self, inputs: int, layers: int, classes: int, cfg: HeadConfig = WECLIP, *, rngs: nnx.Rngs
    ):
        self.cfg = cfg
        self.fusion = Fusion(inputs, layers, cfg, rngs=rngs)
        self.decoder = Decoder(classes, cfg, rngs=rngs)

    def __call__(
        self,
        layers: Sequence[Array],
        shape: tuple[int, int],
        *,
        bias: Array | None = None,
        grids: Array | None = None,
        kept: Array | None = None,
    ) -> Decoded:
        """Patch tokens (b, n, d) of each layer -> logits on the patch grid `shape`.

        Args:
          bias, grids: see `Decoder`; None: no padding.
          kept: (b, width), what each image's fused channels are multiplied by: 0 where they are
            dropped; None: nothing is dropped.
        """
        fused = self.fusion(layers)
        fused = fused if kept is None else fused * kept[:, None]
        return Decoded(self.decoder(fused, bias, shape, grids), fused)


def affinity(fused: Array) -> Array:
    """How alike patches are, (b, n, n) in (0, 1), from fused tokens (b, n, d); not scaled."""
    return jax.nn.sigmoid(jnp.einsum("bid,bjd->bij", fused, fused))


def _as_torch_starts(transformer: Transformer, rngs: nnx.Rngs) -> None:
    """PyTorch's first values: Xavier for the packed projection, and uniform for what follows it."""
    for block in transformer.resblocks:
        packed, out = block.attn.in_proj, block.attn.out_proj
        xavier = nnx.initializers.xavier_uniform()
        packed.kernel[...] = xavier(rngs.params(), packed.kernel.shape)
        out.kernel[...] = torch_uniform(out.in_features)(rngs.params(), out.kernel.shape)
        for layer in (block.mlp.c_fc, block.mlp.c_proj):
            uniform = torch_uniform(layer.in_features)
            layer.kernel[...] = uniform(rngs.params(), layer.kernel.shape)
            assert layer.bias is not None
            layer.bias[...] = uniform(rngs.params(), layer.bias.shape)
