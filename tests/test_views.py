"""WeCLIP's test-time views: sizes as published, and padding that changes nothing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.inference import (
    InferenceConfig,
    make_segment_fn,
    network_shapes,
    network_size,
    network_sizes,
)
from clipseg_jax.ops.image import normalize
from clipseg_jax.ops.resize import resize
from tests import tiny

CFG = InferenceConfig(
    mean=(120.0, 115.0, 100.0), std=(60.0, 58.0, 57.0), scale_px=(96, 96), ratios=(1.0, 0.75),
    flip=True, average="logits", temperature=1.0, min_side_px=16,
)  # fmt: skip
SIZES = [(60, 90), (90, 61), (40, 40)]


def dropping(cfg=tiny.VIT):
    """A task whose tower drops what fills no patch."""
    return tiny.task(dataclasses.replace(cfg, position_resize="bilinear", pad_to_patch=False))


def labels_of(task, cfg, unpadded, padded):
    sizes = np.asarray([image.shape[:2] for image in unpadded])
    network = np.asarray([network_sizes(tuple(size), cfg) for size in sizes.tolist()])
    most = tuple(-(-int(side) // 16) * 16 for side in network[:, 0].max(axis=0))
    state, segment = make_segment_fn(task, cfg)
    run = jax.jit(segment, static_argnums=4)
    images = tiny.padded(unpadded, padded)
    return run(state, images, jnp.asarray(sizes), jnp.asarray(network), network_shapes(most, cfg))


def by_hand(task, cfg, image):
    """One image, unpadded, by the definition."""
    model = nnx.merge(*nnx.split(task.model))
    height, width = image.shape[:2]

    def logits(pixels):
        h, w = pixels.shape[1:3]
        grid = task.predict(model, pixels, jnp.asarray([[h, w]]))
        return grid[:, : h // 16, : w // 16]

    @jax.jit
    def scores(image):
        factor = 96 / max(height, width)
        pixels = normalize(image[None], cfg.mean, cfg.std)
        first = resize(pixels, (int(height * factor), int(width * factor)))
        total = 0.0
        for ratio in cfg.ratios:
            size = int(first.shape[1] * ratio), int(first.shape[2] * ratio)
            view = first if ratio == 1 else resize(first, size, scale_factor=(ratio, ratio))
            mean = (logits(view) + logits(view[:, :, ::-1])[:, :, ::-1]) / 2
            grid = (first.shape[1] // 16, first.shape[2] // 16)
            total = total + resize(mean, grid)
        return jax.nn.softmax(resize(total / len(cfg.ratios), (height, width))[0])

    made = np.asarray(scores(image))
    return made.argmax(-1), made.max(-1)


@pytest.mark.slow
def test_padding_and_batching_change_nothing():
    task, images = dropping(), tiny.images(SIZES)
    labels, best = labels_of(task, CFG, images, (96, 112))
    for row, image in enumerate(images):
        h, w = image.shape[:2]
        expected, score = by_hand(task, CFG, image)
        assert np.mean(np.asarray(labels)[row, :h, :w] == expected) > 0.999
        np.testing.assert_allclose(np.asarray(best)[row, :h, :w], score, atol=1e-6)
    assert len(np.unique(np.asarray(labels)[0])) > 1


def test_sizes_are_rounded_down():
    """Spec weclip, section 10: int() of a product in double precision."""
    cfg = dataclasses.replace(CFG, scale_px=(512, 512))
    for long in (322, 347, 374, 389, 478, 498, 499, 569, 644):
        assert network_size(100, long, cfg)[1] == 511
    assert network_size(500, 375, cfg) == (512, 384)
    assert network_sizes((333, 500), cfg) == [(340, 512), (255, 384)]
    alone = dataclasses.replace(cfg, scale_px=None)
    assert network_sizes((333, 500), alone) == [(333, 500), (249, 375)]
    for size in [(375, 500), (333, 500), (500, 281), (37, 91)]:
        padded = tuple(-(-side // 16) * 16 for side in network_size(*size, cfg))
        for shape, sizes in zip(network_shapes(padded, cfg), network_sizes(size, cfg), strict=True):
            assert shape[0] >= sizes[0]
            assert shape[1] >= sizes[1]


def test_too_thin_at_any_scale():
    assert min(network_size(22, 96, CFG)) >= 16
    with pytest.raises(ValueError, match="20 x 96 pixels would shrink to 15 x 72; crop it"):
        network_size(20, 96, CFG)  # already at ratio 1: later it would be too late to leave it out
