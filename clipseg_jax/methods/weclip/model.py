"""WeCLIP and WTCLIP: a decoder on a frozen CLIP, trained on pseudo labels of the same CLIP.

Source: Zhang et al., "Frozen CLIP: A Strong Backbone for Weakly Supervised Semantic Segmentation",
2024; spec weclip, sections 3 to 5; spec wtclip.

Pseudo labels are CLIP-ES's CAMs, propagated by attention maps of the same forward pass. Late in
training the decoder's affinity selects and weights these maps. A background score is added, and
scores are refined by pixel-adaptive refinement (PAR) before the argmax.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.core.checks import check_number, check_whole
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

_CLASSES_AT_ONCE = 4  # classes, with the background, that PAR refines at a time


@dataclasses.dataclass(frozen=True)
class WeCLIPConfig:
    """Parameters of pseudo labels; the defaults are published for VOC (spec weclip, section 11)."""

    box_threshold: float = 0.4  # relative to the maximum of a CAM
    early_blocks: int = 8  # last blocks whose attention is averaged in the early phase
    late_blocks: int = 6  # last blocks of which the late phase selects
    # WTCLIP's edge refinement of CAMs (spec wtclip, section 3). "off" is equivalent to the released
    # code, which detects edges in CAMs cast to integers; "scaled" detects them in 255 * CAM.
    edge: Literal["off", "scaled"] = "off"
    temperature: float = 100.0  # exp(logit_scale) of all released CLIPs
    par: PARConfig = PUBLISHED_PAR

    def __post_init__(self) -> None:
        check_number("box_threshold", self.box_threshold, 0, 1)
        for name in ("early_blocks", "late_blocks"):
            check_whole(name, getattr(self, name))
        check_number("temperature", self.temperature, 0, above=True)


class Features(NamedTuple):
    """Outputs of the frozen blocks before the last one."""

    layers: tuple[Array, ...]  # of each block, patch tokens (b, n, d)
    tokens: Array  # (b, 1 + n, d) before the last block
    maps: tuple[Array, ...]  # (b, n, n) head-averaged attention of the blocks before the last
    bias: Array  # (b, 1, 1 + n), masks padding
    grids: Array  # (b, 2) rows and columns of real patches
    shape: tuple[int, int]  # the padded grid of patches


class Labels(NamedTuple):
    """Pseudo labels and their intermediate results; k is the number of all classes."""

    labels: Array  # (b, h, w) int32: 0 background, or class id + 1
    classes: Array  # (b, k) class ids: those of the image first, ascending
    real: Array  # (b, k) bool, True for the classes of the image
    affinity: Array  # (b, n, n) that propagates the CAMs, before the Sinkhorn normalisation
    cams: CAMs  # (b, k, hp, wp)


class WeCLIP(nnx.Module):
    """CLIP-ES on a frozen image tower (`clip`), and the trained `head`.

    Images are normalised, (b, h, w, 3); `sizes` (b, 2) are heights and widths of images in a padded
    batch. Padding has no influence on predictions. Rows and columns of pixels that do not fill a
    patch are dropped.
    """

    def __init__(
        self,
        visual: VisionTransformer,
        class_embeddings: ArrayLike,
        background_embeddings: ArrayLike,
        head: Head,
        cfg: WeCLIPConfig | None = None,
    ):
        """Text embeddings (c, e) of classes without background, and (backgrounds, e).

        Raises:
          ValueError: the text embeddings are of another CLIP, the head's numbers of classes or
            blocks do not match, or `edge` is unknown.
        """
        cfg = cfg or WeCLIPConfig()
        if cfg.edge not in ("off", "scaled"):
            raise ValueError(f"edge {cfg.edge!r}: choose off or scaled")
        last = visual.cfg.layers - 1
        self.clip = CLIPES(
            visual,
            class_embeddings,
            background_embeddings,
            CLIPESConfig(
                box_threshold=cfg.box_threshold,
                affinity_blocks=(last,),
                temperature=cfg.temperature,
            ),
        )
        classes = self.clip.class_embeddings.shape[0] + 1
        head_classes, blocks = head.decoder.classifier.out_features, len(head.fusion.adapters)
        if (head_classes, blocks) != (classes, last):
            raise ValueError(
                f"a head of {head_classes} classes on {blocks} blocks; expected {classes} classes "
                f"with the background on {last} blocks; make it with weclip.task.initial"
            )
        self.head = head
        self.cfg = cfg

    def encode(self, images: Array, sizes: Array, *, maps: bool = True) -> Features:
        """Runs the frozen blocks before the last; `maps` False omits the maps of pseudo labels."""
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

    def decode(self, features: Features, channel_scale: Array | None = None) -> Decoded:
        """Outputs of the head; `channel_scale`: see `Head`."""
        bias, grids = features.bias[..., 1:], features.grids
        return self.head(
            features.layers, features.shape, bias=bias, grids=grids, channel_scale=channel_scale
        )

    def __call__(self, images: Array, sizes: Array) -> Array:
        """Logits (b, hp, wp, classes), background first; 0 in the padding."""
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
        """Pseudo labels of normalised images (b, h, w, 3), without gradients.

        Spec weclip, section 5.

        Args:
          features, fused: of the same images, from `encode` and `decode`.
          tags: (b, c) bool, the classes of each image; it may have none or all.
          late: () bool, whether the decoder's affinity is used; True in evaluation.
          size: (height, width) of the labels; None: that of the images.
          sizes: (b, 2) heights and widths of labels and images in a padded batch; None: no image is
            padded.
        """
        classes, real = _classes_of(tags)
        fused = jax.lax.stop_gradient(fused)
        grad_cam = self.clip.activate(
            Encoding(features.tokens, jnp.zeros(()), features.bias, features.grids),
            classes,
            real,
            features.shape,
        )
        combined = self.combine((*features.maps, grad_cam.affinity), affinity(fused), late)
        cam = activation_maps(grad_cam.raw, valid_mask(features.grids, features.shape))
        if self.cfg.edge == "scaled":
            cam = add_edges(cam)
        cams = self.clip.propagate(cam, combined, features.grids)
        labels = self.refine(images, cams.refined, features.grids, classes, real, size, sizes)
        return Labels(labels, classes, real, combined, cams)

    def combine(self, maps: tuple[Array, ...], learned: Array, late: ArrayLike) -> Array:
        """Combines maps (b, n, n) of the last blocks and the learned affinity.

        Spec weclip, section 5.4.
        """
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
        """Labels (b, h, w) int32 of propagated CAMs (b, k, hp, wp) (spec weclip, section 5.7).

        Adds the background score, applies PAR and takes the argmax. Classes are refined in groups,
        as many as an image of the batch needs, so that full-size maps of one group are in memory.
        """
        cfg = self.cfg.par
        size = size or (images.shape[1], images.shape[2])
        b, k, hp, wp = refined.shape
        if images.shape[1:3] != size:
            images = resize(images, size, align_corners=True)
        image_sizes = jnp.broadcast_to(jnp.asarray(size), (b, 2)) if sizes is None else sizes
        weights = neighbour_weights(images, cfg, sizes)
        # Index 0 is the background; maps of absent classes and of the last group's padding are 0.
        rest = -(k + 1) % _CLASSES_AT_ONCE
        maps = min_max_normalize(refined, valid_mask(grids, (hp, wp)))
        maps = jnp.pad(maps, ((0, 0), (1, rest), (0, 0), (0, 0)))
        ids = jnp.pad(classes + 1, ((0, 0), (1, rest)))
        present = jnp.pad(real, ((0, 0), (1, 0)), constant_values=True)
        present = jnp.pad(present, ((0, 0), (0, rest)))
        groups = -(-jnp.max(jnp.sum(present, axis=1)) // _CLASSES_AT_ONCE)

        def group(x: Array, i: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, i * _CLASSES_AT_ONCE, _CLASSES_AT_ONCE, axis=1)

        def upsampled(i: Array) -> Array:
            return upsample(group(maps, i), grids, image_sizes, size)

        foreground = jax.lax.fori_loop(
            0,
            groups,
            lambda i, maximum: jnp.maximum(maximum, jnp.max(upsampled(i), axis=1)),
            jnp.zeros((b, *size)),
        )
        is_first = jnp.arange(_CLASSES_AT_ONCE) == 0

        def compare(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
            best_scores, labels = best
            scores = jnp.where(
                (i == 0) & is_first[:, None, None], (1 - foreground)[:, None], upsampled(i)
            )
            scores = diffuse(weights, jnp.moveaxis(scores, 1, 2), cfg, sizes)  # (b, h, k, w)
            scores = jnp.where(group(present, i)[:, None, :, None], scores, -jnp.inf)
            index = jnp.argmax(scores, axis=2)  # the first of equal scores
            group_labels = jnp.take_along_axis(group(ids, i)[:, None], index, axis=2)
            group_scores = jnp.max(scores, axis=2)
            better = group_scores > best_scores
            return (
                jnp.where(better, group_scores, best_scores),
                jnp.where(better, group_labels, labels),
            )

        start = jnp.full((b, *size), -jnp.inf), jnp.zeros((b, *size), jnp.int32)
        return jax.lax.fori_loop(0, groups, compare, start)[1]


def _classes_of(tags: Array) -> tuple[Array, Array]:
    """Tags (b, c) bool -> class ids (b, c), tagged ones first and ascending, and their mask."""
    classes = jnp.argsort(~tags, axis=1, stable=True).astype(jnp.int32)
    return classes, jnp.take_along_axis(tags, classes, axis=1)
