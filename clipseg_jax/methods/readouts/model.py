"""A frozen CLIP whose last block is read out as one of the papers says, without training.

Spec readouts, sections 2 to 6; the read-outs themselves: `models/clip/read_outs.py`.
"""

from __future__ import annotations

from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.methods.readouts.feedback import FeedbackConfig, feedback_of
from clipseg_jax.models.clip import ImageTower, VisionTransformer, as_text_embeddings
from clipseg_jax.models.clip.dense import Dense, cosines, encode, read
from clipseg_jax.models.clip.read_outs import ReadOut


class ReadOutModel(nnx.Module):
    """A frozen image tower, a read-out of its last block, and text embeddings as classifier."""

    def __init__(
        self,
        visual: ImageTower,
        text_embeddings: ArrayLike,
        read_out: ReadOut,
        feedback: FeedbackConfig | None = None,
    ):
        """`text_embeddings` (c, e), unit vectors, one for each name; `feedback`: ResCLIP's second
        pass, None: without.

        Raises:
          ValueError: the tower is no ViT, the text embeddings are of another CLIP, or the read-out
            has no scores that feedback could change.
        """
        if not isinstance(visual, VisionTransformer):
            raise ValueError(
                f"a read-out needs a CLIP with a ViT, and this one has a {type(visual).__name__}; "
                "give ViT weights, or use method maskclip"
            )
        if feedback is not None and not read_out.attends:
            raise ValueError(
                f"feedback changes attention scores, which {read_out} has not; give feedback=None, "
                "or the read-out of resclip, naclip, sclip or clearclip"
            )
        self.visual = visual
        self.read_out = read_out
        self.feedback = feedback
        self.text_embeddings = nnx.Param(as_text_embeddings(text_embeddings, visual))

    def dense(self, images: Array, sizes: Array | None = None) -> Dense:
        """Dense features of normalised images (b, h, w, 3); `sizes` as in `__call__`."""
        encoded = encode(self.visual, images, sizes, read_out=self.read_out)
        dense = read(self.visual, encoded, self.read_out)
        if self.feedback is None:
            return dense
        feedback = feedback_of(self.classify(dense), images, sizes, self.visual, self.feedback)
        return read(self.visual, encoded, self.read_out, feedback=feedback)

    def features(self, images: Array, sizes: Array | None = None) -> Array:
        """The features (b, hp, wp, e) of `dense`, which are not normalised."""
        return self.dense(images, sizes).features

    def classify(self, dense: Dense) -> Array:
        """Cosines (b, hp, wp, c) of dense features with the text embeddings; 0 in the padding."""
        return cosines(dense.features, self.text_embeddings[...], dense.real)

    def __call__(self, images: Array, sizes: Array | None = None) -> Array:
        """Normalised images (b, h, w, 3) -> cosines (b, hp, wp, c), 0 in the padding.

        `sizes` (b, 2): heights and widths of images in a padded batch; None: no image is padded.
        """
        return self.classify(self.dense(images, sizes))
