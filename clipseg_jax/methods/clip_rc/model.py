"""CLIP-RC: zero-shot segmentation by prompts, region tokens and text queries on a frozen CLIP.

Source: Zhang et al., "Exploring Regional Clues in CLIP for Zero-Shot Semantic Segmentation", 2024;
spec clip_rc, sections 2 to 5.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.core.modules import Keys, abstract
from clipseg_jax.methods.clip_rc.encoder import RegionEncoder, crop_image_tower, first_regions
from clipseg_jax.methods.clip_rc.head import Init, QueryHead
from clipseg_jax.models.clip import ModifiedResNet, VisionTransformer


@dataclasses.dataclass(frozen=True)
class CLIPRCConfig:
    """Sizes beside CLIP's own, and the choices. Defaults: VOC (sections 2 to 8)."""

    crop_px: int = 512  # side of the training crops; positions are stored for it
    prompts: int = 10  # COCO-Stuff: 100
    region_side: int = 4  # 4 x 4 region tokens
    decoder_blocks: int = 3
    heads: int = 8  # of the decoders; they divide CLIP's joint width
    hidden: int = 2048  # of the decoders' perceptrons
    dropout: float = 0.1  # of prompts, and in the decoders
    head_init: Init = "reference"  # "intended": what the published code defines and never calls
    remat: bool = False  # blocks are run again in the backward pass: less memory, more time


class CLIPRC(nnx.Module):
    """`encoder`, `head`, and the frozen `text_embeddings` (c, e), used exactly as given."""

    def __init__(
        self,
        visual: VisionTransformer,
        text_embeddings: ArrayLike,
        cfg: CLIPRCConfig,
        *,
        rngs: nnx.Rngs,
    ):
        """Untrained; `visual` from `crop_image_tower`.

        Raises:
          ValueError: text rows of another CLIP, or heads that don't divide its width.
        """
        e = visual.cfg.embed_dim
        if jnp.ndim(text_embeddings) != 2 or jnp.shape(text_embeddings)[1] != e:
            raise ValueError(
                f"text embeddings of shape {jnp.shape(text_embeddings)} for an image tower with "
                f"{e} features; make them with the same CLIP"
            )
        if e % cfg.heads:
            raise ValueError(f"{cfg.heads} heads don't divide {e} features; set heads to a divisor")
        self.cfg = cfg
        self.encoder = RegionEncoder(
            visual,
            prompts=cfg.prompts,
            region_side=cfg.region_side,
            dropout=cfg.dropout,
            remat=cfg.remat,
            rngs=rngs,
        )
        self.head = QueryHead(
            e,
            blocks=cfg.decoder_blocks,
            heads=cfg.heads,
            hidden=cfg.hidden,
            dropout=cfg.dropout,
            init=cfg.head_init,
            rngs=rngs,
        )
        self.text_embeddings = nnx.Param(jnp.asarray(text_embeddings, jnp.float32))

    def __call__(self, images: Array, sizes: Array | None = None) -> Array:
        """Mask logits (b, hp, wp, c) of normalised images (b, h, w, 3); 0 in the padding.

        `sizes` (b, 2) are the real pixels, the rest has no influence; None: all is real.
        """
        return self.head(self.encoder(images, sizes), self.text_embeddings[...]).logits

    def grid_sizes(self, sizes: Array) -> Array:
        """Rows and columns (b, 2) of the logits of images of `sizes` (b, 2) pixels."""
        return self.encoder.visual.grid_sizes(sizes)


def init_clip_rc(
    visual: VisionTransformer | ModifiedResNet,
    text_embeddings: ArrayLike,
    cfg: CLIPRCConfig,
    *,
    seed: int = 0,
) -> CLIPRC:
    """An untrained model around a CLIP's image tower, initialised as published.

    Raises:
      ValueError: an image tower, text rows or sizes that don't fit.
    """
    tower = crop_image_tower(visual, cfg.crop_px)

    def make(rngs: nnx.Rngs) -> CLIPRC:
        return CLIPRC(VisionTransformer(tower.cfg, rngs=rngs), text_embeddings, cfg, rngs=rngs)

    model = abstract(make)

    def drawn(path: tuple, _: object) -> bool:  # the rest is CLIP's own, or follows from it
        return path[0] == "head" or any("prompt" in str(part) for part in path)

    nnx.update(model, jax.jit(lambda: nnx.state(make(Keys(seed)), drawn))())  # type: ignore[arg-type]
    model.encoder.visual = tower
    model.encoder.region_level_bridge = nnx.Param(first_regions(tower, cfg.region_side))
    model.text_embeddings = nnx.Param(jnp.asarray(text_embeddings, jnp.float32))
    return model
