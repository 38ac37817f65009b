"""Network sizes, random weights and random images that the benchmarks give to both sides."""

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
CropBatch = dict[str, np.ndarray]
TINY_STUDENT = DilatedResNetConfig((1, 1, 1, 1), 8)


def vision(dtype: str, tiny: bool, **choices: Any) -> ViTConfig:
    """Config of CLIP's ViT-B/16; `tiny`: of one that runs in a second.

    `choices` are further fields of `ViTConfig`.
    """
    sizes = (64, 16, 64, 2, 2, 32) if tiny else (224, 16, 768, 12, 12, 512)
    return ViTConfig(*sizes, dtype=dtype, **choices)


def whole_patches(size: int, patch: int = 16) -> None:
    """Raises ValueError unless `size` pixels are a multiple of `patch`."""
    if size % patch:
        raise ValueError(f"crops of {size} pixels: choose a multiple of {patch}")


def random_embeddings(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """Random L2-normalised text embeddings (n, width) float32."""
    embeddings = rng.standard_normal((n, width)).astype(np.float32)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def crops(rng: np.random.Generator, batch: int, size: int) -> CropBatch:
    """Square uint8 crops of coarse random colours in the loader's format, without labels."""
    shape = (batch, size // 8, size // 8, 3)
    small = rng.integers(0, 256, shape, np.uint8)
    return {
        "image": small.repeat(8, axis=1).repeat(8, axis=2),
        "image_size": np.full((batch, 2), size, np.int32),
        "index": np.arange(batch, dtype=np.int32),
    }


def photos(rng: np.random.Generator, batch: int, height: int, width: int) -> np.ndarray:
    """Images (b, h, w, 3) uint8: 16 px blocks of random colours, with noise."""
    coarse = rng.integers(0, 256, (batch, height // 16, width // 16, 3))
    images = coarse.repeat(16, axis=1).repeat(16, axis=2)
    return np.clip(images + rng.integers(-20, 20, images.shape), 0, 255).astype(np.uint8)


def shown_classes(
    rng: np.random.Generator, counts: Sequence[int], classes: int
) -> tuple[tuple[int, ...], ...]:
    """`counts[i]` random classes of image i, sorted."""
    return tuple(tuple(sorted(rng.permutation(classes)[:n].tolist())) for n in counts)


def sharp_tower(cfg: ViTConfig) -> VisionTransformer:
    """A random tower whose attention is not nearly uniform.

    Maps refined by uniform attention hold only rounding noise.
    """
    visual = initialised(lambda rngs: VisionTransformer(cfg, rngs=rngs))
    for block in visual.transformer.resblocks:
        kernel = block.attn.in_proj.kernel  # queries and keys are scaled up
        kernel[...] = kernel[...] * jnp.where(jnp.arange(3 * cfg.width) < 2 * cfg.width, 3.0, 1.0)
    return visual


def calm_blocks(student: nnx.Module) -> None:
    """Scales down residual branches: at random weights each block doubles variance and rounding."""
    backbone: Any = student
    for layer in backbone.backbone.layers:
        for block in layer:
            block.norm3.scale[...] *= 0.1
