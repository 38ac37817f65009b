"""MaskCLIP+ at toy sizes, and all published sizes as shapes.

Its numbers: tests/parity/test_maskclip_plus.
"""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.core.mesh import make_mesh, shard_batch
from clipseg_jax.core.modules import Keys, abstract, initialised
from clipseg_jax.core.optim import OptimConfig, learning_rate, optimizer
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig, classify
from clipseg_jax.methods.maskclip_plus import task as maskclip_plus
from clipseg_jax.methods.maskclip_plus.model import MaskCLIPPlus, make_student
from clipseg_jax.methods.maskclip_plus.task import NEVER, MaskCLIPPlusConfig
from clipseg_jax.models.clip import CLIP, l2_normalize
from clipseg_jax.models.clip.dense import dense_features
from clipseg_jax.models.clip.read_outs import READ_OUTS
from clipseg_jax.models.resnet import DilatedResNetConfig
from clipseg_jax.ops.cross_entropy import upsampled_cross_entropy
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, network_input
from clipseg_jax.ops.upsample import upsampled_argmax
from clipseg_jax.train_step import init_state, jit_update, split_model
from configs.base.maskclip_plus import STUDENTS, dataset_config
from tests import tiny
from tests.parity import cases
from tests.parity import maskclip_plus_models as models
from weights_convert.clip.build import config_of, flat_arrays

OPTIM = OptimConfig(**dataset_config("voc").student.optim.to_dict())
TOY = DilatedResNetConfig(blocks=(1, 3), width=8, strides=(1, 2), dilations=(1, 1))
CLASSES, SIDE, SWITCH = 5, 48, 3
ZERO_SHOT = MaskCLIPPlusConfig(
    guided_steps=(1, SWITCH - 1), self_training_steps=(SWITCH, -1), unlabelled_classes=(2, 4)
)
# Spec maskclip, section 14: teacher, student, background; the numbers of text rows.
VARIANTS = {
    ("RN50", "deeplabv2_r101", False): (20, 59, 171, 150, 19),
    ("RN50x16", "deeplabv2_r101", False): (20, 59, 171, 150),
    ("ViT-B/16", "deeplabv2_r50", False): (20, 59, 171, 19, 23, 17),
    ("ViT-B/16", "deeplabv2_r101", False): (7, 12),
    ("RN50", "deeplabv2_r101", True): (20,),
    ("RN50", "deeplabv3plus_r101", True): (59,),
    # Teachers that no published config has, but that convert (spec maskclip, section 1).
    **{(name, "deeplabv2_r50", False): (20,) for name in ("RN101", "RN50x4", "RN50x64")},
    **{(name, "deeplabv3plus_r50", False): (20,) for name in ("ViT-B/32", "ViT-L/14")},
}


@functools.cache
def teacher_of(name):
    """The shapes of a published image tower, with MaskCLIP's choices."""
    shapes = cases.shapes(cases.DEFAULT, name, "clip")
    zeros = {k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()}
    cfg = dataclasses.replace(config_of(zeros), text=None)
    cfg = cfg if name.startswith("RN") else cfg.replace(**models.VIT)
    return abstract(lambda rngs: CLIP(cfg, rngs=rngs).visual)


@functools.cache
def student_of(name, features):
    decoder, blocks = STUDENTS[name]
    backbone = DilatedResNetConfig(blocks)
    return abstract(lambda rngs: make_student(decoder, backbone, features, rngs=rngs))


def published_model(teacher, student, background, rows):
    """A published model; its shapes, but for the classifier."""
    visual = teacher_of(teacher)
    text = np.zeros((rows, visual.cfg.embed_dim), np.float32)
    module = student_of(student, text.shape[1])
    return MaskCLIPPlus(module, text, visual, background=background, rngs=Keys(0))


def batch_shapes(b, h, w):
    shapes = {"image": (b, h, w, 3), "image_size": (b, 2), "label": (b, h, w)}
    kinds = {"image": jnp.uint8}
    return {n: jax.ShapeDtypeStruct(s, kinds.get(n, jnp.int32)) for n, s in shapes.items()}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v)))
def test_every_published_variant_has_its_shapes(variant):
    _, student, background = variant
    size = 72, 100
    stride = 4 if "v3plus" in student else 8
    grid = [-(-n // stride) for n in size]
    for rows in VARIANTS[variant]:
        model = published_model(*variant, rows)
        task = maskclip_plus.build(model, ZERO_SHOT)
        assert model.classes == rows + background
    seen = jax.eval_shape(
        lambda model, batch: maskclip_plus.teacher_targets(model, batch, jnp.asarray(0), ZERO_SHOT),
        model,
        batch_shapes(2, *size),
    )
    assert seen.logits.shape == (2, *grid, model.classes)
    assert seen.labels.shape == (2, *size)
    trained = {path.split(".")[0] for path in flat_arrays(model) if task.trainable(path)}
    assert trained == {"student"} | ({"background_embedding"} if background else set())


@pytest.mark.parametrize(
    ("table", "variant"),
    [
        ("anno_free_r50_voc20", ("RN50", "deeplabv2_r101", False, 20)),
        ("anno_free_r50x16_voc20", ("RN50x16", "deeplabv2_r101", False, 20)),
        ("anno_free_vit16_context59", ("ViT-B/16", "deeplabv2_r50", False, 59)),
        ("zero_shot_context60_deeplabv3plus", ("RN50", "deeplabv3plus_r101", True, 59)),
    ],
)
def test_keys_and_shapes_are_the_published_ones(table, variant):
    shapes = json.loads((cases.DEFAULT / models.FOLDER / "shapes.json").read_text())
    published = shapes[f"maskclip_plus_{table}"]
    parts = ("backbone.", "decode_head.decode_module.")
    embeddings = ("decode_head.text_embeddings", "decode_head.bg_embeddings")
    expected = {
        key: tuple(shape)
        for key, shape in published.items()
        if (key.startswith(parts) or key in embeddings) and "num_batches" not in key
    }
    assert models.published_shapes(published_model(*variant)) == expected


@jax.jit
def normalised(batch):
    """The images of a batch as the networks see them."""
    return network_input(batch["image"], batch["image_size"], IMAGENET_MEAN, IMAGENET_STD)


@functools.cache
def teaching():
    """A small teacher, and text rows that its features are not all alike to: parts of both."""
    teacher = nnx.split(tiny.clip().visual)
    images = normalised(batch_of())
    dense = jax.jit(lambda state: dense_features(nnx.merge(teacher[0], state), images))(teacher[1])
    mean = l2_normalize(jnp.mean(l2_normalize(dense.features), axis=(0, 1, 2)))
    rows = jax.random.normal(jax.random.key(3), (CLASSES, mean.size))
    return teacher, np.asarray(l2_normalize(rows - (rows @ mean)[:, None] * mean))


@functools.cache
def student_parts(decoder):
    """A small student with random numbers: graph and state."""
    features = teaching()[1].shape[1]
    return nnx.split(initialised(lambda rngs: make_student(decoder, TOY, features, rngs=rngs), 1))


def toy(decoder="deeplabv2", background=False):
    """A small student and teacher with random numbers."""
    teacher, rows = teaching()
    student = nnx.merge(*student_parts(decoder), copy=True)
    teacher = nnx.merge(*teacher, copy=True)
    return MaskCLIPPlus(student, rows[background:], teacher, background=background, rngs=Keys(5))


def batch_of(b=4, seed=0):
    """Smooth images, one of them padded; seen labels, unlabelled and ignored pixels."""
    images = np.stack(tiny.images([(SIDE, SIDE)] * b, seed))
    label = np.full((b, SIDE, SIDE), -1, np.int32)
    label[:, :, :13] = 255
    label[:, 20:] = 1
    label[0, 30:, 20:], label[1, 40:] = 3, 255
    sizes = np.full((b, 2), SIDE, np.int32)
    sizes[1, 0] = 40
    return {"image": images, "image_size": sizes, "label": label}


@functools.partial(jax.jit, static_argnames=("graph", "cfg"))
def look(graph, state, batch, step, cfg):
    return maskclip_plus.teacher_targets(nnx.merge(graph, state, copy=True), batch, step, cfg)


def seen_at(model, step, cfg, batch=None):
    graph, state = nnx.split(model)
    arrays = {k: jnp.asarray(v) for k, v in (batch or batch_of()).items()}
    return look(graph, state, arrays, step, cfg=cfg)


@pytest.mark.parametrize(("decoder", "background"), [("deeplabv2", False), ("deeplabv3plus", True)])
@pytest.mark.slow
def test_each_phase_finds_its_labels(decoder, background):
    refine = MaskCLIPConfig(pd_threshold=0.4)
    cfg = dataclasses.replace(ZERO_SHOT, refine=refine)
    model, batch = toy(decoder, background), batch_of()
    given, unseen = batch["label"], np.asarray(cfg.unlabelled_classes)
    images = normalised(batch)
    rows = model.class_embeddings()[unseen]
    assert model.class_embeddings().shape == (CLASSES, tiny.VIT.embed_dim)

    @jax.jit
    def guided(model, images, rows):
        return upsampled_argmax(classify(model.teach(images), rows, refine), (SIDE, SIDE))

    @jax.jit
    def own(features, rows):
        return upsampled_argmax(features @ rows.T, (SIDE, SIDE))

    np.testing.assert_allclose(jnp.linalg.norm(model.class_embeddings(), axis=1), 1, rtol=1e-5)
    for step in (0, SWITCH - 2, SWITCH - 1, 100):
        seen = seen_at(model, step, cfg, batch)
        found = guided(model, images, rows) if step + 1 < SWITCH else own(seen.features, rows)
        predicted = unseen[np.asarray(found)]
        assert len(np.unique(predicted)) == 2
        labels = np.asarray(seen.labels)
        np.testing.assert_array_equal(labels[given >= 0], given[given >= 0])
        # Not every pixel: rounding may tip one between two classes.
        assert np.mean(labels[given == -1] == predicted[given == -1]) > 0.999


def test_another_read_out_teaches_otherwise():
    model, batch = toy(), batch_of()
    cfg = dataclasses.replace(ZERO_SHOT, teacher_read_out="naclip")
    images = normalised(batch)
    unseen = np.asarray(cfg.unlabelled_classes)

    @jax.jit
    def best(model, images):
        dense = dense_features(model.teacher, images, read_out=READ_OUTS["naclip"])
        scores = classify(dense, model.class_embeddings()[unseen], cfg.refine)
        return upsampled_argmax(scores, (SIDE, SIDE))

    predicted = unseen[np.asarray(best(model, images))]
    where = batch["label"] == -1
    labels, plain = (np.asarray(seen_at(model, 0, each, batch).labels) for each in (cfg, ZERO_SHOT))
    assert np.mean(labels[where] == predicted[where]) > 0.999
    assert np.mean(labels[where] == plain[where]) < 0.999


def test_an_unknown_read_out_is_refused():
    with pytest.raises(ValueError, match="'naclipp'"):
        MaskCLIPPlusConfig(teacher_read_out="naclipp")


def test_unlabelled_classes_are_never_seen():
    batch = batch_of()
    given = batch | {"label": np.where(batch["label"] == -1, 4, batch["label"])}
    labelled, unlabelled = (seen_at(toy(), 0, ZERO_SHOT, each).labels for each in (given, batch))
    np.testing.assert_array_equal(labelled, unlabelled)
    outside = batch | {"label": np.where(batch["label"] == -1, CLASSES, batch["label"])}
    labels = np.asarray(seen_at(toy(), 0, ZERO_SHOT, outside).labels)
    assert np.all(labels[batch["label"] == -1] == 255)


def test_ignored_pixels_may_be_labelled():
    batch = batch_of()
    cfg = MaskCLIPPlusConfig()
    everything = dataclasses.replace(cfg, use_gt_ignore=False)
    labels = np.asarray(seen_at(toy(), 0, cfg, batch).labels)
    np.testing.assert_array_equal(labels == 255, batch["label"] == 255)
    labels = np.asarray(seen_at(toy(), 0, everything, batch).labels)
    assert np.all(labels[1, 40:] == 255)  # padding
    assert np.all(labels[0] < CLASSES)


def gradients_of(model, cfg, *batches):
    """Loss, metrics and gradient of each batch."""
    task = maskclip_plus.build(model, cfg)
    parts = split_model(task)

    @jax.jit
    def run(params, rows):
        def loss(params):
            model = parts.model(params, parts.stats)
            return task.loss(model, rows, jax.random.key(0), jnp.asarray(0))

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, metrics, gradient

    return [run(parts.params, batch) for batch in batches]


def test_without_a_phase_it_is_cross_entropy():
    cfg = MaskCLIPPlusConfig(guided_steps=NEVER)
    model, batch = toy(background=True), batch_of()
    ((value, metrics, gradient),) = gradients_of(model, cfg, batch)
    seen = seen_at(model, 0, cfg, batch)
    given = np.where(batch["label"] == -1, 255, batch["label"])
    np.testing.assert_array_equal(seen.labels, given)
    expected = jax.jit(upsampled_cross_entropy)(seen.logits, given)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert value == metrics["loss_ce"]
    best = jax.jit(upsampled_argmax, static_argnums=1)(seen.logits, given.shape[1:])
    hits = np.asarray(best) == given
    np.testing.assert_allclose(metrics["acc_seg"], 100 * np.mean(hits & (given != 255)), rtol=1e-6)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_distillation_trains_only_if_it_is_let():
    batch = batch_of()
    batch["label"] = np.where(batch["label"] == 255, 255, -1)
    cfg = MaskCLIPPlusConfig(distill=True, distill_labelled=False)
    (value, metrics, gradient), (given, mixed, _) = gradients_of(toy(), cfg, batch, batch_of())
    assert metrics["loss_ce"] == 0
    assert value == metrics["loss_distill"] > 0
    assert not any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
    useful = dataclasses.replace(cfg, distill_detach=False, distill_weight=2.0)
    ((twice, _, gradient),) = gradients_of(toy(), useful, batch)
    np.testing.assert_allclose(twice, 2 * value, rtol=1e-6)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient["student"]["backbone"]))
    # Where labels are given, they are learned, and their pixels are distilled only if asked to.
    assert mixed["loss_ce"] > 0
    np.testing.assert_allclose(given, mixed["loss_ce"] + mixed["loss_distill"], rtol=1e-6)
    ((_, more, _),) = gradients_of(
        toy(), dataclasses.replace(cfg, distill_labelled=True), batch_of()
    )
    assert more["loss_distill"] != mixed["loss_distill"]


def trained(devices, decoder="deeplabv3plus", steps=4):
    """Parameters, statistics and metrics after steps across the switch, and how often they were
    traced.
    """
    task = maskclip_plus.build(toy(decoder, background=True), ZERO_SHOT)
    parts, mesh = split_model(task), make_mesh(devices)
    tx = optimizer(dataclasses.replace(OPTIM, learning_rate=0.001), steps)
    state, frozen = init_state(parts, tx, mesh)
    traced = []

    def loss(*args):
        traced.append(1)
        return task.loss(*args)

    update = jit_update(task._replace(loss=loss), parts, tx, mesh)
    metrics_of_steps = []
    for step in range(steps):
        state, metrics = update(state, frozen, shard_batch(mesh, batch_of(seed=10 + step)))
        metrics_of_steps.append(jax.device_get(metrics))
    return jax.device_get((state.params, state.stats)), metrics_of_steps, len(traced)


@pytest.mark.slow
def test_any_number_of_devices_and_one_program_for_both_phases():
    alone, metrics_of_steps, traced = trained(1)
    assert traced == 1
    assert len({float(each["loss"]) for each in metrics_of_steps}) == len(metrics_of_steps)
    begin, *_ = trained(1, steps=0)
    moved = [
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (alone, begin)), strict=True)
    ]
    many, others, traced = trained(4)
    assert traced == 1
    for one, other in zip(metrics_of_steps, others, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
    off = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (alone, many)), strict=True)]
    shares = np.asarray(off) / np.maximum(moved, 1e-12)
    # With these images no pixel lies between two classes: one that the student labels otherwise
    # moves all by half a percent. Gradients that cancel are partly rounding.
    assert np.median(shares) <= 1e-5
    assert shares.max() <= 5e-3


def test_prediction_ignores_padding():
    model = toy("deeplabv3plus", background=True)
    task = maskclip_plus.build(model)
    graph, state = nnx.split(model)
    pixels = jax.random.normal(jax.random.key(9), (2, 45, 60, 3))

    @jax.jit
    def learned(state):
        moved = nnx.merge(graph, state, copy=True)
        moved.student(pixels, train=True)
        return nnx.state(moved)

    moved = nnx.merge(graph, learned(state))  # its statistics are not the first ones
    sizes = [(40, 52), (33, 27)]
    predict = jax.jit(task.predict)
    together = np.asarray(predict(moved, pixels, jnp.asarray(sizes)))
    grids = np.asarray(task.grid_size(jnp.asarray(sizes)))
    for i, (h, w) in enumerate(sizes):
        size = jnp.asarray(sizes[i : i + 1])
        alone = np.asarray(predict(moved, pixels[i : i + 1, :h, :w], size))
        assert np.std(alone) > 0.01
        gh, gw = grids[i]
        assert alone.shape[1:3] == (gh, gw) == (-(-h // 4), -(-w // 4))
        np.testing.assert_allclose(together[i, :gh, :gw], alone[0], rtol=1e-5, atol=1e-6)
        outside = together[i].copy()
        outside[:gh, :gw] = 0
        assert np.all(outside == 0)


def test_the_rate_ends_above_zero():
    rate = learning_rate(OPTIM, 2000)
    np.testing.assert_allclose(rate(0), 0.01, rtol=1e-6)
    np.testing.assert_allclose(rate(1000), 0.0099 * 0.5**0.9 + 1e-4, rtol=1e-5)
    np.testing.assert_allclose(rate(2000), 1e-4, rtol=1e-5)


def test_user_errors():
    student, rows = student_of("deeplabv2_r50", 512), np.zeros((CLASSES, 512))
    model = MaskCLIPPlus(student, rows, teacher_of("ViT-B/16"), rngs=Keys(0))
    build = maskclip_plus.build
    for phase in ((2, -1), (2, 2), (4, 9)):
        cfg = MaskCLIPPlusConfig(guided_steps=(1, 4), self_training_steps=phase)
        with pytest.raises(ValueError, match="overlap; end one before the other begins"):
            build(model, cfg)
    with pytest.raises(ValueError, match=r"unlabelled_classes \[5\]: the model has 5 classes"):
        build(model, MaskCLIPPlusConfig(unlabelled_classes=(4, 5)))
    alone = MaskCLIPPlus(student, rows, rngs=Keys(0))
    build(alone, MaskCLIPPlusConfig(guided_steps=NEVER))
    for cfg in (MaskCLIPPlusConfig(), MaskCLIPPlusConfig(guided_steps=NEVER, distill=True)):
        with pytest.raises(ValueError, match="the model has no teacher"):
            build(alone, cfg)
    with pytest.raises(ValueError, match="512 features for text embeddings of width 7"):
        MaskCLIPPlus(student, np.zeros((3, 7)), rngs=Keys(0))
    with pytest.raises(ValueError, match="image tower with 512"):
        MaskCLIPPlus(student, np.zeros((3, 7)), model.teacher, rngs=Keys(0))
    with pytest.raises(ValueError, match="decoder 'unet': choose deeplabv2 or deeplabv3plus"):
        make_student("unet", TOY, 24, rngs=Keys(0))
