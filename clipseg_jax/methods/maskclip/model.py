"""MaskCLIP: semantic segmentation by a frozen CLIP without training.

Source: Zhou, Loy, Dai, "Extract Free Dense Labels from CLIP", 2022.

The last attention is reduced to its value and output projections, and the text embeddings are the
weights of a 1x1 classifier. Spec maskclip, sections 4 to 6.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.core.checks import check_choice, check_number
from clipseg_jax.models.clip import ImageTower, as_text_embeddings
from clipseg_jax.models.clip.dense import Dense, cosines, dense_features
from clipseg_jax.models.clip.read_outs import VALUE, ReadOut

_ABSENT = -100.0  # logit of a class that prompt denoising removes
_TEMPERATURE = 100.0  # exp(logit_scale) of all released CLIPs


@dataclasses.dataclass(frozen=True)
class MaskCLIPConfig:
    """Prompt denoising and key smoothing, and the read-out of ResNets.

    A threshold of 0 switches a refinement off; the published table of MaskCLIP uses neither.
    """

    pd_threshold: float = 0.0  # prompt denoising removes classes whose largest probability is lower
    ks_threshold: float = 0.0  # key smoothing replaces predictions whose confidence is lower
    # The axis over which keys are normalised: the published code divides each channel by its norm
    # over the positions ("tokens"); the paper has cosine similarities of keys ("channels").
    ks_axis: Literal["tokens", "channels"] = "tokens"
    # ResNets only: full attention of mean token and positions instead of the value read-out.
    attn_pooling: bool = False

    def __post_init__(self) -> None:
        check_number("pd_threshold", self.pd_threshold, 0)
        check_number("ks_threshold", self.ks_threshold, 0)
        check_choice("ks_axis", self.ks_axis, ("tokens", "channels"))
        check_choice("attn_pooling", self.attn_pooling, (True, False))


def classify(dense: Dense, text_embeddings: Array, cfg: MaskCLIPConfig) -> Array:
    """Logits (b, hp, wp, c) from dense features and unit text embeddings (c, e).

    They are cosines without temperature, or probabilities with key smoothing; 0 in the padding.
    """
    real = dense.real[..., None]
    logits = cosines(dense.features, text_embeddings, dense.real)
    if cfg.pd_threshold > 0:
        logits = denoise_prompts(logits, dense.real, cfg.pd_threshold)
    if cfg.ks_threshold > 0:
        logits = smooth_keys(logits, dense.keys, dense.real, cfg.ks_threshold, cfg.ks_axis)
    return jnp.where(real, logits, 0)


def denoise_prompts(
    logits: Array, real: Array, thresh: float, scale: float = _TEMPERATURE
) -> Array:
    """Prompt denoising: -100 for classes whose probability is below `thresh` at all positions.

    Args:
      logits: (b, hp, wp, c).
      real: (b, hp, wp) bool, False in the padding.
      scale: factor of the logits before the softmax.
    """
    probability = jax.nn.softmax(scale * logits, axis=-1)
    maximum = jnp.max(jnp.where(real[..., None], probability, 0), axis=(1, 2), keepdims=True)
    return jnp.where(maximum < thresh, _ABSENT, logits)


def smooth_keys(
    logits: Array, keys: Array, real: Array, thresh: float, axis: Literal["tokens", "channels"]
) -> Array:
    """Key smoothing: probabilities (b, hp, wp, c), with those of unsure positions smoothed.

    The smoothed probabilities are weighted sums over all positions; the weights are inner products
    of keys (b, hp, wp, d) normalised along `axis`, and do not sum to 1.
    """
    shape = logits.shape
    probability = jax.nn.softmax(_TEMPERATURE * logits, axis=-1).reshape(shape[0], -1, shape[-1])
    unsure = jnp.max(probability, axis=-1, keepdims=True) < thresh
    real = real.reshape(shape[0], -1, 1)
    keys = jnp.where(real, keys.reshape(shape[0], -1, keys.shape[-1]), 0)
    norm = jnp.linalg.norm(keys, axis=1 if axis == "tokens" else 2, keepdims=True)
    keys = keys / jnp.maximum(norm, 1e-12)
    # k (k^T p) instead of (k k^T) p: the intermediate result has d x c instead of p x p numbers.
    mixed = jnp.einsum("bpd,bpc->bdc", keys, jnp.where(real, probability, 0))
    smoothed = jnp.einsum("bpd,bdc->bpc", keys, mixed)
    return jnp.where(unsure, smoothed, probability).reshape(shape)


class MaskCLIP(nnx.Module):
    """A frozen image tower with text embeddings as the classifier."""

    def __init__(
        self,
        visual: ImageTower,
        text_embeddings: ArrayLike,
        cfg: MaskCLIPConfig | None = None,
        read_out: ReadOut = VALUE,
    ):
        """`text_embeddings` (c, e), unit vectors; `cfg` None: no refinement. `read_out` of a ViT.

        Raises:
          ValueError: the text embeddings are of another CLIP.
        """
        self.cfg = cfg or MaskCLIPConfig()
        self.read_out = read_out
        self.visual = visual
        self.text_embeddings = nnx.Param(as_text_embeddings(text_embeddings, visual))

    def dense(self, images: Array, sizes: Array | None = None) -> Dense:
        """Dense features of normalised images (b, h, w, 3); `sizes` as in `__call__`."""
        return dense_features(
            self.visual,
            images,
            sizes,
            read_out=self.read_out,
            attn_pooling=self.cfg.attn_pooling,
        )

    def features(self, images: Array, sizes: Array | None = None) -> Array:
        """The features (b, hp, wp, e) of `dense`, which are not normalised."""
        return self.dense(images, sizes).features

    def __call__(self, images: Array, sizes: Array | None = None) -> Array:
        """Normalised images (b, h, w, 3) -> logits (b, hp, wp, c), see `classify`.

        `sizes` (b, 2): heights and widths of images in a padded batch; None: no image is padded.
        """
        return classify(self.dense(images, sizes), self.text_embeddings[...], self.cfg)
