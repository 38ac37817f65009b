"""ReCLIP and ReCLIP++: learn and subtract CLIP's class-preference and space-preference bias.

Source: Wang and Kang, "Learn to Rectify the Bias of CLIP for Unsupervised Semantic Segmentation",
2024, and its journal version ReCLIP++. Spec reclip, sections 8 to 12 and 14.

A frozen CLIP gives features and query logits. A learned reference prompt and the position
embeddings model the bias, which a small head subtracts.
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

from clipseg_jax.core.checks import check_choice, check_number
from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.maskclip.model import denoise_prompts
from clipseg_jax.methods.reclip.heads import (
    BiasDecoder,
    PositionNet,
    StatsOver,
    apply_mask,
    cosines,
)
from clipseg_jax.models.clip import (
    ModifiedResNet,
    TextTransformer,
    Tokenizer,
    VisionTransformer,
    as_text_embeddings,
    l2_normalize,
)
from clipseg_jax.models.clip.dense import dense_features
from clipseg_jax.models.clip.read_outs import read_out
from clipseg_jax.models.clip.transformer import Activation
from clipseg_jax.ops.attention import KeyValues, attention, join_heads, split_heads

_NAME_TOKENS = 3  # of each class name; longer names are cut and have no end token


@dataclasses.dataclass(frozen=True)
class ReCLIPConfig:
    """The head and its constants; the defaults are ReCLIP++'s."""

    plus_plus: bool = True  # ReCLIP++'s head; False: ReCLIP's
    gumbel_scale: float = 100.0  # factor of the logits before masks are sampled
    filter_scale: float = 10.0  # factor of the logits before the class filter's softmax
    temperature: float = 100.0  # factor of the loss's cosines: exp(logit_scale) of CLIP
    # Batch statistics of the head's norms: of each image ("image"), as in the published runs with
    # batches of one image, or of the whole batch (the 2025 state on Cityscapes).
    norm_over: StatsOver = "image"
    # How the frozen CLIP is read: a name of `models/clip/read_outs.py`. Published: "value".
    read_out: str = "value"

    def __post_init__(self) -> None:
        read_out(self.read_out)
        check_choice("norm_over", self.norm_over, ("image", "batch"))
        for name in ("gumbel_scale", "filter_scale", "temperature"):
            check_number(name, getattr(self, name), 0, above=True)


def reclip_image_tower(
    visual: VisionTransformer | ModifiedResNet,
    activation: Activation,
    class_token: ArrayLike | None = None,
) -> VisionTransformer:
    """A tower with ReCLIP's options and the parameters of `visual`, not copied (section 8).

    Args:
      activation: "gelu" in the 2024 state of ReCLIP, "quick_gelu" in that of 2025.
      class_token: d numbers that replace CLIP's class embedding; None: CLIP's own.

    Raises:
      ValueError: `visual` is not a ViT.
    """
    if isinstance(visual, ModifiedResNet):
        raise ValueError("ReCLIP rectifies position embeddings; give a CLIP with a ViT")
    cfg = dataclasses.replace(visual.cfg, activation=activation, block_norm_eps=1e-6)
    graph, _ = nnx.split(abstract(lambda rngs: VisionTransformer(cfg, rngs=rngs)))
    params = nnx.to_pure_dict(nnx.state(visual))
    if class_token is not None:
        params["class_embedding"] = jnp.asarray(class_token, jnp.float32).reshape(cfg.width)
    return nnx.merge(graph, nnx.State(params))


def reference_ids(tokenizer: Tokenizer, names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Three token ids for each bare class name: its tokens, the end token, zeros."""
    ids = tokenizer(list(names), truncate=True)[:, 1 : 1 + _NAME_TOKENS]
    return tuple(tuple(map(int, row)) for row in ids)


class ReferencePrompt(nnx.Module):
    """A text tower with a learned prompt between the start token and the class name's three ids."""

    def __init__(
        self,
        text: TextTransformer,
        name_ids: Sequence[Sequence[int]],
        prompt: ArrayLike | None = None,
    ):
        """`prompt` (context_length - 4, w); None: copies of token 0's embedding, as published.

        Raises:
          ValueError: `prompt` has another shape.
        """
        self.text = text
        self.name_ids = tuple(tuple(map(int, ids)) for ids in name_ids)
        shape = (text.cfg.context_length - 1 - _NAME_TOKENS, text.cfg.width)
        if prompt is None:
            prompt = jnp.broadcast_to(text.token_embedding.embedding[0], shape)
        prompt = jnp.asarray(prompt, jnp.float32)
        if prompt.shape != shape:
            raise ValueError(f"prompt of shape {prompt.shape}; this text tower takes {shape}")
        self.prompt = nnx.Param(prompt)

    def features(self) -> Array:
        """Text features (c, e), not normalised.

        Attention is causal, so the start token and the prompt have the same states for all classes:
        they run once, and the tokens of each class attend to their keys and values.
        """
        text = self.text
        ids = jnp.asarray(self.name_ids, jnp.int32)  # (c, 3)
        positions = text.positional_embedding[...]
        # CLIP's vocabularies end with the start and the end token.
        start = text.token_embedding(jnp.asarray([text.cfg.vocabulary - 2]))
        prefix = jnp.concatenate([start, self.prompt[...]]) + positions[:-_NAME_TOKENS]
        prefix = prefix[None]  # (1, 1 + k, w)
        names = text.token_embedding(ids) + positions[-_NAME_TOKENS:]
        prefix_bias, name_bias = _causal(prefix.shape[1]), _causal(names.shape[1])
        for block in text.transformer.resblocks:
            prefix, parts = block(prefix, prefix_bias)
            q, k, v = block.attn.qkv(block.ln_1(names))
            q, k, v, prefix_k, prefix_v = (
                split_heads(x, block.attn.heads) for x in (q, k, v, parts["k"], parts["v"])
            )
            groups = [KeyValues(prefix_k, prefix_v), KeyValues(k, v, name_bias)]
            names = names + block.attn.out_proj(join_heads(attention(q, groups)))
            names = names + block.mlp(block.ln_2(names))
        # The end token has the highest id; names that are cut are read at their highest id.
        end = jnp.argmax(ids, axis=1)
        last = text.ln_final(names)[jnp.arange(ids.shape[0]), end]
        return jnp.matmul(last, text.text_projection[...], precision="highest")

    def __call__(self) -> Array:
        """The reference (c, e): features divided by the Frobenius norm of the matrix."""
        features = self.features()
        return features / jnp.linalg.norm(features)


def _causal(length: int) -> Array:
    """Attention bias (1, t, t) that masks later tokens."""
    return jnp.where(jnp.tril(jnp.ones((1, length, length), bool)), 0.0, -jnp.inf)


class FixedReference(nnx.Module):
    """A precomputed reference (c, e), for evaluation and distillation."""

    def __init__(self, reference: ArrayLike):
        # Stored files name this parameter "reference.rows".
        self.rows = nnx.Param(jnp.asarray(reference, jnp.float32))

    def __call__(self) -> Array:
        """The reference (c, e)."""
        return self.rows[...]


class FrozenOutputs(NamedTuple):
    """Outputs of the frozen CLIP on the grid (hp, wp)."""

    features: Array  # (b, hp, wp, e), unit vectors
    query: Array  # (b, hp, wp, c), cosines of features and class texts
    positions: Array  # (1 or b, hp, wp, d) position embeddings
    real: Array  # (b, hp, wp) bool, False in the padding


class ReCLIP(nnx.Module):
    """A frozen CLIP with a learned reference and a learned head that rectify its logits."""

    def __init__(
        self,
        visual: VisionTransformer,
        text_embeddings: ArrayLike,
        reference: ReferencePrompt | FixedReference,
        head: PositionNet | BiasDecoder,
        cfg: ReCLIPConfig | None = None,
    ):
        """`visual` from `reclip_image_tower`; `text_embeddings` (c, e) unit vectors.

        `cfg` None: ReCLIP++'s.

        Raises:
          ValueError: the text embeddings are of another CLIP.
        """
        self.cfg = cfg or ReCLIPConfig()
        self.visual = visual
        self.text_embeddings = nnx.Param(as_text_embeddings(text_embeddings, visual))
        self.reference = reference
        self.head = head

    def raw_features(self, images: Array, sizes: Array | None = None) -> tuple[Array, Array]:
        """Dense features (b, hp, wp, e), not normalised, and the mask (b, hp, wp) of real ones."""
        dense = dense_features(self.visual, images, sizes, read_out=read_out(self.cfg.read_out))
        return jax.lax.stop_gradient(dense.features), dense.real

    def from_raw_features(
        self, raw: Array, real: Array, sizes: Array | None = None
    ) -> FrozenOutputs:
        """`dense` from the results of `raw_features`."""
        features = l2_normalize(raw)
        query = cosines(features, self.text_embeddings[...])
        grid = real.shape[1], real.shape[2]
        grids = None if sizes is None else self.visual.grid_sizes(sizes)
        positions = self.visual.positions(grid, grids)[:, 1:]
        positions = positions.reshape(positions.shape[0], *grid, -1)
        return FrozenOutputs(*jax.lax.stop_gradient((features, query, positions)), real)

    def dense(self, images: Array, sizes: Array | None = None) -> FrozenOutputs:
        """Outputs of the frozen CLIP for normalised images (b, h, w, 3).

        `sizes` (b, 2): heights and widths of images in a padded batch; None: no image is padded.
        """
        return self.from_raw_features(*self.raw_features(images, sizes), sizes)

    def rectify(self, frozen: FrozenOutputs, *, train: bool = False) -> Array:
        """Rectified logits (b, hp, wp, c), 0 in the padding.

        `train`: whether batch norms use and update the statistics of this batch.
        """
        features, query, positions, real = frozen
        # Without sizes there is no padding, and all images share one position map.
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
    """Class filter: logits (b, hp, wp, c) with -100 for classes without a probable position.

    Args:
      real: (b, hp, wp) bool, False in the padding.
      scale: factor of the logits before the softmax.
      threshold: lowest maximal probability of a class that is kept; 0: no filter. With 1 classes
        are kept whose float32 probability rounds to 1 at some position.
    """
    if threshold <= 0:
        return logits
    return denoise_prompts(logits.astype(jnp.float32), real, threshold, scale)


def frozen_reference(model: ReCLIP) -> ReCLIP:
    """The model, not copied, with its reference precomputed."""
    graph, state = nnx.split(model.reference)
    reference = jax.jit(lambda state: nnx.merge(graph, state)())(state)
    return ReCLIP(
        model.visual, model.text_embeddings[...], FixedReference(reference), model.head, model.cfg
    )
