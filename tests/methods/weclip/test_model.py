"""WeCLIP at toy sizes: its labels, its training step, batches and devices."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.methods.weclip import task as weclip
from clipseg_jax.methods.weclip.head import Head, HeadConfig
from clipseg_jax.methods.weclip.model import WeCLIP, WeCLIPConfig
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from clipseg_jax.ops.par import PARConfig
from clipseg_jax.train import TrainConfig, train
from tests import tiny
from weights_convert.clip.build import flat_arrays

CLASSES, SIDE = 6, 72  # 72: 4 patches of 16, and 8 pixels that fill none
VIT = dataclasses.replace(tiny.VIT, layers=3, position_resize="bilinear", pad_to_patch=False)
CFG = WeCLIPConfig(par=PARConfig(iterations=3, dilations=(1, 4)))
HEADS = {
    "weclip": HeadConfig(width=32, layers=1, heads=2),
    "wtclip": HeadConfig(width=32, layers=1, heads=2, gate=True, wavelet_levels=1),
}
OPTIM = OptimConfig(name="adamw", learning_rate=2e-4, weight_decay=0.01, groups=weclip.GROUPS)


@functools.cache
def tower():
    return tiny.clip(VIT).visual


def model(head="weclip", cfg=CFG):
    rows = l2_normalize(jax.random.normal(jax.random.key(1), (CLASSES + 4, VIT.embed_dim)))
    return weclip.init_weclip(tower(), rows[:CLASSES], rows[CLASSES:], cfg, HEADS[head])


def tags(*ids):
    out = np.zeros((len(ids), CLASSES), bool)
    for row, classes in zip(out, ids, strict=True):
        row[list(classes)] = True
    return out


# No label, some, one, and all.
MIXED = tags((), (1, 4), (2,), range(CLASSES))


def crops(count=4, seed=0):
    """Crops, the last of an image that is smaller: black around it."""
    images = np.stack(tiny.images([(SIDE, SIDE)] * count, seed))
    images[-1, 40:] = images[-1, :, 56:] = 0
    return images


def batch(count=4, present=MIXED):
    boxes = np.asarray([[0, 0, SIDE, SIDE]] * (count - 1) + [[0, 0, 40, 56]])
    return {
        "image": crops(count),
        "tags": present[:count],
        "image_box": boxes.astype(np.int32),
        "index": np.arange(count, dtype=np.int32),
    }


def normalised(images):
    return normalize(jnp.asarray(images), IMAGENET_MEAN, IMAGENET_STD)


@functools.partial(jax.jit, static_argnames=("late", "size"))
def labels_of(model, images, present, late=True, size=None):
    return weclip.pseudo_labels(model, images, present, late=late, size=size)


def made_of(model, images, present, *, late=True):
    """All that labels are made of."""
    sizes = jnp.asarray([images.shape[1:3]] * len(images))
    features = model.encode(images, sizes)
    return model.label(images, features, model.decode(features).fused, present, late)


def test_labels_are_classes_that_the_image_has():
    labels = labels_of(model(), normalised(crops()), MIXED)
    assert labels.dtype == jnp.int32
    assert labels.shape == (4, SIDE, SIDE)
    for one, present in zip(np.asarray(labels), MIXED, strict=True):
        assert set(np.unique(one)) <= {0, *(np.flatnonzero(present) + 1)}
    assert not labels[0].any()  # without a label, all is background
    assert labels[1:].any()


def test_the_other_images_of_a_batch_do_not_matter():
    task_model, images = model(), normalised(crops())
    together = labels_of(task_model, images, MIXED)
    for i in range(4):
        alone = labels_of(task_model, images[i : i + 1], MIXED[i : i + 1])
        assert np.mean(alone[0] == together[i]) > 0.999


def test_labels_by_the_plain_way():
    """Each image and class for itself: CAM enlarged, background, PAR of all, the best."""
    from clipseg_jax.ops.cam import min_max_normalize, upsample
    from clipseg_jax.ops.par import par

    images = normalised(crops())
    result = jax.jit(made_of)(model(), images, MIXED)
    grid = jnp.asarray([result.cams.cam.shape[2:]])
    for i, present in enumerate(MIXED):
        ids = np.flatnonzero(present)
        np.testing.assert_array_equal(result.classes[i, : len(ids)], ids)
        maps = result.cams.refined[i : i + 1, : len(ids)]
        maps = min_max_normalize(maps, jnp.ones((1, *result.cams.cam.shape[2:]), bool))
        maps = upsample(maps, grid, jnp.asarray([[SIDE, SIDE]]), (SIDE, SIDE))
        background = 1 - jnp.max(maps, axis=1, keepdims=True, initial=0)
        refined = par(images[i : i + 1], jnp.concatenate([background, maps], axis=1), CFG.par)
        expected = np.concatenate([[0], ids + 1])[np.argmax(refined[0], axis=0)]
        assert np.mean(expected == result.labels[i]) > 0.999


def test_labels_of_another_size_than_the_image():
    labels = labels_of(model(), normalised(crops()), MIXED, size=(50, 90))
    assert labels.shape == (4, 50, 90)
    assert labels[1:].any()


def test_the_learned_affinity_takes_part_late_only():
    task_model, images = model(), normalised(crops())
    other = nnx.clone(task_model)
    other.head.fusion.fuse.kernel[...] *= -3.0
    other.head.fusion.fuse.bias[...] += 0.1
    run = jax.jit(made_of, static_argnames="late")
    for late in (False, True):
        a, b = (run(m, images, MIXED, late=late).affinity for m in (task_model, other))
        assert bool(jnp.array_equal(a, b)) is not late


def test_edges_are_a_choice():
    scaled = model(cfg=dataclasses.replace(CFG, edge="scaled"))
    images = normalised(crops())
    a, b = (jax.jit(made_of)(m, images, MIXED).cams.cam for m in (model(), scaled))
    assert a.shape == b.shape
    assert not jnp.array_equal(a, b)
    assert b.max() <= 1
    with pytest.raises(ValueError, match="edge 'on': choose off or scaled"):
        model(cfg=dataclasses.replace(CFG, edge="on"))


def test_a_head_of_another_class_list_is_refused():
    head = Head(VIT.width, VIT.layers - 1, CLASSES, HEADS["weclip"], rngs=nnx.Rngs(0))
    rows = l2_normalize(jnp.ones((CLASSES, VIT.embed_dim)))
    with pytest.raises(ValueError, match="a head of 6 classes on 2 blocks; expected 7 classes"):
        WeCLIP(tower(), rows, rows, head)


@pytest.mark.parametrize("head", list(HEADS))
def test_padding_has_no_influence_on_predictions(head):
    task_model = model(head)
    images = normalised(crops())
    sizes = jnp.asarray([[72, 72], [64, 41], [33, 72], [48, 50]])
    run = jax.jit(lambda m, x, s: m(x, s))
    together = run(task_model, images, sizes)
    grids = task_model.clip.visual.grid_sizes(sizes)
    for i, ((h, w), (hp, wp)) in enumerate(zip(np.asarray(sizes), np.asarray(grids), strict=True)):
        alone = run(task_model, images[i : i + 1, :h, :w], sizes[i : i + 1])
        np.testing.assert_allclose(together[i, :hp, :wp], alone[0, :hp, :wp], atol=2e-6)
        assert not together[i, hp:].any()
        assert not together[i, :, wp:].any()


def trained(folder, *, devices=1, steps=3, batches=None, optim=OPTIM, late=2):
    task = weclip.build(model("wtclip"), weclip.TaskConfig(late_step=late))
    batches = batches or (lambda start: iter([batch()] * steps))
    cfg = TrainConfig(total_steps=steps, log_every_steps=1, checkpoint_every_steps=100)
    return train(task, batches, OPTIM, cfg, mesh=make_mesh(devices), workdir=folder, name="weclip")


@pytest.mark.slow
def test_one_program_trains_on_anything(tmp_path, monkeypatch):
    """No label, all labels, padding, and the step at which the learned affinity comes in."""
    traced, inner = [], weclip.loss
    monkeypatch.setattr(weclip, "loss", lambda *args: traced.append(1) or inner(*args))
    present = [MIXED, tags((), (), (), ()), tags(*[range(CLASSES)] * 4), MIXED[::-1]]
    run = trained(
        tmp_path, steps=4, batches=lambda start: iter([batch(present=p) for p in present])
    )
    assert len(traced) == 1
    assert np.isfinite(run.metrics["loss"])
    before, after = flat_arrays(model("wtclip")), flat_arrays(run.model)
    still = {path for path in before if np.array_equal(before[path], after[path])}
    assert still == {path for path in before if not path.startswith("head.")}


def test_padding_may_be_left_out():
    """A black border, ignored: its labels change nothing; learned: they do."""
    task_model = model()
    kept = {}
    for padding in ("learned", "ignored"):
        cfg = weclip.TaskConfig(padding=padding)
        rows = {name: jnp.asarray(x) for name, x in batch().items()}
        _, metrics = jax.jit(
            lambda m, rows, cfg=cfg: weclip.loss(m, rows, jax.random.key(0), jnp.asarray(0), cfg)
        )(task_model, rows)
        kept[padding] = metrics
    assert kept["ignored"]["affinity_loss"] != kept["learned"]["affinity_loss"]
    assert kept["ignored"]["foreground"] <= kept["learned"]["foreground"]
    with pytest.raises(ValueError, match="padding 'black': choose learned or ignored"):
        weclip.build(task_model, weclip.TaskConfig(padding="black"))


@pytest.mark.slow
def test_devices_share_a_batch(tmp_path):
    """Means are over the whole batch, wherever its images are: the same within rounding.

    Two steps, early and late, of a plain descent, which shows the gradients themselves.
    """
    sgd = OptimConfig(learning_rate=0.01, schedule="constant", momentum=0.0, weight_decay=0.0)
    start = flat_arrays(model("wtclip"))
    one, *others = (
        flat_arrays(trained(tmp_path / str(n), devices=n, steps=2, optim=sgd, late=1).model)
        for n in (1, 4)
    )
    for path in (p for p in start if p.startswith("head.")):
        moved = np.abs(np.asarray(one[path]) - np.asarray(start[path])).max()
        bound = max(1e-3 * moved, 1e-7)
        for many in others:
            a, b = np.array(one[path]), np.array(many[path])
            if path.endswith("in_proj.bias"):  # the keys' true gradient is 0: rounding alone
                third = len(a) // 3
                a[third : 2 * third] = b[third : 2 * third] = 0
            np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=path)


def test_late_steps():
    """The released counter also counts its evaluations' forward passes."""
    assert weclip.late_step(15000, images=1464, every=2000) == 9144 == weclip.PUBLISHED.late_step
    assert weclip.late_step(15000, images=1464, every=1) == 11
    assert weclip.late_step(15000) == 15000
    assert weclip.late_step(40000) == 40000
