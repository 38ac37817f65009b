"""ReCLIP's distillation: a convolutional student of the rectified CLIP. Spec reclip, section 15."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.methods.reclip.heads import BiasDecoder, PositionNet, cosines
from clipseg_jax.methods.reclip.model import ReCLIP, ReferenceRows
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.ops.image import mask_padding, valid_mask
from clipseg_jax.ops.resize import resize, resize_within


class TeacherOutputs(NamedTuple):
    """What the teacher says of images, on its grid."""

    features: Array  # (b, hp, wp, e), not normalised
    query: Array  # (b, hp, wp, c) cosines of CLIP itself
    logits: Array  # (b, hp, wp, c) rectified


class Distillation(nnx.Module):
    """`student`, which is trained, and the frozen `teacher`, whose texts and head it shares."""

    def __init__(self, student: DeepLab, teacher: ReCLIP):
        """The teacher's reference must be computed (`frozen_reference`): it is constant here.

        Raises:
          ValueError: it is not, or the student's features don't fit the text rows.
        """
        if not isinstance(teacher.reference, ReferenceRows):
            raise ValueError("compute the teacher's reference before: frozen_reference(teacher)")
        wanted = teacher.text_embeddings.shape[-1]
        made = student.aspp[0].conv.out_features
        if made != wanted:
            raise ValueError(f"a student with {made} features for text rows of {wanted} numbers")
        self.student = student
        self.teacher = teacher
        self.logit_scale = nnx.Param(jnp.asarray(math.log(100.0), jnp.float32))

    def teach(self, images: Array, *, train: bool) -> TeacherOutputs:
        """Normalised images (b, h, w, 3) through the teacher, without gradients.

        `train`: its batch norms use and record the statistics of this batch, as published; else
        the loaded ones.
        """
        teacher, head = self.teacher, self.teacher.head
        raw, real = teacher.raw_features(images)
        frozen = teacher.compare(raw, real)
        reference = teacher.reference()
        if isinstance(head, PositionNet):
            # Published with the positions repeated for each image, which only the unbiased
            # variance notices.
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
        """Student features (b, gh, gw, e) of images (h, w) = `shape` -> logits (b, gh, gw, c).

        `sizes` (b, 2): the real pixels of padded images, and then zeros beyond. `train` is about
        ReCLIP++'s batch norm, which is the teacher's own.
        """
        teacher, head = self.teacher, self.teacher.head
        text, reference = teacher.text_embeddings[...], teacher.reference()
        features = _unit(features)
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

        Published: the projected positions are resized and then compared with the reference. Both
        are linear, so comparing first is the same, with c channels to resize instead of e.
        """
        visual = self.teacher.visual
        patches = visual.grid_shape(*shape)
        own = None if sizes is None else visual.grid_sizes(sizes)
        positions = visual.positions(patches, own)[:, 1:]
        positions = positions.reshape(positions.shape[0], *patches, -1)
        bias = head.bias(positions, self.teacher.reference())
        if sizes is None or own is None:
            return resize(bias, grid)
        return resize_within(bias, own, self.student.grid_sizes(sizes), grid)

    def __call__(self, images: Array, sizes: Array | None = None) -> Array:
        """Normalised images (b, h, w, 3) -> the student's logits (b, gh, gw, c), for evaluation."""
        features = self.student(images, sizes, train=False)
        return self.classify(features, (images.shape[1], images.shape[2]), sizes, train=False)


def _unit(x: Array) -> Array:
    """`l2_normalize`, but 0 where all is 0, as after a ReLU: 0 / 0 would end a training."""
    silent = jnp.all(x == 0, axis=-1, keepdims=True)
    return jnp.where(silent, 0, l2_normalize(jnp.where(silent, 1, x)))
