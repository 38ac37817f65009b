"""ReCLIP and ReCLIP++: the class preference and space preference of CLIP, learned and removed.

Source: Wang and Kang, "Learn to Rectify the Bias of CLIP for Unsupervised Semantic Segmentation",
2024, and its journal version ReCLIP++. Spec reclip, sections 8 to 12 and 14.

A frozen CLIP gives features and query logits; a reference prompt and the position embeddings give
what CLIP would say without looking, which a small head takes away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.maskclip.model import denoise_prompts, text_rows
from clipseg_jax.methods.reclip.heads import BiasDecoder, Over, PositionNet, apply_mask, cosines
from clipseg_jax.models.clip import (
    ModifiedResNet,
    TextTransformer,
    Tokenizer,
    VisionTransformer,
    l2_normalize,
)
from clipseg_jax.models.clip.dense import dense_features
from clipseg_jax.models.clip.transformer import Activation
from clipseg_jax.ops.attention import KeyValues, attention, join_heads, split_heads

_NAME_TOKENS = 3  # of each class name; longer names lose the rest and their end token


@dataclasses.dataclass(frozen=True)
class ReCLIPConfig:
    """Which head, and the constants that go with it."""

    plus_plus: bool = True
    gumbel_scale: float = 100.0  # logits are multiplied by it before masks are drawn
    filter_scale: float = 10.0  # and before the class filter's softmax
    temperature: float = 100.0  # of the loss's cosines: exp(logit_scale) of the CLIP
    # Statistics of the head's batch norms: of each image alone, as the published runs (batch 1)
    # had them whatever the batch size here; or of the whole batch (2025, Cityscapes).
    norm_over: Over = "image"


RECLIP = ReCLIPConfig(plus_plus=False, gumbel_scale=1000.0, filter_scale=100.0)
RECLIP_PP = ReCLIPConfig()


def reclip_image_tower(
    visual: VisionTransformer | ModifiedResNet,
    activation: Activation,
    class_token: ArrayLike | None = None,
) -> VisionTransformer:
    """`visual`'s parameters, not copied, in a tower with ReCLIP's choices (section 8).

    Args:
      activation: "gelu" in the 2024 state of ReCLIP, "quick_gelu" in that of 2025.
      class_token: what a checkpoint brings instead of CLIP's class embedding; any shape of (d,).

    Raises:
      ValueError: not a ViT.
    """
    if isinstance(visual, ModifiedResNet):
        raise ValueError("ReCLIP rectifies position embeddings: it needs a CLIP with a ViT")
    cfg = dataclasses.replace(visual.cfg, activation=activation, block_norm_eps=1e-6)
    graph, _ = nnx.split(abstract(lambda rngs: VisionTransformer(cfg, rngs=rngs)))
    params = nnx.to_pure_dict(nnx.state(visual))
    if class_token is not None:
        params["class_embedding"] = jnp.asarray(class_token, jnp.float32).reshape(cfg.width)
    return nnx.merge(graph, nnx.State(params))


def reference_ids(tokenizer: Tokenizer, names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The three ids that stand for each bare class name: its tokens, the end token, zeros."""
    ids = tokenizer(list(names), truncate=True)[:, 1 : 1 + _NAME_TOKENS]
    return tuple(tuple(map(int, row)) for row in ids)


class ReferencePrompt(nnx.Module):
    """A text tower that reads start, a learned prompt, and three ids of a class name."""

    def __init__(
        self,
        text: TextTransformer,
        name_ids: Sequence[Sequence[int]],
        prompt: ArrayLike | None = None,
    ):
        """`prompt` (context_length - 4, w); None: copies of the embedding of token 0, as published.

        Raises:
          ValueError: a prompt of another shape.
        """
        self.text = text
        self.name_ids = tuple(tuple(map(int, ids)) for ids in name_ids)
        shape = (text.cfg.context_length - 1 - _NAME_TOKENS, text.cfg.width)
        if prompt is None:
            prompt = jnp.broadcast_to(text.token_embedding.embedding[0], shape)
        prompt = jnp.asarray(prompt, jnp.float32)
        if prompt.shape != shape:
            raise ValueError(f"a prompt of shape {prompt.shape}, this text tower takes {shape}")
        self.prompt = nnx.Param(prompt)

    def features(self) -> Array:
        """Text features (c, e), not normalised.

        No token sees those behind it, so start and prompt are the same for all classes: they run
        once and leave their keys and values, which each class's three tokens attend to. Exact.
        """
        text = self.text
        ids = jnp.asarray(self.name_ids, jnp.int32)  # (c, 3)
        positions = text.positional_embedding[...]
        # CLIP's vocabularies end with the start and the end token.
        start = text.token_embedding(jnp.asarray([text.cfg.vocabulary - 2]))
        prefix = jnp.concatenate([start, self.prompt[...]]) + positions[:-_NAME_TOKENS]
        prefix = prefix[None]  # (1, 1 + k, w)
        names = text.token_embedding(ids) + positions[-_NAME_TOKENS:]
        causal, among_names = _causal(prefix.shape[1]), _causal(names.shape[1])
        for block in text.transformer.resblocks:
            prefix, parts = block(prefix, causal)
            q, k, v = block.attn.qkv(block.ln_1(names))
            q, k, v, prefix_k, prefix_v = (
                split_heads(x, block.attn.heads) for x in (q, k, v, parts["k"], parts["v"])
            )
            groups = [KeyValues(prefix_k, prefix_v), KeyValues(k, v, among_names)]
            names = names + block.attn.out_proj(join_heads(attention(q, groups)))
            names = names + block.mlp(block.ln_2(names))
        # The end token has the highest id. A name that lost it is read at its highest word id.
        end = jnp.argmax(ids, axis=1)
        last = text.ln_final(names)[jnp.arange(ids.shape[0]), end]
        return jnp.matmul(last, text.text_projection[...], precision="highest")

    def __call__(self) -> Array:
        """The reference (c, e): features over the one norm of the whole matrix."""
        features = self.features()
        return features / jnp.linalg.norm(features)


def _causal(length: int) -> Array:
    """Attention bias (1, t, t) that masks later tokens."""
    return jnp.where(jnp.tril(jnp.ones((1, length, length), bool)), 0.0, -jnp.inf)


class ReferenceRows(nnx.Module):
    """A reference that is already computed, for evaluation and distillation."""

    def __init__(self, rows: ArrayLike):
        self.rows = nnx.Param(jnp.asarray(rows, jnp.float32))

    def __call__(self) -> Array:
        """(c, e)."""
        return self.rows[...]


class Frozen(NamedTuple):
    """What the frozen CLIP says of images, on the grid (hp, wp)."""

    features: Array  # (b, hp, wp, e) unit
    query: Array  # (b, hp, wp, c) cosines with the class texts
    positions: Array  # (1 or b, hp, wp, d) position embeddings
    real: Array  # (b, hp, wp) bool, False in the padding


class ReCLIP(nnx.Module):
    """A frozen CLIP and what was learned to rectify it."""

    def __init__(
        self,
        visual: VisionTransformer,
        text_embeddings: ArrayLike,
        reference: ReferencePrompt | ReferenceRows,
        head: PositionNet | BiasDecoder,
        cfg: ReCLIPConfig = RECLIP_PP,
    ):
        """`visual` from `reclip_image_tower`; `text_embeddings` (c, e) unit rows.

        Raises:
          ValueError: the rows' length is not the tower's.
        """
        self.cfg = cfg
        self.visual = visual
        self.text_embeddings = nnx.Param(text_rows(text_embeddings, visual))
        self.reference = reference
        self.head = head

    def raw_features(self, images: Array, sizes: Array | None = None) -> tuple[Array, Array]:
        """Features (b, hp, wp, e) before they become unit vectors, and the mask of real ones."""
        dense = dense_features(self.visual, images, sizes)
        return jax.lax.stop_gradient(dense.features), dense.real

    def compare(self, raw: Array, real: Array, sizes: Array | None = None) -> Frozen:
        """`dense`, from what `raw_features` made."""
        features = l2_normalize(raw)
        query = cosines(features, self.text_embeddings[...])
        grid = real.shape[1], real.shape[2]
        grids = None if sizes is None else self.visual.grid_sizes(sizes)
        positions = self.visual.positions(grid, grids)[:, 1:]
        positions = positions.reshape(positions.shape[0], *grid, -1)
        return Frozen(*jax.lax.stop_gradient((features, query, positions)), real)

    def dense(self, images: Array, sizes: Array | None = None) -> Frozen:
        """Normalised images (b, h, w, 3), of which `sizes` (b, 2) pixels are real."""
        return self.compare(*self.raw_features(images, sizes), sizes)

    def rectify(self, frozen: Frozen, *, train: bool = False) -> Array:
        """Logits (b, hp, wp, c), 0 in the padding; `train` uses and moves the batch statistics."""
        features, query, positions, real = frozen
        # Without sizes there is no padding and one position map for all images: keep it one.
        padded = positions.shape[0] == features.shape[0]
        logits = self.head(
            features,
            query,
            positions,
            self.reference(),
            train=train,
            stats_over=self.cfg.norm_over,
            real=real if padded else None,
        )
        return apply_mask(logits, real)

    def __call__(self, images: Array, sizes: Array | None = None, *, train: bool = False) -> Array:
        """Normalised images (b, h, w, 3) -> logits (b, hp, wp, c), see `rectify`."""
        return self.rectify(self.dense(images, sizes), train=train)


def filter_classes(logits: Array, real: Array, scale: float, threshold: float) -> Array:
    """Logits (b, hp, wp, c) with -100 for classes nowhere as probable as `threshold`; 0: no filter.

    `real` (b, hp, wp) bool. At threshold 1 a class stays where its float32 probability rounds to 1.
    """
    if threshold <= 0:
        return logits
    return denoise_prompts(logits.astype(jnp.float32), real, threshold, scale)


def frozen_reference(model: ReCLIP) -> ReCLIP:
    """The same model, not copied, with its reference computed once."""
    graph, state = nnx.split(model.reference)
    rows = jax.jit(lambda state: nnx.merge(graph, state)())(state)
    return ReCLIP(
        model.visual, model.text_embeddings[...], ReferenceRows(rows), model.head, model.cfg
    )
