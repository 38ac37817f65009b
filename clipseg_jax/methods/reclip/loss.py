"""ReCLIP's loss: classifies features pooled over predicted masks. Spec reclip, section 12."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from clipseg_jax.ops.gumbel import straight_through


class Rectification(NamedTuple):
    """The loss and its intermediate results."""

    loss: Array  # ()
    per_image: Array  # (b,), 0 for images without tags
    masks: Array  # (b, hp, wp, c) one-hot
    similarities: Array  # (b, c, c) scaled cosines; rows: pooled masks, columns: texts


def rectification_loss(
    logits: Array,
    features: Array,
    text_embeddings: Array,
    tags: Array,
    noise: Array,
    *,
    gumbel_scale: float,
    temperature: float,
) -> Rectification:
    """Cross entropy of pooled mask features against class texts, averaged over tagged classes.

    Gradients pass through `logits` only.

    Args:
      logits: (b, hp, wp, c), rectified.
      features: (b, hp, wp, e) and text_embeddings: (c, e), unit vectors.
      tags: (b, c) bool, the estimated classes of each image. An image without tags has loss 0, and
        counts in the mean over images.
      noise: (b, hp, wp, c) from `gumbel_noise`.
      gumbel_scale: factor of the logits before masks are sampled.
      temperature: factor of the cosines, exp(logit_scale) of CLIP.
    """
    features, text_embeddings = jax.lax.stop_gradient((features, text_embeddings))
    masks = straight_through(gumbel_scale * logits, noise)
    # The mean over all positions, not over the mask: a larger mask has a longer feature.
    positions = logits.shape[1] * logits.shape[2]
    pooled = jnp.einsum("bhwc,bhwe->bce", masks, features, precision="highest") / positions
    similarities = temperature * jnp.matmul(pooled, text_embeddings.T, precision="highest")
    per_image = tagged_cross_entropy(similarities, tags)
    return Rectification(jnp.mean(per_image), per_image, masks, similarities)


def tagged_cross_entropy(similarities: Array, tags: Array) -> Array:
    """Mean cross entropy (b,) over tagged classes; row i of `similarities` has target i.

    `similarities` (b, c, c) are logits; `tags` (b, c) bool. 0 for images without tags.
    """
    targets = jnp.diagonal(similarities, axis1=1, axis2=2)
    entropy = jax.nn.logsumexp(similarities, axis=-1) - targets  # (b, c)
    counts = jnp.maximum(jnp.sum(tags, axis=1), 1)
    return jnp.sum(jnp.where(tags, entropy, 0), axis=1) / counts
