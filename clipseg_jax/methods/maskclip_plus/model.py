"""MaskCLIP+: a DeepLab trained by a frozen MaskCLIP, classified by CLIP's text embeddings.

Source: Zhou, Loy, Dai, "Extract Free Dense Labels from CLIP", 2022, section 3.3. Spec maskclip,
section 11.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.models.clip import (
    ModifiedResNet,
    VisionTransformer,
    as_text_embeddings,
    l2_normalize,
)
from clipseg_jax.models.clip.dense import Dense, dense_features
from clipseg_jax.models.clip.read_outs import VALUE, ReadOut
from clipseg_jax.models.deeplab import DeepLab, DeepLabV3Plus
from clipseg_jax.models.resnet import DilatedResNetConfig
from clipseg_jax.ops.image import mask_padding

Decoder = Literal["deeplabv2", "deeplabv3plus"]
Student = DeepLab | DeepLabV3Plus
_DECODERS: dict[str, type[DeepLab] | type[DeepLabV3Plus]] = {
    "deeplabv2": DeepLab,
    "deeplabv3plus": DeepLabV3Plus,
}


def make_student(
    decoder: Decoder, backbone: DilatedResNetConfig, features: int, *, rngs: nnx.Rngs
) -> Student:
    """An untrained student; `features` is the width of the text embeddings.

    Raises:
      ValueError: unknown decoder.
    """
    if decoder not in _DECODERS:
        raise ValueError(f"decoder {decoder!r}: choose {' or '.join(_DECODERS)}")
    return _DECODERS[decoder](backbone, features, rngs=rngs)


class MaskCLIPPlus(nnx.Module):
    """A student, its classifier and, for training, its teacher.

    `text_embeddings` (c, e) are frozen. `background_embedding` (1, e) or None is trained and is the
    classifier of label 0. `teacher` is a frozen image tower of CLIP, needed for training only.
    """

    def __init__(
        self,
        student: Student,
        text_embeddings: ArrayLike,
        teacher: VisionTransformer | ModifiedResNet | None = None,
        *,
        background: bool = False,
        rngs: nnx.Rngs,
    ):
        """`text_embeddings` (c, e), unit vectors of the teacher's CLIP, without the background.

        Raises:
          ValueError: the width of the text embeddings is not the teacher's or the student's.
        """
        embeddings = jnp.asarray(text_embeddings, jnp.float32)
        if teacher is not None:
            embeddings = as_text_embeddings(embeddings, teacher)
        if student.features != embeddings.shape[-1]:
            raise ValueError(
                f"a student with {student.features} features for text embeddings of width "
                f"{embeddings.shape[-1]}; make a student with {embeddings.shape[-1]} features"
            )
        self.student = student
        self.text_embeddings = nnx.Param(embeddings)
        self.background_embedding = (
            nnx.Param(jax.random.normal(rngs.params(), (1, embeddings.shape[-1])))
            if background
            else None
        )
        self.teacher = teacher

    @property
    def classes(self) -> int:
        """Number of classes, with the background where it has an embedding."""
        return self.text_embeddings.shape[0] + (self.background_embedding is not None)

    def class_embeddings(self) -> Array:
        """The classifier (classes, e), unit vectors: the background's if any, then the texts'."""
        text = self.text_embeddings[...]
        if self.background_embedding is None:
            return text
        return jnp.concatenate([l2_normalize(self.background_embedding[...]), text])

    def classify(self, features: Array) -> Array:
        """Student features (b, g, k, e), not normalised -> logits (b, g, k, classes)."""
        return jnp.matmul(features, self.class_embeddings().T)

    def teach(self, images: Array, read_out: ReadOut = VALUE) -> Dense:
        """Dense features of normalised images (b, h, w, 3) by the teacher, stop-gradiented."""
        assert self.teacher is not None, "training needs a teacher"
        return jax.lax.stop_gradient(dense_features(self.teacher, images, read_out=read_out))

    def __call__(self, images: Array, sizes: Array | None = None) -> Array:
        """Logits (b, g, k, classes) of the student, for evaluation.

        Images (b, h, w, 3) are normalised. `sizes` (b, 2): heights and widths of images
        in a padded batch; logits are 0 in the padding.
        """
        logits = self.classify(self.student(images, sizes, train=False))
        return mask_padding(logits, None if sizes is None else self.student.grid_sizes(sizes))
