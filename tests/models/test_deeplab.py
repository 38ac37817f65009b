"""The dilated ResNet and DeepLab at toy sizes; their numbers: tests/parity/test_reclip_distill."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.core.modules import abstract, initialised
from clipseg_jax.models.deeplab import DILATIONS, DeepLab
from clipseg_jax.models.resnet import RESNET101, DilatedResNet, DilatedResNetConfig
from weights_convert.clip.build import flat_arrays, install

TOY = DilatedResNetConfig(blocks=(1, 2, 2, 2), width=8)


@pytest.fixture(scope="module")
def model():
    model = initialised(lambda rngs: DeepLab(TOY, 16, rngs=rngs))
    # Statistics as after training: with mean 0 padding would be easier to hide.
    stats = {
        path: np.asarray(leaf) + np.resize([0.03, -0.05, 0.01], leaf.shape)
        for path, leaf in flat_arrays(model).items()
        if path.endswith((".mean", ".var"))
    }
    install(model, stats)
    return model


def pixels(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), (*shape, 3))


@pytest.mark.parametrize("size", [(64, 64), (50, 67), (33, 41), (8, 9), (1, 1)])
def test_stride_eight_rounded_up(model, size):
    out = jax.eval_shape(lambda m, x: m(x, train=False), model, pixels(2, *size))
    assert out.shape == (2, -(-size[0] // 8), -(-size[1] // 8), 16)
    assert model.grid_sizes(jnp.asarray([size])).tolist() == [list(out.shape[1:3])]


def test_padding_has_no_influence(model):
    sizes = [(50, 67), (33, 41), (64, 80)]
    padded = pixels(3, 64, 80, seed=1)  # what lies outside is noise, not zeros
    run = jax.jit(lambda m, x, sizes: m(x, sizes, train=False))
    together = run(model, padded, jnp.asarray(sizes))
    for i, (h, w) in enumerate(sizes):
        alone = run(model, padded[i : i + 1, :h, :w], None)[0]
        assert np.mean(alone > 0) > 0.1
        gh, gw = alone.shape[:2]
        np.testing.assert_allclose(together[i, :gh, :gw], alone, rtol=1e-5, atol=1e-5)


def test_stages_and_dilations():
    cfg = DilatedResNetConfig(blocks=RESNET101)
    net = abstract(lambda rngs: DilatedResNet(cfg, rngs=rngs))
    strides = [layer[0].stride for layer in net.layers]
    first = [layer[0].conv2.kernel_dilation for layer in net.layers]
    others = [layer[1].conv2.kernel_dilation for layer in net.layers]
    assert strides == [1, 2, 1, 1]
    assert first == [1, 1, 1, 2]
    assert others == [1, 1, 2, 4]
    assert [len(layer) for layer in net.layers] == [3, 4, 23, 3]
    assert cfg.channels == 2048
    # torchvision's ResNet-101 without its classifier, with the v1c stem instead of its own.
    stem = 3 * 9 * 32 + 32 * 9 * 32 + 32 * 9 * 64 + 2 * (32 + 32 + 64)
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))
    assert count == 42_500_160 - (3 * 49 * 64 + 2 * 64) + stem
    assert DILATIONS == (6, 12, 18, 24)


@pytest.mark.slow
def test_training_moves_every_statistic(model):
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    def loss(params, train):
        model = nnx.merge(graph, params, stats, copy=True)
        out = model(pixels(2, 40, 40), train=train)
        return jnp.mean(jnp.square(out)), nnx.state(model, nnx.BatchStat)

    (_, kept), _ = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(params, False)
    (_, moved), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(
        params, True
    )
    for before, same, after in zip(*map(jax.tree.leaves, (stats, kept, moved)), strict=True):
        np.testing.assert_array_equal(before, same)
        assert not np.array_equal(before, after)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("train", [True, False])
def test_scanned_blocks_are_those_blocks_in_turn(train):
    cfg = DilatedResNetConfig(blocks=(4,), width=8, strides=(1,), dilations=(2,))
    graph, params, stats = nnx.split(
        initialised(lambda rngs: DilatedResNet(cfg, rngs=rngs)), nnx.Param, nnx.BatchStat
    )
    # Unlike blocks: with fresh norms, one taken for another would hardly be noticed.
    leaves, tree = jax.tree.flatten((params, stats))
    noise = [np.random.default_rng(i).uniform(0, 0.2, x.shape) for i, x in enumerate(leaves)]
    moved = [x + n.astype(np.float32) for x, n in zip(leaves, noise, strict=True)]
    params, stats = jax.tree.unflatten(tree, moved)
    images = pixels(2, 24, 17)

    def looped(net):
        x = net.begin(images, train=train)[0]
        for block in net.layers[0]:
            x = block(x, train=train)
        return (x,)

    def run(forward):
        def loss(params):
            net = nnx.merge(graph, params, stats, copy=True)
            (out,) = forward(net)
            return jnp.mean(jnp.square(out)), (out, nnx.state(net, nnx.BatchStat))

        if not train:
            return (*jax.jit(loss)(params)[1], {})
        (_, outputs), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return *outputs, gradient

    ours, expected = run(lambda net: net(images, train=train)), run(looped)
    # Values; of gradients, sums that cancel, ten times as much.
    for bound, *both in zip((1e-6, 1e-6, 1e-5), ours, expected, strict=True):
        for a, b in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_allclose(a, b, rtol=bound, atol=bound * np.abs(b).max())


def test_bfloat16_is_a_choice_of_the_convolutions(model):
    cfg = DilatedResNetConfig(blocks=TOY.blocks, width=TOY.width, dtype="bfloat16")
    half = nnx.merge(
        nnx.split(abstract(lambda rngs: DeepLab(cfg, 16, rngs=rngs)))[0], nnx.state(model)
    )
    run = jax.jit(lambda m, x: m(x, train=False))
    fine, coarse = (np.asarray(run(m, pixels(2, 40, 48))) for m in (model, half))
    assert coarse.dtype == np.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    assert 0 < np.linalg.norm(fine - coarse) < 0.02 * np.linalg.norm(fine)
