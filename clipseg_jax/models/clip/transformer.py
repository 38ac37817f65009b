"""CLIP's transformer, of both its image and text towers.

Names follow OpenAI's state dict (`resblocks`, `ln_1`, `c_fc`).
Source: Radford et al. 2021; spec clip, section 2.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.ops.attention import (
    KeyValues,
    attention,
    attention_and_mean_map,
    attention_maps,
    join_heads,
    split_heads,
)

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), the activation of OpenAI's weights."""
    return x * jax.nn.sigmoid(1.702 * x)


def _activate(x: Array, activation: Activation) -> Array:
    """GELU by the error function, by tanh (SigLIP), or OpenAI's approximation."""
    if activation == "quick_gelu":
        return quick_gelu(x)
    if activation == "gelu" and x.dtype == jnp.bfloat16:
        # 1 + erf is as exact as bfloat16, and on TPUs a third of the price of JAX's erfc.
        wide = x.astype(jnp.float32)
        return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)
    return jax.nn.gelu(x, approximate=activation == "gelu_tanh")


class Attention(nnx.Module):
    """Multi-head self-attention with one packed projection.

    A `bias` (1 or b, 1 or t, t) is added to the scores of all heads; it masks padding.
    """

    def __init__(self, width: int, heads: int, dtype: str, *, rngs: nnx.Rngs):
        self.heads = heads
        self.in_proj = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out_proj = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def qkv(self, x: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values, each (b, t, d), heads in contiguous channel groups."""
        if jnp.dtype(self.in_proj.dtype) == jnp.bfloat16:
            # Three products, whose results a kernel reads as they are: parts of one are copied.
            kernels, biases = (jnp.split(p[...], 3, axis=-1) for p in self._packed())
            x = x.astype(jnp.bfloat16)
            parts = [
                x @ kernel.astype(x.dtype) + bias.astype(x.dtype)
                for kernel, bias in zip(kernels, biases, strict=True)
            ]
        else:
            parts = jnp.split(self.in_proj(x), 3, axis=-1)
        q, k, v = parts
        return q, k, v

    def _packed(self) -> tuple[nnx.Param, nnx.Param]:
        assert self.in_proj.bias is not None
        return self.in_proj.kernel, self.in_proj.bias

    def gather(self, q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
        """Attention output (b, t, d) before the output projection, from `qkv`'s results."""
        q, k, v = (split_heads(x, self.heads) for x in (q, k, v))
        return join_heads(attention(q, [KeyValues(k, v, bias)]))

    def mix(self, q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
        """Attention output (b, t, d) after the output projection, from `qkv`'s results."""
        return self.out_proj(self.gather(q, k, v, bias))

    def mix_and_map(
        self, q: Array, k: Array, v: Array, bias: Array | None = None
    ) -> tuple[Array, Array]:
        """`mix` (b, t, d), and its attention maps averaged over heads (b, t, t)."""
        q, k, v = (split_heads(x, self.heads) for x in (q, k, v))
        mixed, mean = attention_and_mean_map(q, k, v, bias)
        return self.out_proj(join_heads(mixed)), mean

    def maps(self, q: Array, k: Array, bias: Array | None = None) -> Array:
        """Attention maps (b, n, t, t) float32."""
        return attention_maps(split_heads(q, self.heads), split_heads(k, self.heads), bias)


class MLP(nnx.Module):
    """The two-layer perceptron of a block, with a hidden layer of `hidden` channels."""

    def __init__(
        self, width: int, hidden: int, activation: Activation, dtype: str, *, rngs: nnx.Rngs
    ):
        self.activation = activation
        self.c_fc = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.c_proj = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """(b, t, d) -> (b, t, d)."""
        return self.c_proj(_activate(self.c_fc(x), self.activation))


class Block(nnx.Module):
    """A pre-norm residual block: x + attention(ln_1 x), then x + mlp(ln_2 x)."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_width: int,
        activation: Activation,
        eps: float,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.ln_1 = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.attn = Attention(width, heads, dtype, rngs=rngs)
        self.ln_2 = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.mlp = MLP(width, mlp_width, activation, dtype, rngs=rngs)

    def __call__(
        self,
        x: Array,
        bias: Array | None = None,
        *,
        maps: bool = False,
        mean_map: bool = False,
    ) -> tuple[Array, dict[str, Array]]:
        """Tokens (b, t, d) -> tokens, and intermediate results {"q", "k", "v"} (b, t, d).

        With `maps` also {"attn"} (b, n, t, t), with `mean_map` also {"map"} (b, t, t), its mean
        over heads. Under jit, unused results are not computed. `bias` (1 or b, 1 or t, t) is added
        to the attention scores.
        """
        q, k, v = self.attn.qkv(self.ln_1(x))
        parts = {"q": q, "k": k, "v": v}
        if maps:
            parts["attn"] = self.attn.maps(q, k, bias)
        if mean_map:
            mixed, parts["map"] = self.attn.mix_and_map(q, k, v, bias)
        else:
            mixed = self.attn.mix(q, k, v, bias)
        x = x + mixed
        return x + self.mlp(self.ln_2(x)), parts


class Transformer(nnx.Module):
    """A stack of blocks."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        mlp_width: int | None = None,
        activation: Activation,
        eps: float,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        """`mlp_width` None: four times `width`."""
        hidden = 4 * width if mlp_width is None else mlp_width
        self.resblocks = nnx.List(
            Block(
                width,
                heads,
                mlp_width=hidden,
                activation=activation,
                eps=eps,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(layers)
        )

    def __call__(
        self,
        x: Array,
        bias: Array | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        read: Collection[str] = (),
    ) -> tuple[Array, dict[str, Array]]:
        """Runs blocks [start, stop) on tokens (b, t, d); returns tokens and what `read` names.

        Names: "block{i}" (b, t, d), the output of a block; "q{i}", "k{i}", "v{i}" (b, t, d), before
        the heads are split; "attn{i}" (b, n, t, t), attention maps; "map{i}" (b, t, t), their mean
        over heads.

        Raises:
          ValueError: `read` has a name that is not among these for the blocks in the range.
        """
        out: dict[str, Array] = {}
        for i in range(*slice(start, stop).indices(len(self.resblocks))):
            maps, mean_map = f"attn{i}" in read, f"map{i}" in read
            x, parts = self.resblocks[i](x, bias, maps=maps, mean_map=mean_map)
            named = {f"{name}{i}": value for name, value in parts.items()} | {f"block{i}": x}
            out |= {name: value for name, value in named.items() if name in read}
        if unknown := sorted(set(read) - set(out)):
            raise ValueError(
                f"cannot read {unknown}: blocks [{start}, {stop}) of {len(self.resblocks)} have "
                "block, q, k, v, attn and map, followed by the index of a block"
            )
        return x, out
