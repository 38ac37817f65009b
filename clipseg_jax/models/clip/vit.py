"""CLIP's transformer, and the image tower built on it.

Names inside follow OpenAI's state dict (`resblocks`, `ln_1`, `c_fc`): conversion is a table.
Source: Radford et al. 2021; Dosovitskiy et al. 2021.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.ops.resize import resize, resize_within

Activation = Literal["quick_gelu", "gelu"]
_MASKED = -1e30  # added to attention scores of padding: exp() gives exactly 0
_SCORES_AT_ONCE = 2**20  # attention scores a CPU makes at once: 4 MB, about what its caches hold


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a vision transformer, and the choices in which the published systems differ."""

    image_px: int
    patch_px: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    block_norm_eps: float | None = None  # None: norm_eps. ReCLIP differs inside the blocks only
    position_resize: Literal["bicubic", "bilinear"] = "bicubic"
    position_half: bool = False  # round resized positions to float16 (CLIP-ES, WeCLIP)
    position_keep_count: bool = False  # keep the table for any grid of the stored count (MaskCLIP)
    pad_to_patch: bool = True  # True: zero-pad to whole patches; False: drop the remainder
    dtype: str = "float32"  # of the matrix products; parameters stay float32

    @property
    def grid(self) -> int:
        """Patches along one side of the training image."""
        return self.image_px // self.patch_px


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

    def __call__(self, x: Array, bias: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Tokens (b, t, d) -> tokens, and this block's {"q", "k", "v", "attn"}.

        What the caller doesn't use, jit removes. `bias` is added to the attention scores.
        """
        q, k, v = self.attn.qkv(self.ln_1(x))
        weights = self.attn.weights(q, k, bias)  # for those who read them
        x = x + self.attn.mix(q, k, v, bias)
        x = x + self.mlp(self.ln_2(x))
        return x, {"q": q, "k": k, "v": v, "attn": weights}


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
        the heads are split; "attn{i}" (b, n, t, t).

        Raises:
          ValueError: a name in `read` that no block in the range makes.
        """
        out: dict[str, Array] = {}
        for i in range(*slice(start, stop).indices(len(self.resblocks))):
            x, parts = self.resblocks[i](x, bias)
            made = {f"{name}{i}": value for name, value in parts.items()} | {f"block{i}": x}
            out |= {name: value for name, value in made.items() if name in read}
        if unknown := sorted(set(read) - set(out)):
            raise ValueError(
                f"cannot read {unknown}: a tower of {len(self.resblocks)} blocks, run from "
                f"{start} to {stop}, has block, q, k, v and attn followed by the block's index"
            )
        return x, out


class VisionTransformer(nnx.Module):
    """CLIP's ViT on images of any size.

    Images are normalised float NHWC. `sizes` (b, 2) int32 says how many rows and columns of each
    padded image are real; the padding then has no influence on any real token.
    """

    def __init__(self, cfg: ViTConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        d, patch = cfg.width, (cfg.patch_px, cfg.patch_px)
        block_eps = cfg.norm_eps if cfg.block_norm_eps is None else cfg.block_norm_eps
        normal = nnx.initializers.normal(d**-0.5)
        self.conv1 = nnx.Conv(
            3, d, patch, strides=patch, padding="VALID", use_bias=False, dtype=cfg.dtype, rngs=rngs
        )
        self.class_embedding = nnx.Param(normal(rngs.params(), (d,)))
        self.positional_embedding = nnx.Param(normal(rngs.params(), (cfg.grid**2 + 1, d)))
        self.ln_pre = nnx.LayerNorm(d, epsilon=cfg.norm_eps, rngs=rngs)
        self.transformer = Transformer(
            d,
            cfg.layers,
            cfg.heads,
            activation=cfg.activation,
            eps=block_eps,
            dtype=cfg.dtype,
            rngs=rngs,
        )
        self.ln_post = nnx.LayerNorm(d, epsilon=cfg.norm_eps, rngs=rngs)
        self.proj = nnx.Param(normal(rngs.params(), (d, cfg.embed_dim)))

    def grid_sizes(self, sizes: Array) -> Array:
        """Patches (b, 2) = (rows, columns) that cover images of `sizes` (b, 2) pixels."""
        extra = self.cfg.patch_px - 1 if self.cfg.pad_to_patch else 0
        return (sizes + extra) // self.cfg.patch_px

    def grid_shape(self, height: int, width: int) -> tuple[int, int]:
        """The same of one image, whose size is static."""
        extra = self.cfg.patch_px - 1 if self.cfg.pad_to_patch else 0
        return (height + extra) // self.cfg.patch_px, (width + extra) // self.cfg.patch_px

    def positions(self, grid: tuple[int, int], grids: Array | None = None) -> Array:
        """Position embeddings (1 or b, 1 + hp*wp, d) for a grid (hp, wp).

        With `grids` (b, 2), for each image's own part of the grid. Source: specs of MaskCLIP,
        ReCLIP, CLIP-ES (the mode is `cfg.position_resize`).
        """
        cfg, side = self.cfg, self.cfg.grid
        table = self.positional_embedding[...].astype(jnp.float32)
        stored = table[None, 1:].reshape(1, side, side, -1)
        keep = cfg.position_keep_count
        if grids is None:
            if grid == (side, side) or (keep and grid[0] * grid[1] == side * side):
                return table[None]
            spatial = resize(stored, grid, cfg.position_resize)
        else:
            b = grids.shape[0]
            stored = jnp.broadcast_to(stored, (b, *stored.shape[1:]))
            sides = jnp.full((b, 2), side, jnp.int32)
            spatial = resize_within(stored, sides, grids, grid, cfg.position_resize)
            # The stored table, in the row-major order of each image's own grid.
            rows, columns = jnp.arange(grid[0])[:, None], jnp.arange(grid[1])[None, :]
            own = rows * grids[:, 1, None, None] + columns
            same = jnp.all(grids == side, axis=1)
            same = same | (keep & (grids[:, 0] * grids[:, 1] == side * side))
            kept = table[1:][jnp.clip(own, 0, side * side - 1)]
            spatial = jnp.where(same[:, None, None, None], kept, spatial)
        if cfg.position_half:
            spatial = spatial.astype(jnp.float16).astype(jnp.float32)
        spatial = spatial.reshape(spatial.shape[0], -1, table.shape[-1])
        row0 = jnp.broadcast_to(table[None, :1], (spatial.shape[0], 1, table.shape[-1]))
        return jnp.concatenate([row0, spatial], axis=1)

    def embed(self, images: Array, sizes: Array | None = None) -> tuple[Array, Array | None]:
        """Images (b, h, w, 3) -> tokens after `ln_pre` (b, 1 + hp*wp, d), and the attention bias.

        The bias (b, 1, 1, t) hides padding tokens; None when `sizes` is None.
        """
        b, h, w, _ = images.shape
        grid = self.grid_shape(h, w)
        patch = self.cfg.patch_px
        pad = [(0, max(n * patch - side, 0)) for n, side in zip(grid, (h, w), strict=True)]
        if sizes is not None:
            images = jnp.where(inside(sizes, (h, w))[..., None], images, 0)
        images = jnp.pad(images, ((0, 0), *pad, (0, 0)))
        patches = self.conv1(images).astype(jnp.float32)
        tokens = patches.reshape(b, -1, self.cfg.width)
        first = jnp.broadcast_to(self.class_embedding[...], (b, 1, self.cfg.width))
        tokens = jnp.concatenate([first, tokens], axis=1)
        if sizes is None:
            return self.ln_pre(tokens + self.positions(grid)), None
        grids = self.grid_sizes(sizes)
        tokens = self.ln_pre(tokens + self.positions(grid, grids))
        real = inside(grids, grid).reshape(b, -1)
        real = jnp.concatenate([jnp.ones((b, 1), bool), real], axis=1)
        return tokens, jnp.where(real, 0.0, _MASKED)[:, None, None, :]

    def pool(self, x: Array) -> Array:
        """Tokens (b, t, d) -> image features (b, e) from the class token, not normalised."""
        return self.ln_post(x[:, 0]) @ self.proj[...]

    def __call__(
        self, images: Array, sizes: Array | None = None, *, read: Collection[str] = ()
    ) -> tuple[Array, dict[str, Array]]:
        """Normalised images (b, h, w, 3) -> image features (b, e) and the read-outs asked for.

        `read` may name "ln_pre", and whatever `Transformer` can read. Token 0 is the class token.
        """
        x, bias = self.embed(images, sizes)
        first = {"ln_pre": x} if "ln_pre" in read else {}
        x, out = self.transformer(x, bias, read=set(read) - {"ln_pre"})
        return self.pool(x), first | out


def inside(sizes: Array, shape: tuple[int, int]) -> Array:
    """Mask (b, h, w), true in the top-left `sizes[i]` = (rows, columns) of each image."""
    rows = jnp.arange(shape[0])[None, :, None] < sizes[:, 0, None, None]
    columns = jnp.arange(shape[1])[None, None, :] < sizes[:, 1, None, None]
    return rows & columns
