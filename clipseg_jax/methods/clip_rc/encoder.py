"""CLIP-RC's image encoder: a frozen CLIP ViT with deep prompts and a region-level bridge.

Source: Zhang et al., "Exploring Regional Clues in CLIP for Zero-Shot Semantic Segmentation", 2024;
spec clip_rc, section 4.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.core.modules import abstract
from clipseg_jax.models.clip import ModifiedResNet, VisionTransformer, l2_normalize
from clipseg_jax.models.clip.transformer import Block
from clipseg_jax.models.initializers import torch_uniform
from clipseg_jax.ops.attention import KeyValues, attention, join_heads, split_heads
from clipseg_jax.ops.dropout import dropout
from clipseg_jax.ops.image import valid_mask
from clipseg_jax.ops.resize import resize


class Encoding(NamedTuple):
    """What the encoder sees in images: unit vectors."""

    patches: Array  # (b, hp, wp, e)
    image: Array  # (b, e), of the class token
    regions: Array  # (b, r, r, e)
    grids: Array | None  # (b, 2) real rows and columns of patches; None: all are real


def crop_image_tower(visual: VisionTransformer | ModifiedResNet, crop_px: int) -> VisionTransformer:
    """CLIP's image tower for square crops: positions resized once and for all (section 4.5).

    Raises:
      ValueError: not a ViT, or a crop that isn't whole patches.
    """
    if isinstance(visual, ModifiedResNet):
        raise ValueError("CLIP-RC prompts the blocks of a ViT; give a CLIP with one")
    cfg = dataclasses.replace(visual.cfg, image_px=crop_px, position_resize="bilinear")
    if crop_px % cfg.patch_px:
        raise ValueError(
            f"a crop of {crop_px} pixels is not whole patches of {cfg.patch_px}; "
            f"choose {crop_px // cfg.patch_px * cfg.patch_px}"
        )
    side, grid = visual.cfg.grid, (cfg.grid, cfg.grid)
    params = nnx.to_pure_dict(nnx.state(visual))
    first, rest = jnp.split(params["positional_embedding"], [1])
    rest = resize(rest.reshape(1, side, side, -1), grid).reshape(cfg.grid**2, -1)
    params["positional_embedding"] = jnp.concatenate([first, rest])
    graph, _ = nnx.split(abstract(lambda rngs: VisionTransformer(cfg, rngs=rngs)))
    return nnx.merge(graph, nnx.State(params))


def first_regions(visual: VisionTransformer, side: int) -> Array:
    """Region tokens (side * side, d) as they start: all alike, told apart by what they see."""
    one = visual.class_embedding[...] + visual.positional_embedding[...][0]
    return jnp.tile(one, (side**2, 1))


class RegionEncoder(nnx.Module):
    """`visual`, prompts that enter every block anew, and r x r tokens that see regions.

    Tokens are [class | p prompts | patches | regions]. A region token sees its own patches and
    itself; each patch sees, besides all patches, prompts and the class, the region it lies in.
    """

    def __init__(
        self,
        visual: VisionTransformer,
        *,
        prompts: int,
        region_side: int,
        dropout: float,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Untrained; `visual` from `crop_image_tower`."""
        d, patch = visual.cfg.width, visual.cfg.patch_px
        self.dropout, self.region_side, self.remat = dropout, region_side, remat
        self.visual = visual
        limit = math.sqrt(6 / (3 * patch**2 + d))

        def uniform(*shape: int) -> nnx.Param:
            drawn = jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit)
            return nnx.Param(drawn)

        self.prompt_embeddings = uniform(prompts, d)
        self.deep_prompt_embeddings = uniform(visual.cfg.layers - 1, prompts, d)
        self.prompt_proj = nnx.Linear(
            d,
            d,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            bias_init=torch_uniform(d),
            rngs=rngs,
        )
        self.prompt_norm = nnx.LayerNorm(d, epsilon=1e-6, rngs=rngs)
        self.region_level_bridge = nnx.Param(first_regions(visual, region_side))

    def __call__(
        self, images: Array, sizes: Array | None = None, *, key: Array | None = None
    ) -> Encoding:
        """Normalised images (b, h, w, 3) as unit vectors.

        Args:
          sizes: (b, 2) real pixels, the rest has no influence; None: all is real.
          key: of the dropout of prompts, for training; None: no dropout.
        """
        visual, side = self.visual, self.region_side
        b, grid = len(images), visual.grid_shape(images.shape[1], images.shape[2])
        x, _ = self.blocks(images, sizes, key)
        p, t = self.prompt_embeddings.shape[0], x.shape[1] - side**2
        kept = jnp.concatenate([x[:, :1], x[:, 1 + p : t]], axis=1)  # the prompts are dropped
        # Published: regions skip the prompts' norm.
        x = jnp.concatenate([self.prompt_norm(kept), x[:, t:]], axis=1)
        x = l2_normalize(visual.ln_post(x) @ visual.proj[...])
        return Encoding(
            patches=x[:, 1 : -(side**2)].reshape(b, *grid, -1),
            image=x[:, 0],
            regions=x[:, -(side**2) :].reshape(b, side, side, -1),
            grids=None if sizes is None else visual.grid_sizes(sizes),
        )

    def blocks(
        self,
        images: Array,
        sizes: Array | None = None,
        key: Array | None = None,
        *,
        read: Collection[int] = (),
    ) -> tuple[Array, dict[int, Array]]:
        """Tokens (b, t, d) after the last block, and after those that `read` names."""
        visual = self.visual
        grid = visual.grid_shape(images.shape[1], images.shape[2])
        grids = None if sizes is None else visual.grid_sizes(sizes)
        covers = regions_of_patches(grid, self.region_side, grids)
        real = None if grids is None else valid_mask(grids, grid).reshape(len(images), -1)

        def through(block: Block, x: Array) -> Array:
            attn = block.attn
            q, k, v = (split_heads(part, attn.heads) for part in attn.qkv(block.ln_1(x)))
            x = x + attn.out_proj(join_heads(region_attention(q, k, v, covers, real)))
            return x + block.mlp(block.ln_2(x))

        x = self.first_tokens(images, sizes, key)
        out: dict[int, Array] = {}
        for i, block in enumerate(visual.transformer.resblocks):
            if i > 0:
                prompts = self._prompts(self.deep_prompt_embeddings[...][i - 1], len(x), i, key)
                x = x.at[:, 1 : 1 + prompts.shape[1]].set(prompts)
            run = functools.partial(through, block)
            x = (jax.checkpoint(run) if self.remat else run)(x)
            out |= {i: x} if i in read else {}
        return x, out

    def first_tokens(self, images: Array, sizes: Array | None, key: Array | None) -> Array:
        """Tokens (b, t, d) that enter the first block."""
        visual, b = self.visual, len(images)
        tokens, _ = visual.embed(images, sizes)
        # Published: the class embedding counts twice.
        first = 2 * visual.class_embedding[...] + visual.positional_embedding[...][0]
        alone = jnp.concatenate([first[None], self.region_level_bridge[...]])
        alone = jnp.broadcast_to(visual.ln_pre(alone), (b, *alone.shape))
        prompts = self._prompts(self.prompt_embeddings[...], b, 0, key)
        return jnp.concatenate([alone[:, :1], prompts, tokens[:, 1:], alone[:, 1:]], axis=1)

    def _prompts(self, embeddings: Array, b: int, layer: int, key: Array | None) -> Array:
        """Prompt tokens (b, p, d) of a layer; dropout differs between images and layers."""
        made = self.prompt_proj(embeddings)
        made = jnp.broadcast_to(made, (b, *made.shape))
        return dropout(made, self.dropout, None if key is None else jax.random.fold_in(key, layer))


def regions_of_patches(grid: tuple[int, int], side: int, grids: Array | None = None) -> Array:
    """Which of side * side regions covers each patch: bool (1 or b, hp * wp, side * side).

    A region has grid // side rows and columns; what is left over at the bottom and right belongs to
    none. With `grids` (b, 2), for each image's own part of the grid.
    """
    sizes = jnp.asarray([grid]) if grids is None else grids

    def along(axis: int) -> Array:
        length = sizes[:, axis, None, None] // side
        position = jnp.arange(grid[axis])[None, :, None]
        return (length > 0) & (position // jnp.maximum(length, 1) == jnp.arange(side))

    rows, columns = along(0)[:, :, None, :, None], along(1)[:, None, :, None, :]
    return (rows & columns).reshape(len(sizes), grid[0] * grid[1], side**2)


def region_attention(
    q: Array,
    k: Array,
    v: Array,
    covers: Array,
    real: Array | None = None,
) -> Array:
    """Mixed values (b, n, t, e) of tokens [class | prompts | patches | regions] (section 4.3).

    Equal to one attention with a t x t mask, of which only the regions' rows and columns are made.

    Args:
      q, k, v: (b, n, t, d) of n heads, before scaling.
      covers: (1 or b, patches, regions) from `regions_of_patches`.
      real: (b, patches), False in the padding; None: there is none.
    """
    patches, regions = covers.shape[1:]
    t = q.shape[2] - regions
    start = t - patches  # of the patches
    seen = jnp.where(covers, 0.0, -jnp.inf)
    from_others = jnp.pad(seen, ((0, 0), (start, 0), (0, 0)), constant_values=-jnp.inf)
    alone = jnp.where(jnp.eye(regions, dtype=bool), 0.0, -jnp.inf)[None]
    hidden = None
    if real is not None:
        hidden = jnp.pad(real, ((0, 0), (start, 0)), constant_values=True)
        hidden = jnp.where(hidden, 0.0, -jnp.inf)[:, None, :]
    others = [
        KeyValues(k[:, :, :t], v[:, :, :t], hidden),
        KeyValues(k[:, :, t:], v[:, :, t:], from_others),
    ]
    own = [
        KeyValues(k[:, :, start:t], v[:, :, start:t], seen.swapaxes(1, 2)),
        KeyValues(k[:, :, t:], v[:, :, t:], alone),
    ]
    mixed = [
        attention(q[:, :, :t], others),
        attention(q[:, :, t:], own),
    ]
    return jnp.concatenate(mixed, axis=2)
