"""ProxyCLIP: CLIP's values, mixed by how alike the patches are to a DINO.

Source: Lan et al., "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation",
2024; spec readouts, section 12.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.core.checks import check_number
from clipseg_jax.models.clip import (
    ImageTower,
    VisionTransformer,
    as_text_embeddings,
    l2_normalize,
)
from clipseg_jax.models.clip.dense import encode
from clipseg_jax.models.clip.read_outs import VALUE
from clipseg_jax.models.dino import DINO
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, mask_padding, valid_mask
from clipseg_jax.ops.resize import resize, resize_within

# Of DINO's input, on the scale of `CLIP_MEAN`: here without rounding, as the published code.
_DINO_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_DINO_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
_SIMILARITIES_AT_ONCE = 2**24  # 64 MB; a window of 336 px has 3 million with patches of 8


@dataclasses.dataclass(frozen=True)
class ProxyConfig:
    """How DINO's similarities become attention.

    Raises:
      ValueError: a negative `beta`, or a `gamma` that is not positive.
    """

    beta: float = 1.2  # a patch attends to those with more than `beta` times the mean similarity
    gamma: float = 3.0  # factor of what is above that, before the softmax

    def __post_init__(self) -> None:
        check_number("beta", self.beta, 0)
        check_number("gamma", self.gamma, 0, above=True)


def proxy_attention(features: Array, values: Array, real: Array, cfg: ProxyConfig) -> Array:
    """Values (b, p, d) averaged over the patches whose features (b, p, d') are alike: (b, p, d).

    The weights are softmax(gamma (s - beta m)) over patches of a cosine s of at least beta m, m the
    mean cosine of all pairs. A patch always attends to itself. The p x p cosines are computed some
    rows at a time.

    Args:
      real: (b, p) bool, False in the padding, which has no influence and gets zeros.
      cfg: beta and gamma.
    """
    b, n, _ = features.shape
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    unit = jnp.where(real[..., None], features / jnp.maximum(norm, 1e-12), 0)
    count = jnp.sum(real, axis=1)
    # The sum of all cosines is the square of the sum of the unit vectors.
    mean = jnp.sum(jnp.sum(unit, axis=1) ** 2, axis=-1) / count**2
    cut = cfg.beta * mean[:, None]

    def one_row(row: tuple[Array, Array]) -> Array:
        """Mixed values (b, d) of the patch `index`, with features (b, d'), of each image."""
        index, own = row
        cosines = jnp.einsum("bw,bnw->bn", own, unit, precision="highest")
        kept = (real & (cosines >= cut)) | (jnp.arange(n) == index)
        weights = jax.nn.softmax(cfg.gamma * (cosines - cut), axis=-1, where=kept)
        return jnp.einsum("bn,bnd->bd", weights.astype(values.dtype), values)

    rows = (jnp.arange(n), unit.swapaxes(0, 1))
    at_once = max(_SIMILARITIES_AT_ONCE // (b * n), 1)
    if at_once < n:
        mixed = jax.lax.map(one_row, rows, batch_size=at_once)
    else:
        mixed = jax.vmap(one_row)(rows)
    return jnp.where(real[..., None], mixed.swapaxes(0, 1), 0)


class ProxyCLIP(nnx.Module):
    """A frozen CLIP whose last attention is made of a frozen DINO's similarities.

    Dense scores are on DINO's grid, which is finer than CLIP's. The last block of CLIP has neither
    residual nor perceptron. Windows of any size and shape; remainders of a patch are ignored, so
    the published code pads them to a multiple of both towers' patches.
    """

    def __init__(
        self,
        visual: ImageTower,
        dino: DINO,
        text_embeddings: ArrayLike,
        cfg: ProxyConfig | None = None,
    ):
        """`text_embeddings` (c, e), unit vectors of the same CLIP.

        Raises:
          ValueError: the text embeddings are of another CLIP, or CLIP has no ViT.
        """
        if not isinstance(visual, VisionTransformer):
            raise ValueError(
                f"ProxyCLIP needs a CLIP with a ViT, and this one has a {type(visual).__name__}; "
                "give ViT weights, or use method maskclip"
            )
        self.cfg = cfg or ProxyConfig()
        self.visual = visual
        self.dino = dino
        self.text_embeddings = nnx.Param(as_text_embeddings(text_embeddings, visual))

    def grid_sizes(self, sizes: Array) -> Array:
        """Grids (b, 2) = (rows, columns) of the scores of images of `sizes` (b, 2) pixels."""
        return self.dino.grid_sizes(sizes)

    def features(self, images: Array, sizes: Array | None = None) -> Array:
        """Images (b, h, w, 3), normalised for CLIP -> dense features (b, hp, wp, e).

        The features are not normalised. `sizes` (b, 2): heights and widths of images in a padded
        batch; None: no image is padded.
        """
        visual, block = self.visual, self.visual.transformer.resblocks[-1]
        shape, b = images.shape[1:3], images.shape[0]
        grid, clip_grid = self.dino.grid_shape(*shape), visual.grid_shape(*shape)
        proxies = self.dino(dino_input(images), sizes)

        x = encode(visual, images, sizes, read_out=VALUE).x
        _, _, values = block.attn.qkv(block.ln_1(x[:, 1:]))
        values = values.reshape(b, *clip_grid, -1)
        if sizes is None:
            values = resize(values, grid)
            real = jnp.ones((b, *grid), bool)
        else:
            grids = self.grid_sizes(sizes)
            values = resize_within(values, visual.grid_sizes(sizes), grids, grid)
            real = valid_mask(grids, grid)

        proxies, values, real = (
            x.reshape(b, grid[0] * grid[1], -1) for x in (proxies, values, real)
        )
        mixed = block.attn.out_proj(proxy_attention(proxies, values, real[..., 0], self.cfg))
        features = visual.ln_post(mixed) @ visual.proj[...]
        return features.astype(jnp.float32).reshape(b, *grid, -1)

    def __call__(self, images: Array, sizes: Array | None = None) -> Array:
        """Cosines (b, hp, wp, c) with the text embeddings, on DINO's grid; 0 in the padding.

        `images` and `sizes` as in `features`.
        """
        features = self.features(images, sizes)
        cosines = l2_normalize(features) @ self.text_embeddings[...].T
        return mask_padding(cosines, None if sizes is None else self.grid_sizes(sizes))


def dino_input(images: Array) -> Array:
    """Images (b, h, w, 3) normalised for CLIP, normalised for DINO instead."""
    mean, std = jnp.asarray(CLIP_MEAN), jnp.asarray(CLIP_STD)
    return (images * std + mean - jnp.asarray(_DINO_MEAN)) / jnp.asarray(_DINO_STD)
