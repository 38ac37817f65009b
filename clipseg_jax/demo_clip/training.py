"""Trains the tiny CLIP on pictures and captions of the demo world, without labels.

    python -m clipseg_jax.demo_clip.training --out workdir/tiny_clip

Two losses. CLIP's contrastive loss between class tokens and captions. A dense loss: the nouns of a
caption must match some of the picture's MaskCLIP features, and other nouns none; without it a CLIP
of four layers does not align single patches with words.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from clipseg_jax.core.files import write_atomic
from clipseg_jax.demo import world
from clipseg_jax.demo_clip import pictures, vocabulary
from clipseg_jax.demo_clip.captions import TEMPLATES
from clipseg_jax.demo_clip.pictures import NOUNS, Pictures
from clipseg_jax.models.clip import (
    CLIP,
    CLIPConfig,
    TextConfig,
    VisionTransformer,
    ViTConfig,
    l2_normalize,
)
from clipseg_jax.models.clip.last_block import last_block
from clipseg_jax.models.clip.read_outs import CLIP_BLOCK, VALUE
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize

TEXT_TOKENS = 20  # captions are shorter; the text tower is causal, so the rest can be cut


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters; the defaults gave the committed weights."""

    pictures: int = 120_000
    steps: int = 1200
    batch_size: int = 256
    keep: int = 32  # random patches, of 64, per picture and step
    muon_rate: float = 0.008
    adam_rate: float = 0.0015
    warmup: float = 0.03  # share of the steps
    dense_weight: float = 1.0
    seed: int = 0
    save_every_steps: int = 200


def config() -> CLIPConfig:
    """Config of the tiny CLIP: 64 px, patches of 8 px, four layers of width 128."""
    size = 512 + len(vocabulary.merges()) + 2
    return CLIPConfig(
        ViTConfig(image_px=64, patch_px=8, width=128, layers=4, heads=4, embed_dim=96),
        TextConfig(
            context_length=pictures.CONTEXT,
            vocabulary=size,
            width=96,
            layers=2,
            heads=3,
            embed_dim=96,
        ),
    )


def initial(seed: int) -> CLIP:
    """A tiny CLIP with OpenAI's initialisation, except 2-D sine positions for the image tower."""
    clip = CLIP(config(), rngs=nnx.Rngs(seed))
    assert isinstance(clip.visual, VisionTransformer)
    key = jax.random.key(seed + 1)
    for tower in (clip.visual.transformer, clip.text.transformer):
        width, layers = tower.resblocks[0].ln_1.num_features, len(tower.resblocks)
        residual = width**-0.5 * (2 * layers) ** -0.5
        for block in tower.resblocks:
            parts = (
                (block.attn.in_proj, width**-0.5),
                (block.attn.out_proj, residual),
                (block.mlp.c_fc, (2 * width) ** -0.5),
                (block.mlp.c_proj, residual),
            )
            for linear, std in parts:
                key, subkey = jax.random.split(key)
                linear.kernel[...] = std * jax.random.normal(subkey, linear.kernel.shape)
    side, width = config().vision.grid, config().vision.width
    angle = np.arange(side)[:, None] * 30.0 ** (-np.arange(width // 4) / (width // 4))
    rows = np.concatenate([np.sin(angle), np.cos(angle)], 1) * 0.5
    y, x = np.repeat(rows, side, 0), np.tile(rows, (side, 1))
    table = np.concatenate([np.zeros((1, width)), np.concatenate([y, x], 1)])
    clip.visual.positional_embedding[...] = jnp.asarray(table, jnp.float32)
    return clip


def features(clip: CLIP, images: Array, kept: Array) -> tuple[Array, Array]:
    """Image features (b, e) and MaskCLIP's dense features (b, p, e) of the patches `kept` (b, p).

    One forward pass for both up to the last block, where the class token uses attention and the
    patches the value path.
    """
    visual = clip.visual
    assert isinstance(visual, VisionTransformer)
    tokens, _ = visual.embed(images)
    patches = jnp.take_along_axis(tokens[:, 1:], kept[..., None], axis=1)
    x = jnp.concatenate([tokens[:, :1], patches], axis=1)
    x, _ = visual.transformer(x, stop=-1)
    pooled = last_block(visual, x, CLIP_BLOCK).tokens[:, 0]
    dense = last_block(visual, x[:, 1:], VALUE).tokens
    return pooled @ visual.proj[...], dense @ visual.proj[...]


class CaptionBatch(NamedTuple):
    """The training batch of one step."""

    images: Any  # (b, 64, 64, 3) uint8
    ids: Any  # (b, t) caption tokens
    named: Any  # (b, nouns) bool: nouns in the caption
    nouns: Any  # (nouns, t): ids of each noun in a random template
    flip: Any  # (b,) bool: mirror the image
    kept: Any  # (b, p) indices of patches


def contrastive_loss(image: Array, text: Array, ids: Array, scale: Array) -> Array:
    """Symmetric InfoNCE of L2-normalised features (b, e); equal captions are no negatives."""
    logits = scale * image @ text.T
    same = jnp.all(ids[:, None] == ids[None], axis=-1) & ~jnp.eye(len(ids), dtype=bool)
    logits = jnp.where(same, -jnp.inf, logits)
    diagonal = jnp.diag(logits)
    rows, columns = jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)
    return jnp.mean(rows + columns - 2 * diagonal) / 2


def dense_loss(dense: Array, nouns: Array, named: Array) -> Array:
    """Contrasts the nouns of a caption with other nouns, and its picture with other pictures.

    `dense` (b, p, e) and `nouns` (k, e) are L2-normalised, `named` (b, k) bool. The score of a
    picture for a noun is the mean cosine of its patches, weighted by a softmax of the cosines.
    """
    cosines = jnp.einsum("bpe,ke->bpk", dense, nouns)
    score = 15 * jnp.sum(jax.nn.softmax(12 * cosines, axis=1) * cosines, axis=1)
    others = jnp.where(named, -jnp.inf, score)
    rows = jnp.logaddexp(score, jax.nn.logsumexp(others, axis=1, keepdims=True)) - score
    columns = jnp.logaddexp(score, jax.nn.logsumexp(others, axis=0, keepdims=True)) - score
    weight = named.astype(jnp.float32)
    return jnp.sum((rows + columns) / 2 * weight) / jnp.maximum(jnp.sum(weight), 1)


def loss(clip: CLIP, batch: CaptionBatch, cfg: TrainConfig) -> tuple[Array, dict[str, Array]]:
    """The total loss, and its parts by name."""
    images = jnp.where(batch.flip[:, None, None, None], batch.images[:, :, ::-1], batch.images)
    image, dense = features(clip, normalize(images, CLIP_MEAN, CLIP_STD), batch.kept)
    text = l2_normalize(clip.text(jnp.concatenate([batch.ids, batch.nouns])))
    captions, nouns = text[: len(batch.ids)], text[len(batch.ids) :]
    scale = jnp.exp(jnp.minimum(clip.logit_scale[...], np.log(100.0)))
    clip_loss = contrastive_loss(l2_normalize(image), captions, batch.ids, scale)
    noun_loss = dense_loss(l2_normalize(dense), nouns, batch.named)
    total = clip_loss + cfg.dense_weight * noun_loss
    return total, {"clip": clip_loss, "dense": noun_loss, "scale": scale}


def draw(data: Pictures, nouns: np.ndarray, step: int, cfg: TrainConfig) -> CaptionBatch:
    """The batch of a step; depends on (seed, step) only, so that a resumed run draws the same."""
    count, b = len(data.images), cfg.batch_size
    epoch, at = divmod(step * b, count - count % b)
    order = np.random.default_rng([cfg.seed, 1, epoch]).permutation(count)[at : at + b]
    rng = np.random.default_rng([cfg.seed, 2, step])
    caption = rng.integers(pictures.CAPTIONS, size=b)
    template = rng.integers(nouns.shape[1], size=len(NOUNS))
    return CaptionBatch(
        images=data.images[order],
        ids=data.ids[order, caption, :TEXT_TOKENS].astype(np.int32),
        named=data.named[order, caption],
        nouns=nouns[np.arange(len(NOUNS)), template, :TEXT_TOKENS],
        flip=rng.random(b) < 0.5,
        kept=np.argsort(rng.random((b, config().vision.grid ** 2)))[:, : cfg.keep].astype(np.int32),
    )


def noun_prompts() -> np.ndarray:
    """Ids (nouns, templates, CONTEXT) of every noun in every caption template."""
    tokenize = vocabulary.tokenizer()
    templates = [*TEMPLATES]
    rows = []
    for noun in NOUNS:
        article = "" if noun in world.SCENERY else "an " if noun[0] in "aeiou" else "a "
        texts = [template.format(form) for template in templates for form in (noun, article + noun)]
        rows.append(tokenize(texts, pictures.CONTEXT))
    return np.stack(rows)


def optimizer(cfg: TrainConfig) -> optax.GradientTransformation:
    """Muon for the matrices of the blocks, AdamW for the rest; warm-up, then cosine decay to 0."""

    def schedule(peak: float) -> optax.Schedule:
        warm = max(int(cfg.warmup * cfg.steps), 1)
        return optax.warmup_cosine_decay_schedule(0.0, peak, warm, max(cfg.steps, warm + 1))

    def in_block(path: tuple, leaf: Array) -> Any:
        names = [str(getattr(part, "key", part)) for part in path]
        matrix = "resblocks" in names and names[-1] == "kernel"
        return optax.contrib.MuonDimensionNumbers() if matrix else None

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule(cfg.muon_rate),
            ns_steps=4,
            weight_decay=0.02,
            adam_b2=0.98,
            adam_weight_decay=0.0,
            adam_learning_rate=schedule(cfg.adam_rate),
            muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(
                in_block, params
            ),
        ),
    )


def save_state(path: Path, step: int, state: Any) -> None:
    """Writes all leaves of the training state atomically."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    arrays: dict[str, Any] = {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}
    write_atomic(path, lambda file: np.savez(file, step=step, **arrays))


def load_state(path: Path, like: Any) -> tuple[int, Any]:
    """(step, state) from `save_state`, in the structure of `like`."""
    leaves, structure = jax.tree.flatten(like)
    with np.load(path) as saved:
        arrays = [jnp.asarray(saved[f"leaf{i}"]) for i in range(len(leaves))]
        return int(saved["step"]), jax.tree.unflatten(structure, arrays)


def train(cfg: TrainConfig, data: Pictures, out: Path | None = None, *, stop: int | None = None):
    """Trains to step `stop` (default: the last) and returns the model.

    Resumes from `out`/state.npz if it exists.
    """
    graph, variables = nnx.split(initial(cfg.seed))
    params = nnx.to_pure_dict(variables)
    tx = optimizer(cfg)
    state = (params, tx.init(params))
    nouns, start = noun_prompts(), 0
    path = out / "state.npz" if out else None
    if path and path.exists():
        start, state = load_state(path, state)

    @jax.jit
    def update(state: Any, batch: CaptionBatch) -> tuple[Any, dict[str, Array]]:
        params, opt_state = state

        def loss_of(params: Any) -> tuple[Array, dict[str, Array]]:
            model = nnx.merge(graph, nnx.State(params))
            return loss(model, batch, cfg)

        (value, parts), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), parts | {"loss": value}

    began, end = time.time(), cfg.steps if stop is None else stop
    for step in range(start, end):
        state, parts = update(state, draw(data, nouns, step, cfg))
        done = step + 1
        if done % 20 == 0 or done == end:
            losses = " ".join(f"{name} {float(value):.3f}" for name, value in parts.items())
            speed = (done - start) * cfg.batch_size / (time.time() - began)
            print(f"step {done}/{cfg.steps} {losses} {speed:.0f} images/s", flush=True)
        if path and (done % cfg.save_every_steps == 0 or done == end):
            save_state(path, done, state)
    return nnx.merge(graph, nnx.State(state[0]))


def main() -> None:
    """Paints the pictures, trains, and exports a Hugging Face directory."""
    from clipseg_jax.demo_clip.export import save_huggingface

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for pictures, training state and the exported CLIP",
    )
    for field in dataclasses.fields(TrainConfig):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), default=field.default)
    args = vars(parser.parse_args())
    out = args.pop("out")
    cfg = TrainConfig(**args)
    data = pictures.load(out / "pictures", cfg.pictures)
    save_huggingface(train(cfg, data, out), out / "tiny_clip")


if __name__ == "__main__":
    main()
