"""Distillation of a rectified CLIP to a convolutional student. Spec reclip, section 15."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.methods.reclip.heads import BiasDecoder, PositionNet, cosines
from clipseg_jax.methods.reclip.model import FixedReference, ReCLIP
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.ops.image import mask_padding, valid_mask
from clipseg_jax.ops.resize import resize, resize_within


class TeacherOutputs(NamedTuple):
    """Outputs of the teacher on its grid."""

    features: Array  # (b, hp, wp, e), not normalised
    query: Array  # (b, hp, wp, c), cosines of CLIP's features and class texts
    logits: Array  # (b, hp, wp, c) rectified


class Distillation(nnx.Module):
    """The trained `student` and the frozen `teacher`, whose text embeddings and head it shares."""

    def __init__(self, student: DeepLab, teacher: ReCLIP):
        """`teacher` from `frozen_reference`: its reference is constant here.

        Raises:
          ValueError: the teacher's reference is not precomputed, or the student's features and the
            text embeddings differ in width.
        """
        if not isinstance(teacher.reference, FixedReference):
            raise ValueError(
                "the teacher's reference is not precomputed; pass frozen_reference(teacher)"
            )
        embed_dim = teacher.text_embeddings.shape[-1]
        features = student.aspp[0].conv.out_features
        if features != embed_dim:
            raise ValueError(
                f"a student with {features} features for text embeddings of width {embed_dim}; "
                f"make a student with {embed_dim} features"
            )
        self.student = student
        self.teacher = teacher
        self.logit_scale = nnx.Param(jnp.asarray(math.log(100.0), jnp.float32))

    def teach(self, images: Array, *, train: bool) -> TeacherOutputs:
        """Outputs of the teacher for normalised images (b, h, w, 3), stop-gradiented.

        `train`: whether the teacher's batch norms use and update the statistics of this batch, as
        published, instead of the running statistics.
        """
        teacher, head = self.teacher, self.teacher.head
        raw, real = teacher.raw_features(images)
        frozen = teacher.from_raw_features(raw, real)
        reference = teacher.reference()
        if isinstance(head, PositionNet):
            # The published code repeats the positions for each image, which affects the unbiased
            # variance only.
            positional = head.positional(
                frozen.positions, train=train, stats_over="batch", num_copies=images.shape[0]
            )
            logits = frozen.query - (cosines(frozen.features, reference) + positional)
        else:
            rectified = frozen.query - head.bias(frozen.positions, reference)
            logits = head.decode(frozen.features, rectified, train=train, stats_over="batch")
        return TeacherOutputs(*jax.lax.stop_gradient((raw, frozen.query, logits)))

    def classify(
        self,
        features: Array,
        shape: tuple[int, int],
        sizes: Array | None = None,
        *,
        train: bool,
    ) -> Array:
        """Student features (b, gh, gw, e) -> logits (b, gh, gw, c).

        Args:
          shape: (height, width) of the padded images.
          sizes: (b, 2) heights and widths of images in a padded batch; logits are 0 in the padding.
            None: no image is padded.
          train: whether the batch norm of ReCLIP++'s head, shared with the teacher, uses and
            updates the statistics of this batch.
        """
        teacher, head = self.teacher, self.teacher.head
        text, reference = teacher.text_embeddings[...], teacher.reference()
        features = _l2_normalize_or_zero(features)
        grid = (features.shape[1], features.shape[2])
        grids = None if sizes is None else self.student.grid_sizes(sizes)
        if not isinstance(head, BiasDecoder):
            return mask_padding(cosines(features, text - reference), grids)
        rectified = cosines(features, text) - self._bias(head, shape, grid, sizes)
        real = None if grids is None else valid_mask(grids, grid)
        logits = head.decode(features, rectified, train=train, stats_over="batch", real=real)
        return mask_padding(logits, grids)

    def _bias(
        self, head: BiasDecoder, shape: tuple[int, int], grid: tuple[int, int], sizes: Array | None
    ) -> Array:
        """Bias logits (1 or b, *grid, c) on the student's grid.

        The published code resizes the projected positions, then multiplies by the reference. Both
        are linear; the order here is equivalent and resizes c instead of e channels.
        """
        visual = self.teacher.visual
        patches = visual.grid_shape(*shape)
        patch_grids = None if sizes is None else visual.grid_sizes(sizes)
        positions = visual.positions(patches, patch_grids)[:, 1:]
        positions = positions.reshape(positions.shape[0], *patches, -1)
        bias = head.bias(positions, self.teacher.reference())
        if sizes is None or patch_grids is None:
            return resize(bias, grid)
        return resize_within(bias, patch_grids, self.student.grid_sizes(sizes), grid)

    def __call__(self, images: Array, sizes: Array | None = None) -> Array:
        """Normalised images (b, h, w, 3) -> the student's logits (b, gh, gw, c), for evaluation.

        `sizes` (b, 2): heights and widths of images in a padded batch; logits are 0 in the padding.
        """
        features = self.student(images, sizes, train=False)
        return self.classify(features, (images.shape[1], images.shape[2]), sizes, train=False)


def _l2_normalize_or_zero(x: Array) -> Array:
    """`l2_normalize` with 0 instead of NaN for zero vectors, which occur after a ReLU."""
    is_zero = jnp.all(x == 0, axis=-1, keepdims=True)
    return jnp.where(is_zero, 0, l2_normalize(jnp.where(is_zero, 1, x)))
