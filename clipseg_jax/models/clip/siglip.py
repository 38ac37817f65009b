"""SigLIP's and SigLIP 2's towers for images of any size.

They are CLIP's but for: patches with a bias, no class token and no `ln_pre`; image features by an
attention pool with a learned query; a text tower whose tokens see each other in both directions,
and whose feature is the output at the last token, padding or not.

Sources: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023; Tschannen et al.,
"SigLIP 2", 2025; `transformers.SiglipModel` and `Siglip2Model` (NaFlex), whose parameters these are
by names in OpenAI's manner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models import patches
from clipseg_jax.models.clip.transformer import MLP, Activation, Attention, Transformer
from clipseg_jax.ops.resize import resize, resize_within


@dataclasses.dataclass(frozen=True)
class SigLIPVisionConfig:
    """Sizes of SigLIP's image tower; its features are as wide as its tokens."""

    image_px: int
    patch_px: int
    width: int
    layers: int
    heads: int
    mlp_width: int  # of the hidden layers of perceptrons
    activation: Activation = "gelu_tanh"
    norm_eps: float = 1e-6
    # "bilinear_antialias": SigLIP 2's NaFlex, trained on images of many grids.
    position_resize: Literal["bicubic", "bilinear_antialias"] = "bicubic"
    pad_to_patch: bool = True  # as in `ViTConfig`
    dtype: str = "float32"  # of matrix products; parameters are float32

    @property
    def grid(self) -> int:
        """Patches along one side of the training image."""
        return self.image_px // self.patch_px

    @property
    def embed_dim(self) -> int:
        """Channels of image features."""
        return self.width


@dataclasses.dataclass(frozen=True)
class SigLIPTextConfig:
    """Sizes of SigLIP's text tower."""

    context_length: int
    vocabulary: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    mlp_width: int  # of the hidden layers of perceptrons
    activation: Activation = "gelu_tanh"
    norm_eps: float = 1e-6
    dtype: str = "float32"  # of matrix products; parameters are float32


class AttentionPool(nnx.Module):
    """A learned query attends to all tokens; a perceptron with a residual follows."""

    def __init__(self, cfg: SigLIPVisionConfig, *, rngs: nnx.Rngs):
        d = cfg.width
        self.probe = nnx.Param(nnx.initializers.normal(d**-0.5)(rngs.params(), (d,)))
        self.attn = Attention(d, cfg.heads, cfg.dtype, rngs=rngs)
        self.ln = nnx.LayerNorm(d, epsilon=cfg.norm_eps, rngs=rngs)
        self.mlp = MLP(d, cfg.mlp_width, cfg.activation, cfg.dtype, rngs=rngs)

    def __call__(self, x: Array, bias: Array | None = None) -> Array:
        """Tokens (b, t, d) -> image features (b, d); `bias` (b, 1, t) masks padding."""
        probe = jnp.broadcast_to(self.probe[...], (x.shape[0], 1, x.shape[-1]))
        query, _, _ = self.attn.qkv(probe)
        _, keys, values = self.attn.qkv(x)
        return self._after_attention(self.attn.mix(query, keys, values, bias))[:, 0]

    def each(self, x: Array) -> tuple[Array, Array]:
        """Tokens (b, t, d) -> the pool's output for each token alone, and its keys, (b, t, d) each.

        That is the value path: the feature of an image that had this one token, and so in the space
        of the texts. Before the perceptron, `__call__` is a weighted mean of these.
        """
        _, keys, values = self.attn.qkv(x)
        return self._after_attention(self.attn.out_proj(values)), self.attn.out_proj(keys)

    def _after_attention(self, x: Array) -> Array:
        return x + self.mlp(self.ln(x))


class SigLIPVision(nnx.Module):
    """SigLIP's ViT on images of any size, with the methods of `VisionTransformer`.

    Images are normalised float NHWC. `sizes` (b, 2) int32 are the heights and widths of images in a
    padded batch; padding has no influence on real tokens. None: no image is padded.
    """

    def __init__(self, cfg: SigLIPVisionConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        d, patch = cfg.width, (cfg.patch_px, cfg.patch_px)
        normal = nnx.initializers.normal(d**-0.5)
        self.conv1 = nnx.Conv(
            3, d, patch, strides=patch, padding="VALID", dtype=cfg.dtype, rngs=rngs
        )
        self.positional_embedding = nnx.Param(normal(rngs.params(), (cfg.grid**2, d)))
        self.transformer = Transformer(
            d,
            cfg.layers,
            cfg.heads,
            mlp_width=cfg.mlp_width,
            activation=cfg.activation,
            eps=cfg.norm_eps,
            dtype=cfg.dtype,
            rngs=rngs,
        )
        self.ln_post = nnx.LayerNorm(d, epsilon=cfg.norm_eps, rngs=rngs)
        self.head = AttentionPool(cfg, rngs=rngs)

    def grid_sizes(self, sizes: Array) -> Array:
        """Grids (b, 2) = (rows, columns) of patches of images of `sizes` (b, 2) pixels."""
        cfg = self.cfg
        return patches.grid_sizes(sizes, cfg.patch_px, pad_to_patch=cfg.pad_to_patch)

    def grid_shape(self, height: int, width: int) -> tuple[int, int]:
        """The grid (rows, columns) of patches of an image of a static size in pixels."""
        cfg = self.cfg
        return patches.grid_shape(height, width, cfg.patch_px, pad_to_patch=cfg.pad_to_patch)

    def positions(self, grid: tuple[int, int], grids: Array | None = None) -> Array:
        """Position embeddings (1 or b, hp*wp, d) for a grid (hp, wp).

        With `grids` (b, 2) they are resized for each image's grid within the padded one.
        """
        side, mode = self.cfg.grid, self.cfg.position_resize
        table = self.positional_embedding[...].astype(jnp.float32)
        stored = table.reshape(1, side, side, -1)
        if grids is None:
            resized = stored if grid == (side, side) else resize(stored, grid, mode)
        else:  # the same grid is the identity
            b = grids.shape[0]
            stored = jnp.broadcast_to(stored, (b, *stored.shape[1:]))
            resized = resize_within(stored, jnp.full((b, 2), side, jnp.int32), grids, grid, mode)
        return resized.reshape(resized.shape[0], -1, table.shape[-1])

    def embed(self, images: Array, sizes: Array | None = None) -> tuple[Array, Array | None]:
        """Images (b, h, w, 3) -> tokens (b, hp*wp, d), and the attention bias.

        The bias (b, 1, t) masks padding tokens; None if `sizes` is None.
        """
        _, h, w, _ = images.shape
        grid = self.grid_shape(h, w)
        images = patches.pad_to_grid(images, sizes, grid, self.cfg.patch_px)
        tokens = patches.embed(self.conv1, images)
        if sizes is None:
            return tokens + self.positions(grid), None
        grids = self.grid_sizes(sizes)
        return tokens + self.positions(grid, grids), patches.padding_bias(grids, grid, leading=0)

    def each_patch(self, images: Array, sizes: Array | None = None) -> tuple[Array, Array, Array]:
        """Normalised images (b, h, w, 3) -> tokens, their features and keys, (b, hp, wp, d) each.

        Tokens are the last hidden states, after `ln_post`. They are as wide as the features, but
        were never compared with texts: what was, are results of the pool, so features are its
        value path (`AttentionPool.each`).
        """
        grid = self.grid_shape(images.shape[1], images.shape[2])
        x, bias = self.embed(images, sizes)
        x, _ = self.transformer(x, bias)
        x = self.ln_post(x)
        features, keys = self.head.each(x)

        def spatial(tokens: Array) -> Array:
            return tokens.reshape(tokens.shape[0], *grid, -1).astype(jnp.float32)

        return spatial(x), spatial(features), spatial(keys)

    def __call__(
        self, images: Array, sizes: Array | None = None, *, read: Collection[str] = ()
    ) -> tuple[Array, dict[str, Array]]:
        """Normalised images (b, h, w, 3) -> image features (b, d) and intermediate results.

        `read` may have the names of `Transformer`.
        """
        x, bias = self.embed(images, sizes)
        x, out = self.transformer(x, bias, read=read)
        return self.head(self.ln_post(x), bias), out


class SigLIPText(nnx.Module):
    """SigLIP's text tower: every token sees all others, padding as well, as in its training."""

    def __init__(self, cfg: SigLIPTextConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        w = cfg.width
        normal = nnx.initializers.normal
        self.token_embedding = nnx.Embed(cfg.vocabulary, w, embedding_init=normal(0.02), rngs=rngs)
        self.positional_embedding = nnx.Param(normal(0.01)(rngs.params(), (cfg.context_length, w)))
        self.transformer = Transformer(
            w,
            cfg.layers,
            cfg.heads,
            mlp_width=cfg.mlp_width,
            activation=cfg.activation,
            eps=cfg.norm_eps,
            dtype=cfg.dtype,
            rngs=rngs,
        )
        self.ln_final = nnx.LayerNorm(w, epsilon=cfg.norm_eps, rngs=rngs)
        self.text_projection = nnx.Linear(w, cfg.embed_dim, rngs=rngs)

    def __call__(self, ids: Array) -> Array:
        """Ids (n, t) int32, padded to the context length -> text features (n, e), not normalised.

        Raises:
          ValueError: another t: a text's feature depends on how far it is padded.
        """
        if ids.shape[1] != self.cfg.context_length:
            raise ValueError(
                f"ids of {ids.shape[1]} tokens; SigLIP's texts are padded to "
                f"{self.cfg.context_length}"
            )
        x, _ = self.transformer(self.token_embedding(ids) + self.positional_embedding[...])
        return self.text_projection(self.ln_final(x[:, -1]))
