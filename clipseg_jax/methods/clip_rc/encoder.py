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
    """Features of images; all are unit vectors in the joint space."""

    patches: Array  # (b, hp, wp, e)
    image: Array  # (b, e), of the class token
    regions: Array  # (b, r, r, e), of the region tokens
    grids: Array | None  # (b, 2) rows and columns of real patches; None: no image is padded


def crop_image_tower(visual: VisionTransformer | ModifiedResNet, crop_px: int) -> VisionTransformer:
    """CLIP's image tower with its position embeddings resized to square crops (section 4.5).

    Raises:
      ValueError: `visual` is not a ViT, or `crop_px` is not a multiple of the patch size.
    """
    if isinstance(visual, ModifiedResNet):
        raise ValueError("CLIP-RC adds prompts to the blocks of a ViT; give a CLIP with a ViT")
    cfg = dataclasses.replace(visual.cfg, image_px=crop_px, position_resize="bilinear")
    if crop_px % cfg.patch_px:
        raise ValueError(
            f"crops of {crop_px} pixels are not whole patches of {cfg.patch_px}; "
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
    """Initial region tokens (side * side, d): copies of the class token with its position."""
    class_token = visual.class_embedding[...] + visual.positional_embedding[...][0]
    return jnp.tile(class_token, (side**2, 1))


class RegionEncoder(nnx.Module):
    """A frozen ViT with deep prompts and r x r region tokens (region-level bridge).

    Tokens are [class | p prompts | patches | regions]; every block has its own prompts. A region
    token attends to the patches of its region and to itself. A patch attends to class, prompts, all
    patches and the token of its region.
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
            return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit))

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
        """Features of normalised images (b, h, w, 3).

        Args:
          sizes: (b, 2) heights and widths of images in a padded batch; None: no image is padded.
          key: random key of the dropout of prompts; None: no dropout.
        """
        visual, side = self.visual, self.region_side
        b, grid = len(images), visual.grid_shape(images.shape[1], images.shape[2])
        x, _ = self.blocks(images, sizes, key)
        p, t = self.prompt_embeddings.shape[0], x.shape[1] - side**2
        without_prompts = jnp.concatenate([x[:, :1], x[:, 1 + p : t]], axis=1)
        # As published, `prompt_norm` is not applied to region tokens.
        x = jnp.concatenate([self.prompt_norm(without_prompts), x[:, t:]], axis=1)
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
        """Tokens (b, t, d) after the last block, and after each block whose index is in `read`."""
        visual = self.visual
        grid = visual.grid_shape(images.shape[1], images.shape[2])
        grids = None if sizes is None else visual.grid_sizes(sizes)
        in_region = regions_of_patches(grid, self.region_side, grids)
        real = None if grids is None else valid_mask(grids, grid).reshape(len(images), -1)

        def through(block: Block, x: Array) -> Array:
            attn = block.attn
            q, k, v = (split_heads(part, attn.heads) for part in attn.qkv(block.ln_1(x)))
            x = x + attn.out_proj(join_heads(region_attention(q, k, v, in_region, real)))
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
        """Input tokens (b, t, d) of the first block."""
        visual, b = self.visual, len(images)
        tokens, _ = visual.embed(images, sizes)
        # As published, the class embedding is added twice.
        first = 2 * visual.class_embedding[...] + visual.positional_embedding[...][0]
        class_and_regions = jnp.concatenate([first[None], self.region_level_bridge[...]])
        class_and_regions = visual.ln_pre(class_and_regions)
        class_and_regions = jnp.broadcast_to(class_and_regions, (b, *class_and_regions.shape))
        prompts = self._prompts(self.prompt_embeddings[...], b, 0, key)
        return jnp.concatenate(
            [class_and_regions[:, :1], prompts, tokens[:, 1:], class_and_regions[:, 1:]], axis=1
        )

    def _prompts(self, embeddings: Array, b: int, layer: int, key: Array | None) -> Array:
        """Prompt tokens (b, p, d) of a layer; dropout is independent for images and layers."""
        prompts = self.prompt_proj(embeddings)
        prompts = jnp.broadcast_to(prompts, (b, *prompts.shape))
        layer_key = None if key is None else jax.random.fold_in(key, layer)
        return dropout(prompts, self.dropout, layer_key)


def regions_of_patches(grid: tuple[int, int], side: int, grids: Array | None = None) -> Array:
    """Whether a patch is in a region: bool (1 or b, hp * wp, side * side).

    Each of side x side regions has grid // side rows and columns of patches; the remaining patches
    at the bottom and right are in no region. With `grids` (b, 2) regions divide each image's real
    patches instead of the padded `grid`.
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
    in_region: Array,
    real: Array | None = None,
) -> Array:
    """Attention (b, n, t, d) of tokens [class | prompts | patches | regions] (section 4.3).

    It is attention with a (t, t) mask, of which in float32 only rows and columns of regions are
    made. In bfloat16, which is for accelerators, all of it is, for one kernel that reads the tokens
    as they lie in memory: parts of them would be copied, in each block and for its gradient.

    Args:
      q, k, v: (b, n, t, d) of n heads, not scaled.
      in_region: (1 or b, patches, regions) bool from `regions_of_patches`.
      real: (b, patches) bool, False in the padding; None: no image is padded.
    """
    patches, regions = in_region.shape[1:]
    t = q.shape[2] - regions
    start = t - patches  # of the patches
    if q.dtype == jnp.bfloat16:
        return attention(q, [KeyValues(k, v, _whole_mask(in_region, real, start))])
    region_bias = jnp.where(in_region, 0.0, -jnp.inf)  # of patches as queries, regions as keys
    # Class and prompts do not attend to regions.
    token_bias = jnp.pad(region_bias, ((0, 0), (start, 0), (0, 0)), constant_values=-jnp.inf)
    self_bias = jnp.where(jnp.eye(regions, dtype=bool), 0.0, -jnp.inf)[None]
    padding_bias = None
    if real is not None:
        is_real = jnp.pad(real, ((0, 0), (start, 0)), constant_values=True)
        padding_bias = jnp.where(is_real, 0.0, -jnp.inf)[:, None, :]
    of_tokens = [
        KeyValues(k[:, :, :t], v[:, :, :t], padding_bias),
        KeyValues(k[:, :, t:], v[:, :, t:], token_bias),
    ]
    of_regions = [
        KeyValues(k[:, :, start:t], v[:, :, start:t], region_bias.swapaxes(1, 2)),
        KeyValues(k[:, :, t:], v[:, :, t:], self_bias),
    ]
    outputs = [
        attention(q[:, :, :t], of_tokens),
        attention(q[:, :, t:], of_regions),
    ]
    return jnp.concatenate(outputs, axis=2)


def _whole_mask(in_region: Array, real: Array | None, start: int) -> Array:
    """The bias (1 or b, t, t) of `region_attention`; patches begin at token `start`."""
    member = jnp.pad(in_region, ((0, 0), (start, 0), (0, 0)))  # class and prompts are in none
    count, regions = member.shape[1:]
    rows = len(member) if real is None else max(len(member), len(real))
    mask = jnp.tile(jnp.eye(count + regions, dtype=bool), (rows, 1, 1))  # a region attends itself
    is_real = jnp.ones((), bool)
    if real is not None:
        is_real = jnp.pad(real, ((0, 0), (start, 0)), constant_values=True)[:, None]
    mask = mask.at[:, :count, :count].set(is_real)
    mask = mask.at[:, :count, count:].set(member)
    mask = mask.at[:, count:, :count].set(member.swapaxes(1, 2))
    return jnp.where(mask, 0.0, -jnp.inf)
