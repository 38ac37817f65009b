"""The tiny CLIP's recipe: finite, resumable to the bit, and the committed weights worth showing."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

import weights_convert
from clipseg_jax.demo import TINY_CLIP
from clipseg_jax.demo_clip import gates, pictures, training, vocabulary
from clipseg_jax.models.clip.dense import dense_features
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize

CFG = training.TrainConfig(pictures=1000, steps=4, batch_size=16, save_every_steps=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures.load(tmp_path_factory.mktemp("pictures"), 1000)


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


@pytest.mark.long
def test_a_resumed_run_equals_an_unbroken_one(data, tmp_path):
    whole = training.train(CFG, data)
    training.train(CFG, data, tmp_path, stop=2)
    resumed = training.train(CFG, data, tmp_path)
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.all(np.isfinite(a))


@pytest.mark.long
def test_training_learns(data):
    """Two dozen steps lower the loss of a batch that they have not seen."""
    cfg = dataclasses.replace(CFG, steps=24, batch_size=64)
    batch = training.draw(data, training.noun_prompts(), 1000, cfg)
    measure = jax.jit(lambda model: training.loss(model, batch, cfg)[0])
    before, after = measure(training.initial(cfg.seed)), measure(training.train(cfg, data))
    assert after < 0.98 * before


@pytest.mark.slow
def test_the_trained_read_out_is_maskclips(data):
    """With every patch kept, training's dense features are those of models/maskclip.py."""
    clip = training.initial(3)
    images = normalize(data.images[:2], CLIP_MEAN, CLIP_STD)
    every = np.tile(np.arange(64), (2, 1))
    pooled, dense = training.features(clip, images, every)
    expected = dense_features(clip.visual, images).features.reshape(2, 64, -1)
    np.testing.assert_allclose(dense, expected, atol=1e-5)
    np.testing.assert_allclose(pooled, clip.visual(images)[0], atol=1e-5)


def test_names_in_the_caption_are_marked(data):
    tokenizer = vocabulary.tokenizer()
    for row in range(0, 1000, 97):
        for ids, named in zip(data.ids[row], data.named[row], strict=True):
            text = tokenizer.decode([i for i in ids if i])
            words = set(text.replace(",", " ").replace(".", " ").split())
            assert [noun in words for noun in pictures.NOUNS] == named.tolist()


@pytest.mark.slow
def test_the_committed_weights():
    size = sum(path.stat().st_size for path in TINY_CLIP.iterdir())
    assert size < 4 * 2**20
    loaded = weights_convert.load_clip(TINY_CLIP)
    assert loaded.meta["layout"] == "huggingface"
    assert loaded.tokenizer.merges == list(vocabulary.merges())
    trained, iou = gates.evaluate_clip(loaded.model, loaded.tokenizer, pictures=60, tests=120)
    assert trained["tags, common colours"] > 0.85
    assert trained["tags, odd colours"] > 0.85
    assert trained["object pixels, 12 names"] > 0.6
    assert trained["mIoU, 13 classes"] > 0.30
    assert len(iou) == 13


@pytest.mark.slow
def test_the_control_knows_nothing():
    clip = training.initial(0)
    control, _ = gates.evaluate_clip(clip, vocabulary.tokenizer(), pictures=60, tests=120)
    assert control["tags, common colours"] < 0.3
    assert control["object pixels, 12 names"] < 0.3
    assert control["mIoU, 13 classes"] < 0.1
