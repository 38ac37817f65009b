"""The towers' read-outs and arguments; numbers are held by tests/parity."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.methods.maskclip.model import MaskCLIP, MaskCLIPConfig, classify
from clipseg_jax.models.clip import CLIPConfig, Tokenizer, VisionTransformer
from clipseg_jax.models.clip.dense import Dense
from clipseg_jax.ops import attention
from tests import tiny

# One program: single operations would be one each.
run = jax.jit(lambda visual, x, read=(): visual(x, read=read), static_argnames="read")


def images(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), (*shape, 3))


def test_vit_read_outs():
    visual = tiny.clip().visual
    names = ["ln_pre", "block0", "block1", "q1", "k1", "v1", "attn0"]
    order = []

    @jax.jit
    def look(visual, x):
        pooled, out = visual(x, read=names)
        order.extend(out)
        return pooled, out, visual.pool(out["block1"])

    pooled, out, again = look(visual, images(2, 64, 64))
    assert order == ["ln_pre", "attn0", "block0", "q1", "k1", "v1", "block1"]
    assert out["attn0"].shape == (2, 2, 17, 17)
    np.testing.assert_allclose(out["attn0"].sum(-1), 1, atol=1e-5)
    assert out["q1"].shape == out["block1"].shape == (2, 17, 64)
    np.testing.assert_allclose(pooled, again, atol=1e-6)
    with pytest.raises(ValueError, match="cannot read \\['block7'\\]"):
        visual(images(1, 64, 64), read=["block7"])


@pytest.mark.slow
def test_resnet_read_outs():
    visual = tiny.clip(tiny.RESNET).visual
    names = ["stem", "layer1", "layer4", "q", "k", "v", "attn"]
    _, out = run(visual, images(2, 96, 64), read=tuple(names))
    assert out["layer4"].shape == (2, 3, 2, 256)
    assert out["attn"].shape == (2, 4, 1, 7)
    with pytest.raises(ValueError, match="cannot read"):
        visual(images(1, 64, 64), read=["layer9"])


def test_a_tower_runs_in_parts():
    visual = tiny.clip().visual

    @jax.jit
    def parts(visual, x):
        x, bias = visual.embed(x)
        half, _ = visual.transformer(x, bias, stop=1)
        return visual.pool(visual.transformer(half, bias, start=1)[0])

    x = images(1, 64, 96)
    np.testing.assert_allclose(run(visual, x)[0], parts(visual, x), atol=1e-5)


@pytest.mark.parametrize("vision", [tiny.VIT, tiny.RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("extra", [0, 2])
def test_positions_are_rounded_on_every_grid(vision, extra):
    """CLIP-ES's quirk; neither the stored grid nor the class token's row is an exception."""
    plain, rounded = (
        tiny.clip(dataclasses.replace(vision, position_half=x)) for x in (False, True)
    )
    side = vision.grid + extra
    for grids in (None, jnp.asarray([[side, side]])):
        expected, rounded_positions = (
            getattr(clip.visual, "attnpool", clip.visual).positions((side, side), grids)
            for clip in (plain, rounded)
        )
        np.testing.assert_array_equal(rounded_positions, expected.astype(jnp.float16))
        assert not np.array_equal(rounded_positions[0, 0], expected[0, 0])


def test_stored_positions_stay_as_they_are_if_asked():
    """TagCLIP's quirk: an image of CLIP's own size keeps its table, others are rounded."""
    cfg = dataclasses.replace(tiny.VIT, position_half=True, position_half_stored=False)
    visual, side = VisionTransformer(cfg, rngs=nnx.Rngs(0)), tiny.VIT.grid
    table = visual.positional_embedding[...]
    np.testing.assert_array_equal(visual.positions((side, side))[0], table)
    both = visual.positions((side, side), jnp.asarray([[side, side], [side, side - 1]]))
    np.testing.assert_array_equal(both[0], table)
    np.testing.assert_array_equal(both[1], both[1].astype(jnp.float16))
    np.testing.assert_array_equal(both[1, 0], table[0].astype(jnp.float16))


def test_dropping_the_remainder():
    visual = VisionTransformer(dataclasses.replace(tiny.VIT, pad_to_patch=False), rngs=nnx.Rngs(0))
    image = images(1, 70, 75)
    np.testing.assert_allclose(run(visual, image)[0], run(visual, image[:, :64, :64])[0], atol=1e-5)


def test_choices_reach_the_towers_that_have_them():
    cfg = CLIPConfig(tiny.VIT, tiny.TEXT).replace(activation="gelu", position_half=True)
    assert cfg.vision.activation == cfg.text.activation == "gelu"
    with pytest.raises(ValueError, match="unknown CLIP choices \\['activaton'\\]"):
        cfg.replace(activaton="gelu")


def test_text_of_another_clip_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 7\) for an image tower with 24 features"):
        MaskCLIP(tiny.clip().visual, np.ones((3, 7)))


def test_refinements():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    features = np.tile(rows[[0, 1, 0, 1]].reshape(1, 2, 2, 8), (1, 1, 1, 1))
    keys = rng.standard_normal((1, 2, 2, 6)).astype(np.float32)
    dense = Dense(jnp.asarray(features), None, jnp.asarray(keys), jnp.ones((1, 2, 2), bool))
    plain = classify(dense, rows, MaskCLIPConfig())
    np.testing.assert_allclose(plain[0, 0, 0], rows @ rows[0], atol=1e-6)
    # Class 2 is nowhere likely: prompt denoising removes it everywhere, the others stay.
    denoised = np.asarray(classify(dense, rows, MaskCLIPConfig(pd_threshold=0.5)))
    assert np.all(denoised[..., 2] == -100)
    np.testing.assert_allclose(denoised[..., :2], plain[..., :2])
    # Sure positions keep their probabilities; by "channels" each key is a unit vector.
    for axis in ("tokens", "channels"):
        sure = classify(dense, rows, MaskCLIPConfig(ks_threshold=0.5, ks_axis=axis))
        np.testing.assert_allclose(sure, jax.nn.softmax(100 * plain, axis=-1), atol=1e-6)
    smoothed = classify(dense, rows, MaskCLIPConfig(ks_threshold=1.1, ks_axis="channels"))
    flat = keys.reshape(4, 6) / np.linalg.norm(keys.reshape(4, 6), axis=1, keepdims=True)
    expected = flat @ flat.T @ np.asarray(jax.nn.softmax(100 * plain, axis=-1)).reshape(4, 3)
    np.testing.assert_allclose(np.asarray(smoothed).reshape(4, 3), expected, atol=1e-6)


def test_tokenizer_limits():
    tokenizer = Tokenizer.openai()
    with pytest.raises(ValueError, match="at most 8 fit"):
        tokenizer("a photo of a very large cat on a sofa", 8)
    cut = tokenizer("a photo of a very large cat on a sofa", 8, truncate=True)
    assert cut[0, -1] == 49407
    with pytest.raises(ValueError, match=r"2000 token embeddings, .*vocab\.json"):
        Tokenizer(tokenizer.merges, embeddings=2000)("cat")
    with pytest.raises(ValueError, match="a merge is listed twice"):
        Tokenizer([("a", "b"), ("a", "b")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids.clear(), "symbols .* have no id"),
        (lambda ids: ids.pop("<|endoftext|>"), "1 symbols .*endoftext.* no id|have no id"),
        (lambda ids: ids.update(a=1.0), "the id of 'a' is 1.0"),
        (lambda ids: ids.update(a=-1), "the id of 'a' is -1"),
        (lambda ids: ids.update(a=[1]), "the id of 'a' is"),
        (lambda ids: ids.update(a=True), "the id of 'a' is True"),
        (lambda ids: ids.update(a=ids["b"]), "stand for two symbols"),
        (lambda ids: ids.update(a=60000), "'a' has the id 60000, beyond that of"),
    ],
)
def test_vocabularies_that_are_not_clips(change, message):
    openai = Tokenizer.openai()
    ids = dict(openai.ids)
    change(ids)
    with pytest.raises(ValueError, match=message):
        Tokenizer(openai.merges, ids)


@pytest.mark.slow
def test_attention_in_turn_equals_all_at_once(monkeypatch):
    """The path that CPUs take for large inputs, forced on a small one: values and gradients."""
    visual = tiny.clip().visual
    sizes = jnp.asarray([[75, 90], [40, 64]])
    padded, bias = jax.jit(VisionTransformer.embed)(visual, images(2, 75, 90), sizes)
    x, _ = jax.jit(VisionTransformer.embed)(visual, images(2, 75, 90))

    def total(x):
        return jnp.sum(visual.transformer(x)[0] ** 2)

    def results():
        def made(x, padded):  # traced anew each time
            return visual.transformer(x)[0], visual.transformer(padded, bias)[0], jax.grad(total)(x)

        return jax.jit(made)(x, padded)

    expected = results()
    monkeypatch.setattr(attention, "_SCORES_AT_ONCE", 1)
    for actual, target in zip(results(), expected, strict=True):
        np.testing.assert_allclose(actual, target, rtol=1e-5, atol=5e-5)
