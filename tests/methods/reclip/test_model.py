"""ReCLIP's parts against plainer ways to compute the same; numbers are held by tests/parity."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.core.mesh import make_mesh, replicate, shard_batch
from clipseg_jax.methods.reclip import task as reclip
from clipseg_jax.methods.reclip.loss import rectification_loss
from clipseg_jax.methods.reclip.model import (
    FixedReference,
    ReCLIP,
    ReCLIPConfig,
    ReferencePrompt,
    filter_classes,
    frozen_reference,
    reclip_image_tower,
    reference_ids,
)
from clipseg_jax.models.clip import Tokenizer, l2_normalize
from clipseg_jax.models.clip.dense import dense_features
from clipseg_jax.models.clip.read_outs import READ_OUTS
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD
from tests import tiny
from weights_convert import RECLIP as FILES
from weights_convert import load_trained, save_trained

NAMES = ("cat", "potted plant", "chest of drawers", "sky")
IDS = reference_ids(Tokenizer.openai(), NAMES)
TEXT = dataclasses.replace(tiny.TEXT, layers=3, heads=2)
RECLIP = ReCLIPConfig(plus_plus=False, gumbel_scale=1000.0, filter_scale=100.0)
RECLIP_PP = ReCLIPConfig()
BOTH = pytest.mark.parametrize("cfg", [RECLIP, RECLIP_PP], ids=["reclip", "reclip++"])


@functools.cache
def frozen_clip(vision):
    return tiny.clip(vision, TEXT)


def build(cfg=RECLIP_PP, vision=tiny.VIT, **choices):
    rows = l2_normalize(jax.random.normal(jax.random.key(1), (len(NAMES), vision.embed_dim)))
    cfg = dataclasses.replace(cfg, **choices)
    clip = frozen_clip(vision)
    return reclip.init_reclip(clip, rows, IDS, cfg, activation="gelu", rngs=nnx.Rngs(2))


def task_of(model, threshold=0.0):
    return reclip.build(model, mean=IMAGENET_MEAN, std=IMAGENET_STD, threshold=threshold)


def moved(model):
    """`model` with batch statistics and scales as after some training."""
    keys = iter(jax.random.split(jax.random.key(3), 64))

    def near(leaf):
        return leaf * (1 + 0.3 * jax.random.uniform(next(keys), leaf.shape))

    for kind in (nnx.BatchStat, nnx.Param):
        state = nnx.state(model.head, kind)
        nnx.update(model.head, jax.tree.map(near, state))
    return model


def images_of(b=3, h=64, w=80):
    return jax.random.normal(jax.random.key(4), (b, h, w, 3))


def test_ids_of_class_names():
    start, end = 49406, 49407
    whole = Tokenizer.openai()(list(NAMES))
    assert IDS[0] == (whole[0, 1], end, 0)
    assert IDS[1] == (*whole[1, 1:3], end)
    assert IDS[2] == tuple(whole[2, 1:4])  # its third word fits, its end token doesn't
    assert end not in IDS[2]
    assert start not in np.ravel(IDS)


def test_the_prefix_runs_once_and_changes_nothing():
    text = frozen_clip(tiny.VIT).text
    reference = ReferencePrompt(text, IDS)
    prompt = jax.random.normal(jax.random.key(0), reference.prompt.shape)
    ids = jnp.asarray(IDS)

    def plain(prompt):
        """The whole sequence of every class through the text tower."""
        start = text.token_embedding(jnp.asarray([49406]))
        shared = jnp.concatenate([start, prompt])
        shared = jnp.broadcast_to(shared, (len(IDS), *shared.shape))
        x = jnp.concatenate([shared, text.token_embedding(ids)], axis=1)
        x = x + text.positional_embedding[...]
        causal = jnp.where(jnp.tril(jnp.ones((1, 77, 77), bool)), 0.0, -jnp.inf)
        x = text.ln_final(text.transformer(x, causal)[0])
        x = x[jnp.arange(len(IDS)), 74 + jnp.argmax(ids, axis=1)] @ text.text_projection[...]
        return x / jnp.linalg.norm(x)

    def prefixed(prompt):
        return ReferencePrompt(text, IDS, prompt)()

    def score(rows):
        return jnp.sum(rows * jnp.cos(jnp.arange(rows.size).reshape(rows.shape)))

    @jax.jit
    def run(prompt):
        gradients = [jax.grad(lambda p, f=f: score(f(p)))(prompt) for f in (prefixed, plain)]
        return prefixed(prompt), plain(prompt), gradients

    rows, plain_rows, (actual, expected) = run(prompt)
    np.testing.assert_allclose(rows, plain_rows, atol=1e-6)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
    assert np.linalg.norm(rows) == pytest.approx(1, abs=1e-6)


def gradient(model, images, tags, noise):
    """Loss, gradient of what is trained, and the batch statistics afterwards."""
    task = task_of(model)

    def owned(path, variable):
        return isinstance(variable, nnx.Param) and task.trainable(".".join(map(str, path)))

    graph, params, stats, rest = nnx.split(model, owned, nnx.BatchStat, ...)

    @jax.jit
    def run(params, stats, rest, images, tags, noise):
        def loss(params):
            model = nnx.merge(graph, params, stats, rest, copy=True)
            frozen = model.dense(images)
            parts = rectification_loss(
                model.rectify(frozen, train=True), frozen.features, model.text_embeddings[...],
                tags, noise, gumbel_scale=10.0, temperature=100.0,
            )  # fmt: skip
            return parts.loss, nnx.state(model, nnx.BatchStat)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, stats), grads = run(params, stats, rest, images, tags, noise)
    return loss, nnx.to_pure_dict(grads), nnx.to_pure_dict(stats)


@BOTH
@pytest.mark.slow
def test_a_batch_is_the_mean_of_its_images_one_by_one(cfg):
    images = images_of()
    tags = jnp.asarray([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    noise = jax.random.gumbel(jax.random.key(5), (3, 4, 5, len(NAMES)))
    loss, grads, stats = gradient(build(cfg), images, tags, noise)
    model, losses, alone = build(cfg), [], []
    for i in range(3):
        one = slice(i, i + 1)
        value, grad, moved_stats = gradient(model, images[one], tags[one], noise[one])
        losses.append(value)
        alone.append(grad)
        nnx.update(model, nnx.State(moved_stats))
    assert losses[1] == 0
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    expected = jax.tree.map(lambda *g: sum(g) / 3, *alone)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(expected))
    assert largest > 1e-4
    # Sums of another order, through a softmax of scores times 100: on an EPYC 1.4e-5.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5 * largest), grads, expected
    )
    final = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), stats, final)


@BOTH
def test_the_loss_of_a_task_on_one_device_and_on_eight(cfg):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 64, 64, 3)).astype(np.uint8),
        "image_size": np.asarray([[64, 64]] * 7 + [[40, 64]], np.int32),
        "tags": rng.random((8, len(NAMES))) < 0.4,
    }
    results = []
    for devices in (1, 8):
        task, mesh = task_of(build(cfg)), make_mesh(devices)
        graph, params, stats, rest = nnx.split(task.model, nnx.Param, nnx.BatchStat, ...)

        @jax.jit
        def run(params, stats, rest, batch, task=task, graph=graph):
            model = nnx.merge(graph, params, stats, rest, copy=True)
            value, metrics = task.loss(model, batch, jax.random.key(0), jnp.asarray(0))
            return value, metrics["tags"], nnx.state(model, nnx.BatchStat)

        states = replicate(mesh, (params, stats, rest))
        results.append(run(*states, shard_batch(mesh, batch)))
    assert results[0][1] == pytest.approx(batch["tags"].sum() / 8)
    for one, eight in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.slow
def test_padding_has_no_influence(cfg):
    model = moved(build(cfg))
    tasks = [task_of(model, threshold) for threshold in (0.0, 0.3)]
    predict = jax.jit(lambda m, *args: jnp.stack([task.predict(m, *args) for task in tasks]))
    frozen = frozen_reference(model)
    sizes = np.asarray([[64, 80], [75, 144]])
    bucket = jnp.full((2, 128, 144, 3), 9.0)
    for i, (h, w) in enumerate(sizes):
        bucket = bucket.at[i, :h, :w].set(images_of(1, h, w)[0])
    batched = predict(frozen, bucket, sizes)
    for i, (h, w) in enumerate(sizes):
        alone = predict(frozen, bucket[i : i + 1, :h, :w], sizes[i : i + 1])[:, 0]
        rows, columns = alone.shape[1:3]
        np.testing.assert_allclose(batched[:, i, :rows, :columns], alone, atol=2e-5)
        assert not np.any(batched[:, i, rows:])
        assert not np.any(batched[:, i, :, columns:])
    # A reference that is computed each time gives the same.
    np.testing.assert_allclose(predict(model, bucket, sizes), batched, atol=2e-5)


def test_another_read_out_gives_other_features():
    images = images_of(1)
    for name in ("value", "naclip"):
        model = build(read_out=name)
        expected = dense_features(model.visual, images, read_out=READ_OUTS[name]).features
        np.testing.assert_array_equal(model.raw_features(images)[0], expected)
    with pytest.raises(ValueError, match="'naclipp'"):
        build(read_out="naclipp")


def test_a_read_out_that_is_not_the_published_one_is_recorded(tmp_path):
    for name, recorded in (("value", None), ("naclip", "naclip")):
        path = save_trained(
            tmp_path / f"{name}.safetensors", FILES, build(read_out=name), classes=NAMES
        )
        assert load_trained(path, FILES).record.get("read_out") == recorded


def test_class_filter():
    # Class 0 is likely at the first position, class 1 nowhere, class 2 only in the padding.
    logits = jnp.asarray([[[[5.0, 0.0, 0.0], [1.0, 0.9, 0.0], [0.0, 0.0, 9.0]]]])
    real = jnp.asarray([[[True, True, False]]])
    kept = np.asarray(filter_classes(logits, real, 10.0, 0.5))
    np.testing.assert_array_equal(kept[..., 0], logits[..., 0])
    assert np.all(kept[..., 1:] == -100)
    assert filter_classes(logits, real, 10.0, 0.0) is logits
    # At 1 a class needs a probability that rounds to 1; none does here, so class 0 is everywhere.
    flat = filter_classes(0.01 * logits, real, 10.0, 1.0)
    assert np.all(flat == -100)
    assert not np.any(np.argmax(flat, axis=-1))
    assert np.all(filter_classes(logits, real, 10.0, 1.0)[..., 0] == logits[..., 0])


def test_only_prompt_and_head_are_trained():
    for cfg in (RECLIP, RECLIP_PP):
        model = build(cfg)
        paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))]
        trained = {path for path in paths if reclip.trainable(path)}
        assert "reference.prompt" in trained
        assert not any(path.startswith(("visual.", "reference.text.", "text_")) for path in trained)
        heads = {path.split(".")[1] for path in trained if path.startswith("head.")}
        if cfg.plus_plus:
            assert heads == {"pe_proj", "decoder_conv", "decoder_norm"}
        else:
            assert heads == {f"{kind}{i}" for kind in ("conv", "norm") for i in (1, 2, 3)}


def test_published_initialisation():
    head = build(RECLIP).head
    kernel = np.asarray(head.conv1.kernel[...])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * kernel.shape[-1])), rel=0.02)
    limit = 1 / np.sqrt(9 * kernel.shape[2])
    assert 0.8 * limit < np.abs(head.conv1.bias[...]).max() <= limit
    head = build(RECLIP_PP).head
    limit = 1 / np.sqrt(head.pe_proj.kernel.shape[0])
    assert 0.95 * limit < np.abs(head.pe_proj.kernel[...]).max() <= limit
    prompt = build().reference.prompt[...]
    text = build().reference.text
    np.testing.assert_array_equal(prompt, np.tile(text.token_embedding.embedding[0], (73, 1)))


def test_image_tower_choices_leave_the_original_alone():
    clip = tiny.clip()
    before = np.asarray(clip.visual.class_embedding[...])
    token = np.arange(64, dtype=np.float32)
    visual = reclip_image_tower(clip.visual, "gelu", token.reshape(1, 1, 64))
    assert (visual.cfg.activation, visual.cfg.block_norm_eps) == ("gelu", 1e-6)
    np.testing.assert_array_equal(visual.class_embedding[...], token)
    np.testing.assert_array_equal(clip.visual.class_embedding[...], before)
    assert visual.transformer.resblocks[0].ln_1.epsilon == 1e-6
    assert visual.ln_pre.epsilon == visual.ln_post.epsilon == 1e-5
    with pytest.raises(ValueError, match="a CLIP with a ViT"):
        reclip_image_tower(tiny.clip(tiny.RESNET).visual, "gelu")


def test_half_precision_towers_keep_float32_logits():
    full = build()
    half = build(vision=tiny.with_dtype(tiny.VIT, "bfloat16"))
    actual, expected = (jax.jit(ReCLIP.__call__)(model, images_of()) for model in (half, full))
    assert actual.dtype == jnp.float32
    assert 0 < np.abs(actual - expected).max() < 0.2 * np.abs(expected).max()


def test_parts_that_do_not_fit_are_refused():
    clip, rows = frozen_clip(tiny.VIT), jnp.ones((4, 24))
    options = {"activation": "gelu", "rngs": nnx.Rngs(0)}
    with pytest.raises(ValueError, match="4 text embeddings for 3 class names"):
        reclip.init_reclip(clip, rows, IDS[:3], RECLIP, **options)
    with pytest.raises(ValueError, match="with its text tower"):
        reclip.init_reclip(tiny.clip(), rows, IDS, RECLIP, **options)
    with pytest.raises(ValueError, match=r"prompt of shape \(5, 32\).*takes \(73, 32\)"):
        ReferencePrompt(clip.text, IDS, jnp.zeros((5, 32)))
    model = build()
    with pytest.raises(ValueError, match=r"shape \(4, 7\) for an image tower with 24 features"):
        ReCLIP(model.visual, jnp.ones((4, 7)), FixedReference(jnp.ones((4, 24))), model.head)
