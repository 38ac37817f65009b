"""Inference: padding, windows, chunks and flips do not change the result."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax import labels as labels_module
from clipseg_jax.inference import (
    InferenceConfig,
    check_values,
    image_scores,
    label_maps,
    make_segment_fn,
    network_shapes,
    network_size,
    network_sizes,
)
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, opencv_resize, valid_mask
from clipseg_jax.ops.window import count_windows, window_starts
from clipseg_jax.task import Task
from tests import tiny

CFG = InferenceConfig(mean=CLIP_MEAN, std=CLIP_STD, scale_px=(160, 80))
SIZES = [(64, 33), (40, 100)]


def run(task, cfg, pictures, shape, network):
    """Label maps and scores of images padded to `shape`, at the network to `network`."""
    state, segment = make_segment_fn(task, cfg)
    sizes = [p.shape[:2] for p in pictures]
    at_network = jnp.asarray([network_sizes(size, cfg) for size in sizes])
    return jax.jit(segment, static_argnums=4)(
        state, tiny.padded(pictures, shape), jnp.asarray(sizes), at_network, network
    )


def alone(task, cfg, image):
    shapes = tuple(network_sizes(image.shape[:2], cfg))
    labels, best = run(task, cfg, [image], image.shape[:2], shapes)
    return np.asarray(labels[0]), np.asarray(best[0])


@pytest.mark.parametrize("vision", [tiny.VIT, tiny.RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"mode": "slide", "crop_px": (64, 64), "stride_px": (40, 40)},
        {"flip": True, "ratios": (0.75, 1.0)},
    ],
    ids=["whole", "slide", "views"],
)
@pytest.mark.slow
def test_a_bucket_equals_each_image_alone(vision, choices):
    # Every position is smoothed: a threshold in between would turn rounding into other classes.
    task = tiny.task(vision, pd_threshold=0.05, ks_threshold=2.0)
    cfg = dataclasses.replace(CFG, temperature=1.0, **choices)
    pictures = tiny.images(SIZES)
    network = network_shapes((160, 176), cfg)
    labels, best = run(task, cfg, pictures, (72, 112), network)
    for i, image in enumerate(pictures):
        h, w = image.shape[:2]
        expected_labels, expected_best = alone(task, cfg, image)
        np.testing.assert_allclose(best[i, :h, :w], expected_best, atol=1e-5)
        assert np.mean(np.asarray(labels[i, :h, :w]) == expected_labels) > 0.999


def test_row_blocks_change_nothing(monkeypatch):
    task, image = tiny.task(), tiny.images([(50, 70)])[0]
    whole = alone(task, CFG, image)
    monkeypatch.setattr(labels_module, "_SCORES_AT_ONCE", 5 * 70 * 7)  # seven rows at a time
    for actual, expected in zip(alone(task, CFG, image), whole, strict=True):
        # Products of other shapes add up in another order: a few units in the last place.
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_mirror_image_gives_the_mirrored_scores():
    task, (image,) = tiny.task(), tiny.images([(64, 96)])
    sizes = jnp.asarray([[64, 96]])
    cfg = dataclasses.replace(CFG, scale_px=None)

    def full(pixels, flip):
        view = image_scores(
            task, task.model, jnp.asarray(pixels)[None], sizes, sizes, (64, 96), cfg, flip=flip
        )
        return jnp.einsum("brg,bgkc,bwk->brwc", view.rows, view.logits, view.columns)[0]

    straight, flipped = full(image[:, ::-1], False), full(image, True)
    np.testing.assert_allclose(straight[:, ::-1], flipped, atol=1e-6)


def test_windows_cover_and_average():
    assert count_windows(500, 224, 150) == 3
    assert count_windows(100, 224, 150) == 1
    starts = window_starts(jnp.asarray([416, 300, 100]), 3, 224, 150)
    np.testing.assert_array_equal(starts, [[0, 150, 192], [0, 76, 76], [0, 0, 0]])


def test_constant_logits_stay_constant():
    """Weights of every pixel sum to one, also where windows overlap."""
    cfg = dataclasses.replace(CFG, mode="slide", crop_px=(64, 64), stride_px=(40, 30))
    task = tiny.task()._replace(
        predict=lambda model, images, sizes: jnp.ones((images.shape[0], 4, 4, 1)),
    )
    sizes = jnp.asarray([[150, 201]])
    view = image_scores(
        task, task.model, jnp.zeros((1, 160, 208, 3), jnp.uint8), sizes, sizes, (160, 208), cfg
    )
    full = jnp.einsum("brg,bgkc,bwk->brwc", view.rows, view.logits, view.columns)[0, ..., 0]
    np.testing.assert_allclose(full[:150, :201], 1, atol=1e-6)


def test_network_sizes_follow_the_published_rule():
    assert network_size(375, 500, CFG) == (80, 107)
    assert network_size(100, 1000, CFG) == (16, 160)  # the long side decides
    cfg = dataclasses.replace(CFG, keep_ratio=False, scale_px=(224, 192))
    assert network_size(375, 500, cfg) == (192, 224)
    with pytest.raises(ValueError, match="1 x 4000 pixels would shrink to 0"):
        network_size(1, 4000, CFG)
    cfg = dataclasses.replace(CFG, ratios=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75))
    for size in [(375, 500), (333, 500), (500, 281), (37, 91)]:
        padded = network_size(*size, cfg)
        for shape, size_at_network in zip(
            network_shapes(padded, cfg), network_sizes(size, cfg), strict=True
        ):
            assert shape[0] >= size_at_network[0]
            assert shape[1] >= size_at_network[1]


def test_background_rules():
    cfg = dataclasses.replace(CFG, embedding_labels=(1, 2, 3, 0, 0))
    task, image = tiny.task(), tiny.images([(50, 70)])[0]
    plain, best = alone(task, CFG, image)
    labels, _ = alone(task, cfg, image)
    np.testing.assert_array_equal(labels, np.asarray([1, 2, 3, 0, 0])[plain])
    thresh = float(np.median(best))
    labels, best = alone(task, dataclasses.replace(cfg, background_threshold=thresh), image)
    assert not labels[best < thresh].any()


def test_bfloat16_stays_close():
    image = tiny.images([(64, 96)])[0]
    vision = tiny.with_dtype(tiny.VIT, "bfloat16")
    full, half = alone(tiny.task(), CFG, image)[1], alone(tiny.task(vision), CFG, image)[1]
    assert 0 < np.max(np.abs(full - half)) < 0.2


@pytest.mark.slow
def test_single_view_keeps_the_argmax_of_softmax():
    task, image = tiny.task(), tiny.images([(50, 70)])[0]
    sizes = jnp.asarray([image.shape[:2]])
    at = jnp.asarray([network_size(*image.shape[:2], CFG)])
    view = image_scores(task, task.model, jnp.asarray(image)[None], sizes, at, (80, 112), CFG)
    twice, _ = label_maps([view, view], CFG)
    once, _ = label_maps([view], CFG)
    assert np.mean(np.asarray(once) == np.asarray(twice)) > 0.999


def pooled_task(**fields):
    """Logits of three classes from the mean colour of each 16 x 16 patch: nothing to compile."""

    def predict(model, images, sizes):
        b, h, w, _ = images.shape
        images = jnp.where(valid_mask(sizes, (h, w))[..., None], images, 0)
        images = jnp.pad(images, ((0, 0), (0, -h % 16), (0, -w % 16), (0, 0)))
        patches = images.reshape(b, -(-h // 16), 16, -(-w // 16), 16, 3)
        return 4 * jnp.sin(5 * jnp.mean(patches, axis=(2, 4)))

    return Task(model=None, predict=predict, grid_size=lambda sizes: -(-sizes // 16), **fields)


def bilinear(x, size):
    """PyTorch's resize of (h, w, c), without anything to compile."""
    for axis, length in enumerate(size):
        n = x.shape[axis]
        source = np.maximum((np.arange(length) + 0.5) * n / length - 0.5, 0)
        low = np.minimum(source.astype(int), n - 1)
        far = (source - low).reshape([-1 if i == axis else 1 for i in range(3)])
        x = x.take(low, axis) * (1 - far) + x.take(np.minimum(low + 1, n - 1), axis) * far
    return x


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_sigmoid_before_the_mean_of_windows(mode):
    """Against plain loops: each window at its pixels, sums over counts, a resize."""
    offsets = np.asarray([0, 0.1, 0.2], np.float32)
    task = pooled_task(pixel_scores=lambda logits: 1 / (1 + jnp.exp(-logits)) - offsets)
    cfg = dataclasses.replace(CFG, mode=mode, crop_px=(64, 64), stride_px=(44, 44))
    crop, stride, predict = (64, 64), 44, jax.jit(functools.partial(task.predict, None))
    shrink = jax.jit(opencv_resize, static_argnums=3)
    for i, image in enumerate(tiny.images([(50, 90), (64, 33)])):
        image_hw = image.shape[:2]
        size = network_size(*image_hw, cfg)
        small = shrink(
            jnp.asarray(image)[None], jnp.asarray([image_hw]), jnp.asarray([size]), size
        )[0]
        pixels = (np.asarray(small) - np.asarray(CLIP_MEAN)) / np.asarray(CLIP_STD)
        total, count = np.zeros((*size, 3)), np.zeros((*size, 1))
        starts = [(0,), (0,)]
        if mode == "slide":
            starts = [
                [min(n * stride, side - 64) for n in range(count_windows(side, 64, stride))]
                for side in size
            ]
        else:
            crop = size
        for y in starts[0]:
            for x in starts[1]:
                place = slice(y, y + crop[0]), slice(x, x + crop[1])
                window = np.asarray(pixels[place], np.float32)[None]
                logits = predict(window, jnp.asarray([crop]))
                total[place] += 1 / (1 + np.exp(-bilinear(np.asarray(logits)[0], crop))) - offsets
                count[place] += 1
        scores = bilinear(total / count, image_hw)
        assert count.max() > 1 or mode == "whole" or i == 1

        sizes, network = jnp.asarray([image_hw]), jnp.asarray([size])
        bucket = size[0] + 16, size[1] + 32  # more windows than the image has
        padded = tiny.padded([image], (image_hw[0] + 7, image_hw[1] + 9))

        @jax.jit
        def run(padded, sizes, network, bucket=bucket):
            view = image_scores(task, None, padded, sizes, network, bucket, cfg)
            return view.at(view.rows), label_maps([view], cfg)[0]

        actual, labels = (x[0, : image_hw[0], : image_hw[1]] for x in run(padded, sizes, network))
        np.testing.assert_allclose(actual, scores, atol=1e-5)
        assert np.mean(labels == np.argmax(scores, axis=-1)) > 0.999


def test_a_ratio_that_is_listed_twice_counts_twice():
    task, (image,) = pooled_task(pixel_scores=jax.nn.sigmoid), tiny.images([(50, 70)])
    cfg = dataclasses.replace(CFG, ratios=(1.0, 0.75, 1.0))
    sizes = jnp.asarray([image.shape[:2]])
    networks = network_sizes(image.shape[:2], cfg)
    image = jnp.asarray(image)[None]

    @jax.jit
    def run(image):
        views = [image_scores(task, None, image, sizes, jnp.asarray([n]), n, cfg) for n in networks]
        whole = task._replace(model=nnx.Module())
        state, segment = make_segment_fn(whole, cfg)
        actual = segment(state, image, sizes, jnp.asarray([networks]), networks)
        return label_maps(views, cfg)[0], actual[0]

    expected, labels = run(image)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "sliding"}, "mode is 'sliding'; give 'whole' or 'slide'"),
        ({"mode": "slide", "stride_px": (64, 65), "crop_px": (64, 64)}, "stride_px .* exceeds"),
        ({"mode": "slide", "stride_px": (0, 64)}, r"stride_px is \(0, 64\); give two whole"),
        ({"crop_px": (96,)}, r"crop_px is \(96,\); give two whole numbers \(height, width\)"),
        ({"crop_px": 96}, "crop_px is 96"),
        ({"scale_px": (0, 512)}, r"scale_px is .* \(long side, short side\)"),
        ({"scale_px": (512, 0), "keep_ratio": False}, r"scale_px is .* \(width, height\)"),
        ({"scale_px": 512}, "scale_px is 512"),
        ({"ratios": ()}, r"ratios is \(\); give a tuple of at least one number"),
        ({"ratios": (1.0, 0.0)}, "ratios is 0.0; give a number above 0"),
        ({"ratios": (1.0, float("inf"))}, "ratios is inf"),
        ({"ratios": 1.0}, "ratios is 1.0"),
        ({"average": "mean"}, "average is 'mean'"),
        ({"average": "logits", "mode": "slide"}, "average='logits' takes whole images"),
        ({"flip": 2}, "flip is 2; give True or False"),
        ({"background_threshold": 50}, "background_threshold is 50; give a number from 0 to 1"),
        ({"background_threshold": float("nan")}, "background_threshold is nan"),
        ({"background_threshold": True}, "background_threshold is True"),
        ({"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        ({"min_side_px": 0}, "min_side_px is 0"),
        ({"embedding_labels": ()}, "embedding_labels is empty"),
        ({"embedding_labels": (0, 1.5)}, "embedding_labels is 1.5"),
        ({"mean": (0, 0)}, "three numbers each"),
        ({"std": (1, 1, 0)}, "std is 0; give a number above 0"),
        ({"refine": True}, "refine is True; give a PAMRConfig, a PARConfig, a CRFConfig or None"),
        ({"refine": "pamr"}, "refine is 'pamr'"),
        ({"refine_px": 0}, "refine_px is 0; give a whole number of at least 1"),
        ({"area_threshold": 1.5}, "area_threshold is 1.5; give a number from 0 to 1"),
        ({"crf_image": "grey"}, "crf_image is 'grey'"),
    ],
    ids=str,
)
def test_a_config_without_meaning_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CFG, **given)


def test_values_of_a_recipe_are_checked_without_its_stages():
    check_values({"scale_px": None, "mode": "slide", "filter_scale": "a value of another thing"})
    with pytest.raises(ValueError, match="stride_px"):
        check_values({"mode": "slide", "stride_px": (600, 600)})


def test_lists_and_numbers_of_numpy_are_taken():
    cfg = dataclasses.replace(
        CFG,
        crop_px=[np.int64(64), 64],
        ratios=[1, np.float32(0.5)],
        embedding_labels=[0, np.int8(1)],
    )
    assert (cfg.crop_px, cfg.ratios, cfg.embedding_labels) == ((64, 64), (1.0, 0.5), (0, 1))


def test_windows_leave_no_pixel_between_them():
    for crop, stride in [(16, 17), (16, 0), (16, -1)]:
        with pytest.raises(ValueError, match=f"stride {stride} is not from 1 to the crop, 16"):
            count_windows(64, crop, stride)
    for length in range(1, 70):
        starts = window_starts(jnp.asarray(length), count_windows(length, 16, 16), 16, 16)
        seen = {int(start) + i for start in starts for i in range(16)}
        assert seen >= set(range(length))


def test_an_image_that_is_too_long_for_the_resize_is_refused():
    cfg = dataclasses.replace(CFG, scale_px=(100_000, 512))
    assert network_size(300, 3000, cfg) == (512, 5120)
    with pytest.raises(ValueError, match=r"300 x 50000 pixels, 512 x 85333 .* too long"):
        network_size(300, 50_000, cfg)
    same = dataclasses.replace(CFG, scale_px=None)
    assert network_size(300, 50_000, same) == (300, 50_000)  # not resized
