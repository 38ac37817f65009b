"""CLIP-ES: class activation maps of a frozen CLIP from image-level labels.

Source: Lin et al., "CLIP is Also an Efficient Segmenter", 2023; spec clip_es, sections 4 to 7.

Softmax Grad-CAM at the first norm of the last block (softmax-GradCAM), for all classes of an image
at once, refined by class-aware attention-based affinity (CAA).
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
from clipseg_jax.models.clip.last_block import after_attention
from clipseg_jax.ops.affinity import patch_affinity, propagate, sinkhorn_normalize
from clipseg_jax.ops.cam import activation_maps, box_masks, min_max_normalize, upsample
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize, valid_mask

_ABSENT = -1e30  # logit of a class that an image does not have: its probability is exactly 0


@dataclasses.dataclass(frozen=True)
class CLIPESConfig:
    """Parameters; the defaults are published for VOC (spec clip_es, section 11)."""

    box_threshold: float = 0.4  # relative to the maximum of a CAM
    # Blocks whose attention maps are averaged to the affinity.
    affinity_blocks: tuple[int, ...] = (4, 5, 6, 7, 8, 9, 10, 11)
    sinkhorn_iterations: int = 3  # iterations of the Sinkhorn normalisation
    propagation_steps: int = 2  # power of the affinity that is applied to the CAMs
    cover_border: bool = False  # whether boxes may have the last row and column of patches
    temperature: float = 100.0  # exp(logit_scale) of all released CLIPs

    def __post_init__(self) -> None:
        check_number("box_threshold", self.box_threshold, 0, 1)
        check_number("temperature", self.temperature, 0, above=True)
        for name in ("sinkhorn_iterations", "propagation_steps"):
            check_whole(name, getattr(self, name), least=0)
        check_blocks("affinity_blocks", self.affinity_blocks)


class Encoding(NamedTuple):
    """Results of the blocks before the last one; n patches, t = n + 1 tokens."""

    tokens: Array  # (b, t, d) before the last block
    affinity: Array  # (b, n, n) head-averaged attention, summed over `affinity_blocks` so far
    bias: Array  # (b, 1, t), masks padding
    grids: Array  # (b, 2) rows and columns of real patches


class GradCAM(NamedTuple):
    """Softmax Grad-CAM of k classes of each image (section 5)."""

    raw: Array  # (b, k, hp, wp) weighted sums of activations, before the ReLU
    weights: Array  # (b, k, d) mean over patches of the gradient of each class's probability
    probabilities: Array  # (b, k + backgrounds)
    affinity: Array  # (b, n, n) head-averaged attention, mean over `affinity_blocks`


class CAMs(NamedTuple):
    """Class activation maps of patches, (b, k, hp, wp); 0 for padded classes and cells."""

    cam: Array  # Grad-CAM in [0, 1]
    boxes: Array  # bool, the boxes around its high parts
    refined: Array  # CAMs within their boxes, propagated by the affinity; not normalised


class CLIPES(nnx.Module):
    """A frozen ViT with text embeddings of classes and of background words.

    The config of the ViT must have `position_resize="bilinear"`; with `position_half` positions are
    rounded as in the published code. Batches are padded: `sizes` (b, 2) are the heights and widths
    of images, multiples of the patch size. `classes` (b, k) are class ids, padded where `real`
    (b, k) is False. Padding has no influence on results.
    """

    def __init__(
        self,
        visual: VisionTransformer,
        class_embeddings: ArrayLike,
        background_embeddings: ArrayLike,
        cfg: CLIPESConfig | None = None,
    ):
        """Text embeddings (c, e) and (backgrounds, e); `cfg` None: the defaults.

        Raises:
          ValueError: the text embeddings are of another CLIP, or `affinity_blocks` is empty or has
            a block that the tower does not have.
        """
        self.cfg = cfg = cfg or CLIPESConfig()
        self.visual = visual
        self.class_embeddings, self.background_embeddings = (
            nnx.Param(l2_normalize(as_text_embeddings(embeddings, visual)))
            for embeddings in (class_embeddings, background_embeddings)
        )
        blocks = range(visual.cfg.layers)
        if not cfg.affinity_blocks or not set(cfg.affinity_blocks) <= set(blocks):
            raise ValueError(
                f"affinity_blocks {cfg.affinity_blocks} of a tower of {len(blocks)} blocks; choose "
                f"one or more of 0..{len(blocks) - 1}"
            )

    def __call__(self, images: Array, sizes: Array, classes: Array, real: Array) -> CAMs:
        """CAMs of uint8 RGB images (b, h, w, 3), resized to multiples of the patch size."""
        encoding = self.encode(normalize(images, CLIP_MEAN, CLIP_STD), sizes)
        shape = self.visual.grid_shape(images.shape[1], images.shape[2])
        grad_cam = self.activate(encoding, classes, real, shape)
        return self.refine(grad_cam, encoding.grids, real)

    def encode(self, images: Array, sizes: Array) -> Encoding:
        """Runs all blocks but the last on normalised images (b, h, w, 3)."""
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
    ) -> GradCAM:
        """Softmax Grad-CAM of all classes on the patch grid `shape` (section 5).

        The last block runs forward once. The mean over patches of the gradient is the gradient with
        respect to one shift added to all patches, of (b, d) instead of (b, t, d) numbers.
        """
        block = self.visual.transformer.resblocks[-1]
        x = encoding.tokens
        patches = valid_mask(encoding.grids, shape).reshape(x.shape[0], -1)
        pooled = jnp.pad(patches, ((0, 0), (1, 0))).astype(jnp.float32)[..., None]  # no class token
        count = jnp.sum(pooled, axis=1)
        u = block.ln_1(x)
        projected = block.attn.in_proj(u)
        kernel = block.attn.in_proj.kernel[...]
        dtype = projected.dtype  # which a sum with float32 would not keep

        def probabilities(shift: Array) -> tuple[Array, Array]:
            moved = (shift @ kernel).astype(dtype)
            shifted = projected + pooled.astype(dtype) * moved[:, None]
            q, k, v = jnp.split(shifted, 3, axis=-1)
            mixed, attention = block.attn.mix_and_map(q, k, v, encoding.bias)
            z = after_attention(self.visual, x + mixed)
            feature = jnp.sum(z * pooled, axis=1) / count @ self.visual.proj[...]
            return jax.nn.softmax(self._logits(feature, classes, real), axis=-1), attention

        shift = jnp.zeros((x.shape[0], x.shape[2]), jnp.float32)
        p, pullback, attention = jax.vjp(probabilities, shift, has_aux=True)

        def gradient(i: Array) -> Array:
            cotangent = jnp.broadcast_to(jnp.arange(p.shape[1]) == i, p.shape).astype(p.dtype)
            return pullback(cotangent)[0] / count

        def gradient_or_zero(i: Array) -> Array:  # skips i where no image has an i-th class
            return jax.lax.cond(
                jnp.any(real[:, i]), gradient, lambda _: jnp.zeros(shift.shape, jnp.float32), i
            )

        weights = jax.lax.map(gradient_or_zero, jnp.arange(classes.shape[1])).swapaxes(
            0, 1
        )  # (b, k, d)
        raw = jnp.einsum("bkd,bnd->bkn", weights, u[:, 1:].astype(jnp.float32), precision="highest")
        raw = jnp.where(real[..., None] & patches[:, None], raw, 0.0)
        affinity = encoding.affinity
        if self.visual.cfg.layers - 1 in self.cfg.affinity_blocks:
            affinity = affinity + patch_affinity(attention, patches)
        affinity = affinity / len(self.cfg.affinity_blocks)
        return GradCAM(raw.reshape(*classes.shape, *shape), weights, p, affinity)

    def _logits(self, feature: Array, classes: Array, real: Array) -> Array:
        """Logits (b, k + backgrounds) of image features (b, e); -1e30 for absent classes."""
        embeddings = self.class_embeddings[...][classes]  # (b, k, e)
        feature = l2_normalize(feature.astype(jnp.float32))
        present = jnp.einsum("be,bke->bk", feature, embeddings)
        present = jnp.where(real, self.cfg.temperature * present, _ABSENT)
        background = self.cfg.temperature * feature @ self.background_embeddings[...].T
        return jnp.concatenate([present, background], axis=1)

    def refine(self, grad_cam: GradCAM, grids: Array, real: Array) -> CAMs:
        """CAMs refined by class-aware attention-based affinity (section 6)."""
        cells = valid_mask(grids, (grad_cam.raw.shape[2], grad_cam.raw.shape[3]))
        cam = activation_maps(grad_cam.raw, cells)
        return self.propagate(cam, grad_cam.affinity, grids)

    def propagate(self, cam: Array, affinity: Array, grids: Array) -> CAMs:
        """Masks CAMs (b, k, hp, wp) in [0, 1] by their boxes; propagates by affinity (b, n, n)."""
        b, k, hp, wp = cam.shape
        cells = valid_mask(grids, (hp, wp))
        boxes = box_masks(cam, grids, self.cfg.box_threshold, cover_border=self.cfg.cover_border)
        affinity = sinkhorn_normalize(affinity, self.cfg.sinkhorn_iterations)
        inside_boxes = jnp.where(boxes, cam, 0.0).reshape(b, k, -1)
        refined = propagate(affinity, inside_boxes, self.cfg.propagation_steps).reshape(cam.shape)
        return CAMs(cam, boxes, jnp.where(cells[:, None], refined, 0.0))


def saved_maps(refined: Array, grids: Array, sizes: Array, shape: tuple[int, int]) -> Array:
    """Refined CAMs (b, k, hp, wp) -> published CAM files' maps (b, k, *shape) float16 in [0, 1].

    Spec clip_es, sections 6 and 7. Maps are min-max normalised on the real patches, `grids` (b, 2),
    and upsampled to the images' `sizes` (b, 2) in pixels within the static `shape`.
    """
    cells = valid_mask(grids, (refined.shape[2], refined.shape[3]))
    return upsample(min_max_normalize(refined, cells), grids, sizes, shape).astype(jnp.float16)
