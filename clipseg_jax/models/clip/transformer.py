"""CLIP's transformer: what its image and text towers have in common.

Names follow OpenAI's state dict (`resblocks`, `ln_1`, `c_fc`): conversion is a table.
Source: Radford et al. 2021; spec clip, section 2.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

Activation = Literal["quick_gelu", "gelu"]
_SCORES_AT_ONCE = 2**20  # attention scores a CPU makes at once: 4 MB, about what its caches hold


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), the activation of OpenAI's weights."""
    return x * jax.nn.sigmoid(1.702 * x)


def _activate(x: Array, activation: Activation) -> Array:
    return quick_gelu(x) if activation == "quick_gelu" else jax.nn.gelu(x, approximate=False)


class Attention(nnx.Module):
    """Multi-head self-attention with one packed projection."""

    def __init__(self, width: int, heads: int, dtype: str, *, rngs: nnx.Rngs):
        self.heads = heads
        self.in_proj = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out_proj = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def qkv(self, x: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values, each (b, t, d), heads in contiguous channel groups."""
        q, k, v = jnp.split(self.in_proj(x), 3, axis=-1)
        return q, k, v

    def weights(self, q: Array, k: Array, bias: Array | None = None) -> Array:
        """Attention maps (b, n, t, t) float32: softmax over the last axis."""
        q, k = self._split(q), self._split(k)
        scale = q.shape[-1] ** -0.5
        scores = jnp.einsum("bqnd,bknd->bnqk", q * scale, k, preferred_element_type=jnp.float32)
        return jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)

    def attend(self, weights: Array, v: Array) -> Array:
        """Projected mixture (b, t, d) of values under attention maps (b, n, t, t)."""
        v = self._split(v)
        mixed = jnp.einsum("bnqk,bknd->bqnd", weights.astype(v.dtype), v)
        return self.out_proj(mixed.reshape(*mixed.shape[:2], -1))

    def mix(self, q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
        """`attend(weights(q, k, bias), v)`, on CPUs without ever holding all attention maps.

        There, writing and reading maps of b*n*t*t numbers would take longer than all products.
        """
        b, t, _ = k.shape
        if b * self.heads * t * t <= _SCORES_AT_ONCE:
            return self.attend(self.weights(q, k, bias), v)
        bias = jnp.zeros((1, t)) if bias is None else bias
        return jax.lax.platform_dependent(
            q,
            k,
            v,
            bias,
            cpu=self._mix_in_turn,
            default=lambda q, k, v, bias: self.attend(self.weights(q, k, bias), v),
        )

    def mix_and_map(
        self, q: Array, k: Array, v: Array, bias: Array | None = None
    ) -> tuple[Array, Array]:
        """`mix` (b, t, d), and the mean (b, t, t) over heads of its attention maps.

        One head of all images at a time: the maps of all heads are never held.
        """
        b, t, _ = k.shape
        bias = jnp.zeros((1, t)) if bias is None else bias
        bias = jnp.broadcast_to(bias, (b, 1, *bias.shape[-2:]))[:, 0]

        def one(total: Array, head: list[Array]) -> tuple[Array, Array]:
            q, k, v = head  # (b, t, d / heads) each
            scores = jnp.einsum(
                "bqd,bkd->bqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32
            )
            weights = jax.nn.softmax(scores + bias, axis=-1)
            return total + weights, jnp.einsum("bqk,bkd->bqd", weights.astype(v.dtype), v)

        split = [jnp.moveaxis(self._split(x), 2, 0) for x in (q, k, v)]
        total, mixed = jax.lax.scan(one, jnp.zeros((b, t, t), jnp.float32), split)
        mixed = jnp.moveaxis(mixed, 0, 2).reshape(b, t, -1)
        return self.out_proj(mixed), total / self.heads

    def _mix_in_turn(self, q: Array, k: Array, v: Array, bias: Array) -> Array:
        """`mix`, a few heads of a few images at a time."""
        b, t, d = q.shape
        bias = jnp.broadcast_to(bias, (b, self.heads, *bias.shape[-2:]))

        def one(args: tuple[Array, Array, Array, Array]) -> Array:
            q, k, v, bias = args  # (t, d) each, bias (t or 1, t)
            scores = jnp.matmul(q * q.shape[-1] ** -0.5, k.T, preferred_element_type=jnp.float32)
            scores = scores + bias
            top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
            weights = jnp.exp(scores - top)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            # Dividing t*d numbers instead of t*t.
            return ((weights.astype(v.dtype) @ v) / total).astype(v.dtype)

        heads = [self._split(x).swapaxes(1, 2).reshape(b * self.heads, t, -1) for x in (q, k, v)]
        heads.append(bias.reshape(b * self.heads, *bias.shape[-2:]))
        mixed = jax.lax.map(one, tuple(heads), batch_size=max(_SCORES_AT_ONCE // (t * t), 1))
        return self.out_proj(mixed.reshape(b, self.heads, t, -1).swapaxes(1, 2).reshape(b, t, d))

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


class MLP(nnx.Module):
    """The two-layer perceptron of a block, four times as wide inside."""

    def __init__(self, width: int, activation: Activation, dtype: str, *, rngs: nnx.Rngs):
        self.activation = activation
        self.c_fc = nnx.Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.c_proj = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)

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
        activation: Activation,
        eps: float,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.ln_1 = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.attn = Attention(width, heads, dtype, rngs=rngs)
        self.ln_2 = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.mlp = MLP(width, activation, dtype, rngs=rngs)

    def __call__(
        self,
        x: Array,
        bias: Array | None = None,
        *,
        maps: bool = False,
        mean_map: bool = False,
    ) -> tuple[Array, dict[str, Array]]:
        """Tokens (b, t, d) -> tokens, and this block's {"q", "k", "v"}.

        With `maps` also "attn", with either also "map". What the caller doesn't use, jit
        removes. `bias` is added to the attention scores.
        """
        q, k, v = self.attn.qkv(self.ln_1(x))
        parts = {"q": q, "k": k, "v": v}
        if maps:
            parts["attn"] = self.attn.weights(q, k, bias)
            parts["map"] = jnp.mean(parts["attn"], axis=1)
            x = x + self.attn.attend(parts["attn"], v)
        elif mean_map:
            mixed, parts["map"] = self.attn.mix_and_map(q, k, v, bias)
            x = x + mixed
        else:
            x = x + self.attn.mix(q, k, v, bias)
        return x + self.mlp(self.ln_2(x)), parts


class Transformer(nnx.Module):
    """A stack of blocks."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        activation: Activation,
        eps: float,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.resblocks = nnx.List(
            Block(width, heads, activation=activation, eps=eps, dtype=dtype, rngs=rngs)
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
        """Runs blocks [start, stop) on tokens (b, t, d); `read` names what to return with them.

        Readable: "block{i}" (b, t, d) the block's output; "q{i}", "k{i}", "v{i}" (b, t, d) before
        the heads are split; "attn{i}" (b, n, t, t); "map{i}" (b, t, t) its mean over heads.

        Raises:
          ValueError: a name in `read` that no block in the range makes.
        """
        out: dict[str, Array] = {}
        for i in range(*slice(start, stop).indices(len(self.resblocks))):
            maps, mean_map = f"attn{i}" in read, f"map{i}" in read
            x, parts = self.resblocks[i](x, bias, maps=maps, mean_map=mean_map)
            made = {f"{name}{i}": value for name, value in parts.items()} | {f"block{i}": x}
            out |= {name: value for name, value in made.items() if name in read}
        if unknown := sorted(set(read) - set(out)):
            raise ValueError(
                f"cannot read {unknown}: a tower of {len(self.resblocks)} blocks, run from "
                f"{start} to {stop}, has block, q, k, v, attn and map followed by the block's index"
            )
        return x, out
