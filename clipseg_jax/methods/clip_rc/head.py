"""CLIP-RC's head: texts, as each region sees them, ask patches for masks.

Source: Zhang et al., "Exploring Regional Clues in CLIP for Zero-Shot Semantic Segmentation", 2024;
spec clip_rc, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.core.modules import Keys
from clipseg_jax.methods.clip_rc.encoder import Encoding
from clipseg_jax.models.initializers import torch_uniform
from clipseg_jax.ops.attention import KeyValues, attention, join_heads, split_heads
from clipseg_jax.ops.dropout import dropout
from clipseg_jax.ops.image import valid_mask
from clipseg_jax.ops.resize import resize, resize_within

# Published: PyTorch's defaults, for the head's own initialisation is never called. Intended, and in
# force in the recovery decoder: normal of deviation 0.02, no bias.
Init = Literal["reference", "intended"]
_HIDDEN = -1e30  # attention score of padding: finite, for an image that is nothing but padding


def _linear(inputs: int, outputs: int, init: Init, rngs: nnx.Rngs) -> nnx.Linear:
    uniform, normal = torch_uniform(inputs), nnx.initializers.normal(0.02)
    published = init == "reference"
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=uniform if published else normal,
        bias_init=uniform if published else nnx.initializers.zeros,
        rngs=rngs,
    )


class CrossAttention(nnx.Module):
    """Multi-head attention of some tokens to others."""

    def __init__(self, width: int, heads: int, init: Init, *, rngs: nnx.Rngs):
        self.heads = heads
        self.q, self.k, self.v, self.proj = (_linear(width, width, init, rngs) for _ in range(4))

    def __call__(
        self,
        x: Array,
        memory: Array,
        bias: Array | None,
        rate: float,
        key: Array | None,
    ) -> Array:
        """(b, t, e) from queries `x` (b, t, e) and `memory` (b, m, e); see `ops.attention`."""
        q, k, v = (
            split_heads(made, self.heads) for made in (self.q(x), self.k(memory), self.v(memory))
        )
        mixed = attention(q, [KeyValues(k, v, bias)], rate=rate, key=key)
        return self.proj(join_heads(mixed))


class DecoderLayer(nnx.Module):
    """Cross-attention and a perceptron, each with a norm behind its residual; no self-attention."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        rate: float,
        init: Init,
        *,
        rngs: nnx.Rngs,
    ):
        self.rate = rate
        self.multihead_attn = CrossAttention(width, heads, init, rngs=rngs)
        self.linear1 = _linear(width, hidden, init, rngs)
        self.linear2 = _linear(hidden, width, init, rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.norm3 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)

    def __call__(
        self, x: Array, memory: Array, bias: Array | None = None, key: Array | None = None
    ) -> Array:
        """(b, t, e) from `x` (b, t, e) that looks at `memory` (b, m, e).

        `bias` (b, 1, m) hides padding; `key` of the dropout, None: no dropout.
        """
        keys: Sequence[Array | None] = (
            (None,) * 4 if key is None else list(jax.random.split(key, 4))
        )
        rate = self.rate
        seen = self.multihead_attn(x, memory, bias, rate, keys[0])
        x = self.norm2(x + dropout(seen, rate, keys[1]))
        wide = dropout(nnx.relu(self.linear1(x)), rate, keys[2])
        return self.norm3(x + dropout(self.linear2(wide), rate, keys[3]))


class RecoveryDecoder(nnx.Module):
    """Makes the decoder's inputs again from its outputs; exists for its loss alone."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        rate: float,
        *,
        rngs: nnx.Rngs,
    ):
        def layers() -> nnx.List:
            made = DecoderLayer(width, heads, hidden, rate, "intended", rngs=rngs)
            return nnx.List([made])

        self.decouple_q, self.decouple_v = layers(), layers()
        self.linear_q_in = _linear(width, width, "intended", rngs)
        self.linear_k_in = _linear(width, width, "intended", rngs)
        self.linear_q_out = _linear(width, 2 * width, "intended", rngs)
        self.linear_k_out = _linear(width, width, "intended", rngs)

    def __call__(
        self, queries: Array, image_tokens: Array, key: Array | None = None
    ) -> tuple[Array, Array]:
        """Queries (b, m, e) and image tokens (b, n, e) -> (b, m, 2e) and (b, n, e)."""
        queries, image_tokens = run_decoder(
            self.decouple_q,
            self.decouple_v,
            self.linear_q_in(queries),
            self.linear_k_in(image_tokens),
            key=key,
        )
        return self.linear_q_out(queries), self.linear_k_out(image_tokens)


def run_decoder(
    of_queries: Sequence[DecoderLayer],
    of_image: Sequence[DecoderLayer],
    queries: Array,
    image_tokens: Array,
    bias: Array | None = None,
    key: Array | None = None,
) -> tuple[Array, Array]:
    """Queries (b, m, e) and image tokens (b, n, e) after blocks of attention to each other.

    In each block both attend to the other's state before it; `bias` (b, 1, n) masks image tokens
    of the padding.
    """
    for i, (q, v) in enumerate(zip(of_queries, of_image, strict=True)):
        ours = [None if key is None else jax.random.fold_in(key, 2 * i + j) for j in (0, 1)]
        queries, image_tokens = (
            q(queries, image_tokens, bias, ours[0]),
            v(image_tokens, queries, None, ours[1]),
        )
    return queries, image_tokens


class Decoded(NamedTuple):
    """What the head makes of an encoding."""

    logits: Array  # (b, hp, wp, c), 0 in the padding
    queries: Array  # (b, r * r * c, e)
    image_tokens: Array  # (b, hp * wp, e)
    query_inputs: Array  # (b, r * r * c, 2e), what recovery is to make again of the queries


class QueryHead(nnx.Module):
    """r * r queries for each class; their masks' mean is the class's mask."""

    def __init__(
        self,
        width: int,
        *,
        blocks: int,
        heads: int,
        hidden: int,
        dropout: float,
        init: Init,
        rngs: nnx.Rngs,
    ):
        """`width` e of CLIP's joint space."""

        def copies(init: Init) -> nnx.List:
            # Published: the layers of a decoder start alike.
            key = rngs.params()

            def make(key: Array) -> DecoderLayer:
                rngs = Keys(key)
                return DecoderLayer(width, heads, hidden, dropout, init, rngs=rngs)  # type: ignore[arg-type]

            keys = [key] * blocks if init == "reference" else jax.random.split(key, blocks)
            return nnx.List(make(one) for one in keys)

        self.q_proj = _linear(2 * width, width, init, rngs)
        self.lateral_proj = _linear(3 * width, width, init, rngs)
        self.decoder_q, self.decoder_v = copies(init), copies(init)
        if init == "intended":  # the perceptrons of image tokens begin by adding nothing
            for layer in self.decoder_v:
                layer.linear2.kernel[...] = jnp.zeros_like(layer.linear2.kernel[...])
        self.recovery_decoder = RecoveryDecoder(width, heads, hidden, dropout, rngs=rngs)

    def __call__(self, encoding: Encoding, text: Array, *, key: Array | None = None) -> Decoded:
        """Masks of text rows (c, e); `key` of the dropout, None: no dropout."""
        b, hp, wp, _ = encoding.patches.shape
        c = text.shape[0]
        query_inputs = region_queries(encoding, text)
        real, bias = None, None
        if encoding.grids is not None:
            real = valid_mask(encoding.grids, (hp, wp))
            bias = jnp.where(real.reshape(b, 1, hp * wp), 0.0, _HIDDEN)
        queries, image_tokens = run_decoder(
            self.decoder_q,
            self.decoder_v,
            self.q_proj(query_inputs),
            self.lateral_proj(image_token_inputs(encoding)),
            bias,
            key,
        )
        # The mean over regions of products is the product of the mean.
        mean = jnp.mean(queries.reshape(b, -1, c, queries.shape[-1]), axis=1)
        logits = jnp.einsum("bne,bce->bnc", image_tokens, mean).reshape(b, hp, wp, c)
        if real is not None:
            logits = jnp.where(real[..., None], logits, 0)
        return Decoded(logits, queries, image_tokens, query_inputs)


def region_queries(encoding: Encoding, text: Array) -> Array:
    """What is asked: (b, r * r * c, 2e), rows ordered by region, then by class of `text` (c, e)."""
    b, _, _, e = encoding.regions.shape
    regions = encoding.regions.reshape(b, -1, 1, e) + encoding.image[:, None, None]
    seen = regions * text
    return jnp.concatenate([seen, jnp.broadcast_to(text, seen.shape)], -1).reshape(b, -1, 2 * e)


def image_token_inputs(encoding: Encoding) -> Array:
    """What answers: (b, hp * wp, 3e) of region, image and patch."""
    patches, regions = encoding.patches, encoding.regions
    b, hp, wp, e = patches.shape
    if encoding.grids is None:
        near = resize(regions, (hp, wp))
    else:
        sides = jnp.full_like(encoding.grids, regions.shape[1])
        near = resize_within(regions, sides, encoding.grids, (hp, wp))
    image = jnp.broadcast_to(encoding.image[:, None, None], patches.shape)
    return jnp.concatenate([near, image, patches], axis=-1).reshape(b, hp * wp, 3 * e)
