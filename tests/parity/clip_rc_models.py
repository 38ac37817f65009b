"""Seeded CLIP-RC models and inputs as the goldens describe them: what all cases share."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.clip_rc.model import CLIPRC, CLIPRCConfig
from clipseg_jax.models.clip import CLIPConfig, VisionTransformer
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from tests import seeded
from tests.parity import cases
from weights_convert.clip.build import flat_arrays, install
from weights_convert.trained.clip_rc.keys import CLIP_RC, UNUSED

FOLDER = "clip_rc"


def golden(goldens: Path, name: str) -> Path:
    """A file of the folder given or else of the repository's own."""
    path = goldens / FOLDER / name
    return path if path.is_file() else cases.DEFAULT / FOLDER / name


def text_file(goldens: Path, told: str) -> Path:
    """The file of text rows that a case names by its path under some folder `data`."""
    inside = told.rsplit("data/", 1)[-1]
    found = [goldens / FOLDER / Path(inside).name, goldens.parent / "data" / inside]
    return next((p for p in found if p.is_file()), cases.DEFAULT / FOLDER / Path(inside).name)


def shapes(goldens: Path, text: str = "") -> dict[str, tuple[int, ...]]:
    """Published keys and shapes, with those that a text states otherwise, as "key=(1,10,768)"."""
    told = json.loads(golden(goldens, "state_dict_shapes.json").read_text())["shapes"]
    found = {key: tuple(shape) for key, shape in told.items()}
    for key, shape in re.findall(r"([\w.]+)=\(([\d, ]+)\)", text):
        assert key in found, key
        found[key] = tuple(int(n) for n in shape.split(","))
    return found


def weights(text: str, goldens: Path) -> dict[str, np.ndarray]:
    """What a case's "weights" describe, without text encoder and what nothing uses."""
    seed = int(re.search(r"seeded\.state_dict\(shapes, seed=(\d+)\)", text).group(1))
    wanted = {
        key: shape
        for key, shape in shapes(goldens, text).items()
        if not key.startswith("text_encoder.") and not re.fullmatch(UNUSED, key)
    }
    made = seeded.state_dict(wanted, seed)
    if scaled := re.search(r"then ([\w.]+)\.weight and \.bias are multiplied by ([\d.]+)", text):
        for leaf in ("weight", "bias"):
            made[f"{scaled.group(1)}.{leaf}"] *= np.float32(scaled.group(2))
    return made


@functools.lru_cache(maxsize=1)
def _model(text: str, goldens: Path, heads: int) -> CLIPRC:
    arrays = weights(text, goldens)
    own = {key.replace("backbone.", "visual.", 1): value.shape for key, value in arrays.items()}
    vision = CLIPConfig.from_shapes(own).vision
    regions = arrays["backbone.region_level_bridge"].shape[0]
    cfg = CLIPRCConfig(
        crop_px=vision.image_px,
        prompts=arrays["backbone.prompt_embeddings"].shape[1],
        region_side=round(regions**0.5),
        heads=heads,
        hidden=arrays["decode_head.decoder_q.layers.0.linear1.weight"].shape[0],
        dropout=0.0,
    )
    model = abstract(
        lambda rngs: CLIPRC(
            VisionTransformer(vision, rngs=rngs), np.zeros((1, vision.embed_dim)), cfg, rngs=rngs
        )
    )
    wanted = {path: tuple(leaf.shape) for path, leaf in flat_arrays(model).items()}
    del wanted["text_embeddings"]
    install(model, CLIP_RC.to_right(arrays, wanted, "the case"))
    return model


def model(case: dict[str, Any], goldens: Path, text: np.ndarray | None = None) -> CLIPRC:
    """The model of a case, without dropout, for these text rows or those of its "inputs"."""
    made = _model(case["weights"], goldens, 8)
    rows = text_rows(case["inputs"]) if text is None else text
    made.text_embeddings = nnx.Param(jnp.asarray(rows, jnp.float32))
    return made


def text_rows(told: str) -> np.ndarray:
    """The rows of "text: seeded.unit_rows('text',20,512,seed=7)"."""
    found = re.search(r"text: seeded\.unit_rows\('(\w+)',(\d+),(\d+),seed=(\d+)\)", told)
    name, *numbers = found.groups()
    return seeded.unit_rows(name, *map(int, numbers))


def pictures(case: dict[str, Any]) -> np.ndarray:
    """The uint8 images (b, h, w, 3) of "seeded.image(256,256,seed=7+i)", or "7+9" for one."""
    found = re.search(r"seeded\.image\((\d+),(\d+),seed=(\d+)\+(i|\d+)\)", case["inputs"])
    height, width, seed = map(int, found.groups()[:3])
    more = range(case["batch"]) if found.group(4) == "i" else [int(found.group(4))]
    return np.stack([seeded.image(height, width, seed + i) for i in more])


def network_images(case: dict[str, Any]) -> jnp.ndarray:
    """The same as the network sees them."""
    return normalize(jnp.asarray(pictures(case)), IMAGENET_MEAN, IMAGENET_STD)


def meaning(case: dict[str, Any], name: str) -> str:
    """What an array holds; "the same" as the one before it includes how that was thinned."""
    names = [*case["arrays"]]
    told = case["arrays"][name]["meaning"]
    if told.startswith("the same"):
        return meaning(case, names[names.index(name) - 1])
    return told


def thinned(x: Any, meaning: str) -> np.ndarray:
    """What a meaning's slices leave of an array, as in "(B,C,h,w)[..., ::8, ::8]"."""
    kinds = {"...": Ellipsis, ":": slice(None)}
    found = re.search(r"\[((?:\.\.\.|[:\d, ])*::[:\d, ]*)\]", meaning)
    if found is None:
        return np.asarray(x)
    parts = [part.strip() for part in found.group(1).split(",")]
    return np.asarray(x)[tuple(kinds.get(p) or slice(None, None, int(p[2:])) for p in parts)]
