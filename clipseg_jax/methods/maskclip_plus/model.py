"""MaskCLIP+: a DeepLab that a frozen MaskCLIP teaches, with CLIP's text rows for its classifier.

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

from clipseg_jax.methods.maskclip.model import text_rows
from clipseg_jax.models.clip import ModifiedResNet, VisionTransformer, l2_normalize
from clipseg_jax.models.clip.dense import Dense, dense_features
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
    """An untrained student whose features have as many channels as the text rows numbers.

    Raises:
      ValueError: an unknown decoder.
    """
    if decoder not in _DECODERS:
        raise ValueError(f"decoder {decoder!r}: choose {' or '.join(_DECODERS)}")
    return _DECODERS[decoder](backbone, features, rngs=rngs)


class MaskCLIPPlus(nnx.Module):
    """`student` and, but for `teacher`, all that it needs to segment.

    `text_embeddings` (c, e) are frozen; `background_embedding` (1, e), where there is one, is
    trained and stands for label 0, before all classes. `teacher` is an image tower of CLIP,
    frozen; None where nothing is to be taught.
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
        """`text_embeddings` (c, e) float32, unit rows, of the teacher's CLIP; background not among
        them.

        Raises:
          ValueError: the rows' length is not the teacher's, or not that of the student's features.
        """
        rows = jnp.asarray(text_embeddings, jnp.float32)
        if teacher is not None:
            rows = text_rows(rows, teacher)
        if student.features != rows.shape[-1]:
            raise ValueError(
                f"a student with {student.features} features for text rows of {rows.shape[-1]} "
                "numbers; give it as many"
            )
        self.student = student
        self.text_embeddings = nnx.Param(rows)
        self.background_embedding = (
            nnx.Param(jax.random.normal(rngs.params(), (1, rows.shape[-1]))) if background else None
        )
        self.teacher = teacher

    @property
    def classes(self) -> int:
        """Channels of the logits: text rows, and one for a background."""
        return self.text_embeddings.shape[0] + (self.background_embedding is not None)

    def rows(self) -> Array:
        """The classifier (classes, e): the background's unit row, if any, then the text's."""
        text = self.text_embeddings[...]
        if self.background_embedding is None:
            return text
        return jnp.concatenate([l2_normalize(self.background_embedding[...]), text])

    def classify(self, features: Array) -> Array:
        """Student features (b, g, k, e), not normalised -> logits (b, g, k, classes)."""
        return jnp.matmul(features, self.rows().T)

    def teach(self, images: Array) -> Dense:
        """Normalised images (b, h, w, 3) through the frozen teacher; nothing flows back."""
        assert self.teacher is not None, "build the model with a teacher to be taught"
        return jax.lax.stop_gradient(dense_features(self.teacher, images))

    def __call__(self, images: Array, sizes: Array | None = None) -> Array:
        """Normalised images (b, h, w, 3) -> the student's logits (b, g, k, classes), to evaluate.

        `sizes` (b, 2): the real pixels of padded images; the logits are 0 beyond.
        """
        logits = self.classify(self.student(images, sizes, train=False))
        return mask_padding(logits, None if sizes is None else self.student.grid_sizes(sizes))
