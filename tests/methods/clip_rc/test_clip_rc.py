"""CLIP-RC as a task, beyond its goldens: counts, schedule, settings, losses, devices."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.modules import abstract
from clipseg_jax.core.optim import OptimConfig, learning_rate, optimizer
from clipseg_jax.methods.clip_rc import task as clip_rc
from clipseg_jax.methods.clip_rc.counts import multiply_adds
from clipseg_jax.methods.clip_rc.loss import mask_losses
from clipseg_jax.methods.clip_rc.model import CLIPRC, CLIPRCConfig
from clipseg_jax.methods.clip_rc.task import CLIPRCTaskConfig
from clipseg_jax.models.clip import VisionTransformer, ViTConfig
from clipseg_jax.train import TrainConfig, train
from tests.methods.clip_rc.tiny import CLASSES, OPTIM, SEEN, small, small_batch
from weights_convert.clip.build import flat_arrays
from weights_convert.trained.clip_rc.keys import CLIP_RC, UNUSED

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "clip_rc"
VIT_B = ViTConfig(224, 16, 768, layers=12, heads=12, embed_dim=512)


def golden(name):
    return json.loads((GOLDEN / name).read_text())


def full_size(prompts, classes):
    """Shapes of the published model."""
    cfg = CLIPRCConfig(prompts=prompts)
    vision = dataclasses.replace(VIT_B, image_px=cfg.crop_px, position_resize="bilinear")
    rows = np.zeros((classes, 512), np.float32)
    return abstract(lambda rngs: CLIPRC(VisionTransformer(vision, rngs=rngs), rows, cfg, rngs=rngs))


def loss_of(task):
    """(batch, step) -> the loss and its parts; one program."""
    run = jax.jit(task.loss)
    return lambda batch, step=0: run(
        task.model, jax.tree.map(jnp.asarray, batch), jax.random.key(5), jnp.asarray(step)
    )


def gradient_of(task):
    """(batch, model) -> the loss with its parts, and its gradient; one program."""

    def owned(path, _):
        return task.trainable(".".join(map(str, path)))

    @jax.jit
    def run(params, rest, batch):
        def of(params):
            model = nnx.merge(graph, params, rest, copy=True)
            return task.loss(model, batch, jax.random.key(5), jnp.asarray(0))

        return jax.value_and_grad(of, has_aux=True)(params)

    graph, *_ = nnx.split(task.model, owned, ...)
    return lambda batch, model=task.model: run(
        *nnx.split(model, owned, ...)[1:], jax.tree.map(jnp.asarray, batch)
    )


def assert_equal_trees(a, b):
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(a), nnx.to_pure_dict(b))


@pytest.mark.parametrize(
    ("name", "prompts", "classes"), [("voc_zero", 10, 20), ("coco_zero", 100, 171)]
)
def test_counts_are_the_published_ones(name, prompts, classes):
    published = golden("flops.json")["configs"][name]
    model = full_size(prompts, classes)
    task = clip_rc.build(model, CLIPRCTaskConfig("fully", seen=tuple(range(classes))))
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in flat_arrays(model).items()}
    trained = sum(size for path, size in sizes.items() if task.trainable(path))
    assert trained + published["head_params_never_used"] == published["trainable_params"]
    backbone = sum(size for path, size in sizes.items() if path.startswith("encoder."))
    assert backbone == published["backbone_params"]
    image = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    total = multiply_adds(lambda model, image: model(image), model, image)
    assert total / 1e9 == pytest.approx(published["gmac"]["total"], rel=0.02)
    encoder = multiply_adds(lambda model, image: model.encoder(image), model, image)
    assert encoder / 1e9 == pytest.approx(published["gmac"]["backbone"], rel=0.02)


def test_every_published_key_has_its_place():
    shapes = golden("state_dict_shapes.json")["shapes"]
    model = full_size(10, 20)
    shapes_of_model = {path: tuple(leaf.shape) for path, leaf in flat_arrays(model).items()}
    del shapes_of_model["text_embeddings"]
    stored = {
        key: np.broadcast_to(np.float32(0), shape)
        for key, shape in shapes.items()
        if not key.startswith("text_encoder.") and not re.fullmatch(UNUSED, key)
    }
    converted = CLIP_RC.to_right(stored, shapes_of_model, "the list")
    assert CLIP_RC.to_left(converted).keys() == stored.keys()


def test_the_optimiser_is_the_published_one():
    published = golden("optimizer.json")
    optim = OPTIM
    (group,) = published["groups"]
    assert (optim.learning_rate, optim.weight_decay) == (group["lr"], group["weight_decay"])
    assert (list(optim.betas), optim.eps) == (
        published["optimizer"]["betas"],
        published["optimizer"]["eps"],
    )
    assert not optim.groups
    model = full_size(10, 20)
    owned = {path for path in flat_arrays(model) if clip_rc.trainable(path)}
    published_paths = {
        CLIP_RC.right(name)[0] for name in group["names"] if not re.fullmatch(UNUSED, name)
    }
    assert owned == published_paths
    for steps, rates in published["lr"].items():
        at, expected = np.asarray([*map(int, rates)]), np.asarray([*rates.values()])
        with jax.enable_x64(True):  # the formula itself; the loop runs it in float32
            actual = learning_rate(optim, int(steps))(at.astype(np.int64))
            np.testing.assert_allclose(actual, expected, rtol=1e-9)
        single = learning_rate(optim, int(steps))(jnp.asarray(at, jnp.int32))
        np.testing.assert_allclose(single, expected, rtol=1e-6)


def test_norms_may_be_spared_decay():
    optim = OptimConfig(name="adamw", learning_rate=1.0, schedule="constant", weight_decay=0.5)
    optim = dataclasses.replace(optim, groups=clip_rc.NORMS_DO_NOT_DECAY)
    params = {path: jnp.ones(2) for path in flat_arrays(small()) if clip_rc.trainable(path)}
    tx = optimizer(optim, 1)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    spared = {path for path, moved in updates.items() if not np.any(moved)}
    assert spared == {path for path in params if re.search(r"norm", path)}
    assert "encoder.prompt_norm.scale" in spared
    assert "head.decoder_q.0.norm2.bias" in spared


@pytest.mark.slow
def test_labels_of_unseen_classes_never_reach_the_inductive_loss():
    """Other labels there: loss and gradient are the same, bit for bit. Elsewhere they aren't."""
    task = clip_rc.build(small(), CLIPRCTaskConfig("inductive", seen=SEEN))
    batch = small_batch()
    unseen = ~np.isin(batch["label"], (*SEEN, 255))
    assert 0.1 < unseen.mean() < 0.6
    rng = np.random.default_rng(3)
    others = np.asarray([i for i in range(256) if i not in SEEN])
    corrupted = np.where(unseen, rng.choice(others, unseen.shape), batch["label"])
    assert np.any(corrupted != batch["label"])
    gradient = gradient_of(task)
    expected, got = gradient(batch), gradient(batch | {"label": corrupted})
    jax.tree.map(np.testing.assert_array_equal, got[0], expected[0])
    assert_equal_trees(got[1], expected[1])
    changed = np.where(batch["label"] == SEEN[0], SEEN[1], batch["label"])
    (loss, _), _ = gradient(batch | {"label": changed})
    assert loss != expected[0][0]
    # The text rows of unseen classes don't either.
    rows = np.asarray(task.model.text_embeddings[...])
    other = np.where(np.isin(np.arange(CLASSES), SEEN)[:, None], rows, rows[::-1] + 1)
    task.model.text_embeddings = nnx.Param(jnp.asarray(other))
    got = gradient(batch)
    jax.tree.map(np.testing.assert_array_equal, got[0], expected[0])
    assert_equal_trees(got[1], expected[1])


def test_self_training_labels_unseen_pixels_alone():
    logits = jax.random.normal(jax.random.key(0), (2, 4, 4, CLASSES))
    labels = jnp.asarray(small_batch(2)["label"])
    cfg = CLIPRCTaskConfig("transductive", seen=SEEN)
    visible = clip_rc.visible_labels(labels, CLASSES, cfg)
    labelled = np.asarray(clip_rc.self_labelled(logits, visible, SEEN))
    given = np.isin(labels, (*SEEN, 255))
    np.testing.assert_array_equal(labelled[given], np.asarray(labels)[given])
    assert set(np.unique(labelled[~given])) == set(range(CLASSES)) - set(SEEN)
    # Which unseen class a pixel truly has makes no difference.
    swapped = jnp.where(labels == 1, 4, jnp.where(labels == 4, 1, labels))
    np.testing.assert_array_equal(clip_rc.visible_labels(swapped, CLASSES, cfg), visible)


def test_self_training_begins_at_its_step():
    """Before it, unseen classes have no part in the masks' losses; one program serves both."""
    cfg = CLIPRCTaskConfig("transductive", seen=SEEN, self_training_step=10, recovery_weight=0.0)
    task, batch = clip_rc.build(small(dropout=0.0), cfg), small_batch()
    loss = loss_of(task)
    before, parts = loss(batch, 9)
    assert before != loss(batch, 10)[0]
    assert loss(batch, 10)[0] == loss(batch, 11)[0]
    seen_only = np.where(np.isin(batch["label"], SEEN), batch["label"], 255)
    logits = jax.jit(lambda m, x: m(x))(
        task.model,
        clip_rc.network_input(jnp.asarray(batch["image"]), batch["image_size"], cfg.mean, cfg.std),
    )
    alone = clip_rc.visible_labels(
        jnp.asarray(seen_only), CLASSES, CLIPRCTaskConfig("inductive", seen=SEEN)
    )
    expected = mask_losses(logits[..., np.asarray(SEEN)], alone)
    np.testing.assert_allclose(parts["loss_mask"], 100 * expected.focal, rtol=1e-5)
    np.testing.assert_allclose(parts["loss_dice"], expected.dice, rtol=1e-5)


def test_hidden_pixels_are_labelled_with_the_unseen_ones():
    """Where unseen classes are is then no more known than what has no class; padding stays."""
    cfg = CLIPRCTaskConfig("transductive", seen=SEEN, unlabelled="hidden")
    task, batch = clip_rc.build(small(dropout=0.0), cfg), small_batch()
    batch["image_size"][:, 1] = 48
    batch["label"][:, :, 48:] = 255
    hidden = np.where(np.isin(batch["label"], SEEN), batch["label"], 255)
    assert np.any(hidden != batch["label"])
    loss = loss_of(task)
    total, parts = loss(batch)
    assert total == loss(batch | {"label": hidden})[0]
    told = clip_rc.build(task.model, dataclasses.replace(cfg, unlabelled="told"))
    assert loss_of(told)(batch)[1]["loss_mask"] != parts["loss_mask"]


def test_a_batch_without_labels_costs_no_dice():
    logits = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    losses = mask_losses(logits, jnp.full((2, 16, 16), 255))
    assert float(losses.dice) == 0
    assert int(losses.pairs) == 1
    assert np.isfinite(losses.focal)
    assert float(losses.accuracy) == 0


def test_mask_losses_by_hand():
    """Against one-hot labels at full size, in numpy."""
    logits = np.random.default_rng(0).normal(size=(2, 8, 8, 3)) * 3
    labels = np.random.default_rng(1).integers(0, 3, (2, 8, 8))
    labels[0, :3], labels[0][labels[0] == 2] = 255, 255
    losses = mask_losses(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    hot = labels[..., None] == np.arange(3)
    p = 1 / (1 + np.exp(-logits))
    entropy = -np.where(hot, np.log(p), np.log(1 - p))
    focal = np.where(hot, 0.25, 0.75) * entropy * np.where(hot, 1 - p, p) ** 2
    present = hot.any((1, 2))
    pairs = present.sum()
    assert pairs == 5
    np.testing.assert_allclose(losses.focal, focal.mean((1, 2)).sum() / pairs, rtol=1e-5)
    dice = 1 - (2 * (p * hot).sum((1, 2)) + 1) / (p.sum((1, 2)) + hot.sum((1, 2)) + 1)
    np.testing.assert_allclose(losses.dice, dice[present].sum() / pairs, rtol=1e-5)
    right = (logits.argmax(-1) == labels)[labels != 255]
    np.testing.assert_allclose(losses.accuracy, 100 * right.mean(), rtol=1e-6)


@pytest.mark.long
def test_remat_changes_nothing():
    batch = small_batch(2)
    gradients = [
        gradient_of(clip_rc.build(small(remat=remat), CLIPRCTaskConfig(seen=SEEN)))(batch)
        for remat in (False, True)
    ]
    np.testing.assert_allclose(gradients[0][0][0], gradients[1][0][0], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        *(nnx.to_pure_dict(gradient) for _, gradient in gradients),
    )


def run_loop(folder, setting, devices, steps=3):
    """Parameters after some steps of the loop with dropout on, and how often it was traced."""
    seen = tuple(range(CLASSES)) if setting == "fully" else SEEN
    cfg = CLIPRCTaskConfig(setting, seen=seen, self_training_step=1)
    task = clip_rc.build(small(), cfg)
    traced = []

    def loss(*args):
        traced.append(1)
        return task.loss(*args)

    trained = train(
        task._replace(loss=loss),
        lambda start: (small_batch(seed=i) for i in range(start, 100)),
        dataclasses.replace(OPTIM, warmup_steps=0),
        TrainConfig(total_steps=steps),
        mesh=make_mesh(devices),
        workdir=folder,
        name=setting,
    )
    return {p: np.asarray(x) for p, x in flat_arrays(trained.model).items()}, len(traced)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "counts"),
    [
        ("inductive", (1, 4)),
        pytest.param("transductive", (1, 2, 4), marks=pytest.mark.long),
        pytest.param("fully", (1,), marks=pytest.mark.long),
    ],
)
def test_one_program_and_the_same_on_any_devices(tmp_path, setting, counts):
    params, begin = {}, {p: np.asarray(x) for p, x in flat_arrays(small()).items()}
    for devices in counts:
        params[devices], traced = run_loop(tmp_path / str(devices), setting, devices)
        assert traced == 1
    moved = {p for p, x in params[1].items() if np.any(x != begin[p])}
    assert moved == {p for p in begin if clip_rc.trainable(p)}
    for devices in counts[1:]:
        # Where a gradient is a sum that cancels (k's bias; the L1 terms' signs), AdamW makes whole
        # steps of rounding: few values may differ, by no more than the steps themselves.
        off = np.concatenate(
            [np.abs(params[devices][p] - params[1][p]).ravel() for p in sorted(moved)]
        )
        assert np.mean(off <= 2e-6) >= 0.99
        assert off.max() <= 2 * 3 * OPTIM.learning_rate


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"setting": "half"}, "setting 'half'"),
        ({"seen": (3, 1)}, "ascending"),
        ({"seen": (0, 9)}, "some of 0 to 5"),
        ({"setting": "fully"}, "all of them are seen in fully"),
        ({"seen": tuple(range(CLASSES))}, "6 of 6 classes are seen"),
        ({"unlabelled": "x"}, "unlabelled 'x'"),
    ],
)
def test_settings_that_cannot_be(changes, words):
    cfg = dataclasses.replace(CLIPRCTaskConfig(seen=SEEN), **changes)
    with pytest.raises(ValueError, match=re.escape(words)):
        clip_rc.build(small(), cfg)
