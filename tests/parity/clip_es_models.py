"""What the cases of CLIP-ES and TagCLIP share: seeded weights, pictures, batches, numbers."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

import weights_convert
from clipseg_jax.methods.clip_es.model import (
    CLIPES,
    CAMs,
    CLIPESConfig,
    Encoding,
    GradCAM,
    saved_maps,
)
from clipseg_jax.models.clip import CLIP, CLIPConfig
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize
from clipseg_jax.prompts import TextEncoder, text_encoder
from tests import seeded
from tests.parity import cases

PATCH = 16
BUCKET = 22  # patches a side that batches are padded to: one program serves most cases


def clip_of(goldens: Path, case: dict[str, Any]) -> CLIP:
    """The seeded ViT-B/16 of a case's "weights" text, queries and keys made larger."""
    text = case["weights"]
    if text.startswith("as in cam_voc_0"):
        seed, factor = re.search(r"seed (\d+), q/k rows x([\d.]+)", text).groups()
    else:
        seed = re.search(r"seeded\.state_dict\(shapes, (\d+)\)", text).group(1)
        factor = re.search(r"multiplied by ([\d.]+)", text).group(1) if "mult" in text else 1
    return _clip(goldens, int(seed), float(factor))


def shapes(goldens: Path) -> dict[str, tuple[int, ...]]:
    """State-dict shapes of the ViT-B/16 that all cases have."""
    path = goldens / "clip_es" / "clip_vit_b16_keys.json"
    if path.is_file():
        return {key: tuple(shape) for key, shape in json.loads(path.read_text()).items()}
    return cases.shapes(goldens, "ViT-B/16")


@functools.lru_cache(maxsize=1)
def _clip(goldens: Path, seed: int, factor: float) -> CLIP:
    made = seeded.state_dict(shapes(goldens), seed)
    for key, value in made.items():
        if key.startswith("visual.") and key.endswith("attn.in_proj_weight"):
            made[key] = np.concatenate([value[:1536] * np.float32(factor), value[1536:]])
    config = CLIPConfig.from_shapes({k: v.shape for k, v in made.items()}).replace(
        position_resize="bilinear"
    )
    return weights_convert.clip_from_state_dict(made, config)


@functools.lru_cache(maxsize=1)
def encoder_of(clip: CLIP) -> TextEncoder:
    """The text tower, compiled once."""
    return text_encoder(clip.text)


def picture(text: str) -> np.ndarray:
    """The image of "seeded.image(250,333,114), lossless"."""
    numbers = re.search(r"seeded\.image\((\d+), ?(\d+), ?(\d+)\)", text).groups()
    return seeded.image(*map(int, numbers))


def resized(image: np.ndarray) -> np.ndarray:
    """uint8 RGB, its sides enlarged to whole patches as the published code does."""
    height, width = (-(-side // PATCH) * PATCH for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def batch(images: list[np.ndarray]) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Padded images (b, side, side, 3) with noise in the padding, and sizes (b, 2)."""
    side = max(BUCKET * PATCH, *(s for image in images for s in image.shape[:2]))
    out = np.random.default_rng(0).integers(0, 256, (len(images), side, side, 3), np.uint8)
    for row, image in zip(out, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return jnp.asarray(out), jnp.asarray([image.shape[:2] for image in images], jnp.int32)


def text_rows(goldens: Path, words: str) -> tuple[np.ndarray, np.ndarray]:
    """Class and background rows of the golden text file that a case names."""
    name = re.search(r"text_\w+\.npz", words).group()
    path = goldens / "clip_es" / name
    path = path if path.is_file() else cases.DEFAULT / "clip_es" / name
    with np.load(path) as arrays:
        return arrays["fg"], arrays["bg"]


def same_saved(actual: np.ndarray, expected: np.ndarray, gap: float = 1e-4) -> None:
    """Saved maps, float16 in [0, 1], of float32 maps that are up to `gap` apart.

    A map's typical gap of a few 1e-5 crosses where float16 rounds in up to 7 % of the pixels.
    """
    assert actual.dtype == expected.dtype == np.float16
    cases.same_half(actual, expected, share=0.2, gap=gap, name="saved")


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph: nnx.GraphDef, state: nnx.State, images: jax.Array, sizes: jax.Array) -> Encoding:
    model = nnx.merge(graph, state)
    return model.encode(normalize(images, CLIP_MEAN, CLIP_STD), sizes)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _activate(
    graph: nnx.GraphDef,
    state: nnx.State,
    encoding: Encoding,
    classes: jax.Array,
    real: jax.Array,
    shape: tuple[int, int],
) -> tuple[GradCAM, CAMs]:
    model = nnx.merge(graph, state)
    grad_cam = model.activate(encoding, classes, real, shape)
    return grad_cam, model.refine(grad_cam, encoding.grids, real)


class Found(NamedTuple):
    """One image's results on its own grid (hp, wp), padding taken off."""

    tokens: np.ndarray
    activation: dict[str, np.ndarray]
    cams: dict[str, np.ndarray]
    saved: np.ndarray


def find_cams(
    clip: CLIP,
    rows: tuple[np.ndarray, np.ndarray],
    cfg: CLIPESConfig,
    image: np.ndarray,
    labels: list[int],
) -> Found:
    """CLIP-ES on one padded image, with more classes than it has."""
    model = CLIPES(clip.visual, *rows, cfg)
    # Encoding does not read the text, nor needs the last block: one program for all text rows.
    encoder = CLIPES(clip.visual, rows[0][:1], rows[1][:1])
    images, sizes = batch([resized(image)])
    encoding = _encode(*nnx.split(encoder), images, sizes)
    k, m = max(6, len(labels) + 1), len(labels)
    classes = np.zeros((1, k), np.int32)
    classes[0, :m] = labels
    real = jnp.arange(k)[None] < m
    shape = (images.shape[1] // PATCH, images.shape[2] // PATCH)
    activation, cams = _activate(*nnx.split(model), encoding, jnp.asarray(classes), real, shape)
    height, width = image.shape[:2]
    saved = jax.jit(saved_maps, static_argnums=3)(
        cams.refined, encoding.grids, jnp.asarray([[height, width]]), images.shape[1:3]
    )
    hp, wp = (int(n) for n in encoding.grids[0])
    own = own_patches((hp, wp), shape)
    named = {name: np.asarray(value)[0] for name, value in activation._asdict().items()}
    p = named["probabilities"]
    assert not p[m:k].any()
    named["probabilities"] = np.concatenate([p[:m], p[k:]])
    named["raw"] = named["raw"][:m, :hp, :wp]
    named["weights"] = named["weights"][:m]
    named["affinity"] = named["affinity"][np.ix_(own, own)]
    return Found(
        np.asarray(encoding.tokens)[0][np.concatenate([[0], own + 1])],
        named,
        {name: np.asarray(value)[0, :m, :hp, :wp] for name, value in cams._asdict().items()},
        np.asarray(saved)[0, :m, :height, :width],
    )


def own_patches(grid: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Indices of an image's own patches, row by row, within the padded grid."""
    return (np.arange(grid[0])[:, None] * shape[1] + np.arange(grid[1])).ravel()
