"""CLIP: an image tower, a text tower and a temperature.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.models.clip.resnet import ModifiedResNet, ResNetConfig
from clipseg_jax.models.clip.text import TextConfig, TextTransformer
from clipseg_jax.models.clip.vit import VisionTransformer, ViTConfig

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Configurations of both towers; `text` is None for an image tower alone."""

    vision: ViTConfig | ResNetConfig
    text: TextConfig | None

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape]) -> CLIPConfig:
        """Infers all sizes from the shapes of an OpenAI-named state dict (spec clip, section 1).

        What shapes do not determine has OpenAI's value: heads of 64 channels, QuickGELU, norm
        epsilon 1e-5.

        Raises:
          ValueError: `shapes` has no CLIP image tower.
        """
        if "visual.proj" in shapes:
            vision: ViTConfig | ResNetConfig = _vit(shapes)
        elif "visual.layer1.0.conv1.weight" in shapes:
            vision = _resnet(shapes)
        else:
            first_keys = ", ".join(sorted(shapes)[:3]) or "none"
            raise ValueError(
                f"no CLIP image tower among {len(shapes)} keys ({first_keys}, ...): neither "
                "visual.proj (ViT) nor visual.layer1.0.conv1.weight (ResNet) is there"
            )
        return cls(vision, _text(shapes) if "text_projection" in shapes else None)

    def replace(self, **choices: object) -> CLIPConfig:
        """Replaces fields, e.g. `activation="gelu"`, in each tower that has them.

        Raises:
          ValueError: a field that neither tower has.
        """
        all_fields: set[str] = set()
        towers: dict[str, object] = {}
        for name in ("vision", "text"):
            tower = getattr(self, name)
            fields = {f.name for f in dataclasses.fields(tower)} if tower else set()
            all_fields |= fields
            changes = {k: v for k, v in choices.items() if k in fields}
            towers[name] = dataclasses.replace(tower, **changes) if tower else None
        if unknown := sorted(set(choices) - all_fields):
            raise ValueError(
                f"unknown CLIP choices {unknown}; the towers have {sorted(all_fields)}"
            )
        return CLIPConfig(**towers)  # type: ignore[arg-type]


def _count(shapes: Mapping[str, Shape], pattern: str) -> int:
    """The number of distinct values of the first group of `pattern` over all keys."""
    matches = (re.match(pattern, key) for key in shapes)
    return len({m.group(1) for m in matches if m})


def _grid(positions: int) -> int:
    """Side of the grid of a table of position embeddings with a class token."""
    return round(math.sqrt(positions - 1))


def _vit(shapes: Mapping[str, Shape]) -> ViTConfig:
    width, _, _, patch = shapes["visual.conv1.weight"]
    return ViTConfig(
        image_px=patch * _grid(shapes["visual.positional_embedding"][0]),
        patch_px=patch,
        width=width,
        layers=_count(shapes, r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_weight"),
        heads=max(width // 64, 1),
        embed_dim=shapes["visual.proj"][1],
    )


def _resnet(shapes: Mapping[str, Shape]) -> ResNetConfig:
    width = shapes["visual.layer1.0.conv1.weight"][0]
    blocks = tuple(_count(shapes, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    positions = shapes["visual.attnpool.positional_embedding"][0]
    return ResNetConfig(
        image_px=32 * _grid(positions),
        width=width,
        blocks=blocks,  # type: ignore[arg-type]
        heads=max(width * 32 // 64, 1),
        embed_dim=shapes["visual.attnpool.c_proj.weight"][0],
    )


def _text(shapes: Mapping[str, Shape]) -> TextConfig:
    (width,) = shapes["ln_final.weight"]
    return TextConfig(
        context_length=shapes["positional_embedding"][0],
        vocabulary=shapes["token_embedding.weight"][0],
        width=width,
        layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
        heads=max(width // 64, 1),
        embed_dim=shapes["text_projection"][1],
    )


class CLIP(nnx.Module):
    """Image tower `visual`, text tower `text`, `logit_scale` (log of the inverse temperature)."""

    def __init__(self, cfg: CLIPConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        if isinstance(cfg.vision, ViTConfig):
            self.visual: VisionTransformer | ModifiedResNet = VisionTransformer(
                cfg.vision, rngs=rngs
            )
        else:
            self.visual = ModifiedResNet(cfg.vision, rngs=rngs)
        if cfg.text is not None:
            self.text = TextTransformer(cfg.text, rngs=rngs)
            self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def __call__(self, images: Array, ids: Array) -> Array:
        """Normalised images (b, h, w, 3) and token ids (n, t) -> scaled cosines (b, n)."""
        image_features = l2_normalize(self.visual(images)[0])
        text_features = l2_normalize(self.text(ids))
        return jnp.exp(self.logit_scale[...]) * image_features @ text_features.T


def l2_normalize(x: Array) -> Array:
    """`x` divided by its L2 norm along the last axis; no epsilon, as in OpenAI's code."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def as_text_embeddings(embeddings: ArrayLike, visual: VisionTransformer | ModifiedResNet) -> Array:
    """Text embeddings (c, e) as float32, checked against the image tower that they classify.

    Raises:
      ValueError: `embeddings` is not a matrix, or e is not the tower's `embed_dim`.
    """
    shape, features = jnp.shape(embeddings), visual.cfg.embed_dim
    if len(shape) != 2 or shape[1] != features:
        raise ValueError(
            f"text embeddings of shape {shape} for an image tower with {features} features; "
            "compute them with the text tower of the same CLIP"
        )
    return jnp.asarray(embeddings, jnp.float32)
