"""CLIP's ViT image tower for images of any size. Names follow OpenAI's state dict.

Source: Radford et al. 2021; Dosovitskiy et al. 2021.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models import patches
from clipseg_jax.models.clip.transformer import Activation, Transformer
from clipseg_jax.ops.resize import resize, resize_within


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a vision transformer, and the options in which the published systems differ."""

    image_px: int
    patch_px: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    mlp_width: int | None = None  # of the hidden layers of perceptrons; None: 4 * width
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    block_norm_eps: float | None = None  # of norms inside blocks (ReCLIP); None: norm_eps
    position_resize: Literal["bicubic", "bilinear"] = "bicubic"
    position_offset: float = 0.0  # `size_offset` of that resize (read-outs: 0.1)
    position_half: bool = False  # round positions to float16 (CLIP-ES, TagCLIP, WeCLIP)
    position_half_stored: bool = True  # also for images of `image_px` (TagCLIP: False)
    position_keep_count: bool = False  # no resizing to a grid of as many patches (MaskCLIP)
    # True: zero-pad to whole patches; False: drop the remainder, but pad what is less than a patch
    pad_to_patch: bool = True
    dtype: str = "float32"  # of matrix products; parameters are float32

    @property
    def grid(self) -> int:
        """Patches along one side of the training image."""
        return self.image_px // self.patch_px


class VisionTransformer(nnx.Module):
    """CLIP's ViT on images of any size.

    Images are normalised float NHWC. `sizes` (b, 2) int32 are the heights and widths of images in a
    padded batch; padding has no influence on real tokens. None: no image is padded.
    """

    def __init__(self, cfg: ViTConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        d, patch = cfg.width, (cfg.patch_px, cfg.patch_px)
        block_eps = cfg.norm_eps if cfg.block_norm_eps is None else cfg.block_norm_eps
        normal = nnx.initializers.normal(d**-0.5)
        self.conv1 = nnx.Conv(
            3, d, patch, strides=patch, padding="VALID", use_bias=False, dtype=cfg.dtype, rngs=rngs
        )
        self.class_embedding = nnx.Param(normal(rngs.params(), (d,)))
        self.positional_embedding = nnx.Param(normal(rngs.params(), (cfg.grid**2 + 1, d)))
        self.ln_pre = nnx.LayerNorm(d, epsilon=cfg.norm_eps, rngs=rngs)
        self.transformer = Transformer(
            d,
            cfg.layers,
            cfg.heads,
            mlp_width=cfg.mlp_width,
            activation=cfg.activation,
            eps=block_eps,
            dtype=cfg.dtype,
            rngs=rngs,
        )
        self.ln_post = nnx.LayerNorm(d, epsilon=cfg.norm_eps, rngs=rngs)
        self.proj = nnx.Param(normal(rngs.params(), (d, cfg.embed_dim)))

    def grid_sizes(self, sizes: Array) -> Array:
        """Grids (b, 2) = (rows, columns) of patches of images of `sizes` (b, 2) pixels."""
        cfg = self.cfg
        return patches.grid_sizes(sizes, cfg.patch_px, pad_to_patch=cfg.pad_to_patch)

    def grid_shape(self, height: int, width: int) -> tuple[int, int]:
        """The grid (rows, columns) of patches of an image of a static size in pixels."""
        cfg = self.cfg
        return patches.grid_shape(height, width, cfg.patch_px, pad_to_patch=cfg.pad_to_patch)

    def positions(self, grid: tuple[int, int], grids: Array | None = None) -> Array:
        """Position embeddings (1 or b, 1 + hp*wp, d) for a grid (hp, wp) (spec clip, section 8).

        With `grids` (b, 2) they are resized for each image's grid within the padded one.
        """
        cfg, side = self.cfg, self.cfg.grid
        table = self.positional_embedding[...].astype(jnp.float32)
        stored = table[None, 1:].reshape(1, side, side, -1)
        count_kept = cfg.position_keep_count
        if grids is None:
            same_grid = jnp.asarray([grid == (side, side)])
            kept = grid == (side, side) or (count_kept and grid[0] * grid[1] == side * side)
            spatial = table[None, 1:]
            if not kept:
                offset = cfg.position_offset
                spatial = resize(stored, grid, cfg.position_resize, size_offset=offset)
        else:
            b = grids.shape[0]
            stored = jnp.broadcast_to(stored, (b, *stored.shape[1:]))
            sides = jnp.full((b, 2), side, jnp.int32)
            spatial = resize_within(
                stored, sides, grids, grid, cfg.position_resize, size_offset=cfg.position_offset
            )
            # The stored embeddings in row-major order of each image's grid.
            rows, columns = jnp.arange(grid[0])[:, None], jnp.arange(grid[1])[None, :]
            index = rows * grids[:, 1, None, None] + columns
            same_grid = jnp.all(grids == side, axis=1)
            same = same_grid | (count_kept & (grids[:, 0] * grids[:, 1] == side * side))
            unresized = table[1:][jnp.clip(index, 0, side * side - 1)]
            spatial = jnp.where(same[:, None, None, None], unresized, spatial)
        spatial = spatial.reshape(spatial.shape[0], -1, table.shape[-1])
        row0 = jnp.broadcast_to(table[None, :1], (spatial.shape[0], 1, table.shape[-1]))
        positions = jnp.concatenate([row0, spatial], axis=1)
        if not cfg.position_half:
            return positions
        exact = same_grid[:, None, None] & (not cfg.position_half_stored)
        return jnp.where(exact, positions, positions.astype(jnp.float16).astype(jnp.float32))

    def embed(self, images: Array, sizes: Array | None = None) -> tuple[Array, Array | None]:
        """Images (b, h, w, 3) -> tokens after `ln_pre` (b, 1 + hp*wp, d), and the attention bias.

        The bias (b, 1, t) masks padding tokens; None if `sizes` is None.
        """
        b, h, w, _ = images.shape
        grid = self.grid_shape(h, w)
        images = patches.pad_to_grid(images, sizes, grid, self.cfg.patch_px)
        tokens = patches.embed(self.conv1, images)
        first = jnp.broadcast_to(self.class_embedding[...], (b, 1, self.cfg.width))
        tokens = jnp.concatenate([first, tokens], axis=1)
        if sizes is None:
            return self.ln_pre(tokens + self.positions(grid)), None
        grids = self.grid_sizes(sizes)
        tokens = self.ln_pre(tokens + self.positions(grid, grids))
        return tokens, patches.padding_bias(grids, grid, leading=1)

    def pool(self, x: Array) -> Array:
        """Tokens (b, t, d) -> image features (b, e) of the class token, not normalised."""
        return self.ln_post(x[:, 0]) @ self.proj[...]

    def __call__(
        self, images: Array, sizes: Array | None = None, *, read: Collection[str] = ()
    ) -> tuple[Array, dict[str, Array]]:
        """Normalised images (b, h, w, 3) -> image features (b, e) and intermediate results.

        `read` may have "ln_pre" and the names of `Transformer`. Token 0 is the class token.
        """
        x, bias = self.embed(images, sizes)
        first = {"ln_pre": x} if "ln_pre" in read else {}
        x, out = self.transformer(x, bias, read=set(read) - {"ln_pre"})
        return self.pool(x), first | out
