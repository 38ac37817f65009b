"""MaskCLIP: dense labels from a frozen CLIP.

Source: Zhou, Loy, Dai, "Extract Free Dense Labels from CLIP", 2022.

The last attention is replaced by its value path, so that every position keeps its own content, and
the text embeddings become a 1x1 classifier. Spec maskclip, sections 4 to 6.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.models.clip import ModifiedResNet, VisionTransformer, l2_normalize
from clipseg_jax.models.clip.dense import Dense, dense_features

_ABSENT = -100.0  # logit of a class that prompt denoising removed
_TEMPERATURE = 100.0  # exp(logit_scale) of all released CLIPs


@dataclasses.dataclass(frozen=True)
class MaskCLIPConfig:
    """Refinements; 0 switches one off. The published MaskCLIP table uses neither."""

    pd_threshold: float = 0.0  # prompt denoising: least probability anywhere for a class to count
    ks_threshold: float = (
        0.0  # key smoothing: below this confidence a position asks its look-alikes
    )
    # The published code divides each key channel by its norm over the image's positions ("tokens");
    # the paper describes cosine similarity of keys ("channels").
    ks_axis: Literal["tokens", "channels"] = "tokens"
    # ResNets only: full attention over mean token and positions instead of the value path.
    attn_pooling: bool = False


PLAIN = MaskCLIPConfig()


def classify(dense: Dense, text_embeddings: Array, cfg: MaskCLIPConfig) -> Array:
    """Logits (b, hp, wp, c) from dense read-outs and unit text rows (c, e).

    Cosines without temperature; after key smoothing (smoothed) probabilities. Zero in the padding.
    """
    real = dense.real[..., None]
    logits = jnp.where(real, l2_normalize(dense.features) @ text_embeddings.T, 0)
    if cfg.pd_threshold > 0:
        logits = denoise_prompts(logits, dense.real, cfg.pd_threshold)
    if cfg.ks_threshold > 0:
        logits = smooth_keys(logits, dense.keys, dense.real, cfg.ks_threshold, cfg.ks_axis)
    return jnp.where(real, logits, 0)


def denoise_prompts(
    logits: Array, real: Array, thresh: float, scale: float = _TEMPERATURE
) -> Array:
    """Removes every class whose probability stays below `thresh` at all positions of an image."""
    probability = jax.nn.softmax(scale * logits, axis=-1)
    best = jnp.max(jnp.where(real[..., None], probability, 0), axis=(1, 2), keepdims=True)
    return jnp.where(best < thresh, _ABSENT, logits)


def smooth_keys(
    logits: Array, keys: Array, real: Array, thresh: float, axis: Literal["tokens", "channels"]
) -> Array:
    """Probabilities (b, hp, wp, c), unsure positions replaced by a mixture of similar ones.

    The mixture's weights are inner products of normalised keys (b, hp, wp, d), not renormalised.
    """
    shape = logits.shape
    probability = jax.nn.softmax(_TEMPERATURE * logits, axis=-1).reshape(shape[0], -1, shape[-1])
    unsure = jnp.max(probability, axis=-1, keepdims=True) < thresh
    hide = real.reshape(shape[0], -1, 1)
    keys = jnp.where(hide, keys.reshape(shape[0], -1, keys.shape[-1]), 0)
    norm = jnp.linalg.norm(keys, axis=1 if axis == "tokens" else 2, keepdims=True)
    keys = keys / jnp.maximum(norm, 1e-12)
    # k (k^T p) instead of (k k^T) p: d x c numbers in between instead of p x p.
    mixed = jnp.einsum("bpd,bpc->bdc", keys, jnp.where(hide, probability, 0))
    smoothed = jnp.einsum("bpd,bdc->bpc", keys, mixed)
    return jnp.where(unsure, smoothed, probability).reshape(shape)


def text_rows(embeddings: ArrayLike, visual: VisionTransformer | ModifiedResNet) -> Array:
    """Text embeddings (c, e) float32 for the features of `visual`.

    Raises:
      ValueError: the rows' length is not the tower's.
    """
    rows = jnp.asarray(embeddings, jnp.float32)
    if rows.shape[-1] != visual.cfg.embed_dim:
        raise ValueError(
            f"text embeddings of {rows.shape[-1]} numbers for an image tower of "
            f"{visual.cfg.embed_dim}; make them with the text tower of the same CLIP"
        )
    return rows


class MaskCLIP(nnx.Module):
    """A frozen image tower with text embeddings for a classifier."""

    def __init__(
        self,
        visual: VisionTransformer | ModifiedResNet,
        text_embeddings: ArrayLike,
        cfg: MaskCLIPConfig = PLAIN,
    ):
        """`text_embeddings` (c, e) float32, unit rows.

        Raises:
          ValueError: the rows' length is not the tower's.
        """
        self.cfg = cfg
        self.visual = visual
        self.text_embeddings = nnx.Param(text_rows(text_embeddings, visual))

    def __call__(self, images: Array, sizes: Array | None = None) -> Array:
        """Normalised images (b, h, w, 3) -> logits (b, hp, wp, c), see `classify`."""
        dense = dense_features(self.visual, images, sizes, attn_pooling=self.cfg.attn_pooling)
        return classify(dense, self.text_embeddings[...], self.cfg)
