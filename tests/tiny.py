"""Small random CLIPs for tests of everything but numbers."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipseg_jax.core.modules import initialised
from clipseg_jax.methods.maskclip import task as maskclip
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.models.clip import (
    CLIP,
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
    l2_normalize,
)

TEXT = TextConfig(context_length=77, vocabulary=49408, width=32, layers=1, heads=1, embed_dim=24)
VIT = ViTConfig(image_px=64, patch_px=16, width=64, layers=2, heads=2, embed_dim=24)
RESNET = ResNetConfig(image_px=64, width=8, blocks=(1, 1, 1, 1), heads=4, embed_dim=24)


def clip(vision=VIT, text=None, seed=0) -> CLIP:
    return nnx.merge(*_parts(vision, text, seed), copy=True)


@functools.cache
def _parts(vision, text, seed):
    """Graph and state, made by one program for all tests of a process."""
    return nnx.split(initialised(lambda rngs: CLIP(CLIPConfig(vision, text), rngs=rngs), seed))


def task(vision=VIT, classes=5, seed=0, **refine):
    rows = l2_normalize(jax.random.normal(jax.random.key(seed), (classes, vision.embed_dim)))
    return maskclip.build(clip(vision, seed=seed).visual, rows, MaskCLIPConfig(**refine))


def images(sizes, seed=0):
    """Random smooth uint8 pictures of the given (height, width)."""
    rng = np.random.default_rng(seed)
    return [
        np.kron(rng.integers(0, 256, (-(-h // 8), -(-w // 8), 3)), np.ones((8, 8, 1), int))[
            :h, :w
        ].astype(np.uint8)
        for h, w in sizes
    ]


def with_dtype(vision, dtype):
    return dataclasses.replace(vision, dtype=dtype)


def padded(pictures, shape):
    out = np.full((len(pictures), *shape, 3), 111, np.uint8)
    for row, picture in zip(out, pictures, strict=True):
        row[: picture.shape[0], : picture.shape[1]] = picture
    return jnp.asarray(out)
