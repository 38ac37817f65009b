"""A small random CLIP-RC, and batches for it."""

from __future__ import annotations

import dataclasses

import numpy as np

from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.methods.clip_rc.model import CLIPRCConfig, init_clip_rc
from configs.base import clip_rc
from tests import tiny

OPTIM = OptimConfig(**clip_rc.get_config().clip_rc.optim.to_dict())
SMALL = CLIPRCConfig(crop_px=64, prompts=3, region_side=2, decoder_blocks=1, heads=2, hidden=16)
CLASSES, SEEN = 6, (0, 2, 3, 5)


def small(seed=0, **changes):
    rows = np.random.default_rng(seed).normal(size=(CLASSES, tiny.VIT.embed_dim))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cfg = dataclasses.replace(SMALL, **changes)
    return init_clip_rc(tiny.clip(seed=seed).visual, rows, cfg, seed=seed)


def small_batch(count=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, CLASSES, (count, 4, 4)), np.ones((1, 16, 16), int))
    labels[:, :8] = 255
    return {
        "image": np.stack(tiny.images([(64, 64)] * count, seed)),
        "image_size": np.full((count, 2), 64, np.int32),
        "label": labels.astype(np.int32),
        "index": np.arange(count, dtype=np.int32),
    }
