"""Seeded WeCLIP and WTCLIP models as the goldens describe them: what their cases share."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

import weights_convert
from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.weclip.head import Head, HeadConfig
from clipseg_jax.methods.weclip.model import WeCLIP, WeCLIPConfig
from clipseg_jax.models.clip import CLIP, CLIPConfig
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from tests import seeded
from weights_convert.clip.build import install
from weights_convert.trained.weclip.keys import COMPUTED, HEAD

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


def visual_of(case: Case) -> CLIP:
    """The seeded image tower of a case, its packed projections made larger."""
    inputs = case["inputs"]
    shapes = tuple((key, tuple(shape)) for key, shape in case["visual_shapes"].items())
    return _visual(shapes, inputs["weight_seed"], inputs["attn_gain"])


@functools.lru_cache(maxsize=1)
def _visual(shapes: tuple, seed: int, gain: float) -> CLIP:
    made = seeded.state_dict(dict(shapes), seed)
    for key in made:
        if key.endswith("attn.in_proj_weight"):
            made[key] = made[key] * np.float32(gain)
    config = CLIPConfig.from_shapes(dict(shapes))
    config = config.replace(position_resize="bilinear", pad_to_patch=False)
    return weights_convert.clip_from_state_dict(made, config)


def head_arrays(case: Case) -> dict[str, np.ndarray]:
    """The seeded head by published keys, without the constants that a file also holds."""
    inputs = case["inputs"]
    scales = {"decoder_fts_fuse.linear_fuse.weight": inputs["fuse_gain"]}
    scales |= inputs.get("head_scales", case["config"].get("head_scales", {}))
    shapes = {k: s for k, s in case["head_shapes"].items() if k not in COMPUTED}
    made = seeded.state_dict(shapes, inputs["weight_seed"])
    return {key: value * np.float32(scales.get(key, 1)) for key, value in made.items()}


def head_config(case: Case) -> HeadConfig:
    """Sizes from the shapes, the rest as published."""
    shapes = case["head_shapes"]
    levels = [key for key in shapes if ".wavelet_convs." in key]
    return HeadConfig(
        width=shapes["decoder_fts_fuse.linear_fuse.weight"][0],
        gate="decoder_fts_fuse.spatial_attention.0.weight" in shapes,
        wavelet_levels=len(levels),
    )


def head_of(case: Case) -> Head:
    """The seeded head alone."""
    arrays = {k.removeprefix("head."): v for k, v in by_our_paths(case).items()}
    shapes = case["head_shapes"]
    layers = sum(key.endswith(".proj.weight") for key in shapes)
    inputs = shapes["decoder_fts_fuse.linears_modulelist.0.proj.weight"][1]
    classes = shapes["decoder.linear_pred.weight"][0]
    head = _empty_head(inputs, layers, classes, case)
    install(head, arrays, complete=("",))
    return head


def _empty_head(inputs: int, layers: int, classes: int, case: Case) -> Head:
    """A head to be filled: no random numbers, whose program takes longer to compile than to run."""
    return abstract(lambda rngs: Head(inputs, layers, classes, head_config(case), rngs=rngs))


def by_our_paths(case: Case) -> dict[str, np.ndarray]:
    """The seeded head by our paths."""
    arrays, unknown = HEAD.rename(head_arrays(case))
    assert not unknown
    return arrays


def model_of(case: Case) -> WeCLIP:
    """The whole seeded model."""
    inputs, config = case["inputs"], case["config"]
    coco = WeCLIPConfig(box_threshold=0.7, late_blocks=10)
    cfg = coco if "coco" in case["case"] else WeCLIPConfig()
    assert cfg.box_threshold == config["box_threshold"]
    visual = visual_of(case).visual
    dim, seed = visual.cfg.embed_dim, inputs["weight_seed"]
    rows = [
        seeded.unit_rows(f"{kind}_text_features", inputs[f"n_{kind}"], dim, seed)
        for kind in ("fg", "bg")
    ]
    head = _empty_head(visual.cfg.width, visual.cfg.layers - 1, len(rows[0]) + 1, case)
    model = WeCLIP(visual, *rows, head, cfg)
    install(model, by_our_paths(case), complete=("head.",))
    return model


def pictures(case: Case) -> np.ndarray:
    """uint8 (b, h, w, 3)."""
    height, width = case["inputs"]["image_hw"]
    return np.stack([seeded.image(height, width, s) for s in case["inputs"]["image_seeds"]])


def normalised(pictures: np.ndarray) -> jax.Array:
    """float32 (b, h, w, 3), as the network sees them."""
    return normalize(jnp.asarray(pictures), IMAGENET_MEAN, IMAGENET_STD)


def published(state: nnx.State | dict[str, Any], prefix: str = "head.") -> dict[str, np.ndarray]:
    """Arrays of a state by published keys, in PyTorch's layout.

    The state is the whole model's, or of the part whose paths start with `prefix`.
    """
    tree = nnx.to_pure_dict(state) if isinstance(state, nnx.State) else state
    flat = traverse_util.flatten_dict(tree)
    named = {".".join(map(str, path)): np.asarray(leaf) for path, leaf in flat.items()}
    named = {k if k.startswith("head.") else f"{prefix}{k}": v for k, v in named.items()}
    return HEAD.to_left(named)


def thinned(array: np.ndarray) -> np.ndarray:
    """What the goldens keep of an array: "reshape(-1)[::step][:64], step = max(1, size // 64)"."""
    return array.reshape(-1)[:: max(1, array.size // 64)][:64]


def stride(meaning: str, what: str) -> int:
    """7 of "rows 0::7", or of "[channel 0::24, flat position 0::7]" for what = "position"."""
    return int(re.search(rf"{what}s? 0::(\d+)", meaning).group(1))
