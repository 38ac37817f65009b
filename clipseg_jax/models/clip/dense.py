"""Dense read-outs of CLIP: one feature for each position of an image.

CLIP is trained with one feature per image, of the class token (ViT) or the attention pool (ResNet).
A dense read-out changes the last attention only, so that each position keeps its own content.
Source: Zhou et al. 2022 (MaskCLIP); spec maskclip, section 4; spec readouts, sections 1 and 13.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from clipseg_jax.models.clip.clip import ImageTower
from clipseg_jax.models.clip.resnet import ModifiedResNet
from clipseg_jax.models.clip.siglip import SigLIPVision
from clipseg_jax.models.clip.vit import VisionTransformer
from clipseg_jax.ops.image import valid_mask

Scores = Literal["qk", "qq", "kk"]  # the projections whose products are the attention scores


@dataclasses.dataclass(frozen=True)
class ReadOut:
    """How the last block of a ViT attends (spec readouts, section 13)."""

    # The attention map is the mean of one softmax for each; (): each token attends to itself.
    scores: tuple[Scores, ...] = ()
    residual: bool = True  # add the input of the block
    mlp: bool = True  # apply the perceptron of the block


VALUE = ReadOut()  # of MaskCLIP and TagCLIP
CLIP_BLOCK = ReadOut(("qk",))  # of CLIP itself


class LastBlock(NamedTuple):
    """Tokens after the last block and `ln_post`, and the block's projections, (b, t, d) each."""

    tokens: Array
    queries: Array
    keys: Array
    values: Array


def last_block(
    visual: VisionTransformer, x: Array, read_out: ReadOut, bias: Array | None = None
) -> LastBlock:
    """Runs the last block of a ViT with a dense read-out.

    Args:
      x: tokens (b, t, d) before the block. Without `scores` in the read-out tokens do not interact,
        and a subset of them may be given.
      bias: (1 or b, 1 or t, t), added to all scores; it masks padding.
    """
    block = visual.transformer.resblocks[-1]
    attn = block.attn
    q, k, v = attn.qkv(block.ln_1(x))
    if read_out.scores:
        pairs = {"qk": (q, k), "qq": (q, q), "kk": (k, k)}
        mixtures = [attn.mix(*pairs[name], v, bias) for name in read_out.scores]
        mixed = sum(mixtures[1:], mixtures[0]) / len(mixtures)
    else:
        mixed = attn.out_proj(v)
    mixed = x + mixed if read_out.residual else mixed
    tokens = after_attention(visual, mixed) if read_out.mlp else visual.ln_post(mixed)
    return LastBlock(tokens, q, k, v)


def after_attention(visual: VisionTransformer, x: Array) -> Array:
    """Applies the last block's perceptron and `ln_post` to tokens (b, t, d) after its attention."""
    block = visual.transformer.resblocks[-1]
    return visual.ln_post(x + block.mlp(block.ln_2(x)))


class Dense(NamedTuple):
    """Dense features of an image tower on a grid (hp, wp)."""

    features: Array  # (b, hp, wp, e) in the joint space, not normalised
    values: Array  # (b, hp, wp, d) before the projection to the joint space
    keys: Array  # (b, hp, wp, d) for key smoothing (spec maskclip, section 6)
    real: Array  # (b, hp, wp) bool, False in the padding


def dense_features(
    visual: ImageTower,
    images: Array,
    sizes: Array | None = None,
    *,
    read_out: ReadOut = VALUE,
    attn_pooling: bool = False,
) -> Dense:
    """Dense read-outs of normalised images (b, h, w, 3).

    Args:
      sizes: (b, 2) heights and widths of images in a padded batch; None: no image is padded.
      read_out: of a ViT's last block.
      attn_pooling: ResNets only: full attention of mean token and positions instead of values.

    Raises:
      ValueError: a read-out other than `VALUE` of a ResNet, which has no last block, or of SigLIP.
    """
    if isinstance(visual, SigLIPVision):
        if read_out != VALUE:
            raise ValueError(
                f"{read_out} is of the last block of CLIP's ViT; SigLIP is read by the value path "
                "of its attention pool: use MaskCLIP"
            )
        return _dense_siglip(visual, images, sizes)
    if isinstance(visual, ModifiedResNet):
        if read_out != VALUE:
            raise ValueError(f"{read_out} needs a ViT's last block; this CLIP has a ResNet")
        return _dense_resnet(visual, images, sizes, attn_pooling)
    return _dense_vit(visual, images, sizes, read_out)


def _dense_vit(
    visual: VisionTransformer, images: Array, sizes: Array | None, read_out: ReadOut
) -> Dense:
    grid = visual.grid_shape(images.shape[1], images.shape[2])
    x, bias = visual.embed(images, sizes)
    x, _ = visual.transformer(x, bias, stop=-1)
    if read_out.scores:
        last = LastBlock(*(part[:, 1:] for part in last_block(visual, x, read_out, bias)))
    else:  # nothing attends: the class token is not needed from here on
        last = last_block(visual, x[:, 1:], read_out)
    # The published code applies the output projection to the keys before smoothing.
    keys = visual.transformer.resblocks[-1].attn.out_proj(last.keys)

    def spatial(tokens: Array) -> Array:
        return tokens.reshape(tokens.shape[0], *grid, -1).astype(jnp.float32)

    real = _real(None if sizes is None else visual.grid_sizes(sizes), images.shape[0], grid)
    features = last.tokens @ visual.proj[...]
    return Dense(spatial(features), spatial(last.tokens), spatial(keys), real)


def _dense_siglip(visual: SigLIPVision, images: Array, sizes: Array | None) -> Dense:
    tokens, features, keys = visual.each_patch(images, sizes)
    grids = None if sizes is None else visual.grid_sizes(sizes)
    real = _real(grids, images.shape[0], visual.grid_shape(images.shape[1], images.shape[2]))
    return Dense(features, tokens, keys, real)


def _dense_resnet(
    visual: ModifiedResNet, images: Array, sizes: Array | None, attn_pooling: bool
) -> Dense:
    maps, sizes = visual.stages(images, sizes)
    x, pool = maps["layer4"], visual.attnpool
    grid = (x.shape[1], x.shape[2])
    keys = pool.k_proj(x).astype(jnp.float32)
    values = pool.v_proj(x)
    if attn_pooling:  # without position embedding, as the published head
        tokens, real = pool.tokens(x, sizes)
        features = pool.attend(tokens, tokens, real)[:, 1:].reshape(*x.shape[:3], -1)
    else:
        features = pool.c_proj(values)
    real = _real(sizes, images.shape[0], grid)
    return Dense(features.astype(jnp.float32), values.astype(jnp.float32), keys, real)


def _real(grids: Array | None, b: int, grid: tuple[int, int]) -> Array:
    return jnp.ones((b, *grid), bool) if grids is None else valid_mask(grids, grid)
