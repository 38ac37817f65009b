"""ReCLIP's loss: what a class's mask covers should look like the class. Spec reclip, section 12."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from clipseg_jax.ops.gumbel import straight_through


class Rectification(NamedTuple):
    """The loss and what it was made of."""

    loss: Array  # ()
    per_image: Array  # (b,) 0 for an image without tags
    masks: Array  # (b, hp, wp, c) one-hot
    similarities: Array  # (b, c, c) row: the pooled mask of a class; column: a class's text


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
    """Cross entropy of pooled mask features against the class texts, over the classes tagged.

    Args:
      logits: (b, hp, wp, c) rectified. Only through them gradients pass.
      features: (b, hp, wp, e) unit; text_embeddings: (c, e) unit rows.
      tags: (b, c) bool, the classes that each image is thought to show. An image without any adds
        nothing, but counts in the mean.
      noise: (b, hp, wp, c) from `gumbel_noise`.
      gumbel_scale: of the logits before masks are drawn: nearly all positions are then decided.
      temperature: of the cosines, exp(logit_scale).
    """
    features, text_embeddings = jax.lax.stop_gradient((features, text_embeddings))
    masks = straight_through(gumbel_scale * logits, noise)
    # Mean over all positions, not over the mask: a larger mask has a longer feature.
    positions = logits.shape[1] * logits.shape[2]
    pooled = jnp.einsum("bhwc,bhwe->bce", masks, features, precision="highest") / positions
    similarities = temperature * jnp.matmul(pooled, text_embeddings.T, precision="highest")
    per_image = tagged_cross_entropy(similarities, tags)
    return Rectification(jnp.mean(per_image), per_image, masks, similarities)


def tagged_cross_entropy(similarities: Array, tags: Array) -> Array:
    """Cross entropies (b,) of each tagged class's row with its own column as target, averaged.

    `similarities` (b, c, c); `tags` (b, c) bool. An image without tags has 0.
    """
    own = jnp.diagonal(similarities, axis1=1, axis2=2)
    entropy = jax.nn.logsumexp(similarities, axis=-1) - own  # (b, c)
    counts = jnp.maximum(jnp.sum(tags, axis=1), 1)
    return jnp.sum(jnp.where(tags, entropy, 0), axis=1) / counts
