"""The head of WeCLIP and WTCLIP: fuses all layers of a frozen CLIP and decodes class logits.

Source: Zhang et al., "Frozen CLIP: A Strong Backbone for Weakly Supervised Semantic Segmentation",
2024; spec weclip, section 4; spec wtclip, section 2. WTCLIP adds a gate and a wavelet block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.core.checks import check_number, check_whole
from clipseg_jax.models.clip.transformer import Transformer
from clipseg_jax.models.initializers import torch_linear, torch_uniform
from clipseg_jax.ops.image import mask_padding
from clipseg_jax.ops.wavelet import depthwise, haar, inverse_haar

_KERNEL = 3  # side of the wavelet block's depthwise kernels


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Sizes and WTCLIP's two blocks; the defaults are WeCLIP's."""

    width: int = 256
    layers: int = 3  # of the decoder's transformer
    heads: int = 8  # of its attention
    dropout: float = 0.1  # rate of whole channels of an image's fused tokens
    gate: bool = False  # WTCLIP: multiply the tokens of each patch by a gate before fusion
    wavelet_levels: int = 0  # WTCLIP: 1; levels of the block before the classifier, 0: no block

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads"):
            check_whole(name, getattr(self, name))
        check_number("dropout", self.dropout, 0, 1)
        check_whole("wavelet_levels", self.wavelet_levels, least=0)
        if self.width % self.heads:
            raise ValueError(
                f"{self.heads} heads do not divide a width of {self.width}; set heads to a divisor"
            )


class Decoded(NamedTuple):
    """Outputs of the head on the grid of patches."""

    logits: Array  # (b, hp, wp, classes)
    fused: Array  # (b, n, width), after dropout


class Adapter(nnx.Module):
    """A perceptron on the tokens of one CLIP layer: linear, ReLU, linear."""

    def __init__(self, inputs: int, width: int, *, rngs: nnx.Rngs):
        self.proj = torch_linear(inputs, width, rngs=rngs)
        self.proj_2 = torch_linear(width, width, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        """Tokens (b, n, d) -> (b, n, width)."""
        return self.proj_2(jax.nn.relu(self.proj(tokens)))


class Fusion(nnx.Module):
    """One adapter for each layer; outputs are concatenated, optionally gated, and projected."""

    def __init__(self, inputs: int, layers: int, cfg: HeadConfig, *, rngs: nnx.Rngs):
        self.adapters = nnx.List(Adapter(inputs, cfg.width, rngs=rngs) for _ in range(layers))
        self.gate = torch_linear(layers * cfg.width, 1, rngs=rngs) if cfg.gate else None
        self.fuse = torch_linear(layers * cfg.width, cfg.width, rngs=rngs)

    def __call__(self, layers: Sequence[Array]) -> Array:
        """Patch tokens (b, n, d) of each layer -> fused tokens (b, n, width)."""
        adapted = [adapt(x) for adapt, x in zip(self.adapters, layers, strict=True)]
        x = jnp.concatenate(adapted, axis=-1)
        if self.gate is not None:
            x = x * jax.nn.sigmoid(self.gate(x))
        return self.fuse(x)


class Depthwise(nnx.Module):
    """A depthwise convolution with a learned scale of each channel."""

    def __init__(self, channels: int, scale: float, *, use_bias: bool, rngs: nnx.Rngs):
        uniform = torch_uniform(_KERNEL * _KERNEL)
        self.kernel = nnx.Param(uniform(rngs.params(), (_KERNEL, _KERNEL, channels)))
        self.bias = nnx.Param(uniform(rngs.params(), (channels,))) if use_bias else None
        self.scale = nnx.Param(jnp.full((channels,), scale, jnp.float32))

    def __call__(self, x: Array) -> Array:
        """Feature maps (b, h, w, channels) -> the same shape."""
        y = depthwise(x, self.kernel[...])
        y = y if self.bias is None else y + self.bias[...]
        return self.scale[...] * y


class WaveletBlock(nnx.Module):
    """Wavelet convolution: depthwise convolutions of a map and its Haar bands, and a linear layer.

    Source: Finder et al., "Wavelet Convolutions for Large Receptive Fields", 2024; spec wtclip,
    section 2.2.
    """

    def __init__(self, width: int, levels: int, *, rngs: nnx.Rngs):
        self.base = Depthwise(width, 1.0, use_bias=True, rngs=rngs)
        self.bands = nnx.List(
            Depthwise(4 * width, 0.1, use_bias=False, rngs=rngs) for _ in range(levels)
        )
        self.pointwise = torch_linear(width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Feature maps (b, h, w, width) -> the same shape; the input's padding must be 0."""
        return self.pointwise(self.convolve(x))

    def convolve(self, x: Array) -> Array:
        """`__call__` without the linear layer."""
        return self.base(x) + self._by_bands(x, 0)

    def _by_bands(self, x: Array, level: int) -> Array:
        h, w, c = x.shape[1:]
        bands = haar(jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))))
        convolved = self.bands[level](bands.reshape(*bands.shape[:3], 4 * c)).reshape(bands.shape)
        if level + 1 < len(self.bands):  # the next level's input is the low band, not convolved
            lower = self._by_bands(bands[..., 0], level + 1)
            convolved = convolved.at[..., 0].add(lower)
        return inverse_haar(convolved)[:, :h, :w]


class Decoder(nnx.Module):
    """A transformer on fused tokens, without position embeddings, and a linear classifier."""

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
        _init_as_torch(self.transformer, rngs)
        levels = cfg.wavelet_levels
        self.wavelet = WaveletBlock(cfg.width, levels, rngs=rngs) if levels else None
        self.classifier = torch_linear(cfg.width, classes, rngs=rngs)

    def __call__(
        self, fused: Array, bias: Array | None, shape: tuple[int, int], grids: Array | None
    ) -> Array:
        """Tokens (b, n, width) on the patch grid `shape` -> logits (b, *shape, classes).

        `bias` (b, 1, n) masks padding; `grids` (b, 2) are rows and columns of real patches. None:
        no image is padded.
        """
        x, _ = self.transformer(fused, bias)
        x = x.reshape(x.shape[0], *shape, -1)
        if self.wavelet is not None:
            x = self.wavelet(mask_padding(x, grids))
        return self.classifier(x)


class Head(nnx.Module):
    """Fusion and decoder. Class 0 is the background.

    `inputs` is the width of CLIP, `layers` the number of its blocks that are fused.
    """

    def __init__(
        self,
        inputs: int,
        layers: int,
        classes: int,
        cfg: HeadConfig | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg = cfg or HeadConfig()
        self.fusion = Fusion(inputs, layers, cfg, rngs=rngs)
        self.decoder = Decoder(classes, cfg, rngs=rngs)

    def __call__(
        self,
        layers: Sequence[Array],
        shape: tuple[int, int],
        *,
        bias: Array | None = None,
        grids: Array | None = None,
        channel_scale: Array | None = None,
    ) -> Decoded:
        """Patch tokens (b, n, d) of each layer -> logits on the patch grid `shape`.

        Args:
          bias, grids: see `Decoder`.
          channel_scale: (b, width), factors of fused channels: a dropout mask; None: no dropout.
        """
        fused = self.fusion(layers)
        fused = fused if channel_scale is None else fused * channel_scale[:, None]
        return Decoded(self.decoder(fused, bias, shape, grids), fused)


def affinity(fused: Array) -> Array:
    """Affinity (b, n, n) of patches: sigmoid of products of fused tokens (b, n, d), not scaled."""
    return jax.nn.sigmoid(jnp.einsum("bid,bjd->bij", fused, fused))


def _init_as_torch(transformer: Transformer, rngs: nnx.Rngs) -> None:
    """Initialises as PyTorch: Xavier for the packed projection, uniform for all other layers."""
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
