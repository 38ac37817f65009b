"""TagCLIP: which classes an image shows, from a frozen CLIP's patches.

Source: Lin et al., "TagCLIP: A Local-to-Global Framework to Enhance Open-Vocabulary Multi-Label
Classification of CLIP Without Training", 2024; spec tagclip, sections 4 to 7.

Local: every patch is classified by its own value, scores are spread by attention, and boxed.
Global: each class that stands out is asked for again in a crop of its box.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.models.clip import VisionTransformer, l2_normalize
from clipseg_jax.models.clip.dense import VALUE, last_block
from clipseg_jax.ops.affinity import patch_affinity
from clipseg_jax.ops.cam import box_masks, min_max_normalize
from clipseg_jax.ops.components import bounding_box
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize, valid_mask
from clipseg_jax.ops.resize import resize_matrix

_HIDDEN = -1000.0  # added to the class token's scores of patches outside the object


@dataclasses.dataclass(frozen=True)
class TagCLIPConfig:
    """What differs between datasets, and the published constants (spec tagclip, section 9)."""

    affinity_blocks: tuple[int, ...] = (8, 9, 10)
    # Share of the range of scores that a class must exceed: to be asked for again, to be a tag.
    relative_threshold: float = 0.5
    votes: int = 4  # so many blocks must agree that two patches belong together
    mix: float = 0.5  # weight of the second look
    # False, as published: a candidate with an empty box ends the second look at its image.
    # True: only that candidate keeps its score.
    skip_empty_boxes: bool = False
    crops_at_once: int = 8
    temperature: float = 100.0  # exp(logit_scale) of all released CLIPs


VOC = TagCLIPConfig()


class Local(NamedTuple):
    """What the local pass finds on a grid of n = hp * wp patches, for all k names."""

    features: Array  # (b, 1 + n, e) unit
    affinity: Array  # (b, n, n) mean attention where enough blocks agree
    coarse: Array  # (b, n, k) probability of each patch
    spread: Array  # (b, n, k) coarse, averaged by affinity
    refined: Array  # (b, n, k) the same from inside each name's boxes only
    grids: Array  # (b, 2) real patches


class Tags(NamedTuple):
    """Scores and tags of images, (b, c) for the dataset's classes."""

    scores: Array  # float32
    chosen: Array  # bool


class TagCLIP(nnx.Module):
    """A frozen ViT with text rows: the dataset's classes first, then background names.

    The ViT's config has `position_resize="bilinear"`. Images are padded batches: `sizes` (b, 2) are
    their real pixels, multiples of the patch; padding has no influence.
    """

    def __init__(
        self,
        visual: VisionTransformer,
        class_rows: ArrayLike,
        background_rows: ArrayLike | None = None,
        cfg: TagCLIPConfig = VOC,
    ):
        """Text rows (c, e) and (backgrounds, e), None for none.

        Raises:
          ValueError: text rows of another CLIP, or blocks that the tower doesn't have.
        """
        rows = [jnp.asarray(class_rows, jnp.float32)]
        if background_rows is not None:
            rows.append(jnp.asarray(background_rows, jnp.float32))
        for part in rows:
            if part.ndim != 2 or part.shape[1] != visual.cfg.embed_dim:
                raise ValueError(
                    f"text rows of shape {part.shape} for a tower with {visual.cfg.embed_dim} "
                    "features; make them with the same CLIP"
                )
        wrong = [i for i in cfg.affinity_blocks if not 0 <= i < visual.cfg.layers]
        if wrong or not cfg.affinity_blocks:
            raise ValueError(
                f"affinity_blocks {cfg.affinity_blocks} of a tower with blocks 0 to "
                f"{visual.cfg.layers - 1}; choose among those"
            )
        self.cfg = cfg
        self.classes = len(rows[0])
        self.visual = visual
        self.rows = nnx.Param(l2_normalize(jnp.concatenate(rows)))

    def __call__(self, images: Array, sizes: Array, real: Array | None = None) -> Tags:
        """Tags of uint8 RGB images (b, h, w, 3) that were resized to whole patches.

        `real` (b,) bool leaves out images that only fill the batch: no second look at them.
        """
        pixels = normalize(images, CLIP_MEAN, CLIP_STD)
        shape = self.visual.grid_shape(images.shape[1], images.shape[2])
        local = self.local(pixels, sizes)
        scores, candidates = self.candidates(local.refined, local.grids, shape)
        if real is not None:
            candidates &= real[:, None]
        scores = self.reidentify(pixels, local.refined, local.grids, shape, scores, candidates)
        return Tags(scores, choose(scores, self.cfg.relative_threshold))

    def local(self, images: Array, sizes: Array) -> Local:
        """Scores of every patch of normalised images (b, h, w, 3) (section 5)."""
        visual = self.visual
        layers = visual.cfg.layers
        shape = visual.grid_shape(images.shape[1], images.shape[2])
        x, bias = visual.embed(images, sizes)
        assert bias is not None
        x, out = visual.transformer(x, bias, stop=-1, read=[f"map{i}" for i in range(layers - 1)])
        # In the last block every token attends to itself; its votes come from its usual attention.
        last = last_block(visual, x, VALUE)
        attn = visual.transformer.resblocks[-1].attn
        out[f"map{layers - 1}"] = attn.mix_and_map(last.queries, last.keys, last.values, bias)[1]
        features = l2_normalize((last.tokens @ visual.proj[...]).astype(jnp.float32))

        grids = visual.grid_sizes(sizes)
        cells = valid_mask(grids, shape)
        real = cells.reshape(cells.shape[0], -1)
        affinity = self._affinity([out[f"map{i}"] for i in range(layers)], real)
        coarse = jnp.where(real[..., None], jax.nn.softmax(self._logits(features[:, 1:])), 0.0)
        spread = jnp.matmul(affinity, coarse, precision="highest")
        maps = min_max_normalize(_maps(spread, shape), cells, epsilon=0.0)
        count = jnp.sum(real, axis=1)[:, None]
        boxes = box_masks(maps, grids, jnp.sum(maps, axis=(2, 3)) / count)
        boxed = jnp.where(boxes.reshape(*boxes.shape[:2], -1).swapaxes(1, 2), coarse, 0.0)
        refined = jnp.matmul(affinity, boxed, precision="highest")
        return Local(features, affinity, coarse, spread, refined, grids)

    def _affinity(self, maps: list[Array], real: Array) -> Array:
        """Mean attention of the chosen blocks, where enough of all blocks are above their mean."""
        pairs = jnp.sum(real, axis=1)[:, None, None].astype(jnp.float32) ** 2
        votes = jnp.zeros((), jnp.int32)
        total = jnp.zeros(())
        for i, attention in enumerate(maps):
            attention = patch_affinity(attention, real)
            mean = jnp.sum(attention, axis=(1, 2), keepdims=True) / pairs
            votes = votes + (attention > mean)
            if i in self.cfg.affinity_blocks:
                total = total + attention
        return jnp.where(votes >= self.cfg.votes, total / len(self.cfg.affinity_blocks), 0.0)

    def _logits(self, features: Array) -> Array:
        product = jnp.matmul(features, self.rows[...].T, precision="highest")
        return self.cfg.temperature * product

    def candidates(
        self, refined: Array, grids: Array, shape: tuple[int, int]
    ) -> tuple[Array, Array]:
        """Best score (b, c) of each class, and which classes stand out (b, c) among all names."""
        real = valid_mask(grids, shape).reshape(refined.shape[0], -1, 1)
        low = jnp.min(jnp.where(real, refined, jnp.inf), axis=(1, 2))[:, None]
        best = jnp.max(jnp.where(real, refined, -jnp.inf), axis=1)
        scores, top = best[:, : self.classes], jnp.max(best, axis=1, keepdims=True)
        return scores, scores > low + self.cfg.relative_threshold * (top - low)

    def reidentify(
        self,
        images: Array,
        refined: Array,
        grids: Array,
        shape: tuple[int, int],
        scores: Array,
        candidates: Array,
    ) -> Array:
        """Scores (b, c), those of `candidates` (b, c) mixed with a second look (section 6).

        `images` (b, h, w, 3) are the normalised network input, `refined` (b, n, names) patch
        scores. Crops of all images share batches; as many batches run as candidates need.
        """
        b, classes = scores.shape
        size = min(self.cfg.crops_at_once, b * classes)
        maps = _maps(refined[..., :classes], shape)
        objects = min_max_normalize(maps, valid_mask(grids, shape), epsilon=0.0) > 0.5
        boxes = bounding_box(objects)  # (b, c, 4)
        ends = jnp.minimum(boxes[..., 2:], grids[:, None] - 1)
        boxes = jnp.concatenate([boxes[..., :2], ends], axis=-1)
        empty = candidates & jnp.any(boxes[..., :2] >= boxes[..., 2:], axis=-1)
        if not self.cfg.skip_empty_boxes:
            empty = jnp.cumsum(empty, axis=1) > 0
        wanted = (candidates & ~empty).ravel()
        order = jnp.argsort(~wanted, stable=True)  # the wanted ones first
        order = jnp.pad(order, (0, -len(order) % size))
        count = jnp.sum(wanted)

        def look(state: tuple[Array, Array]) -> tuple[Array, Array]:
            start, found = state
            pairs = jax.lax.dynamic_slice(order, (start,), (size,))
            image, name = pairs // classes, pairs % classes
            p = self._second_look(images[image], objects[image, name], boxes[image, name])
            p = jnp.take_along_axis(p, name[:, None], axis=1)[:, 0]
            # What only fills the batch writes outside, that is nowhere.
            target = jnp.where(start + jnp.arange(size) < count, pairs, b * classes)
            return start + size, found.at[target].set(p, mode="drop")

        start = jnp.zeros((), jnp.int32)
        _, found = jax.lax.while_loop(
            lambda state: state[0] < count, look, (start, jnp.zeros(b * classes, jnp.float32))
        )
        mix = self.cfg.mix
        mixed = (1 - mix) * scores + mix * found.reshape(b, classes)
        return jnp.where(wanted.reshape(b, classes), mixed, scores)

    def _second_look(self, images: Array, objects: Array, boxes: Array) -> Array:
        """Probabilities (m, names) of crops, whose class token sees only object cells.

        Normalised images (m, h, w, 3), object masks (m, hp, wp) and boxes (m, 4) in patches.
        """
        cfg = self.visual.cfg
        side, patch = cfg.grid, cfg.patch_px

        def cut(image: Array, mask: Array, box: Array) -> tuple[Array, Array]:
            start, extent = box[:2], box[2:] - box[:2]
            rows, columns = (
                jnp.roll(
                    resize_matrix(
                        extent[axis] * patch,
                        cfg.image_px,
                        in_length=image.shape[axis],
                        out_length=cfg.image_px,
                    ),
                    start[axis] * patch,
                    axis=1,
                )
                for axis in (0, 1)
            )
            crop = jnp.einsum("yh,hwc,xw->yxc", rows, image, columns, precision="highest")
            y, x = (start[axis] + jnp.arange(side) * extent[axis] // side for axis in (0, 1))
            return crop, mask[y[:, None], x[None]]

        crops, seen = jax.vmap(cut)(images, objects, boxes)
        hidden = jnp.where(seen.reshape(len(images), -1), 0.0, _HIDDEN)
        hidden = jnp.pad(hidden, ((0, 0), (1, 0)))  # the class token sees itself
        tokens = jnp.arange(hidden.shape[1])
        bias = jnp.where(tokens[:, None] == 0, hidden[:, None], 0.0)  # (m, t, t)
        x, _ = self.visual.embed(crops)
        x, _ = self.visual.transformer(x, bias)
        return jax.nn.softmax(self._logits(l2_normalize(self.visual.pool(x).astype(jnp.float32))))


def _maps(scores: Array, shape: tuple[int, int]) -> Array:
    """Patch scores (b, n, k) as maps (b, k, hp, wp)."""
    return scores.swapaxes(1, 2).reshape(scores.shape[0], -1, *shape)


def choose(scores: Array, relative_threshold: float) -> Array:
    """Tags (b, c) bool: scores above a share of each image's range; the best one if there is none.

    Spec tagclip, section 7.
    """
    low = jnp.min(scores, axis=1, keepdims=True)
    top = jnp.max(scores, axis=1, keepdims=True)
    above = scores > low + relative_threshold * (top - low)
    best = jnp.arange(scores.shape[1]) == jnp.argmax(scores, axis=1, keepdims=True)
    return jnp.where(jnp.any(above, axis=1, keepdims=True), above, best)
