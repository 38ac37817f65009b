"""Dense read-outs of CLIP: one feature for each position of an image.

CLIP is trained with one feature per image, of the class token (ViT) or the attention pool (ResNet).
A dense read-out changes the last attention only, so that each position keeps its own content.
Source: Zhou et al. 2022 (MaskCLIP), and those of `read_outs`; spec maskclip, section 4; spec
readouts, sections 3 to 5 and 13.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from clipseg_jax.models.clip.calibration import calibrated_tokens
from clipseg_jax.models.clip.clip import ImageTower, l2_normalize
from clipseg_jax.models.clip.last_block import Feedback, LastBlock, last_block, neighbour_map
from clipseg_jax.models.clip.read_outs import VALUE, ReadOut
from clipseg_jax.models.clip.resnet import ModifiedResNet
from clipseg_jax.models.clip.siglip import SigLIPVision
from clipseg_jax.models.clip.vit import VisionTransformer
from clipseg_jax.ops.image import valid_mask


class Dense(NamedTuple):
    """Dense features of an image tower on a grid (hp, wp)."""

    features: Array  # (b, hp, wp, e) in the joint space, not normalised
    tokens: Array  # (b, hp, wp, d) before the projection to the joint space
    keys: Array  # (b, hp, wp, d) for key smoothing (spec maskclip, section 6)
    real: Array  # (b, hp, wp) bool, False in the padding


def cosines(features: Array, text_embeddings: Array, real: Array) -> Array:
    """Cosines (b, hp, wp, c) of dense features with unit text embeddings (c, e).

    `real` (b, hp, wp) bool: False in the padding, where they are 0.
    """
    return jnp.where(real[..., None], l2_normalize(features) @ text_embeddings.T, 0)


class Encoded(NamedTuple):
    """Images before the last block of a ViT."""

    x: Array  # (b, t, d)
    bias: Array | None  # (b, 1, t), masks padding
    real: Array  # (b, hp, wp) bool, False in the padding
    parts: dict[str, Array]  # of earlier blocks, by the names of `Transformer`


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
      ValueError: a read-out other than `VALUE` of a ResNet or of SigLIP, or one that reads earlier
        blocks of a ViT that has one block.
    """
    if isinstance(visual, SigLIPVision):
        if read_out != VALUE:
            raise ValueError(
                "this is a SigLIP, which is read by the value path of its attention pool; take the "
                "read-out 'value', or give the weights of a CLIP with a ViT"
            )
        return _dense_siglip(visual, images, sizes)
    if isinstance(visual, ModifiedResNet):
        if read_out != VALUE:
            raise ValueError(
                "this CLIP has a ResNet, which has no last block to read out; take the read-out "
                "'value', or give the weights of a ViT"
            )
        return _dense_resnet(visual, images, sizes, attn_pooling)
    return read(visual, encode(visual, images, sizes, read_out=read_out), read_out)


def encode(
    visual: VisionTransformer, images: Array, sizes: Array | None = None, *, read_out: ReadOut
) -> Encoded:
    """All blocks of a ViT but the last, on normalised images (b, h, w, 3).

    Raises:
      ValueError: the read-out reads earlier blocks, and the ViT has one block.
    """
    grid = visual.grid_shape(images.shape[1], images.shape[2])
    x, bias = visual.embed(images, sizes)
    names = _parts(visual, read_out)
    x, parts = visual.transformer(x, bias, stop=-1, read=names)
    real = _real(None if sizes is None else visual.grid_sizes(sizes), images.shape[0], grid)
    return Encoded(x, bias, real, parts)


def _parts(visual: VisionTransformer, read_out: ReadOut) -> set[str]:
    """What a read-out reads of earlier blocks."""
    layers = visual.cfg.layers
    if layers < 2 and (read_out.cross_blocks or read_out.calibration):
        raise ValueError(
            f"a read-out of earlier blocks needs two at least, and this ViT has {layers}; take "
            "'value', 'sclip', 'naclip' or 'clearclip'"
        )
    names = {f"{part}{i}" for i in read_out.cross_indices(layers) for part in "qk"}
    if read_out.calibration is not None:
        names |= {f"block{i}" for i in read_out.calibration.indices(layers)}
    return names


def read(
    visual: VisionTransformer,
    encoded: Encoded,
    read_out: ReadOut,
    *,
    feedback: Feedback | None = None,
) -> Dense:
    """The last block of a ViT with a read-out; `encoded` is made for the same one."""
    x, bias, real, parts = encoded
    grid = (real.shape[1], real.shape[2])
    # The keys are those of the plain block; not computed under jit unless they are used.
    if read_out.calibration is not None:
        tokens = calibrated_tokens(visual, x, real, parts, read_out)
        last = last_block(visual, x[:, 1:], VALUE)._replace(tokens=tokens)
    elif read_out.scores:
        last = last_block(
            visual,
            x,
            read_out,
            bias,
            neighbours=neighbour_map(grid, read_out.neighbours) if read_out.neighbours else None,
            earlier=[
                (parts[f"q{i}"], parts[f"k{i}"]) for i in read_out.cross_indices(visual.cfg.layers)
            ],
            feedback=feedback,
        )
        last = LastBlock(*(part[:, 1:] for part in last))
    else:  # nothing attends: the class token is not needed from here on
        last = last_block(visual, x[:, 1:], read_out)
    # The published code applies the output projection to the keys before smoothing.
    keys = visual.transformer.resblocks[-1].attn.out_proj(last.keys)

    def spatial(tokens: Array) -> Array:
        return tokens.reshape(tokens.shape[0], *grid, -1).astype(jnp.float32)

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
