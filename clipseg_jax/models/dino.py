"""DINO's ViT image towers for images of any size: DINO v1, DINOv2, and DINOv2 with registers.

Names follow the authors' state dicts, but for the parts that CLIP's transformer shares.
Source: Caron et al. 2021 (DINO); Oquab et al. 2023 (DINOv2); Darcet et al. 2023 (registers); spec
readouts, section 12.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models import patches
from clipseg_jax.models.clip.transformer import MLP, Attention
from clipseg_jax.ops.image import mask_padding
from clipseg_jax.ops.resize import Mode, resize, resize_within

_POSITION_OFFSET = 0.1  # patches; keeps the authors' resize from losing a row to rounding


@dataclasses.dataclass(frozen=True)
class DINOConfig:
    """Sizes of a DINO tower, and what differs between its versions.

    Raises:
      ValueError: heads that don't divide the width, or an image of less than one patch.
    """

    image_px: int  # side of the images that the stored positions are for
    patch_px: int
    width: int
    layers: int
    heads: int
    mlp: Literal["gelu", "swiglu"] = "gelu"
    layer_scale: bool = False
    registers: int = 0
    # Positions are resized to the exact grid with antialiasing (towers with registers), or to a
    # grid larger by 0.1 patches without it (all others).
    position_antialias: bool = False
    norm_eps: float = 1e-6
    dtype: str = "float32"  # of matrix products; parameters are float32

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"{self.heads} heads don't divide width {self.width}; give others")
        if self.grid < 1:
            raise ValueError(
                f"image_px {self.image_px} is less than a patch of {self.patch_px}; give the side "
                "of the training images"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the training image."""
        return self.image_px // self.patch_px


class SwiGLU(nnx.Module):
    """The gated perceptron of DINOv2's g/14: w3(silu(a) * b), (a, b) = w12(x).

    Its hidden layer is 8/3 as wide as the tokens, rounded up to a multiple of 8.
    """

    def __init__(self, width: int, dtype: str, *, rngs: nnx.Rngs):
        hidden = -(-(4 * width * 2 // 3) // 8) * 8
        self.w12 = nnx.Linear(width, 2 * hidden, dtype=dtype, rngs=rngs)
        self.w3 = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """(b, t, d) -> (b, t, d)."""
        gate, x = jnp.split(self.w12(x), 2, axis=-1)
        return self.w3(jax.nn.silu(gate) * x)


class Block(nnx.Module):
    """x + ls1 * attention(norm1 x), then x + ls2 * mlp(norm2 x); ls1 and ls2 in DINOv2 only."""

    def __init__(self, cfg: DINOConfig, *, rngs: nnx.Rngs):
        d = cfg.width
        self.norm1 = nnx.LayerNorm(d, epsilon=cfg.norm_eps, rngs=rngs)
        self.attn = Attention(d, cfg.heads, cfg.dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(d, epsilon=cfg.norm_eps, rngs=rngs)
        if cfg.mlp == "swiglu":
            self.mlp: SwiGLU | MLP = SwiGLU(d, cfg.dtype, rngs=rngs)
        else:
            self.mlp = MLP(d, 4 * d, "gelu", cfg.dtype, rngs=rngs)
        self.ls1 = nnx.Param(jnp.ones(d)) if cfg.layer_scale else None
        self.ls2 = nnx.Param(jnp.ones(d)) if cfg.layer_scale else None

    def __call__(self, x: Array, bias: Array | None) -> Array:
        """Tokens (b, t, d) -> tokens; `bias` (b, 1, t) masks padding."""
        mixed = self.attn.mix(*self.attn.qkv(self.norm1(x)), bias)
        x = x + (mixed if self.ls1 is None else self.ls1[...] * mixed)
        hidden = self.mlp(self.norm2(x))
        return x + (hidden if self.ls2 is None else self.ls2[...] * hidden)


class DINO(nnx.Module):
    """A DINO tower on images of any size; rows and columns beyond the last whole patch are ignored.

    Images are float NHWC, normalised with ImageNet's mean and standard deviation. `sizes` (b, 2)
    int32 are the heights and widths of images in a padded batch; padding has no influence on real
    tokens. None: no image is padded.
    """

    def __init__(self, cfg: DINOConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        d, patch = cfg.width, (cfg.patch_px, cfg.patch_px)
        normal = nnx.initializers.normal(0.02)
        self.patch_embed = nnx.Conv(
            3, d, patch, strides=patch, padding="VALID", dtype=cfg.dtype, rngs=rngs
        )
        self.cls_token = nnx.Param(normal(rngs.params(), (d,)))
        self.pos_embed = nnx.Param(normal(rngs.params(), (1 + cfg.grid**2, d)))
        self.register_tokens = (
            nnx.Param(normal(rngs.params(), (cfg.registers, d))) if cfg.registers else None
        )
        self.blocks = nnx.List(Block(cfg, rngs=rngs) for _ in range(cfg.layers))
        self.norm = nnx.LayerNorm(d, epsilon=cfg.norm_eps, rngs=rngs)

    def grid_sizes(self, sizes: Array) -> Array:
        """Grids (b, 2) = (rows, columns) of patches of images of `sizes` (b, 2) pixels."""
        return patches.grid_sizes(sizes, self.cfg.patch_px, pad_to_patch=False)

    def grid_shape(self, height: int, width: int) -> tuple[int, int]:
        """The grid (rows, columns) of patches of an image of a static size in pixels."""
        return patches.grid_shape(height, width, self.cfg.patch_px, pad_to_patch=False)

    def positions(self, shape: tuple[int, int], sizes: Array | None = None) -> Array:
        """Position embeddings (1 or b, hp*wp, d) of the patches of an image of `shape` pixels.

        With `sizes` (b, 2) in pixels they are resized for each image within the padded shape.
        """
        cfg, side, grid = self.cfg, self.cfg.grid, self.grid_shape(*shape)
        stored = self.pos_embed[1:].astype(jnp.float32).reshape(1, side, side, -1)
        mode: Mode = "bicubic_antialias" if cfg.position_antialias else "bicubic"
        offset = 0.0 if cfg.position_antialias else _POSITION_OFFSET
        if sizes is None:
            # The authors compare the sides of the image, and the number of patches.
            same = shape[0] == shape[1] and grid == (side, side)
            spatial = stored if same else resize(stored, grid, mode, size_offset=offset)
        else:
            b, grids = sizes.shape[0], self.grid_sizes(sizes)
            tables = jnp.broadcast_to(stored, (b, *stored.shape[1:]))
            sides = jnp.full((b, 2), side, jnp.int32)
            spatial = resize_within(tables, sides, grids, grid, mode, size_offset=offset)
            kept = jnp.all(grids == side, axis=1) & (sizes[:, 0] == sizes[:, 1])
            rows, columns = (min(n, side) for n in grid)
            padding = ((0, 0), (0, grid[0] - rows), (0, grid[1] - columns), (0, 0))
            unresized = jnp.pad(stored[:, :rows, :columns], padding)
            spatial = jnp.where(kept[:, None, None, None], unresized, spatial)
        return spatial.reshape(spatial.shape[0], -1, cfg.width)

    def __call__(self, images: Array, sizes: Array | None = None) -> Array:
        """Normalised images (b, h, w, 3) -> patch tokens after the last norm (b, hp, wp, d).

        The class token and registers are left out; tokens of the padding are zero.
        """
        b, h, w, _ = images.shape
        grid, first = self.grid_shape(h, w), 1 + self.cfg.registers
        images = patches.pad_to_grid(images, sizes, grid, self.cfg.patch_px)
        tokens = patches.embed(self.patch_embed, images)
        # Registers have no positions.
        leading = [(self.cls_token[...] + self.pos_embed[0])[None]]
        if self.register_tokens is not None:
            leading.append(self.register_tokens[...])
        leading = [jnp.broadcast_to(each, (b, *each.shape)) for each in leading]
        x = jnp.concatenate([*leading, tokens + self.positions((h, w), sizes)], axis=1)
        grids = None if sizes is None else self.grid_sizes(sizes)
        bias = None if grids is None else patches.padding_bias(grids, grid, first)
        for block in self.blocks:
            x = block(x, bias)
        out = self.norm(x[:, first:]).astype(jnp.float32).reshape(b, *grid, -1)
        return mask_padding(out, grids)
