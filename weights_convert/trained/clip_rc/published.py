"""CLIP-RC's published state dicts, and models of their sizes. Spec clip_rc, section 13."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.clip_rc.model import CLIPRC, CLIPRCConfig
from clipseg_jax.models.clip import VisionTransformer, ViTConfig
from weights_convert.clip.build import abstract as abstract_clip
from weights_convert.clip.build import config_of, is_carried, shapes_of
from weights_convert.clip.keys import OPENAI
from weights_convert.mapping import Shape, required_shape
from weights_convert.trained.clip_rc.keys import CLIP_RC, UNUSED

_TEXT, _UNUSED = "text_encoder.", "unused."


def from_published(stored: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """A published state dict by our paths.

    The text tower is under "text."; what nothing uses under "unused." and its published name. A
    file may lack either.

    Raises:
      CheckpointError: its sizes cannot be determined; or lists every missing, unexpected and
        wrongly shaped key.
    """
    unused = {f"{_UNUSED}{key}": x for key, x in stored.items() if re.fullmatch(UNUSED, key)}
    text = {key.removeprefix(_TEXT): x for key, x in stored.items() if key.startswith(_TEXT)}
    model = {
        key: x
        for key, x in stored.items()
        if f"{_UNUSED}{key}" not in unused and not key.startswith(_TEXT) and not is_carried(key)
    }
    vision, cfg = sizes(model, source)
    arrays = CLIP_RC.to_right(model, _shapes(vision, cfg), source)
    if text:
        tower = {p.removeprefix("encoder."): x for p, x in arrays.items() if ".visual." in p}
        config = config_of(OPENAI.to_left(tower) | text)
        shapes = {p: s for p, s in abstract_clip(config)[1].items() if p.startswith("text.")}
        arrays |= OPENAI.to_right(text, shapes, f"{source}, {_TEXT}*")
    return arrays | unused


def to_published(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict that the published code loads, of a whole model's arrays by our paths.

    Layers that nothing uses are filled in if they are missing: zeros, and ones for norms.
    """
    model = {path: x for path, x in arrays.items() if path.startswith(("encoder.", "head."))}
    out = CLIP_RC.to_left(model)
    text = {path: x for path, x in arrays.items() if path.startswith("text.")}
    out |= {f"{_TEXT}{key}": x for key, x in OPENAI.to_left(text).items()}
    unused = {
        path.removeprefix(_UNUSED): x for path, x in arrays.items() if path.startswith(_UNUSED)
    }
    return out | (unused or _unused(out))


def _unused(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The unused self-attention and first norm of each decoder layer."""
    out: dict[str, np.ndarray] = {}
    for key, x in stored.items():
        if key.startswith("decode_head.") and key.endswith(".norm2.weight"):
            layer, e = key.removesuffix("norm2.weight"), x.size
            shapes: dict[str, Shape] = {
                "self_attn.in_proj_weight": (3 * e, e),
                "self_attn.in_proj_bias": (3 * e,),
                "self_attn.out_proj.weight": (e, e),
                "self_attn.out_proj.bias": (e,),
                "norm1.bias": (e,),
            }
            out |= {f"{layer}{name}": np.zeros(s, np.float32) for name, s in shapes.items()}
            out[f"{layer}norm1.weight"] = np.ones(e, np.float32)
    return out


def sizes(stored: Mapping[str, np.ndarray], source: str) -> tuple[ViTConfig, CLIPRCConfig]:
    """The image tower's and the model's sizes, from a state dict by the published names.

    Raises:
      CheckpointError: an array that determines one is missing.
    """

    def shape(key: str, rank: int) -> Shape:
        return required_shape(stored, key, rank, source)

    width, _, patch, _ = shape("backbone.conv1.weight", 4)
    grid = math.isqrt(shape("backbone.positional_embedding", 2)[0] - 1)
    blocks = re.compile(r"backbone\.transformer\.resblocks\.(\d+)\.")
    layers = re.compile(r"decode_head\.decoder_q\.layers\.(\d+)\.")

    def count(pattern: re.Pattern[str]) -> int:
        return len({match[1] for key in stored if (match := pattern.match(key))})

    embed_dim = shape("backbone.proj", 2)[1]
    vision = ViTConfig(
        image_px=grid * patch,
        patch_px=patch,
        width=width,
        layers=count(blocks),
        heads=max(width // 64, 1),
        embed_dim=embed_dim,
        position_resize="bilinear",
    )
    cfg = CLIPRCConfig(
        crop_px=grid * patch,
        prompts=shape("backbone.prompt_embeddings", 3)[1],
        region_side=math.isqrt(shape("backbone.region_level_bridge", 2)[0]),
        decoder_blocks=count(layers),
        heads=math.gcd(CLIPRCConfig.heads, embed_dim),
        hidden=shape("decode_head.decoder_q.layers.0.linear1.bias", 1)[0],
    )
    return vision, cfg


def build(vision: ViTConfig, cfg: CLIPRCConfig, classes: int, rngs: Any) -> CLIPRC:
    """An untrained model, its CLIP included."""
    visual = VisionTransformer(vision, rngs=rngs)
    return CLIPRC(visual, jnp.zeros((classes, vision.embed_dim)), cfg, rngs=rngs)


@functools.lru_cache(maxsize=4)
def _shapes(vision: ViTConfig, cfg: CLIPRCConfig) -> dict[str, Shape]:
    """The shape of each array of a model but the text embeddings, by our paths."""
    shapes = shapes_of(abstract(lambda rngs: build(vision, cfg, 1, rngs)))
    return {path: shape for path, shape in shapes.items() if path != "text_embeddings"}
