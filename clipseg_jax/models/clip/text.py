"""CLIP's text tower. Source: Radford et al. 2021; spec clip, section 4."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models.clip.transformer import Activation, Transformer


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of a text transformer."""

    context_length: int
    vocabulary: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    mlp_width: int | None = None  # of the hidden layers of perceptrons; None: 4 * width
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    dtype: str = "float32"  # of matrix products; parameters are float32


class TextTransformer(nnx.Module):
    """Causal transformer; the feature of a text is the output at its end token."""

    def __init__(self, cfg: TextConfig, *, rngs: nnx.Rngs):
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
        self.text_projection = nnx.Param(normal(w**-0.5)(rngs.params(), (w, cfg.embed_dim)))

    def hidden_states(
        self, ids: Array, *, read: tuple[str, ...] = ()
    ) -> tuple[Array, dict[str, Array]]:
        """Ids (n, t) -> states after `ln_final` (n, t, w), and intermediate results.

        `read` names these as in `Transformer`. t may be at most the context length; since attention
        is causal, shorter sequences give the same states.
        """
        t = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[...][:t]
        causal = jnp.where(jnp.tril(jnp.ones((1, t, t), bool)), 0.0, -jnp.inf)
        x, out = self.transformer(x, causal, read=read)
        return self.ln_final(x), out

    def __call__(self, ids: Array) -> Array:
        """Ids (n, t) int32 -> text features (n, e), not normalised."""
        x, _ = self.hidden_states(ids)
        # The end token has the highest id; argmax takes the first, as in OpenAI's code.
        end = jnp.argmax(ids, axis=1)
        return x[jnp.arange(x.shape[0]), end] @ self.text_projection[...]
