"""CLIP's modified ResNet image tower with its attention pool.

Names follow OpenAI's state dict. Source: Radford et al. 2021, section 2.4; spec clip, section 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.ops.attention import (
    KeyValues,
    attention,
    attention_maps,
    join_heads,
    split_heads,
)
from clipseg_jax.ops.image import mask_padding, valid_mask
from clipseg_jax.ops.resize import resize, resize_within


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a modified ResNet, and the options in which the published systems differ."""

    image_px: int
    width: int
    blocks: tuple[int, int, int, int]
    heads: int
    embed_dim: int
    position_resize: Literal["bicubic", "bilinear"] = "bilinear"
    position_half: bool = False  # round positions to float16 (CLIP-ES)
    dtype: str = "float32"  # of convolutions and matrix products; parameters are float32

    @property
    def grid(self) -> int:
        """Positions along one side of the last feature map of the training image."""
        return self.image_px // 32


def _conv(
    c_in: int, c_out: int, kernel: int, *, stride: int = 1, dtype: str, rngs: nnx.Rngs
) -> nnx.Conv:
    return nnx.Conv(
        c_in,
        c_out,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        dtype=dtype,
        rngs=rngs,
    )


def _norm(channels: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    # All methods freeze this tower in evaluation mode: running statistics are never updated.
    return nnx.BatchNorm(channels, use_running_average=True, epsilon=1e-5, momentum=0.9, rngs=rngs)


def _average_pool(x: Array, window: int) -> Array:
    """Average pooling with equal window and stride; a remainder at the border is dropped."""
    if window == 1:
        return x
    return nnx.avg_pool(x, (window, window), strides=(window, window))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions; average pooling replaces strides, in the shortcut as well."""

    def __init__(self, c_in: int, planes: int, stride: int, dtype: str, *, rngs: nnx.Rngs):
        self.stride = stride
        self.conv1 = _conv(c_in, planes, 1, dtype=dtype, rngs=rngs)
        self.bn1 = _norm(planes, rngs=rngs)
        self.conv2 = _conv(planes, planes, 3, dtype=dtype, rngs=rngs)
        self.bn2 = _norm(planes, rngs=rngs)
        self.conv3 = _conv(planes, 4 * planes, 1, dtype=dtype, rngs=rngs)
        self.bn3 = _norm(4 * planes, rngs=rngs)
        if stride > 1 or c_in != 4 * planes:
            shortcut = _conv(c_in, 4 * planes, 1, dtype=dtype, rngs=rngs)
            self.downsample = nnx.List([shortcut, _norm(4 * planes, rngs=rngs)])
        else:
            self.downsample = nnx.List([])

    def __call__(self, x: Array, sizes: Array | None = None) -> Array:
        """Feature maps (b, h, w, c_in) -> (b, h // stride, w // stride, 4 * planes)."""
        out = nnx.relu(self.bn1(self.conv1(x)))
        out = nnx.relu(self.bn2(self.conv2(mask_padding(out, sizes))))
        out = self.bn3(self.conv3(_average_pool(out, self.stride)))
        if len(self.downsample):
            conv, norm = self.downsample
            x = norm(conv(_average_pool(x, self.stride)))
        return nnx.relu(out + x)


class AttentionPool(nnx.Module):
    """Attention pooling: the mean token attends to all positions."""

    def __init__(self, cfg: ResNetConfig, *, rngs: nnx.Rngs):
        d = 32 * cfg.width
        self.cfg = cfg
        normal = nnx.initializers.normal(d**-0.5)
        self.positional_embedding = nnx.Param(normal(rngs.params(), (cfg.grid**2 + 1, d)))
        self.q_proj = nnx.Linear(d, d, dtype=cfg.dtype, rngs=rngs)
        self.k_proj = nnx.Linear(d, d, dtype=cfg.dtype, rngs=rngs)
        self.v_proj = nnx.Linear(d, d, dtype=cfg.dtype, rngs=rngs)
        self.c_proj = nnx.Linear(d, cfg.embed_dim, dtype=cfg.dtype, rngs=rngs)

    def positions(self, grid: tuple[int, int], grids: Array | None = None) -> Array:
        """Position embeddings (1 or b, 1 + h*w, d) of a feature map (h, w)."""
        side = self.cfg.grid
        table = self.positional_embedding[...].astype(jnp.float32)
        stored = table[None, 1:].reshape(1, side, side, -1)
        if grids is None:
            same = grid == (side, side)
            spatial = stored if same else resize(stored, grid, self.cfg.position_resize)
        else:
            stored = jnp.broadcast_to(stored, (grids.shape[0], *stored.shape[1:]))
            sides = jnp.full_like(grids, side)
            spatial = resize_within(stored, sides, grids, grid, self.cfg.position_resize)
        spatial = spatial.reshape(spatial.shape[0], grid[0] * grid[1], -1)
        row0 = jnp.broadcast_to(table[None, :1], (spatial.shape[0], 1, table.shape[-1]))
        positions = jnp.concatenate([row0, spatial], axis=1)
        if self.cfg.position_half:
            positions = positions.astype(jnp.float16).astype(jnp.float32)
        return positions

    def tokens(self, x: Array, sizes: Array | None = None) -> tuple[Array, Array]:
        """Feature maps (b, h, w, d) -> mean token and positions (b, 1 + h*w, d), and their mask.

        Position embeddings are not added. The mask (b, 1 + h*w) is False for padding tokens.
        """
        b, h, w, d = x.shape
        real = jnp.ones((b, h, w), bool) if sizes is None else valid_mask(sizes, (h, w))
        flat, real = x.reshape(b, h * w, d), real.reshape(b, h * w)
        count = jnp.sum(real, axis=1, keepdims=True)[..., None]
        mean = jnp.sum(jnp.where(real[..., None], flat, 0), axis=1, keepdims=True) / count
        first = jnp.ones((b, 1), bool)
        return jnp.concatenate([mean, flat], axis=1), jnp.concatenate([first, real], axis=1)

    def attend(self, queries: Array, tokens: Array, real: Array) -> Array:
        """Output (b, q, e) of queries (b, q, d) that attend to the real tokens (b, t, d)."""
        q, k, v = (
            split_heads(x, self.cfg.heads)
            for x in (self.q_proj(queries), self.k_proj(tokens), self.v_proj(tokens))
        )
        return self.c_proj(join_heads(attention(q, [KeyValues(k, v, _masked(real))])))

    def maps(self, queries: Array, tokens: Array, real: Array) -> Array:
        """Attention maps (b, n, q, t) of `attend`."""
        q, k = (split_heads(x, self.cfg.heads) for x in (self.q_proj(queries), self.k_proj(tokens)))
        return attention_maps(q, k, _masked(real))


def _masked(real: Array) -> Array:
    """Bias (b, 1, t) that masks padding tokens, from a mask (b, t) of real tokens."""
    return jnp.where(real, 0.0, -jnp.inf)[:, None, :]


class ModifiedResNet(nnx.Module):
    """CLIP's ResNet on images of any size.

    Images are normalised float NHWC. `sizes` (b, 2) int32 are the heights and widths of images in a
    padded batch; padding has no influence on real positions. None: no image is padded.
    """

    def __init__(self, cfg: ResNetConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        w, dtype = cfg.width, cfg.dtype
        self.conv1 = _conv(3, w // 2, 3, stride=2, dtype=dtype, rngs=rngs)
        self.bn1 = _norm(w // 2, rngs=rngs)
        self.conv2 = _conv(w // 2, w // 2, 3, dtype=dtype, rngs=rngs)
        self.bn2 = _norm(w // 2, rngs=rngs)
        self.conv3 = _conv(w // 2, w, 3, dtype=dtype, rngs=rngs)
        self.bn3 = _norm(w, rngs=rngs)
        c_in = w
        stages = []
        for stage, blocks in enumerate(cfg.blocks):
            planes, layer = w * 2**stage, []
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                layer.append(Bottleneck(c_in, planes, stride, dtype, rngs=rngs))
                c_in = 4 * planes
            stages.append(nnx.List(layer))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attnpool = AttentionPool(cfg, rngs=rngs)

    def stages(
        self, images: Array, sizes: Array | None = None
    ) -> tuple[dict[str, Array], Array | None]:
        """Images (b, h, w, 3) -> maps "stem" (stride 4), "layer1".."layer4" (4, 8, 16, 32).

        Also the real (rows, columns) (b, 2) of the last map; None when `sizes` is None.
        """
        x = mask_padding(images, sizes)
        sizes = None if sizes is None else (sizes + 1) // 2
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(mask_padding(x, sizes))))
        x = nnx.relu(self.bn3(self.conv3(mask_padding(x, sizes))))
        x = _average_pool(x, 2)
        sizes = None if sizes is None else sizes // 2
        out = {"stem": x}
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for block in getattr(self, name):
                x = block(x, sizes)
                sizes = sizes if sizes is None else sizes // block.stride
            out[name] = x.astype(jnp.float32)
        return out, sizes

    def grid_sizes(self, sizes: Array) -> Array:
        """Rows and columns (b, 2) of the last feature map of images of `sizes` (b, 2) pixels."""
        return (sizes + 1) // 32

    def __call__(
        self, images: Array, sizes: Array | None = None, *, read: Collection[str] = ()
    ) -> tuple[Array, dict[str, Array]]:
        """Normalised images (b, h, w, 3) -> image features (b, e) and intermediate results.

        `read` may name "stem", "layer1".."layer4" (b, h, w, c) and, of the attention pool, "q"
        (b, 1, d), "k", "v" (b, 1 + h*w, d) and "attn" (b, n, 1, 1 + h*w).

        Raises:
          ValueError: any other name in `read`.
        """
        out, sizes = self.stages(images, sizes)
        last = out["layer4"]
        tokens, real = self.attnpool.tokens(last, sizes)
        tokens = tokens + self.attnpool.positions((last.shape[1], last.shape[2]), sizes)
        pooled = self.attnpool.attend(tokens[:, :1], tokens, real)
        out |= {
            "q": self.attnpool.q_proj(tokens[:, :1]),
            "k": self.attnpool.k_proj(tokens),
            "v": self.attnpool.v_proj(tokens),
            "attn": self.attnpool.maps(tokens[:, :1], tokens, real),
        }
        if unknown := sorted(set(read) - set(out)):
            raise ValueError(f"cannot read {unknown} from a ResNet; it has {sorted(out)}")
        return pooled[:, 0], {name: out[name] for name in read}
