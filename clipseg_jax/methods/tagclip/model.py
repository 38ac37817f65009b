"""TagCLIP: multi-label classification of images by a frozen CLIP without training.

Source: Lin et al., "TagCLIP: A Local-to-Global Framework to Enhance Open-Vocabulary Multi-Label
Classification of CLIP Without Training", 2024; spec tagclip, sections 4 to 7.

Patches are classified by the value read-out of the last block, and their scores are refined by the
attention of all blocks (dual-masking attention refinement). Candidate classes are then classified
again in crops around their objects (class-wise reidentification).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.core.checks import check_blocks, check_number, check_whole
from clipseg_jax.models.clip import VisionTransformer, as_text_embeddings, l2_normalize
from clipseg_jax.models.clip.last_block import last_block
from clipseg_jax.models.clip.read_outs import VALUE
from clipseg_jax.ops.affinity import patch_affinity
from clipseg_jax.ops.cam import box_masks, min_max_normalize
from clipseg_jax.ops.components import bounding_box
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize, valid_mask
from clipseg_jax.ops.resize import resize_matrix

_MASKED = -1000.0  # added to the class token's attention scores of patches outside the object


@dataclasses.dataclass(frozen=True)
class TagCLIPConfig:
    """Parameters; the defaults are published for VOC and COCO (spec tagclip, section 9)."""

    affinity_blocks: tuple[int, ...] = (8, 9, 10)  # blocks whose attention maps are averaged
    # Of candidates for reidentification and of tags: min + threshold * (max - min) of the scores.
    relative_threshold: float = 0.5
    votes: int = 4  # blocks whose attention of a pair of patches must exceed the block's mean
    mix: float = 0.5  # weight of the reidentification's score
    # False, as published: after a candidate with an empty box no further candidate of the image is
    # reidentified. True: only candidates with an empty box are not.
    skip_empty_boxes: bool = False
    crops_at_once: int = 8  # batch size of the reidentification
    temperature: float = 100.0  # exp(logit_scale) of all released CLIPs

    def __post_init__(self) -> None:
        for name in ("relative_threshold", "mix"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("temperature", self.temperature, 0, above=True)
        check_whole("votes", self.votes, 0)  # 0: every pair keeps its weight
        check_whole("crops_at_once", self.crops_at_once)
        check_blocks("affinity_blocks", self.affinity_blocks)


class Local(NamedTuple):
    """Patch scores of a grid of n = hp * wp patches for all k classes and background words."""

    features: Array  # (b, 1 + n, e) unit vectors
    affinity: Array  # (b, n, n) mean attention, 0 for pairs with too few votes
    coarse: Array  # (b, n, k) probabilities of patches
    propagated: Array  # (b, n, k) coarse scores propagated by the affinity
    refined: Array  # (b, n, k) coarse scores within each class's boxes, propagated
    grids: Array  # (b, 2) rows and columns of real patches


class Tags(NamedTuple):
    """Scores and tags (b, c) of images for the dataset's classes."""

    scores: Array  # float32
    chosen: Array  # bool, the tags


class TagCLIP(nnx.Module):
    """A frozen ViT with text embeddings of the dataset's classes, then of background words.

    The config of the ViT must have `position_resize="bilinear"`. Batches are padded: `sizes` (b, 2)
    are the heights and widths of images, multiples of the patch size. Padding has no influence.
    """

    def __init__(
        self,
        visual: VisionTransformer,
        class_embeddings: ArrayLike,
        background_embeddings: ArrayLike | None = None,
        cfg: TagCLIPConfig | None = None,
    ):
        """Text embeddings (c, e) and (backgrounds, e) or None; `cfg` None: the defaults.

        Raises:
          ValueError: the text embeddings are of another CLIP, or `affinity_blocks` is empty or has
            a block that the tower does not have.
        """
        self.cfg = cfg = cfg or TagCLIPConfig()
        embeddings = [as_text_embeddings(class_embeddings, visual)]
        if background_embeddings is not None:
            embeddings.append(as_text_embeddings(background_embeddings, visual))
        blocks = range(visual.cfg.layers)
        if not cfg.affinity_blocks or not set(cfg.affinity_blocks) <= set(blocks):
            raise ValueError(
                f"affinity_blocks {cfg.affinity_blocks} of a tower of {len(blocks)} blocks; choose "
                f"one or more of 0..{len(blocks) - 1}"
            )
        self.classes = len(embeddings[0])
        self.visual = visual
        self.text_embeddings = nnx.Param(l2_normalize(jnp.concatenate(embeddings)))

    def __call__(self, images: Array, sizes: Array, real: Array | None = None) -> Tags:
        """Tags of uint8 RGB images (b, h, w, 3), resized to multiples of the patch size.

        `real` (b,) bool is False for images that only fill up the batch and are not reidentified.
        """
        pixels = normalize(images, CLIP_MEAN, CLIP_STD)
        shape = self.visual.grid_shape(images.shape[1], images.shape[2])
        local = self.local(pixels, sizes)
        scores, candidates = self.candidates(local.refined, local.grids, shape)
        if real is not None:
            candidates &= real[:, None]
        scores = self.reidentify(pixels, local.refined, local.grids, shape, scores, candidates)
        return Tags(scores, choose_tags(scores, self.cfg.relative_threshold))

    def local(self, images: Array, sizes: Array) -> Local:
        """Patch scores of normalised images (b, h, w, 3) (section 5)."""
        visual = self.visual
        layers = visual.cfg.layers
        shape = visual.grid_shape(images.shape[1], images.shape[2])
        x, bias = visual.embed(images, sizes)
        assert bias is not None
        x, out = visual.transformer(x, bias, stop=-1, read=[f"map{i}" for i in range(layers - 1)])
        # The last block has the value read-out; its votes are of its regular attention.
        last = last_block(visual, x, VALUE)
        attn = visual.transformer.resblocks[-1].attn
        out[f"map{layers - 1}"] = attn.mix_and_map(last.queries, last.keys, last.values, bias)[1]
        features = l2_normalize((last.tokens @ visual.proj[...]).astype(jnp.float32))

        grids = visual.grid_sizes(sizes)
        cells = valid_mask(grids, shape)
        real = cells.reshape(cells.shape[0], -1)
        affinity = self._affinity([out[f"map{i}"] for i in range(layers)], real)
        coarse = jnp.where(real[..., None], jax.nn.softmax(self._logits(features[:, 1:])), 0.0)
        propagated = jnp.matmul(affinity, coarse, precision="highest")
        maps = min_max_normalize(_maps(propagated, shape), cells, epsilon=0.0)
        count = jnp.sum(real, axis=1)[:, None]
        boxes = box_masks(maps, grids, jnp.sum(maps, axis=(2, 3)) / count)
        boxed = jnp.where(boxes.reshape(*boxes.shape[:2], -1).swapaxes(1, 2), coarse, 0.0)
        refined = jnp.matmul(affinity, boxed, precision="highest")
        return Local(features, affinity, coarse, propagated, refined, grids)

    def _affinity(self, maps: list[Array], real: Array) -> Array:
        """Mean attention of `affinity_blocks` where enough blocks' attention exceeds its mean."""
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
        product = jnp.matmul(features, self.text_embeddings[...].T, precision="highest")
        return self.cfg.temperature * product

    def candidates(
        self, refined: Array, grids: Array, shape: tuple[int, int]
    ) -> tuple[Array, Array]:
        """Scores (b, c) of classes, maxima over patches, and the candidates (b, c) among them."""
        real = valid_mask(grids, shape).reshape(refined.shape[0], -1, 1)
        low = jnp.min(jnp.where(real, refined, jnp.inf), axis=(1, 2))[:, None]
        all_scores = jnp.max(jnp.where(real, refined, -jnp.inf), axis=1)
        scores, high = all_scores[:, : self.classes], jnp.max(all_scores, axis=1, keepdims=True)
        return scores, scores > low + self.cfg.relative_threshold * (high - low)

    def reidentify(
        self,
        images: Array,
        refined: Array,
        grids: Array,
        shape: tuple[int, int],
        scores: Array,
        candidates: Array,
    ) -> Array:
        """Class-wise reidentification: scores (b, c), updated for `candidates` (section 6).

        Crops of all images share batches, of which as many run as there are candidates to fill.

        Args:
          images: (b, h, w, 3) normalised, the input of `local`.
          refined: (b, n, k) patch scores; grids: (b, 2) real patches; shape: of the padded grid.
          scores, candidates: (b, c) from `candidates`.
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
        selected = (candidates & ~empty).ravel()
        order = jnp.argsort(~selected, stable=True)  # selected pairs (image, class) first
        order = jnp.pad(order, (0, -len(order) % size))
        count = jnp.sum(selected)

        def score_crops(state: tuple[Array, Array]) -> tuple[Array, Array]:
            start, crop_scores = state
            pairs = jax.lax.dynamic_slice(order, (start,), (size,))
            image, label = pairs // classes, pairs % classes
            p = self._classify_crops(images[image], objects[image, label], boxes[image, label])
            p = jnp.take_along_axis(p, label[:, None], axis=1)[:, 0]
            # Scores of crops that only fill up the batch get an index that is dropped.
            index = jnp.where(start + jnp.arange(size) < count, pairs, b * classes)
            return start + size, crop_scores.at[index].set(p, mode="drop")

        start = jnp.zeros((), jnp.int32)
        _, crop_scores = jax.lax.while_loop(
            lambda state: state[0] < count,
            score_crops,
            (start, jnp.zeros(b * classes, jnp.float32)),
        )
        mix = self.cfg.mix
        mixed = (1 - mix) * scores + mix * crop_scores.reshape(b, classes)
        return jnp.where(selected.reshape(b, classes), mixed, scores)

    def _classify_crops(self, images: Array, objects: Array, boxes: Array) -> Array:
        """Probabilities (m, k) of crops, whose class token attends to the object's patches only.

        Args:
          images: (m, h, w, 3) normalised; objects: (m, hp, wp) bool, patches of the object.
          boxes: (m, 4) = (top, left, bottom, right) in patches.
        """
        cfg = self.visual.cfg
        side, patch = cfg.grid, cfg.patch_px

        def crop(image: Array, mask: Array, box: Array) -> tuple[Array, Array]:
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
            resized = jnp.einsum("yh,hwc,xw->yxc", rows, image, columns, precision="highest")
            y, x = (start[axis] + jnp.arange(side) * extent[axis] // side for axis in (0, 1))
            return resized, mask[y[:, None], x[None]]

        crops, in_object = jax.vmap(crop)(images, objects, boxes)
        class_bias = jnp.where(in_object.reshape(len(images), -1), 0.0, _MASKED)
        class_bias = jnp.pad(class_bias, ((0, 0), (1, 0)))  # the class token attends to itself
        tokens = jnp.arange(class_bias.shape[1])
        bias = jnp.where(tokens[:, None] == 0, class_bias[:, None], 0.0)  # (m, t, t)
        x, _ = self.visual.embed(crops)
        x, _ = self.visual.transformer(x, bias)
        return jax.nn.softmax(self._logits(l2_normalize(self.visual.pool(x).astype(jnp.float32))))


def _maps(scores: Array, shape: tuple[int, int]) -> Array:
    """Patch scores (b, n, k) as maps (b, k, hp, wp)."""
    return scores.swapaxes(1, 2).reshape(scores.shape[0], -1, *shape)


def choose_tags(scores: Array, relative_threshold: float) -> Array:
    """Tags (b, c) bool: scores above min + threshold * (max - min) of each image.

    The best class where no score is. Spec tagclip, section 7.
    """
    low = jnp.min(scores, axis=1, keepdims=True)
    high = jnp.max(scores, axis=1, keepdims=True)
    above = scores > low + relative_threshold * (high - low)
    best = jnp.arange(scores.shape[1]) == jnp.argmax(scores, axis=1, keepdims=True)
    return jnp.where(jnp.any(above, axis=1, keepdims=True), above, best)
