"""Random networks' sizes, weights and images that several benchmarks give both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipseg_jax.core.modules import initialised
from clipseg_jax.models.clip import VisionTransformer, ViTConfig
from clipseg_jax.models.resnet import DilatedResNetConfig

SEED = 0
Batch = dict[str, np.ndarray]
TINY_STUDENT = DilatedResNetConfig((1, 1, 1, 1), 8)


def vision(dtype: str, tiny: bool, **choices: Any) -> ViTConfig:
    """CLIP's ViT-B/16; `tiny`: one that runs at once."""
    sizes = (64, 16, 64, 2, 2, 32) if tiny else (224, 16, 768, 12, 12, 512)
    return ViTConfig(*sizes, dtype=dtype, **choices)


def whole_patches(size: int, patch: int = 16) -> None:
    """Raises ValueError unless crops of `size` pixels are whole patches."""
    if size % patch:
        raise ValueError(f"crops of {size} pixels: choose a multiple of {patch}")


def unit_rows(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """Rows of text (n, width) float32, of length 1."""
    rows = rng.standard_normal((n, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def crops(rng: np.random.Generator, batch: int, size: int) -> Batch:
    """Square uint8 crops of coarse random colours, as the loader gives them, without labels."""
    shape = (batch, size // 8, size // 8, 3)
    small = rng.integers(0, 256, shape, np.uint8)
    return {
        "image": small.repeat(8, axis=1).repeat(8, axis=2),
        "image_size": np.full((batch, 2), size, np.int32),
        "index": np.arange(batch, dtype=np.int32),
    }


def photos(rng: np.random.Generator, batch: int, height: int, width: int) -> np.ndarray:
    """Images (b, h, w, 3) uint8 of patches that differ, with noise inside them."""
    coarse = rng.integers(0, 256, (batch, height // 16, width // 16, 3))
    images = coarse.repeat(16, axis=1).repeat(16, axis=2)
    return np.clip(images + rng.integers(-20, 20, images.shape), 0, 255).astype(np.uint8)


def shown_classes(
    rng: np.random.Generator, counts: Sequence[int], classes: int
) -> tuple[tuple[int, ...], ...]:
    """As many random classes of each image as `counts` says, in order."""
    return tuple(tuple(sorted(rng.permutation(classes)[:n].tolist())) for n in counts)


def sharp_tower(cfg: ViTConfig) -> VisionTransformer:
    """A tower whose attention isn't flat, as that of plain random weights is.

    Maps refined by flat attention would only hold rounding noise.
    """
    visual = initialised(lambda rngs: VisionTransformer(cfg, rngs=rngs))
    for block in visual.transformer.resblocks:
        kernel = block.attn.in_proj.kernel  # queries and keys are enlarged
        kernel[...] = kernel[...] * jnp.where(jnp.arange(3 * cfg.width) < 2 * cfg.width, 3.0, 1.0)
    return visual


def calm_blocks(student: nnx.Module) -> None:
    """Random residual blocks double the variance each, and rounding with it; these do not."""
    backbone: Any = student
    for layer in backbone.backbone.layers:
        for block in layer:
            block.norm3.scale[...] *= 0.1
