"""CLIP: an image tower, a text tower and a temperature. SigLIP is one with towers of its own.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021; of SigLIP: `siglip.py`.
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
from clipseg_jax.models.clip.siglip import (
    SigLIPText,
    SigLIPTextConfig,
    SigLIPVision,
    SigLIPVisionConfig,
)
from clipseg_jax.models.clip.text import TextConfig, TextTransformer
from clipseg_jax.models.clip.vit import VisionTransformer, ViTConfig

Shape = tuple[int, ...]
VisionConfig = ViTConfig | ResNetConfig | SigLIPVisionConfig
ImageTower = VisionTransformer | ModifiedResNet | SigLIPVision


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Configurations of both towers; `text` is None for an image tower alone."""

    vision: VisionConfig
    text: TextConfig | SigLIPTextConfig | None

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape]) -> CLIPConfig:
        """Infers all sizes from the shapes of an OpenAI-named state dict (spec clip, section 1).

        What shapes do not determine has OpenAI's value: heads of 64 channels, QuickGELU, norm
        epsilon 1e-5. Of SigLIP, by names in their manner, it has SigLIP's: GELU by tanh, 1e-6.

        Raises:
          ValueError: `shapes` has no CLIP image tower.
        """
        if "visual.head.probe" in shapes:
            text_tower = _siglip_text(shapes) if "token_embedding.weight" in shapes else None
            return cls(_siglip_vision(shapes), text_tower)
        if "visual.proj" in shapes:
            vision: VisionConfig = _vit(shapes)
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


def _hidden(shapes: Mapping[str, Shape], prefix: str) -> int:
    """Channels of the hidden layers of a transformer's perceptrons, by its first block."""
    return shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.bias"][0]


def _hidden_unless_4(shapes: Mapping[str, Shape], prefix: str, width: int) -> int | None:
    """The same; None where it is four times the width, or where there is no first block."""
    key = f"{prefix}transformer.resblocks.0.mlp.c_fc.bias"
    return None if shapes.get(key, (4 * width,)) == (4 * width,) else _hidden(shapes, prefix)


def _vit(shapes: Mapping[str, Shape]) -> ViTConfig:
    width, _, _, patch = shapes["visual.conv1.weight"]
    return ViTConfig(
        image_px=patch * _grid(shapes["visual.positional_embedding"][0]),
        patch_px=patch,
        width=width,
        layers=_count(shapes, r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_weight"),
        heads=max(width // 64, 1),
        embed_dim=shapes["visual.proj"][1],
        mlp_width=_hidden_unless_4(shapes, "visual.", width),
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
        mlp_width=_hidden_unless_4(shapes, "", width),
    )


def _siglip_vision(shapes: Mapping[str, Shape]) -> SigLIPVisionConfig:
    width, _, _, patch = shapes["visual.conv1.weight"]
    return SigLIPVisionConfig(
        image_px=patch * round(math.sqrt(shapes["visual.positional_embedding"][0])),
        patch_px=patch,
        width=width,
        layers=_count(shapes, r"visual\.transformer\.resblocks\.(\d+)\."),
        heads=max(width // 64, 1),
        mlp_width=_hidden(shapes, "visual."),
    )


def _siglip_text(shapes: Mapping[str, Shape]) -> SigLIPTextConfig:
    vocabulary, width = shapes["token_embedding.weight"]
    return SigLIPTextConfig(
        context_length=shapes["positional_embedding"][0],
        vocabulary=vocabulary,
        width=width,
        layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
        heads=max(width // 64, 1),
        embed_dim=shapes["text_projection.bias"][0],
        mlp_width=_hidden(shapes, ""),
    )


class CLIP(nnx.Module):
    """Image tower `visual`, text tower `text`, `logit_scale` (log of the inverse temperature).

    With SigLIP's towers also `logit_bias`, which is added to scaled cosines.
    """

    def __init__(self, cfg: CLIPConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        if isinstance(cfg.vision, ViTConfig):
            self.visual: ImageTower = VisionTransformer(cfg.vision, rngs=rngs)
        elif isinstance(cfg.vision, SigLIPVisionConfig):
            self.visual = SigLIPVision(cfg.vision, rngs=rngs)
        else:
            self.visual = ModifiedResNet(cfg.vision, rngs=rngs)
        if cfg.text is None:
            return
        if isinstance(cfg.text, SigLIPTextConfig):
            self.text: TextTransformer | SigLIPText = SigLIPText(cfg.text, rngs=rngs)
            self.logit_scale = nnx.Param(jnp.asarray(math.log(10.0), jnp.float32))
            self.logit_bias = nnx.Param(jnp.asarray(-10.0, jnp.float32))
        else:
            self.text = TextTransformer(cfg.text, rngs=rngs)
            self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def __call__(self, images: Array, ids: Array) -> Array:
        """Normalised images (b, h, w, 3) and token ids (n, t) -> logits (b, n).

        They are scaled cosines, for a softmax over texts; SigLIP's are for a sigmoid of each.
        """
        image_features = l2_normalize(self.visual(images)[0])
        text_features = l2_normalize(self.text(ids))
        logits = jnp.exp(self.logit_scale[...]) * image_features @ text_features.T
        return logits + self.logit_bias[...] if isinstance(self.text, SigLIPText) else logits


def l2_normalize(x: Array) -> Array:
    """`x` divided by its L2 norm along the last axis; no epsilon, as in OpenAI's code."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def with_class_token(visual: ImageTower, reader: str) -> VisionTransformer | ModifiedResNet:
    """`visual`, checked for `reader`, which is made for towers with a class (or mean) token.

    Raises:
      ValueError: SigLIP's tower, which has none.
    """
    if isinstance(visual, SigLIPVision):
        raise ValueError(
            f"{reader} reads the class token, and SigLIP's image tower has none; give a CLIP, or "
            "use MaskCLIP"
        )
    return visual


def as_text_embeddings(embeddings: ArrayLike, visual: ImageTower) -> Array:
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
