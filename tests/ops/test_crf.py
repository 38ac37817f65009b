"""The dense CRF's own properties; its numbers against pydensecrf are in parity/test_densecrf.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.ops.crf import (
    CLIP_ES,
    WECLIP,
    CRFConfig,
    dense_crf,
    dense_crf_monitored,
    lattice,
    mean_field,
    unary_from_labels,
    unary_from_softmax,
    wrapped_image,
)
from tests import seeded

run = jax.jit(dense_crf, static_argnums=2)
SHORT = WECLIP.replace(iterations=3)
EXACT = SHORT.replace(filter="exact")


def example(h=12, w=17, c=3, seeds=(1,)):
    """Energies (b, h, w, c) and images (b, h, w, 3)."""
    scores = np.stack([seeded._normal("scores", (h, w, c), seed) for seed in seeds])
    images = np.stack([seeded.image(h, w, seed) for seed in seeds])
    return np.asarray(unary_from_softmax(jax.nn.softmax(jnp.asarray(scores)))), images


def brute_force(unary, image, cfg):
    """Mean field with both kernels written out, float64."""
    h, w, c = unary.shape
    y, x = np.indices((h, w)).reshape(2, -1).astype(np.float64)

    def kernel(*features):
        squared = sum((f[:, None] - f) ** 2 for f in features)
        k = np.exp(-squared / 2)
        g = 1 / np.sqrt(k.sum(1))
        return g[:, None] * k * g

    smooth = kernel(x / cfg.theta_gamma, y / cfg.theta_gamma)
    colours = [image[..., i].reshape(-1) / cfg.theta_beta for i in range(3)]
    appearance = kernel(x / cfg.theta_alpha, y / cfg.theta_alpha, *colours)
    u = unary.reshape(-1, c).astype(np.float64)
    q = np.asarray(jax.nn.softmax(-u, -1), np.float64)
    for _ in range(cfg.iterations):
        energy = -u + cfg.w2 * smooth @ q + cfg.w1 * appearance @ q
        q = np.exp(energy - energy.max(-1, keepdims=True))
        q /= q.sum(-1, keepdims=True)
    return q.reshape(h, w, c)


@pytest.mark.parametrize("blocks", [1, 7])
def test_exact_filter_is_the_double_sum(blocks, monkeypatch):
    unary, images = example()
    pixels = images[0, ..., 0].size
    monkeypatch.setattr(mean_field.exact, "BLOCK_BYTES", 4 * pixels * -(-pixels // blocks))
    actual = jax.jit(lambda *x: dense_crf(*x, EXACT))(unary, images)[0]
    np.testing.assert_allclose(actual, brute_force(unary[0], images[0], EXACT), atol=1e-5)


@pytest.mark.parametrize("cfg", [CLIP_ES.replace(iterations=3), EXACT], ids=["lattice", "exact"])
def test_padding_has_no_influence(cfg):
    unary, images = example()
    alone = run(unary, images, cfg)
    h, w = images.shape[1:3]
    # Two kinds of rubbish around the image, and a batch mate of another size.
    rubbish = np.stack([np.full((h + 7, w + 5, 3), 255), seeded.image(h + 7, w + 5, 9)])
    wide = np.full((2, h + 7, w + 5, 3), np.nan, np.float32)
    for i in range(2):
        rubbish[i, :h, :w], wide[i, :h, :w] = images[0], unary[0]
    sizes = np.array([[h, w], [h - 2, w - 3]], np.int32)
    padded = run(wide, rubbish.astype(np.uint8), cfg, sizes=sizes)
    # The exact filter adds zeros for padding, and so its sums in another order.
    atol = 1e-5 if cfg.filter == "exact" else 1e-6
    np.testing.assert_allclose(padded[0, :h, :w], alone[0], atol=atol)
    cut = run(unary[:, : h - 2, : w - 3], images[:, : h - 2, : w - 3], cfg)
    np.testing.assert_allclose(padded[1, : h - 2, : w - 3], cut[0], atol=atol)
    assert np.isfinite(padded).all()


def test_batch_equals_single_images():
    unary, images = example(seeds=(1, 2, 3))
    together = run(unary, images, SHORT)
    assert together.shape == unary.shape
    assert together.dtype == jnp.float32
    for i in range(3):
        alone = run(unary[i : i + 1], images[i : i + 1], SHORT)  # one program
        np.testing.assert_allclose(together[i], alone[0], atol=1e-6)


def test_batch_split_over_devices():
    unary, images = example(seeds=(1, 2, 3, 4))
    sizes = np.array([[12, 17], [9, 17], [12, 8], [5, 5]], np.int32)
    mesh, spec = make_mesh(2), jax.sharding.PartitionSpec("data")

    def both(unary, images, sizes):
        return dense_crf(unary, images, SHORT, sizes=sizes)

    split = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=spec, out_specs=spec))
    whole = jax.jit(both)(unary, images, sizes)
    np.testing.assert_allclose(split(unary, images, sizes), whole, atol=1e-6)


@pytest.mark.parametrize("ladder", [[40, 1200]])
def test_capacity_changes_nothing(ladder, monkeypatch):
    unary, images = example()
    expected = run(unary, images, SHORT)
    monkeypatch.setattr(
        mean_field, "_ladder", lambda pixels, bound: [min(n, bound) for n in (*ladder, bound)]
    )
    np.testing.assert_allclose(
        jax.jit(lambda *x: dense_crf(*x, SHORT))(unary, images), expected, atol=1e-6
    )


@pytest.mark.parametrize("classes", [1, 40])
def test_any_number_of_labels(classes):
    unary, images = example(h=6, w=5, c=classes)
    actual = run(unary, images, SHORT)
    np.testing.assert_allclose(actual.sum(-1), 1, atol=1e-5)
    exact = run(unary, images, EXACT)
    assert np.abs(actual - exact).mean() < 0.1


@pytest.mark.parametrize(("h", "w"), [(9, 1), (1, 1)])
def test_one_pixel_wide(h, w):
    unary, images = example(h=h, w=w)
    for cfg in (SHORT, EXACT):
        actual = run(unary, images, cfg)
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual.sum(-1), 1, atol=1e-5)


def test_constant_image_smooths_and_equal_energies_stay():
    unary, images = example(c=2)
    images = np.full_like(images, 90)
    noisy, smoothed = np.asarray(jax.nn.softmax(-unary)), np.asarray(run(unary, images, SHORT))
    assert len(np.unique(noisy.argmax(-1))) == 2
    assert len(np.unique(smoothed.argmax(-1))) == 1  # one colour: one label wins
    flat = run(np.zeros_like(unary), images, SHORT)
    np.testing.assert_allclose(flat, 0.5, atol=1e-6)


def test_no_iterations_is_the_softmax_of_the_energies():
    unary, images = example()
    actual, divergence = jax.jit(dense_crf_monitored, static_argnums=2)(
        unary, images, SHORT.replace(iterations=0)
    )
    np.testing.assert_allclose(actual, jax.nn.softmax(-unary), atol=1e-6)
    assert divergence.shape == (1, 1)


def test_divergence_falls_and_leaves_the_marginals_alone():
    unary, images = example()
    actual, divergence = jax.jit(dense_crf_monitored, static_argnums=2)(unary, images, SHORT)
    np.testing.assert_allclose(actual, run(unary, images, SHORT), atol=1e-6)
    assert divergence.shape == (1, 4)
    assert divergence[0, -1] < divergence[0, 0]


def test_compatibilities_that_say_the_same():
    unary, images = example()
    w = float(SHORT.w1)
    potts = run(unary, images, SHORT)
    vector = run(unary, images, SHORT.replace(w1=(-w,) * 3))
    matrix = run(unary, images, SHORT.replace(w1=tuple(map(tuple, (-w * np.eye(3)).tolist()))))
    np.testing.assert_allclose(vector, potts, atol=1e-6)
    np.testing.assert_allclose(matrix, potts, atol=1e-6)


def test_one_program_for_all_images_and_counts():
    program = jax.jit(lambda unary, images, n: dense_crf(unary, images, SHORT, iterations=n))
    for seed, n in ((1, 0), (2, 1), (1, 3)):
        unary, images = example(seeds=(seed,))
        actual = program(unary, images, n)
        if n == 0:
            np.testing.assert_allclose(actual, jax.nn.softmax(-unary), atol=1e-6)
    np.testing.assert_allclose(actual, run(unary, images, SHORT), atol=1e-6)
    assert program._cache_size() == 1


def test_cells_are_numbered_both_ways():
    numbers = lattice.Cells.within([3.0, 2.0, 4.5])
    real = np.arange(numbers.count) % numbers.stride < np.prod(numbers.sizes)
    cells = jnp.arange(numbers.count, dtype=jnp.uint32)[real]
    a, remainder = numbers.vertex(cells)
    again, inside = numbers.number(a, remainder)
    assert inside.all()
    np.testing.assert_array_equal(again, cells)


def test_every_vertex_lies_inside_its_cells():
    random = np.random.default_rng(0)
    levels = [np.linspace(0, top, 50, dtype=np.float32) for top in (5.2, 3, 60, 85, 19)]
    index = random.integers(0, 50, (5, 4000)).astype(np.int32)
    index[:, :64] = random.integers(0, 2, (5, 64)) * 49  # corners of the box
    a, weights = lattice.locate(levels, jnp.asarray(index))
    numbers = lattice.Cells.within([v[-1] for v in levels])
    assert numbers.number(a, jnp.arange(6)[:, None])[1].all()
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-5)
    assert weights.min() > -1e-5


def test_presets_at_a_scale():
    half = WECLIP.replace(theta_alpha=(80, 60)).at_scale(2)
    assert (half.theta_gamma, half.theta_alpha) == (1.5, (40, 30))
    assert half.theta_beta == WECLIP.theta_beta


def test_softmax_energies():
    p = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(unary_from_softmax(p), -np.log(np.maximum(p, 1e-5)), rtol=1e-6)
    trusted = unary_from_softmax(p, scale=0.6)
    np.testing.assert_allclose(trusted, -np.log(0.6 * p + 0.4 / 3), rtol=1e-6)
    assert np.isinf(unary_from_softmax(p, clip=None)[1, 1])


def test_softmax_energies_round_as_float16():
    # 1e-5 and the last score are subnormal in float16.
    p = np.array([0.3, 0.0, 0.77, 1.0, 4e-5], np.float16)
    for scale in (None, 1.0, 0.6):
        x = p if scale is None else np.float16(scale) * p + np.float16((1 - scale) / 5)
        expected = -np.log(np.clip(x, np.float16(1e-5), np.float16(1)))
        actual = jax.jit(lambda p, scale=scale: unary_from_softmax(p, scale))(p)
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
        whole = unary_from_softmax(p.astype(np.float32), scale)
        assert np.abs(actual - whole).max() > 1e-5


def test_label_energies():
    unsure = np.asarray(unary_from_labels(np.array([0, 1, 3]), 3, 0.7))
    np.testing.assert_allclose(np.exp(-unsure[0]), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(np.exp(-unsure[1]), [0.7, 0.15, 0.15], rtol=1e-5)
    sure = np.asarray(unary_from_labels(np.array([0, 2]), 3, 0.7, zero_unsure=False))
    np.testing.assert_array_equal(sure, unsure[1:])


def test_wrapped_image_wraps():
    rgb = np.array([[[122, 200, 103]], [[123, 116, 105]]], np.uint8)
    # BGR minus (104.008, 116.669, 122.675), cut towards 0, modulo 256.
    expected = [[[255, 83, 0]], [[0, 0, 0]]]
    np.testing.assert_array_equal(wrapped_image(rgb), expected)
    assert wrapped_image(rgb).dtype == jnp.uint8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theta_alpha": 0}, "theta_alpha 0 must be a positive number or 2"),
        ({"theta_beta": (3, 3)}, "theta_beta"),
        ({"w1": ((1.0, 2.0),)}, "w1 of shape"),
        ({"iterations": -1}, "iterations -1"),
        ({"filter": "fast"}, "filter 'fast'"),
        ({"normalisation": "both"}, "normalisation 'both'"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        CRFConfig(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda u, i: (u[0], i, SHORT),
            r"energies of shape \(12, 17, 3\); expected \(b, h, w, c\)",
        ),
        (lambda u, i: (u, i[:, 1:], SHORT), r"images of shape .* expected \(1, 12, 17, 3\)"),
        (lambda u, i: (u, i / 255.0, SHORT), "pass uint8"),
        (lambda u, i: (u, i, SHORT.replace(w1=(1.0, 2.0))), "w1 has 2 labels, the unary 3"),
        (lambda u, i: (u, i, SHORT.replace(theta_beta=0.1)), "lattice cells, at most 4294967296"),
    ],
)
def test_wrong_input(change, message):
    unary, images, cfg = change(*example())
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda *x: dense_crf(*x, cfg), unary, images)


def test_wrong_sizes_and_unaries():
    unary, images = example()
    with pytest.raises(ValueError, match=r"sizes of shape \(2, 2\); expected \(1, 2\)"):
        dense_crf(unary, images, SHORT, sizes=np.ones((2, 2), np.int32))
    with pytest.raises(ValueError, match="scores are uint8"):
        unary_from_softmax(images)
    with pytest.raises(ValueError, match="clip 2"):
        unary_from_softmax(unary, clip=2)
    with pytest.raises(ValueError, match="1 classes"):
        unary_from_labels(images[..., 0], 1, 0.7)
    with pytest.raises(ValueError, match="gt_prob 1"):
        unary_from_labels(images[..., 0], 2, 1.0)
