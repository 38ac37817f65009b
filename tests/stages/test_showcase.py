"""Which pictures an evaluation keeps: the panel, the best, the worst; also over interruptions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clipseg_jax.core.json_lines import json_line
from clipseg_jax.core.metrics import SegmentationMetrics, confusion_on_host
from clipseg_jax.evaluate import Segmented
from clipseg_jax.stages import showcase
from clipseg_jax.stages.showcase import (
    Panel,
    Score,
    Showcase,
    best_and_worst,
    clear_pictures,
    panel_of,
    score_of,
    shown,
)
from input_pipeline.batches.buckets import plan_batches
from input_pipeline.datasets import catalog

NAMES = ("background", "cat", "dog")
COUNT = 40


@pytest.fixture(scope="module")
def dataset():
    return catalog.folder("", NAMES, background=True)


def segmented(index):
    """An image with a truth and a prediction of its own; some have no labelled pixel."""
    rng = np.random.default_rng(index)
    truth = rng.integers(0, 3, (12, 10)).astype(np.int32)
    labels = np.where(rng.random(truth.shape) < rng.random(), rng.integers(0, 3), truth)
    truth[rng.random(truth.shape) < 0.2] = 255
    if index % 13 == 5:
        truth[:] = 255
    counts = np.asarray(confusion_on_host(truth, labels, 3))
    each = np.stack([np.diag(counts), counts.sum(1), counts.sum(0)]).astype(np.int32)
    image = rng.integers(0, 255, (12, 10, 3)).astype(np.uint8)
    return Segmented(index, image, truth, lambda: labels.astype(np.uint8), lambda: each)


def run(dataset, folder, indices, *, process=0, panel=(3, 7)):
    """Segments these images as one process does; returns its showcase."""
    kept = Showcase(dataset, panel, folder)
    kept.begin()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{process}.partial.jsonl").open("a") as file:
        for index in indices:
            kept.add(segmented(index), lambda line: file.write(json_line(line)))
            file.flush()
    return kept


def stored(kept, folder):
    """Name -> bytes of all that is left in the work directory."""
    kept.store(folder, "_x", [f"image{i}" for i in range(COUNT)])
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return stored(run(dataset, folder / "partial", range(COUNT)), folder / "work")


def test_a_score_is_the_mean_iou_of_the_image_alone():
    for index in range(COUNT):
        one = segmented(index)
        confusion = confusion_on_host(one.truth, one.labels(), 3)
        score = score_of(index, one.counts())
        if not confusion.sum():
            assert score is None
            continue
        metrics = SegmentationMetrics.from_confusion(confusion)
        assert score.value == pytest.approx(np.nanmean(metrics.iou))
    # Class 2 is larger than class 0, class 1 is nowhere.
    assert score_of(0, np.array([[1, 0, 5], [1, 0, 8], [2, 0, 5]])).labels == (2, 0)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 12, 13, 50])
@pytest.mark.parametrize("equal", [True, False])
def test_the_best_and_the_worst_share_none(count, equal):
    scores = [Score(i, 0.5 if equal else i * 37 % 50 / 50, ()) for i in range(count)]
    best, worst = best_and_worst(scores)
    assert len(best) == min(6, (count + 1) // 2)
    assert len(worst) == min(6, count // 2)
    assert not {score.index for score in best} & {score.index for score in worst}
    assert [s.value for s in best] == sorted((s.value for s in scores), reverse=True)[: len(best)]
    assert [s.value for s in worst] == sorted(s.value for s in scores)[: len(worst)]


def test_what_is_kept_is_the_best_and_the_worst_of_all(whole):
    scores = {i: score for i in range(COUNT) if (score := score_of(i, segmented(i).counts()))}
    ranking = sorted(scores.values(), key=lambda score: score.rank)
    listed = json.loads(whole["examples_x/examples.json"])
    assert listed["images"] == len(scores) == COUNT - 3
    assert [each["name"] for each in listed["best"]] == [f"image{s.index}" for s in ranking[:6]]
    assert [each["name"] for each in listed["worst"]] == [
        f"image{s.index}" for s in ranking[::-1][:6]
    ]
    assert listed["best"][0]["mIoU"] == round(100 * ranking[0].value, 2)
    assert set(listed["best"][0]["classes"]) <= {"cat", "dog"}  # the background is not coloured
    assert sum(name.endswith(".jpg") for name in whole) == 12
    lines = [json.loads(line) for line in whole["image_scores_x.jsonl"].splitlines()]
    assert [line["name"] for line in lines] == [f"image{i}" for i in sorted(scores)]


@pytest.mark.parametrize("stop", [1, 9, 25, COUNT])
def test_an_interrupted_run_keeps_the_same(dataset, whole, tmp_path, stop):
    """It begins again some images before the place where it was stopped."""
    run(dataset, tmp_path / "partial", range(stop))
    kept = run(dataset, tmp_path / "partial", range(max(0, stop - 4), COUNT))
    assert stored(kept, tmp_path / "work") == whole


def test_two_processes_keep_what_one_does(dataset, whole, tmp_path):
    run(dataset, tmp_path / "partial", range(1, COUNT, 2), process=1)
    kept = run(dataset, tmp_path / "partial", range(0, COUNT, 2))
    assert stored(kept, tmp_path / "work") == whole
    assert kept.panel([f"image{i}" for i in range(COUNT)]).keys() == {"image3", "image7"}


def test_the_folder_holds_no_more_than_what_is_kept(dataset, tmp_path):
    for count in (20, COUNT):
        run(dataset, tmp_path / "partial", range(count))
        assert len([*(tmp_path / "partial").glob("*.jpg")]) <= 12 + 2
    clear_pictures(tmp_path / "partial")
    assert not [*(tmp_path / "partial").glob("*.jpg")]


def test_half_a_picture_is_left_out(dataset, tmp_path, caplog):
    kept = run(dataset, tmp_path / "partial", range(COUNT))
    for path in (tmp_path / "partial").glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:200])
    listed = json.loads(stored(kept, tmp_path / "work")["examples_x/examples.json"])
    assert listed["best"] == listed["worst"] == []
    assert "left out of the pictures" in caplog.text
    assert kept.panel([str(i) for i in range(COUNT)]) == {}


def test_pictures_of_an_earlier_evaluation_are_removed(dataset, tmp_path, whole):
    old = tmp_path / "work" / "examples_x"
    old.mkdir(parents=True)
    (old / "best_9.jpg").write_bytes(b"")
    kept = run(dataset, tmp_path / "partial", range(COUNT))
    assert stored(kept, tmp_path / "work") == whole


def test_the_panel_while_training_is_in_memory(dataset):
    panel = Panel(dataset, (3, 7, 999))
    for index in range(COUNT):
        one = segmented(index)
        if index not in (3, 7):  # devices are not asked for the others
            one = Segmented(index, one.image, one.truth, pytest.fail, pytest.fail)
        panel.add(one)
    pictures = panel.pictures([f"image{i}" for i in range(1000)])
    assert [*pictures] == ["image3", "image7"]
    assert pictures["image3"].shape[1] == 3 * 260 + 2 * 4  # 26 times 10, side by side


def plan(count, batch_size):
    return plan_batches([(10 + i % 3, 10) for i in range(count)], batch_size, bucket_px=1)


@pytest.mark.parametrize("count", [1, 5, 20, 100, 1449])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_panel_is_of_different_images(count, batch_size):
    panel = panel_of(plan(count, batch_size))
    assert len(panel) == len(set(panel)) == min(6, count)
    assert set(panel) <= set(range(count))


def test_the_first_process_segments_the_panel():
    batches = plan(100, 8)
    first_rows = {index for batch in batches for index in batch.indices[:1]}
    assert set(panel_of(batches)) <= first_rows


def test_names_are_text_in_the_table():
    per_class = {"a | <script>": {"IoU": 50.0, "Acc": None, "Prec": 1.0}, "b": dict.fromkeys(
        ("IoU", "Acc", "Prec")
    )}  # fmt: skip
    logged = shown(per_class, {})
    assert logged.scalars == {"iou/a | <script>": 50.0}  # of a class that occurs nowhere: none
    table = logged.texts["classes"]
    assert "<" not in table
    assert "| a &#124; &#60;script&#62; | 50.00 | - | 1.00 |" in table
    assert showcase._markdown("traffic light-2") == "traffic light-2"
