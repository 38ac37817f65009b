"""The evaluation loop: equal counts for any batch size and number of devices, and resuming."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clipseg_jax.core.files import write_json
from clipseg_jax.core.mesh import make_mesh, shard_batch
from clipseg_jax.core.metrics import confusion_on_host
from clipseg_jax.evaluate import Progress, evaluate, headline, report
from clipseg_jax.inference import (
    InferenceConfig,
    make_segment_fn,
    network_shapes,
    network_size,
    network_sizes,
)
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from input_pipeline.batches.evaluation import evaluation_batches
from input_pipeline.datasets import catalog
from tests import tiny

CLASSES = 5
CFG = InferenceConfig(mean=CLIP_MEAN, std=CLIP_STD, scale_px=(128, 64))
SIZES = [(50, 70), (64, 33), (40, 100), (50, 70), (64, 33), (90, 51), (40, 100), (90, 51), (50, 70)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    rng = np.random.default_rng(3)
    for i, image in enumerate(tiny.images(SIZES, seed=4)):
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        label = rng.integers(0, CLASSES, image.shape[:2]).astype(np.uint8)
        label[rng.random(label.shape) < 0.1] = 255
        Image.fromarray(label).save(folder / "labels" / f"{i}.png")
    return folder


def run(root, batch_size, devices, processes=1, **options):
    dataset = catalog.folder(root, [f"class {i}" for i in range(CLASSES)])
    plan = evaluation_batches(
        dataset,
        dataset.index(root),
        batch_size=batch_size,
        network_size=functools.partial(network_size, cfg=CFG),
        max_buckets=2,
        process_index=jax.process_index(),
        process_count=processes,
    )
    return evaluate(
        tiny.task(classes=CLASSES),
        CFG,
        lambda start: dataclasses.replace(plan, plan=plan.plan[start:]),
        classes=CLASSES,
        mesh=make_mesh(devices),
        plan=repr(plan.plan),
        **options,
    )


@pytest.fixture(scope="module")
def counted(root):
    """The confusion matrix by plain NumPy, image by image, nothing padded."""
    task = tiny.task(classes=CLASSES)
    state, segment = make_segment_fn(task, CFG)
    total = np.zeros((CLASSES, CLASSES), np.int64)
    for i in range(len(SIZES)):
        image = np.asarray(Image.open(root / "images" / f"{i}.png"))
        label = np.asarray(Image.open(root / "labels" / f"{i}.png"))
        sizes = network_sizes(image.shape[:2], CFG)
        labels_padded, _ = segment(
            state,
            jnp.asarray(image)[None],
            jnp.asarray([image.shape[:2]]),
            jnp.asarray([sizes]),
            network_shapes(sizes[0], CFG),
        )
        predicted = np.asarray(labels_padded[0])
        for truth in range(CLASSES):
            for guess in range(CLASSES):
                total[truth, guess] += np.sum((label == truth) & (predicted == guess))
    return total


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (8, 1), (8, 2), (8, 8)])
@pytest.mark.slow
def test_counts_depend_neither_on_batch_nor_on_devices(root, counted, batch_size, devices):
    progress = run(root, batch_size, devices)
    assert progress.images == len(SIZES)
    np.testing.assert_array_equal(progress.confusion, counted)


def test_an_interrupted_run_resumes(root, counted, tmp_path):
    path = tmp_path / "partial.npz"
    indices = []

    def stop(one):
        indices.append(one.index)
        if len(indices) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(root, 1, 1, progress_path=path, save_every_s=0, on_image=stop)
    assert 0 < Progress.load(path, CLASSES, _plan(path)).images < len(SIZES)
    again = []
    progress = run(
        root, 1, 1, progress_path=path, save_every_s=0, on_image=lambda one: again.append(one.index)
    )
    assert len(again) < len(SIZES)
    assert progress.images == len(SIZES)
    np.testing.assert_array_equal(progress.confusion, counted)


def _plan(path):
    with np.load(path) as saved:
        return str(saved["plan"])


def test_counts_of_other_batches_are_not_taken(root, counted, tmp_path):
    path = tmp_path / "partial.npz"
    Progress(np.ones((CLASSES, CLASSES), np.int64), 3, 2, "another plan").save(path)
    np.testing.assert_array_equal(run(root, 8, 1, progress_path=path).confusion, counted)


def test_labels_reach_the_caller_at_their_own_size(root):
    sizes = {}
    run(
        root,
        8,
        8,
        on_image=lambda one: sizes.update(
            {one.index: (one.image.shape, one.truth.shape, one.labels().shape)}
        ),
    )
    assert sizes == {i: ((*size, 3), size, size) for i, size in enumerate(SIZES)}


@pytest.mark.parametrize("devices", [1, 8])
def test_counts_of_each_image_are_its_own(root, devices):
    each = {}

    def keep(one):
        wrong = np.array(confusion_on_host(one.truth, one.labels(), CLASSES))
        expected = np.stack([np.diag(wrong), wrong.sum(1), wrong.sum(0)])
        np.testing.assert_array_equal(one.counts(), expected)
        each[one.index] = one.counts()

    progress = run(root, 8, devices, on_image=keep)
    assert sorted(each) == list(range(len(SIZES)))
    right, labelled, predicted = sum(each.values())
    np.testing.assert_array_equal(right, np.diag(progress.confusion))
    np.testing.assert_array_equal(labelled, progress.confusion.sum(1))
    np.testing.assert_array_equal(predicted, progress.confusion.sum(0))


def test_saved_counts_lag_behind_what_is_handed_out(root, tmp_path):
    """By two batches: so far behind may another process be."""
    path, counted = tmp_path / "partial.npz", []

    def saved():
        return Progress.load(path, CLASSES, _plan(path)).images if path.exists() else 0

    run(root, 1, 1, progress_path=path, save_every_s=0, on_image=lambda _: counted.append(saved()))
    assert counted == [0, 0, 0, 1, 2, 3, 4, 5, 6]
    assert saved() == len(SIZES)


def test_one_program_for_each_bucket(root, monkeypatch):
    traced = []

    def counting(*args, **kwargs):
        task = build(*args, **kwargs)
        return task._replace(
            predict=lambda *inputs: traced.append(inputs[1].shape) or task.predict(*inputs)
        )

    build = tiny.task
    monkeypatch.setattr(tiny, "task", counting)
    run(root, 2, 1)
    assert len(traced) == len(set(traced)) == 2


def test_report_needs_labels():
    with pytest.raises(ValueError, match="no labelled pixel in 3 images"):
        report(Progress(np.zeros((2, 2), np.int64), 3), ["a", "b"], published="mIoU")


def test_a_mean_over_no_class_is_null_and_a_dash(capsys, tmp_path):
    counts = np.diag([50, 0, 0])
    figures = report(Progress(counts, 2), ["a", "b", "c"], published="mIoU", unseen=(2,))
    assert figures["mIoU(U)"] is figures["hIoU"] is None
    text = write_json(tmp_path / "metrics.json", figures).read_text()
    assert json.loads(text, parse_constant=pytest.fail) == figures
    shown = capsys.readouterr().out
    assert "hIoU -" in shown
    assert "nan" not in shown


@pytest.mark.parametrize(
    ("counts", "pixels", "said"),
    [
        ([[31, 0], [0, 0]], 100, "no labelled pixel of cow, and 69% of all pixels are 255"),
        ([[99, 0], [0, 0]], 100, "no labelled pixel of cow"),
        ([[31, 0], [0, 0]], 0, "no labelled pixel of cow"),
        ([[31, 0], [0, 1]], 100, ""),
    ],
)
def test_classes_without_labels_are_named(caplog, counts, pixels, said):
    with caplog.at_level(logging.WARNING, "absl"):
        report(Progress(np.array(counts), 1, pixels=pixels), ["sky", "cow"], published="mIoU")
    assert said in caplog.text
    assert ("labels 0 and 1" in caplog.text) == ("69%" in said)
    assert bool(caplog.text) == bool(said)


def test_a_score_of_less_than_half_is_none():
    counts, first = np.eye(2, dtype=int), "0: labels/0.png: label 9 is out of range"
    for images, left_out in ((2, 3), (0, 5)):
        progress = Progress(counts * images, images, left_out=left_out, skipped=(first,))
        with pytest.raises(ValueError, match=f"^{left_out} of 5 images .* the first is {first}$"):
            report(progress, ["a", "b"], published="mIoU")
    report(Progress(counts, 3, left_out=2, skipped=(first,)), ["a", "b"], published="mIoU")


def damaged_progress():
    file = io.BytesIO()
    np.savez(file, confusion=np.ones((CLASSES, CLASSES), np.int64), images=3, batches=2, pixels=9)
    yield file.getvalue()  # no plan
    for changes in (
        {"confusion": np.ones((2, 2), np.int64)},
        {"confusion": np.full((CLASSES, CLASSES), np.nan)},
        {"batches": -1},
        {"images": np.ones(3)},
        {"images": "three"},
    ):
        file = io.BytesIO()
        whole = {"confusion": np.ones((CLASSES, CLASSES), np.int64), "images": 3, "batches": 2}
        np.savez(file, **({"plan": "x", "pixels": 9} | whole | changes))
        yield file.getvalue()
    yield from (b"", b"[]", bytes(500), file.getvalue()[:100])


@pytest.mark.parametrize("content", damaged_progress())
def test_damaged_counts_are_counted_again(tmp_path, content, caplog):
    path = tmp_path / "evaluate.partial.npz"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "absl"):
        progress = Progress.load(path, CLASSES, "x")
    assert (progress.images, progress.batches, progress.confusion.sum()) == (0, 0, 0)
    assert "starting over" in caplog.text
    progress.save(path)
    assert Progress.load(path, CLASSES, "x").plan == "x"


def test_report_figures(capsys):
    """Class b is predicted alone, c occurs nowhere: three means of IoU, each with its own name."""
    counts = np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]])
    figures = report(Progress(counts, 1), ["a", "b", "c"], published="mIoU_of_labelled")
    means = {name: figures[name] for name in figures if name.startswith("mIoU")}
    assert means == {"mIoU": 37.5, "mIoU_of_labelled": 75.0, "mIoU_absent_as_0": 25.0}
    assert figures["classes"]["b"] == {"IoU": 0.0, "Acc": None, "Prec": 0.0}
    assert figures["published_metric"] == "mIoU_of_labelled"
    assert headline(figures) == {"published_metric": "mIoU_of_labelled", **means}
    shown = " ".join(capsys.readouterr().out.split())
    assert "mIoU_of_labelled 75.00 (the mean that the paper prints)" in shown


def test_a_batch_must_divide_by_the_devices():
    with pytest.raises(ValueError, match="not divisible by 8 devices"):
        shard_batch(make_mesh(8), {"image": np.zeros((6, 2))})
    with pytest.raises(ValueError, match="9 devices requested, 8 available"):
        make_mesh(9)
