"""DeepLabV2 at toy sizes and its task; their numbers: tests/parity/test_deeplab."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.core.modules import abstract, initialised
from clipseg_jax.core.optim import OptimConfig, optimizer
from clipseg_jax.methods.clip_es import student_task as deeplab
from clipseg_jax.models.deeplab_v2 import BACKBONE, MEAN, SCALES, DeepLabV2, scaled_images
from clipseg_jax.models.resnet import DilatedResNet, DilatedResNetConfig
from clipseg_jax.train_step import TrainState, make_update, split_model
from weights_convert.clip.build import flat_arrays, install

CLASSES = 5
TOY = dataclasses.replace(BACKBONE, blocks=(1, 2, 1, 1), width=8)


@pytest.fixture(scope="module")
def model():
    net = initialised(lambda rngs: DeepLabV2(CLASSES, TOY, rngs=rngs), 0)
    rng = np.random.default_rng(0)
    changed = {}
    for path, leaf in flat_arrays(net).items():
        value = np.asarray(leaf)
        if path.endswith((".mean", ".var")):  # as after training
            value = value + np.resize([0.03, -0.05, 0.01], value.shape).astype(np.float32)
        elif path.startswith("aspp."):  # large enough that the scales differ
            value = rng.normal(0, 0.2, value.shape).astype(np.float32)
        changed[path] = value
    install(net, changed)
    return net


def pixels(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), (*shape, 3))


# The table of spec deeplab, section 2, and sizes that round in every possible way.
SIZES = {321: 41, 240: 31, 160: 21, 129: 17, 96: 13, 64: 9, 14: 2, 15: 3, 7: 2, 6: 1, 2: 1, 1: 1}


@pytest.mark.parametrize("pair", [(321, 240), (160, 129), (96, 64), (14, 15), (7, 6), (2, 1)])
def test_sizes_of_the_published_network(model, pair):
    out = jax.eval_shape(lambda m, x: m.classify(x), model, pixels(1, *pair))
    assert out.shape == (1, SIZES[pair[0]], SIZES[pair[1]], CLASSES)
    assert model.grid_sizes(jnp.asarray([pair])).tolist() == [list(out.shape[1:3])]


def test_the_published_network_differs_from_v1c():
    net = abstract(lambda rngs: DilatedResNet(BACKBONE, rngs=rngs))
    assert [len(layer) for layer in net.layers] == [3, 4, 23, 3]
    for layer, stride, dilation in zip(net.layers, (1, 2, 1, 1), (1, 1, 2, 4), strict=True):
        assert layer[0].conv1.strides == stride
        assert {block.conv2.strides for block in layer} == {1}
        assert {block.conv2.kernel_dilation for block in layer} == {dilation}
        assert [block.projects for block in layer] == [True] + [False] * (len(layer) - 1)
    # torchvision's ResNet-101 without its classifier.
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))
    assert count == 42_500_160
    with pytest.raises(ValueError, match="unknown ResNet variant 'v1d'; choose v1c, v1 or caffe"):
        DilatedResNet(DilatedResNetConfig(variant="v1d"), rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_padding_has_no_influence(model):
    """Each scale's real grid, and the prediction, equal those of the unpadded image."""
    sizes = [(66, 91), (43, 57), (80, 96)]
    padded = 50 * pixels(3, 80, 96, seed=1)  # what lies outside is noise, not zeros
    task = deeplab.build(model)
    run = jax.jit(lambda m, x, sizes: (m(x, sizes), task.predict(m, x, sizes)))
    outputs, predicted = run(model, padded, jnp.asarray(sizes))
    alone_of = jax.jit(lambda m, x: m(x))
    for i, (h, w) in enumerate(sizes):
        alone = alone_of(model, padded[i : i + 1, :h, :w])
        for together, one in zip(outputs, alone, strict=True):
            gh, gw = one.shape[1:3]
            bound = 1e-5 * np.abs(one).max()
            np.testing.assert_allclose(together[i, :gh, :gw], one[0], rtol=1e-5, atol=bound)
        assert np.asarray(task.grid_size(jnp.asarray(sizes)))[i].tolist() == [gh, gw]
        np.testing.assert_array_equal(predicted[i, :gh, :gw], outputs[-1][i, :gh, :gw])
        assert not np.any(predicted[i, gh:])
        assert not np.any(predicted[i, :, gw:])
        # Each of the scales wins somewhere, or the maximum would not be tested.
        assert np.any(alone[-1] != alone[0])
        assert np.any(alone[-1] == alone[0])


@pytest.mark.parametrize("scale", SCALES)
def test_scaled_images_never_look_at_padding(scale):
    """And positions follow from the scale itself, not from the ratio of the sizes."""
    run = jax.jit(lambda x: scaled_images(x, scale)[0, :, 0, 0])
    column = np.arange(65, dtype=np.float32)
    for n in range(2, 65):
        small = int(n * scale)
        noisy = np.where(column < n, column, 1e9)
        actual = run(jnp.asarray(np.tile(noisy[None, :, None, None], (1, 1, 2, 1))))
        expected = (np.arange(small) + 0.5) / scale - 0.5
        np.testing.assert_allclose(actual[:small], expected, rtol=1e-5, err_msg=f"{n} rows")


def batch(label, size=(40, 48), rows=2):
    image = np.random.default_rng(3).integers(0, 256, (rows, *size, 3)).astype(np.uint8)
    return {
        "image": jnp.asarray(image),
        "image_size": jnp.asarray([size] * rows),
        "label": jnp.broadcast_to(jnp.asarray(label, jnp.int32), (rows, *size)),
    }


@pytest.mark.parametrize("kind", ["mean", "balanced"])
def test_without_labels_nothing_is_learnt(model, kind):
    task = deeplab.build(model, deeplab.DeepLabConfig(loss=kind))
    parts = split_model(task)

    @jax.jit
    def gradient(params, batch):
        def of(params):
            model = parts.model(params, parts.stats)
            return task.loss(model, batch, jax.random.key(0), jnp.zeros((), jnp.int32))

        return jax.value_and_grad(of, has_aux=True)(params)

    (value, metrics), grads = gradient(parts.params, batch(255))
    assert value == 0
    assert not any(float(part) for part in metrics.values())
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))
    (value, metrics), grads = gradient(parts.params, batch(3))
    np.testing.assert_allclose(value, sum(metrics.values()), rtol=1e-6)
    assert set(metrics) == {"loss_full", "loss_half", "loss_three_quarters", "loss_max"}
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_rates_of_the_classifiers():
    assert [group.rate for group in deeplab.groups()] == [10.0, 20.0]
    assert [group.rate for group in deeplab.groups(0.5)] == [0.5, 1.0]


def test_one_step_moves_what_is_trained(model):
    """Three rates; the norms stay as they are, affine parameters and statistics."""
    task = deeplab.build(model)
    parts = split_model(task)
    rate = 1e-3
    tx = optimizer(OptimConfig(learning_rate=rate, weight_decay=0.0, groups=deeplab.groups()), 10)
    flat = {p: np.asarray(x) for p, x in flat_arrays(model).items()}
    owned = [path for path in flat if task.trainable(path)]
    assert not [path for path in owned if "norm" in path]
    assert {path for path in flat if path not in owned} == {path for path in flat if "norm" in path}
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, parts.params, parts.stats, tx.init(parts.params), zero)
    update = jax.jit(make_update(task, parts, tx))
    state, metrics = update(state, parts.frozen, batch(2))
    after = parts.model(state.params, state.stats, parts.frozen)
    moved = {path: np.asarray(x) - flat[path] for path, x in flat_arrays(after).items()}
    assert {path for path, by in moved.items() if np.any(by)} == set(owned)
    biases = [moved[f"aspp.{i}.bias"] for i in range(4)]
    # The four biases are added, so they have one gradient.
    for other in biases[1:]:
        np.testing.assert_allclose(other, biases[0], rtol=1e-5, atol=1e-7)
    norms = {path: np.linalg.norm(by) for path, by in moved.items()}
    factor = {path: 1.0 for path in owned}
    factor |= {p: (20.0 if p.endswith("bias") else 10.0) for p in owned if p.startswith("aspp.")}
    whole = np.sqrt(sum((norms[path] / (rate * factor[path])) ** 2 for path in owned))
    np.testing.assert_allclose(whole, metrics["gradient_norm"], rtol=1e-5)


def test_padding_of_the_mean_colour_is_zero_at_the_network(model):
    """A float crop padded with the mean costs what the unpadded uint8 crop in it costs."""
    task = deeplab.build(model)
    small = batch(np.arange(40)[:, None] % CLASSES)
    image = np.full((2, 56, 64, 3), MEAN, np.float32)
    image[:, :40, :48] = small["image"]
    label = np.full((2, 56, 64), 255)
    label[:, :40, :48] = small["label"]
    whole = {
        "image": jnp.asarray(image),
        "image_size": jnp.asarray([(56, 64)] * 2),
        "label": jnp.asarray(label),
    }
    padded = {
        **whole,
        "image": jnp.asarray(image.astype(np.uint8)),
        "image_size": small["image_size"],
    }
    run = jax.jit(lambda model, batch: task.loss(model, batch, None, None)[0])
    np.testing.assert_allclose(run(model, whole), run(model, padded), rtol=1e-5)


def test_bfloat16_is_a_choice_of_the_convolutions(model):
    half = nnx.merge(
        nnx.split(
            nnx.eval_shape(
                lambda: DeepLabV2(
                    CLASSES, dataclasses.replace(TOY, dtype="bfloat16"), rngs=nnx.Rngs(0)
                )
            )
        )[0],
        nnx.state(model),
    )
    run = jax.jit(lambda m, x: m.classify(x))
    fine, coarse = (np.asarray(run(m, 50 * pixels(2, 40, 48))) for m in (model, half))
    assert coarse.dtype == np.float32
    assert 0 < np.linalg.norm(fine - coarse) < 0.03 * np.linalg.norm(fine)


def test_an_unknown_loss(model):
    with pytest.raises(ValueError, match="loss 'focal': choose mean or balanced"):
        deeplab.build(model, deeplab.DeepLabConfig(loss="focal"))
