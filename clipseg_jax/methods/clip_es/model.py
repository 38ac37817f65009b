"""CLIP-ES: class activation maps of a frozen CLIP from image-level labels.

Source: Lin et al., "CLIP is Also an Efficient Segmenter", 2023; spec clip_es, sections 4 to 7.

Softmax Grad-CAM at the last block's first norm, for all classes of an image at once, then refined
with the class-aware attention-based affinity.
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
from clipseg_jax.models.clip.dense import after_attention
from clipseg_jax.ops.affinity import patch_affinity, propagate, sinkhorn_normalize
from clipseg_jax.ops.cam import activation_maps, box_masks, min_max_normalize, upsample
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize, valid_mask

_ABSENT = -1e30  # logit of a class that an image doesn't have: its probability is exactly 0


@dataclasses.dataclass(frozen=True)
class CLIPESConfig:
    """What differs between datasets, and the published constants (spec clip_es, section 11)."""

    box_threshold: float = 0.4  # of a CAM's maximum
    # Blocks whose attention makes the affinity: the last 8.
    affinity_blocks: tuple[int, ...] = (4, 5, 6, 7, 8, 9, 10, 11)
    sinkhorn_iterations: int = 3
    propagation_steps: int = 2  # 2: the affinity squared
    cover_border: bool = False  # True: boxes may reach the last row and column of patches
    temperature: float = 100.0  # exp(logit_scale) of all released CLIPs


VOC = CLIPESConfig()


class Encoding(NamedTuple):
    """What CLIP-ES takes from the blocks before the last."""

    tokens: Array  # (b, t, d) going into the last block
    affinity: Array  # (b, n, n) summed over the chosen blocks so far, head-averaged
    bias: Array  # (b, 1, t) that masks padding
    grids: Array  # (b, 2) real patches


class Activation(NamedTuple):
    """Grad-CAM of the last block, for k classes of each image."""

    raw: Array  # (b, k, hp, wp) weighted sums of activations, before the positive part
    weights: Array  # (b, k, d) mean gradient of each class's probability
    probabilities: Array  # (b, k + backgrounds)
    affinity: Array  # (b, n, n) mean over the chosen blocks


class CAMs(NamedTuple):
    """Class activation maps of patches, (b, k, hp, wp); 0 for padded classes and cells."""

    cam: Array  # Grad-CAM in [0, 1]
    boxes: Array  # bool, the boxes around its high parts
    refined: Array  # what lies in the boxes, spread by affinity; of any scale


class CLIPES(nnx.Module):
    """A frozen ViT with text rows of classes and of background words.

    The ViT's config has `position_resize="bilinear"`; `position_half` adds the published rounding
    of positions. All methods take padded batches: `sizes` (b, 2) are the real pixels, multiples of
    the patch. `classes` (b, k) are ids, of which `real` (b, k) count; padding has no influence.
    """

    def __init__(
        self,
        visual: VisionTransformer,
        class_rows: ArrayLike,
        background_rows: ArrayLike,
        cfg: CLIPESConfig = VOC,
    ):
        """Text rows (c, e) and (backgrounds, e).

        Raises:
          ValueError: text rows of another CLIP, or blocks that the tower doesn't have.
        """
        for rows in (class_rows, background_rows):
            if jnp.ndim(rows) != 2 or jnp.shape(rows)[1] != visual.cfg.embed_dim:
                raise ValueError(
                    f"text rows of shape {jnp.shape(rows)} for a tower with "
                    f"{visual.cfg.embed_dim} features; make them with the same CLIP"
                )
        wrong = [i for i in cfg.affinity_blocks if not 0 <= i < visual.cfg.layers]
        if wrong or not cfg.affinity_blocks:
            raise ValueError(
                f"affinity_blocks {cfg.affinity_blocks} of a tower with blocks 0 to "
                f"{visual.cfg.layers - 1}; choose among those"
            )
        self.cfg = cfg
        self.visual = visual
        self.class_rows = nnx.Param(l2_normalize(jnp.asarray(class_rows, jnp.float32)))
        self.background_rows = nnx.Param(l2_normalize(jnp.asarray(background_rows, jnp.float32)))

    def __call__(self, images: Array, sizes: Array, classes: Array, real: Array) -> CAMs:
        """CAMs of uint8 RGB images (b, h, w, 3) that were resized to whole patches."""
        encoding = self.encode(normalize(images, CLIP_MEAN, CLIP_STD), sizes)
        shape = self.visual.grid_shape(images.shape[1], images.shape[2])
        found = self.activate(encoding, classes, real, shape)
        return self.refine(found, encoding.grids, real)

    def encode(self, images: Array, sizes: Array) -> Encoding:
        """Everything before the last block, of normalised images (b, h, w, 3)."""
        last = self.visual.cfg.layers - 1
        maps = [f"map{i}" for i in self.cfg.affinity_blocks if i != last]
        x, bias = self.visual.embed(images, sizes)
        assert bias is not None
        x, out = self.visual.transformer(x, bias, stop=-1, read=maps)
        grids = self.visual.grid_sizes(sizes)
        real = valid_mask(grids, self.visual.grid_shape(*images.shape[1:3])).reshape(
            len(images), -1
        )
        n = x.shape[1] - 1
        affinity = jnp.zeros((len(images), n, n), jnp.float32)
        for name in maps:
            affinity = affinity + patch_affinity(out[name], real)
        return Encoding(x, affinity, bias, grids)

    def activate(
        self, encoding: Encoding, classes: Array, real: Array, shape: tuple[int, int]
    ) -> Activation:
        """Softmax Grad-CAM of every class of every image on the patch grid `shape` (section 5).

        The last block runs forward once. The mean gradient over patches is the gradient of one
        shift common to all patches: only (b, d) numbers come back for a class, not (b, t, d).
        """
        block = self.visual.transformer.resblocks[-1]
        x = encoding.tokens
        patches = valid_mask(encoding.grids, shape).reshape(x.shape[0], -1)
        pooled = jnp.pad(patches, ((0, 0), (1, 0))).astype(jnp.float32)[..., None]  # no class token
        count = jnp.sum(pooled, axis=1)
        u = block.ln_1(x)
        projected = block.attn.in_proj(u)
        kernel = block.attn.in_proj.kernel[...]

        def probabilities(shift: Array) -> tuple[Array, Array]:
            moved = projected + pooled * (shift @ kernel)[:, None]
            q, k, v = jnp.split(moved, 3, axis=-1)
            mixed, attention = block.attn.mix_and_map(q, k, v, encoding.bias)
            z = after_attention(self.visual, x + mixed)
            feature = jnp.sum(z * pooled, axis=1) / count @ self.visual.proj[...]
            return jax.nn.softmax(self._logits(feature, classes, real), axis=-1), attention

        shift = jnp.zeros((x.shape[0], x.shape[2]), projected.dtype)
        p, pullback, attention = jax.vjp(probabilities, shift, has_aux=True)

        def gradient(i: Array) -> Array:
            cotangent = jnp.broadcast_to(jnp.arange(p.shape[1]) == i, p.shape).astype(p.dtype)
            return pullback(cotangent)[0].astype(jnp.float32) / count

        def one(i: Array) -> Array:  # nothing to do where no image has an i-th class
            return jax.lax.cond(
                jnp.any(real[:, i]), gradient, lambda _: jnp.zeros(shift.shape, jnp.float32), i
            )

        weights = jax.lax.map(one, jnp.arange(classes.shape[1])).swapaxes(0, 1)  # (b, k, d)
        raw = jnp.einsum("bkd,bnd->bkn", weights, u[:, 1:].astype(jnp.float32), precision="highest")
        raw = jnp.where(real[..., None] & patches[:, None], raw, 0.0)
        affinity = encoding.affinity
        if self.visual.cfg.layers - 1 in self.cfg.affinity_blocks:
            affinity = affinity + patch_affinity(attention, patches)
        affinity = affinity / len(self.cfg.affinity_blocks)
        return Activation(raw.reshape(*classes.shape, *shape), weights, p, affinity)

    def _logits(self, feature: Array, classes: Array, real: Array) -> Array:
        """Logits (b, k + backgrounds) of image features (b, e); absent classes have no share."""
        own = self.class_rows[...][classes]  # (b, k, e)
        feature = l2_normalize(feature.astype(jnp.float32))
        present = jnp.einsum("be,bke->bk", feature, own)
        present = jnp.where(real, self.cfg.temperature * present, _ABSENT)
        background = self.cfg.temperature * feature @ self.background_rows[...].T
        return jnp.concatenate([present, background], axis=1)

    def refine(self, found: Activation, grids: Array, real: Array) -> CAMs:
        """Class-aware attention-based affinity (section 6)."""
        cells = valid_mask(grids, (found.raw.shape[2], found.raw.shape[3]))
        cam = activation_maps(found.raw, cells)
        return self.propagate(cam, found.affinity, grids)

    def propagate(self, cam: Array, affinity: Array, grids: Array) -> CAMs:
        """CAMs (b, k, hp, wp) in [0, 1], cut to boxes and spread by an affinity (b, n, n)."""
        b, k, hp, wp = cam.shape
        cells = valid_mask(grids, (hp, wp))
        boxes = box_masks(cam, grids, self.cfg.box_threshold, cover_border=self.cfg.cover_border)
        affinity = sinkhorn_normalize(affinity, self.cfg.sinkhorn_iterations)
        inside_boxes = jnp.where(boxes, cam, 0.0).reshape(b, k, -1)
        refined = propagate(affinity, inside_boxes, self.cfg.propagation_steps).reshape(cam.shape)
        return CAMs(cam, boxes, jnp.where(cells[:, None], refined, 0.0))


def saved_maps(refined: Array, grids: Array, sizes: Array, shape: tuple[int, int]) -> Array:
    """Refined CAMs (b, k, hp, wp) -> what is saved: (b, k, *shape) float16 (sections 6 and 7).

    Scaled to [0, 1] on the real `grids` (b, 2), then enlarged to the images' own real `sizes`
    (b, 2) within the static `shape`.
    """
    cells = valid_mask(grids, (refined.shape[2], refined.shape[3]))
    return upsample(min_max_normalize(refined, cells), grids, sizes, shape).astype(jnp.float16)
