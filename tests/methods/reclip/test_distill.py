"""The distillation at toy sizes: bounded memory with equal numbers, choices, gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.core.modules import abstract, initialised
from clipseg_jax.methods.reclip import distill_task as reclip_distill
from clipseg_jax.methods.reclip.distill_model import Distillation
from clipseg_jax.methods.reclip.distill_task import DistillConfig
from clipseg_jax.methods.reclip.heads import BiasDecoder, PositionNet
from clipseg_jax.methods.reclip.model import (
    FixedReference,
    ReCLIP,
    ReCLIPConfig,
    reclip_image_tower,
)
from clipseg_jax.models.clip import VisionTransformer, ViTConfig, l2_normalize
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.models.resnet import DilatedResNetConfig
from clipseg_jax.ops import upsample
from clipseg_jax.ops.cross_entropy import upsampled_cross_entropy, upsampled_l1
from clipseg_jax.ops.resize import resize
from clipseg_jax.ops.upsample import sum_by_class, upsampled_argmax
from weights_convert.clip.build import flat_arrays, install

CLASSES, SIDE = 5, 44  # 44: neither a multiple of the patches nor of the stride
STUDENT = DilatedResNetConfig(blocks=(1, 1), width=8)
VIT = ViTConfig(image_px=32, patch_px=8, width=32, layers=2, heads=2, embed_dim=16)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def labels(seed, *shape, classes=CLASSES):
    drawn = jax.random.randint(jax.random.key(seed), shape, 0, classes + 1)
    return jnp.where(drawn == classes, 255, drawn)


@pytest.fixture(params=[2**24, 2000], ids=["one block", "blocks"])
def numbers(request, monkeypatch):
    """How many numbers may be held at once: all of them, or a few rows' worth."""
    monkeypatch.setattr(upsample, "_NUMBERS_AT_ONCE", request.param)


def plain_cross_entropy(logits, y):
    entropy = -jax.nn.log_softmax(resize(logits, y.shape[1:]))
    of_label = jnp.take_along_axis(entropy, jnp.clip(y, 0, CLASSES - 1)[..., None], axis=-1)[..., 0]
    return jnp.mean(jnp.where(y == 255, 0, of_label))


def plain_l1(a, b, counted):
    distance = jnp.abs(resize(a, counted.shape[1:]) - resize(b, counted.shape[1:]))
    return jnp.mean(distance[np.asarray(counted)])


def test_losses_equal_those_of_full_maps(numbers):
    y = labels(0, 2, 37, 29)
    logits, other = normal(1, 2, 5, 4, CLASSES), normal(2, 2, 3, 3, CLASSES)
    for blocked, plain in (
        (functools.partial(upsampled_cross_entropy, labels=y),
         functools.partial(plain_cross_entropy, y=y)),
        (functools.partial(upsampled_l1, second=other, counted=y != 255),
         functools.partial(plain_l1, b=other, counted=y != 255)),
    ):  # fmt: skip
        actual, gradient = jax.jit(jax.value_and_grad(blocked))(logits)
        expected, expected_gradient = jax.value_and_grad(plain)(logits)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-8)


def test_labels_and_pools_equal_those_of_full_maps(numbers):
    y = labels(0, 2, 37, 29)
    logits, features = normal(1, 2, 5, 4, CLASSES), normal(2, 2, 5, 4, 7)
    np.testing.assert_array_equal(
        upsampled_argmax(logits, (37, 29)), jnp.argmax(resize(logits, (37, 29)), axis=-1)
    )
    hits = jax.nn.one_hot(y, CLASSES)
    expected = jnp.einsum("bhwc,bhwe->bce", hits, resize(features, (37, 29)))
    np.testing.assert_allclose(sum_by_class(features, y, CLASSES), expected, rtol=1e-6, atol=6e-5)


def test_no_pixel_counts():
    nothing = jnp.full((1, 9, 9), 255)
    assert upsampled_cross_entropy(normal(0, 1, 3, 3, 4), nothing) == 0
    assert upsampled_l1(normal(0, 1, 3, 3, 4), normal(1, 1, 2, 2, 4), nothing != 255) == 0


@functools.cache
def parts_of(plus_plus):
    """A toy teacher and student, taken apart."""
    rows, reference = (normal(seed, CLASSES, VIT.embed_dim) for seed in (4, 5))
    kind = BiasDecoder if plus_plus else PositionNet

    def teacher(rngs):
        return ReCLIP(
            reclip_image_tower(VisionTransformer(VIT, rngs=rngs), "gelu"),
            l2_normalize(rows),
            FixedReference(reference / jnp.linalg.norm(reference)),
            kind(VIT.width, VIT.embed_dim, CLASSES, rngs=rngs),
            ReCLIPConfig(plus_plus=plus_plus),
        )

    student = initialised(lambda rngs: DeepLab(STUDENT, VIT.embed_dim, rngs=rngs), 3)
    return nnx.split(initialised(teacher, 3)), nnx.split(student)


def task_of(plus_plus, **choices):
    """A toy task, whose teacher comes with statistics that are not the fresh ones."""
    teacher, student = (nnx.merge(*parts, copy=True) for parts in parts_of(plus_plus))
    stats = {
        f"head.{path}": np.asarray(leaf) + 0.1
        for path, leaf in flat_arrays(teacher.head).items()
        if path.endswith((".mean", ".var"))
    }
    install(teacher, stats)
    # No filter: the toy's probabilities are all alike.
    return reclip_distill.build(teacher, student, DistillConfig(teacher_threshold=0.0, **choices))


@pytest.fixture(scope="module", params=[False, True], ids=["reclip", "reclip++"])
def plus_plus(request):
    return request.param


def batch_of(tags=((0, 2), ())):
    matrix = np.zeros((2, CLASSES), bool)
    for row, ids in zip(matrix, tags, strict=True):
        row[list(ids)] = True
    image = jax.random.randint(jax.random.key(6), (2, SIDE, SIDE, 3), 0, 256).astype(jnp.uint8)
    y = jnp.full((2, SIDE, SIDE), -1).at[:, :, :9].set(255).at[1, 30:].set(255)
    return {
        "image": image,
        "image_size": jnp.asarray([[SIDE, SIDE], [30, SIDE]]),
        "label": y.astype(jnp.int32),
        "tags": jnp.asarray(matrix),
    }


def differentiate(task, batch):
    """Loss, metrics, gradients by path, and the statistics afterwards."""

    def owned(path, variable):
        return isinstance(variable, nnx.Param) and task.trainable(".".join(map(str, path)))

    graph, params, stats, rest = nnx.split(task.model, owned, nnx.BatchStat, ...)

    @jax.jit
    def run(params, stats, rest, batch):
        def loss(params):
            model = nnx.merge(graph, params, stats, rest, copy=True)
            value, metrics = task.loss(model, batch, jax.random.key(0), 0)
            return value, (metrics, nnx.state(model, nnx.BatchStat))

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, (metrics, moved)), gradient = run(params, stats, rest, batch)
    gradient = {path: np.asarray(leaf) for path, leaf in flat_arrays(gradient).items()}
    return float(value), metrics, gradient, flat_arrays(moved)


@pytest.mark.slow
def test_published_terms(plus_plus):
    task = task_of(plus_plus)
    before = {path: np.asarray(leaf) for path, leaf in flat_arrays(task.model).items()}
    fresh = [v for k, v in before.items() if k.startswith("teacher.head") and k.endswith("mean")]
    assert all(np.all(mean == 0) for mean in fresh)
    value, metrics, gradient, moved = differentiate(task, batch_of())
    parts = metrics["mask_loss"], metrics["feature_loss"], metrics["text_loss"]
    np.testing.assert_allclose(value, parts[0] + 0.5 * (parts[1] + parts[2]), rtol=1e-6)
    assert all(part > 0 for part in parts)
    assert {path.split(".")[0] for path in gradient} == {"student", "logit_scale"}
    assert all(np.any(leaf != 0) for leaf in gradient.values())
    assert all(np.any(moved[path] != before[path]) for path in moved)


@pytest.mark.slow
def test_choices_of_auxiliary_terms():
    """They train the student only if they are asked to."""
    value, metrics, gradient, _ = differentiate(task_of(True), batch_of())
    off = differentiate(task_of(True, aux="off"), batch_of())
    assert set(off[1]) == {"mask_loss"}
    assert off[2]["logit_scale"] == 0
    name = "student.aspp.0.conv.kernel"
    np.testing.assert_allclose(off[2][name], gradient[name], rtol=1e-5, atol=5e-8)
    more = differentiate(task_of(True, aux_grad=True), batch_of())
    np.testing.assert_allclose(more[0], value, rtol=1e-6)
    assert np.abs(more[2][name] - gradient[name]).max() > 1e-5
    scaled = differentiate(task_of(True, exp_logit_scale=True), batch_of())
    assert scaled[1]["text_loss"] != metrics["text_loss"]
    np.testing.assert_allclose(scaled[1]["feature_loss"], metrics["feature_loss"], rtol=1e-6)


def test_no_tags_is_no_term(plus_plus):
    value, metrics, gradient, _ = differentiate(task_of(plus_plus), batch_of(((), ())))
    assert metrics["text_loss"] == 0
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient.values())


def test_loaded_statistics_stay(plus_plus):
    task = task_of(plus_plus, teacher_bn="loaded_eval")
    before = {path: np.asarray(leaf) for path, leaf in flat_arrays(task.model).items()}
    *_, moved = differentiate(task, batch_of())
    for path, leaf in moved.items():
        same = np.array_equal(leaf, before[path])
        assert same == path.startswith("teacher."), path


def test_statistics_move_for_each_copy():
    """The positions stand for the batch: only the unbiased variance tells."""
    task = task_of(False)
    graph, state = nnx.split(task.model)
    moved = []
    for b in (1, 3):
        model = nnx.merge(graph, state, copy=True)
        model.teach(normal(7, b, 32, 32, 3), train=True)
        norm = model.teacher.head.norm1
        moved.append((norm.mean[...], norm.var[...]))
    (mean, var), (mean_of_three, var_of_three) = moved
    np.testing.assert_allclose(mean, mean_of_three, rtol=1e-6)
    np.testing.assert_allclose((var - 0.9) / (var_of_three - 0.9), (16 / 15) / (48 / 47), rtol=3e-5)


def test_ignored_pixels_stay_ignored(plus_plus):
    batch, cfg = batch_of(), DistillConfig(teacher_threshold=0.0)
    taught = task_of(plus_plus).model.teach(normal(7, 2, SIDE, SIDE, 3), train=True)
    targets = np.asarray(reclip_distill.teacher_labels(taught.logits, batch["label"], cfg))
    np.testing.assert_array_equal(targets == 255, np.asarray(batch["label"]) == 255)
    assert set(np.unique(targets)) <= {*range(CLASSES), 255}
    # Where no class is sure enough, class 0 is what is left.
    cfg = DistillConfig(teacher_threshold=1.0, teacher_scale=0.1)
    targets = np.asarray(reclip_distill.teacher_labels(taught.logits, batch["label"], cfg))
    assert set(np.unique(targets)) == {0, 255}


def test_prediction_ignores_padding(plus_plus):
    task = task_of(plus_plus, test_threshold=0.25)
    model = nnx.merge(*nnx.split(task.model), copy=True)
    model.student(normal(8, 2, 40, 40, 3), train=True)  # statistics of a student that learned
    sizes = [(40, 52), (33, 27)]
    padded = normal(9, 2, 45, 60, 3)
    predict = jax.jit(task.predict)
    together = np.asarray(predict(model, padded, jnp.asarray(sizes)))
    grids = np.asarray(task.grid_size(jnp.asarray(sizes)))
    for i, (h, w) in enumerate(sizes):
        alone = np.asarray(predict(model, padded[i : i + 1, :h, :w], jnp.asarray(sizes[i : i + 1])))
        assert np.std(alone) > 0.01
        gh, gw = grids[i]
        assert alone.shape[1:3] == (gh, gw) == (-(-h // 8), -(-w // 8))
        np.testing.assert_allclose(together[i, :gh, :gw], alone[0], rtol=1e-5, atol=1e-5)
        outside = together[i].copy()
        outside[:gh, :gw] = 0
        assert np.all(outside == 0)


def test_user_errors():
    task = task_of(False)
    teacher, student = task.model.teacher, task.model.student
    with pytest.raises(ValueError, match="aux 'on': choose value or off"):
        reclip_distill.build(teacher, student, DistillConfig(aux="on"))
    with pytest.raises(ValueError, match="teacher_bn"):
        reclip_distill.build(teacher, student, DistillConfig(teacher_bn="train"))
    with pytest.raises(ValueError, match="7 features for text embeddings of width 16"):
        Distillation(abstract(lambda rngs: DeepLab(STUDENT, 7, rngs=rngs)), teacher)
