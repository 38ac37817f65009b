"""WeCLIP and WTCLIP: a decoder on a frozen CLIP, which labels its own training crops.

Zhang et al., "Frozen CLIP: A Strong Backbone for Weakly Supervised Semantic Segmentation", 2024;
spec weclip, sections 3 to 5; spec wtclip.

The labels are CLIP-ES's class activation maps, spread by attention maps of the same forward pass;
late in training the affinity that the decoder learned chooses and weighs them. Then a background
score, PAR, and the best class of each pixel.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.methods.clip_es.model import CLIPES, CAMs, CLIPESConfig, Encoding
from clipseg_jax.methods.weclip.head import Decoded, Head, affinity
from clipseg_jax.models.clip import VisionTransformer
from clipseg_jax.ops.affinity import attention_map_weights, patch_affinity
from clipseg_jax.ops.cam import activation_maps, min_max_normalize, upsample
from clipseg_jax.ops.canny import add_edges
from clipseg_jax.ops.image import valid_mask
from clipseg_jax.ops.par import PUBLISHED as PUBLISHED_PAR
from clipseg_jax.ops.par import PARConfig, diffuse, neighbour_weights
from clipseg_jax.ops.resize import resize

_AT_ONCE = 4  # classes, the background among them, that PAR refines together


@dataclasses.dataclass(frozen=True)
class WeCLIPConfig:
    """How labels are made (spec weclip, sections 5 and 11)."""

    box_threshold: float = 0.4  # of a CAM's maximum
    early_blocks: int = 8  # the last ones, whose attention is averaged
    late_blocks: int = 6  # the last ones, among which the late phase chooses
    # "off" is what WTCLIP's released code comes to: it seeks edges in a map that was cut to whole
    # numbers before. "scaled" seeks them in 255 steps (spec wtclip, section 3).
    edge: Literal["off", "scaled"] = "off"
    temperature: float = 100.0  # exp(logit_scale) of all released CLIPs
    par: PARConfig = PUBLISHED_PAR


VOC = WeCLIPConfig()


class Features(NamedTuple):
    """What the frozen blocks before the last one say."""

    layers: tuple[Array, ...]  # of each block, patch tokens (b, n, d)
    tokens: Array  # (b, 1 + n, d) going into the last block
    maps: tuple[Array, ...]  # (b, n, n) head-averaged attention of the last blocks but one
    bias: Array  # (b, 1, 1 + n) that masks padding
    grids: Array  # (b, 2) real patches
    shape: tuple[int, int]  # of the padded grid of patches


class Labels(NamedTuple):
    """Pseudo labels and what they were made of."""

    labels: Array  # (b, h, w) int32: 0 background, class id + 1
    classes: Array  # (b, k) ids of each image, ascending; k is the number of all classes
    real: Array  # (b, k) how many of them count
    affinity: Array  # (b, n, n) what spread the CAMs, not yet balanced
    cams: CAMs  # (b, k, hp, wp)


class WeCLIP(nnx.Module):
    """`clip`: the frozen image tower with text rows, as CLIP-ES uses it; `head`: what is trained.

    Images are normalised, (b, h, w, 3), of which `sizes` (b, 2) are real pixels; padding has no
    influence on predictions. Rows and columns that do not fill a patch are dropped.
    """

    def __init__(
        self,
        visual: VisionTransformer,
        class_rows: ArrayLike,
        background_rows: ArrayLike,
        head: Head,
        cfg: WeCLIPConfig = VOC,
    ):
        """Text rows (c, e) of the classes without background, and (backgrounds, e).

        Raises:
          ValueError: text rows of another CLIP, a head of another number of classes or blocks, or
            an unknown `edge`.
        """
        if cfg.edge not in ("off", "scaled"):
            raise ValueError(f"edge {cfg.edge!r}: choose off or scaled")
        last = visual.cfg.layers - 1
        self.clip = CLIPES(
            visual,
            class_rows,
            background_rows,
            CLIPESConfig(
                box_threshold=cfg.box_threshold,
                affinity_blocks=(last,),
                temperature=cfg.temperature,
            ),
        )
        classes = self.clip.class_rows.shape[0] + 1
        made = head.decoder.classifier.out_features, len(head.fusion.adapters)
        if made != (classes, last):
            raise ValueError(
                f"a head of {made[0]} classes on {made[1]} blocks, where {classes} classes, with "
                f"the background, on {last} blocks are due; make it with weclip.task.initial"
            )
        self.head = head
        self.cfg = cfg

    def encode(self, images: Array, sizes: Array, *, maps: bool = True) -> Features:
        """The frozen blocks before the last; without `maps` what labels need is left out."""
        visual, cfg = self.clip.visual, self.cfg
        last = visual.cfg.layers - 1
        first = max(last + 1 - max(cfg.early_blocks, cfg.late_blocks), 0)
        blocks = [f"block{i}" for i in range(last)]
        read = [f"map{i}" for i in range(first, last)] if maps else []
        x, bias = visual.embed(images, sizes)
        assert bias is not None
        x, out = visual.transformer(x, bias, stop=-1, read=[*blocks, *read])
        grids = visual.grid_sizes(sizes)
        shape = visual.grid_shape(images.shape[1], images.shape[2])
        real = valid_mask(grids, shape).reshape(len(images), -1)
        return Features(
            layers=tuple(out[name][:, 1:] for name in blocks),
            tokens=x,
            maps=tuple(patch_affinity(out[name], real) for name in read),
            bias=bias,
            grids=grids,
            shape=shape,
        )

    def decode(self, features: Features, kept: Array | None = None) -> Decoded:
        """The head's logits and fused tokens; `kept` see `Head`."""
        bias, grids = features.bias[..., 1:], features.grids
        return self.head(features.layers, features.shape, bias=bias, grids=grids, kept=kept)

    def __call__(self, images: Array, sizes: Array) -> Array:
        """Logits (b, hp, wp, classes), background first; 0 outside each image's own grid."""
        features = self.encode(images, sizes, maps=False)
        logits = self.decode(features).logits
        return jnp.where(valid_mask(features.grids, features.shape)[..., None], logits, 0)

    def label(
        self,
        images: Array,
        features: Features,
        fused: Array,
        tags: Array,
        late: ArrayLike,
        size: tuple[int, int] | None = None,
        sizes: Array | None = None,
    ) -> Labels:
        """Pseudo labels of images (b, h, w, 3) (spec weclip, section 5); nothing learns by them.

        Args:
          features, fused: of the same images, from `encode` and `decode`.
          tags: (b, c) bool, the classes that each image has; none and all are fine.
          late: () bool, whether the decoder's affinity takes part; True when only evaluating.
          size: of the labels; None: the images'.
          sizes: (b, 2) real pixels of labels and images, both padded to one size; None: all are.
        """
        classes, real = _classes_of(tags)
        fused = jax.lax.stop_gradient(fused)
        found = self.clip.activate(
            Encoding(features.tokens, jnp.zeros(()), features.bias, features.grids),
            classes,
            real,
            features.shape,
        )
        spreading = self.combine((*features.maps, found.affinity), affinity(fused), late)
        cam = activation_maps(found.raw, valid_mask(features.grids, features.shape))
        if self.cfg.edge == "scaled":
            cam = add_edges(cam)
        cams = self.clip.propagate(cam, spreading, features.grids)
        labels = self.refine(images, cams.refined, features.grids, classes, real, size, sizes)
        return Labels(labels, classes, real, spreading, cams)

    def combine(self, maps: tuple[Array, ...], learned: Array, late: ArrayLike) -> Array:
        """One affinity (b, n, n) of the last blocks' maps (b, n, n) and the learned one (5.4)."""
        cfg, late = self.cfg, jnp.asarray(late)
        stacked = jnp.stack(maps, axis=1)
        count = stacked.shape[1]
        early = min(cfg.early_blocks, count)
        average = jnp.where(jnp.arange(count) < count - early, 0.0, 1 / early)
        chosen = attention_map_weights(stacked[:, -min(cfg.late_blocks, count) :])
        chosen = jnp.pad(chosen, ((0, 0), (count - chosen.shape[1], 0)))
        weights = jnp.where(late, chosen, average)
        combined = jnp.einsum("bl,blij->bij", weights, stacked, precision="highest")
        return jnp.where(late, combined * learned, combined)

    def refine(
        self,
        images: Array,
        refined: Array,
        grids: Array,
        classes: Array,
        real: Array,
        size: tuple[int, int] | None = None,
        sizes: Array | None = None,
    ) -> Array:
        """Labels (b, h, w) int32 of spread CAMs (b, k, hp, wp): background score, PAR, best (5.7).

        Some classes at a time, as many as the batch has: maps of all are never held.
        """
        cfg = self.cfg.par
        size = size or (images.shape[1], images.shape[2])
        b, k, hp, wp = refined.shape
        if images.shape[1:3] != size:
            images = resize(images, size, align_corners=True)
        filled = jnp.broadcast_to(jnp.asarray(size), (b, 2)) if sizes is None else sizes
        weights = neighbour_weights(images, cfg, sizes)
        # Slot 0 is the background; absent classes stay 0, and padding fills up the last group.
        rest = -(k + 1) % _AT_ONCE
        maps = min_max_normalize(refined, valid_mask(grids, (hp, wp)))
        maps = jnp.pad(maps, ((0, 0), (1, rest), (0, 0), (0, 0)))
        ids = jnp.pad(classes + 1, ((0, 0), (1, rest)))
        there = jnp.pad(real, ((0, 0), (1, 0)), constant_values=True)
        there = jnp.pad(there, ((0, 0), (0, rest)))
        groups = -(-jnp.max(jnp.sum(there, axis=1)) // _AT_ONCE)

        def part(x: Array, i: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, i * _AT_ONCE, _AT_ONCE, axis=1)

        def full(i: Array) -> Array:
            return upsample(part(maps, i), grids, filled, size)

        top = jax.lax.fori_loop(
            0,
            groups,
            lambda i, top: jnp.maximum(top, jnp.max(full(i), axis=1)),
            jnp.zeros((b, *size)),
        )

        def compare(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
            score, label = best
            own = jnp.where(
                (i == 0) & (jnp.arange(_AT_ONCE) == 0)[:, None, None], (1 - top)[:, None], full(i)
            )
            own = diffuse(weights, jnp.moveaxis(own, 1, 2), cfg, sizes)  # (b, h, k, w)
            own = jnp.where(part(there, i)[:, None, :, None], own, -jnp.inf)
            winner = jnp.argmax(own, axis=2)  # the first of equals
            found = jnp.max(own, axis=2)
            named = jnp.take_along_axis(part(ids, i)[:, None], winner, axis=2)
            better = found > score
            return jnp.where(better, found, score), jnp.where(better, named, label)

        first = jnp.full((b, *size), -jnp.inf), jnp.zeros((b, *size), jnp.int32)
        return jax.lax.fori_loop(0, groups, compare, first)[1]


def _classes_of(tags: Array) -> tuple[Array, Array]:
    """Tags (b, c) bool -> ids (b, c) int32 of the classes there, ascending, and which count."""
    classes = jnp.argsort(~tags, axis=1, stable=True).astype(jnp.int32)
    return classes, jnp.take_along_axis(tags, classes, axis=1)
