"""CLIP-RC: zero-shot segmentation by a frozen CLIP with prompts, region tokens and text queries.

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

from clipseg_jax.core.checks import check_choice, check_number, check_whole
from clipseg_jax.core.modules import Keys, abstract
from clipseg_jax.methods.clip_rc.encoder import RegionEncoder, crop_image_tower, first_regions
from clipseg_jax.methods.clip_rc.head import Init, QueryHead
from clipseg_jax.models.clip import ModifiedResNet, VisionTransformer, as_text_embeddings


@dataclasses.dataclass(frozen=True)
class CLIPRCConfig:
    """Sizes and options; the defaults are published for VOC (spec clip_rc, sections 2 to 8)."""

    crop_px: int = 512  # side of training crops; position embeddings are resized to it
    prompts: int = 10  # prompt tokens of each block
    region_side: int = 4  # region_side * region_side region tokens
    decoder_blocks: int = 3  # layers of each decoder
    heads: int = 8  # of the decoders' attention; a divisor of CLIP's joint width
    hidden: int = 2048  # hidden width of the decoders' perceptrons
    dropout: float = 0.1  # rate, of prompts and in the decoders
    # "reference": as the published code; "intended": an initialisation it defines but does not use.
    head_init: Init = "reference"
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time

    def __post_init__(self) -> None:
        for name in ("crop_px", "region_side", "decoder_blocks", "heads", "hidden"):
            check_whole(name, getattr(self, name))
        check_whole("prompts", self.prompts, least=0)
        check_number("dropout", self.dropout, 0, 1)
        check_choice("head_init", self.head_init, ("reference", "intended"))


class CLIPRC(nnx.Module):
    """An encoder, a head, and frozen `text_embeddings` (c, e), which are not normalised."""

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
          ValueError: the text embeddings are of another CLIP, or heads do not divide its width.
        """
        embeddings = as_text_embeddings(text_embeddings, visual)
        e = visual.cfg.embed_dim
        if e % cfg.heads:
            raise ValueError(
                f"{cfg.heads} heads do not divide {e} features; set heads to a divisor"
            )
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
        self.text_embeddings = nnx.Param(embeddings)

    def __call__(self, images: Array, sizes: Array | None = None) -> Array:
        """Mask logits (b, hp, wp, c) of normalised images (b, h, w, 3); 0 in the padding.

        `sizes` (b, 2): heights and widths of images in a padded batch; None: no image is padded.
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
    """An untrained model of a CLIP's image tower, initialised as published.

    Raises:
      ValueError: the image tower is not a ViT, or sizes do not match; see `image_tower`, `CLIPRC`.
    """
    tower = crop_image_tower(visual, cfg.crop_px)

    def make(rngs: nnx.Rngs) -> CLIPRC:
        return CLIPRC(VisionTransformer(tower.cfg, rngs=rngs), text_embeddings, cfg, rngs=rngs)

    model = abstract(make)

    def is_random(path: tuple, _: object) -> bool:  # all else is CLIP's, or computed of it
        return path[0] == "head" or any("prompt" in str(part) for part in path)

    nnx.update(model, jax.jit(lambda: nnx.state(make(Keys(seed)), is_random))())  # type: ignore[arg-type]
    model.encoder.visual = tower
    model.encoder.region_level_bridge = nnx.Param(first_regions(tower, cfg.region_side))
    model.text_embeddings = nnx.Param(jnp.asarray(text_embeddings, jnp.float32))
    return model
