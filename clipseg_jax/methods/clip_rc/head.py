"""CLIP-RC's head: decoders of region-wise text queries and image tokens, whose products are masks.

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
from clipseg_jax.ops.attention import MASKED, KeyValues, attention, join_heads, split_heads
from clipseg_jax.ops.dropout import dropout
from clipseg_jax.ops.image import valid_mask
from clipseg_jax.ops.resize import resize, resize_within

# "reference", as published: PyTorch's defaults, since the code does not call the head's own
# initialisation. "intended": normal with deviation 0.02 and zero bias; the recovery decoder has it.
Init = Literal["reference", "intended"]


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
    """Multi-head cross-attention."""

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
        """Output (b, t, e) of queries `x` (b, t, e) that attend to `memory` (b, m, e).

        Args:
          bias: (b, 1, m), masks padding; None: no mask.
          rate: dropout rate of the attention maps; key: of the dropout, None: no dropout.
        """
        q, k, v = (
            split_heads(part, self.heads) for part in (self.q(x), self.k(memory), self.v(memory))
        )
        output = attention(q, [KeyValues(k, v, bias)], rate=rate, key=key)
        return self.proj(join_heads(output))


class DecoderLayer(nnx.Module):
    """A post-norm decoder layer: cross-attention and a perceptron, without self-attention."""

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
        """Output (b, t, e) of queries `x` (b, t, e) that attend to `memory` (b, m, e).

        Args:
          bias: (b, 1, m), masks padding; None: no mask.
          key: random key of the dropout; None: no dropout.
        """
        keys: Sequence[Array | None] = (
            (None,) * 4 if key is None else list(jax.random.split(key, 4))
        )
        rate = self.rate
        attended = self.multihead_attn(x, memory, bias, rate, keys[0])
        x = self.norm2(x + dropout(attended, rate, keys[1]))
        hidden = dropout(nnx.relu(self.linear1(x)), rate, keys[2])
        return self.norm3(x + dropout(self.linear2(hidden), rate, keys[3]))


class RecoveryDecoder(nnx.Module):
    """Recovers the decoders' inputs from their outputs, for the recovery loss in training."""

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
            return nnx.List([DecoderLayer(width, heads, hidden, rate, "intended", rngs=rngs)])

        self.decouple_q, self.decouple_v = layers(), layers()
        self.linear_q_in = _linear(width, width, "intended", rngs)
        self.linear_k_in = _linear(width, width, "intended", rngs)
        self.linear_q_out = _linear(width, 2 * width, "intended", rngs)
        self.linear_k_out = _linear(width, width, "intended", rngs)

    def __call__(
        self, queries: Array, image_tokens: Array, key: Array | None = None
    ) -> tuple[Array, Array]:
        """Recovers query inputs (b, m, 2e) and patch features (b, n, e).

        From decoded queries (b, m, e) and image tokens (b, n, e).
        """
        queries, image_tokens = run_decoder(
            self.decouple_q,
            self.decouple_v,
            self.linear_q_in(queries),
            self.linear_k_in(image_tokens),
            key=key,
        )
        return self.linear_q_out(queries), self.linear_k_out(image_tokens)


def run_decoder(
    query_layers: Sequence[DecoderLayer],
    image_layers: Sequence[DecoderLayer],
    queries: Array,
    image_tokens: Array,
    bias: Array | None = None,
    key: Array | None = None,
) -> tuple[Array, Array]:
    """Runs both decoders on queries (b, m, e) and image tokens (b, n, e).

    In each layer queries attend to image tokens and image tokens to queries, both to the states
    before the layer. `bias` (b, 1, n) masks image tokens of the padding.
    """
    layers = zip(query_layers, image_layers, strict=True)
    for i, (query_layer, image_layer) in enumerate(layers):
        keys = [None if key is None else jax.random.fold_in(key, 2 * i + j) for j in (0, 1)]
        queries, image_tokens = (
            query_layer(queries, image_tokens, bias, keys[0]),
            image_layer(image_tokens, queries, None, keys[1]),
        )
    return queries, image_tokens


class Decoded(NamedTuple):
    """Outputs of the head."""

    logits: Array  # (b, hp, wp, c), 0 in the padding
    queries: Array  # (b, r * r * c, e)
    image_tokens: Array  # (b, hp * wp, e)
    query_inputs: Array  # (b, r * r * c, 2e), the recovery target of the queries


class QueryHead(nnx.Module):
    """r * r queries for each class; the class's mask is the mean of their masks (section 5)."""

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
        """`width`: e of CLIP's joint space; `hidden`: of the perceptrons."""

        def decoder(init: Init) -> nnx.List:
            # As published, all layers of a decoder have the same initial parameters.
            key = rngs.params()

            def make(key: Array) -> DecoderLayer:
                rngs = Keys(key)
                return DecoderLayer(width, heads, hidden, dropout, init, rngs=rngs)  # type: ignore[arg-type]

            keys = [key] * blocks if init == "reference" else jax.random.split(key, blocks)
            return nnx.List(make(one) for one in keys)

        self.q_proj = _linear(2 * width, width, init, rngs)
        self.lateral_proj = _linear(3 * width, width, init, rngs)
        self.decoder_q, self.decoder_v = decoder(init), decoder(init)
        if init == "intended":  # the perceptrons of image tokens initially output 0
            for layer in self.decoder_v:
                layer.linear2.kernel[...] = jnp.zeros_like(layer.linear2.kernel[...])
        self.recovery_decoder = RecoveryDecoder(width, heads, hidden, dropout, rngs=rngs)

    def __call__(self, encoding: Encoding, text: Array, *, key: Array | None = None) -> Decoded:
        """Mask logits of text embeddings `text` (c, e); `key` of the dropout, None: no dropout."""
        b, hp, wp, _ = encoding.patches.shape
        c = text.shape[0]
        query_inputs = region_queries(encoding, text)
        real, bias = None, None
        if encoding.grids is not None:
            real = valid_mask(encoding.grids, (hp, wp))
            bias = jnp.where(real.reshape(b, 1, hp * wp), 0.0, MASKED)
        queries, image_tokens = run_decoder(
            self.decoder_q,
            self.decoder_v,
            self.q_proj(query_inputs),
            self.lateral_proj(image_token_inputs(encoding)),
            bias,
            key,
        )
        # The mean over regions of products is the product with the mean.
        mean = jnp.mean(queries.reshape(b, -1, c, queries.shape[-1]), axis=1)
        logits = jnp.einsum("bne,bce->bnc", image_tokens, mean).reshape(b, hp, wp, c)
        if real is not None:
            logits = jnp.where(real[..., None], logits, 0)
        return Decoded(logits, queries, image_tokens, query_inputs)


def region_queries(encoding: Encoding, text: Array) -> Array:
    """Decoder queries (b, r * r * c, 2e), ordered by region, then by class of `text` (c, e)."""
    b, _, _, e = encoding.regions.shape
    regions = encoding.regions.reshape(b, -1, 1, e) + encoding.image[:, None, None]
    region_text = regions * text  # (b, r * r, c, e)
    text = jnp.broadcast_to(text, region_text.shape)
    return jnp.concatenate([region_text, text], -1).reshape(b, -1, 2 * e)


def image_token_inputs(encoding: Encoding) -> Array:
    """Decoder keys and values (b, hp * wp, 3e): region, image and patch features of each patch."""
    patches, regions = encoding.patches, encoding.regions
    b, hp, wp, e = patches.shape
    if encoding.grids is None:
        resized = resize(regions, (hp, wp))
    else:
        sides = jnp.full_like(encoding.grids, regions.shape[1])
        resized = resize_within(regions, sides, encoding.grids, (hp, wp))
    image = jnp.broadcast_to(encoding.image[:, None, None], patches.shape)
    return jnp.concatenate([resized, image, patches], axis=-1).reshape(b, hp * wp, 3 * e)
