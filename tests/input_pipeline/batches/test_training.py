"""Training batches: a function of (seed, step), whatever the processes, threads and resumes."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.batches.deeplab_views import multi_scale_batches, multi_scale_crop
from input_pipeline.batches.training import random_view_batches
from input_pipeline.batches.transforms import random_view, sample_rng
from input_pipeline.datasets import catalog
from input_pipeline.datasets.images import BadFile, BadImage, read_image, read_label
from tests import seeded

SIZES = [(40, 60), (60, 40), (20, 90), (33, 60), (60, 60), (59, 41), (40, 64)]
CLASSES = ("sky", "cat", "dog")
RECIPE = {"scale": (512, 48), "crop_hw": (32, 40)}
AT_SCALES = {"scales": (0.5, 1.0, 1.5), "crop_hw": (32, 40), "colour": (122.5, 116.25, 104.0)}


def write(root, sizes):
    (root / "images").mkdir(exist_ok=True)
    (root / "labels").mkdir(exist_ok=True)
    for i, (height, width) in enumerate(sizes):
        image = Image.fromarray(seeded.image(height, width, i))
        image.save(root / "images" / f"{i:03}.png")
        label = Image.fromarray(seeded.label_map(height, width, len(CLASSES), i))
        label.save(root / "labels" / f"{i:03}.png")
    return catalog.folder(root, CLASSES)


@pytest.fixture
def world(tmp_path):
    """A labelled folder of seven images."""
    return write(tmp_path, SIZES)


def view_batches(dataset, **options):
    return random_view_batches(dataset, dataset.index(""), **{"batch_size": 4, **RECIPE, **options})


def made_at_scales(dataset, **options):
    options = {"batch_size": 4, **AT_SCALES, **options}
    return multi_scale_batches(dataset, dataset.index(""), **options)


def taken(data, count, start=0):
    return list(itertools.islice(data.batches(start), count))


def same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


@pytest.mark.parametrize("unlabelled", [False, True, (1,)])
def test_rows(world, unlabelled):
    """Each row is its example's view, padded; nothing beyond its size is real."""
    examples = world.index("")
    data = view_batches(world, seed=3, unlabelled=unlabelled, saturation_wrap=True)
    small = 0
    for step, batch in enumerate(taken(data, 5)):
        assert {k: v.dtype for k, v in batch.items()} == {
            "image": np.uint8, "image_size": np.int32, "label": np.int32, "index": np.int32,
        }  # fmt: skip
        assert batch["image"].shape == (4, 32, 40, 3)
        assert batch["label"].shape == (4, 32, 40)
        np.testing.assert_array_equal(batch["index"], data.indices(step))
        for row, index in enumerate(batch["index"]):
            image = read_image(examples[index].image_path)
            label = read_label(examples[index].label_path)
            hidden = unlabelled or () if unlabelled is not True else range(3)
            label = np.where(np.isin(label, hidden), -1, label.astype(np.int32))
            rng = sample_rng(3, step // 2, int(index))
            view, ids = random_view(image, label, rng, saturation_wrap=True, **RECIPE)
            h, w = batch["image_size"][row]
            assert view.shape == (h, w, 3)
            small += (h, w) != (32, 40)
            np.testing.assert_array_equal(batch["image"][row][:h, :w], view)
            np.testing.assert_array_equal(batch["label"][row][:h, :w], ids)
            assert not batch["image"][row][h:].any()
            assert not batch["image"][row][:, w:].any()
            assert (batch["label"][row][h:] == 255).all()
            assert (batch["label"][row][:, w:] == 255).all()
    assert small
    assert data.skipped == []


def test_unlabeled_classes_exist(world):
    with pytest.raises(ValueError, match=r"unlabelled \(1, 3\) is not in 0\.\.2"):
        view_batches(world, unlabelled=[1, 3])


def test_rows_at_scales(world):
    """Each row fills its crop with float grey levels; padding has the colour, on either side."""
    examples = world.index("")
    data = made_at_scales(world, seed=3)
    sides, fractions = set(), 0
    for step, batch in enumerate(taken(data, 6)):
        assert {k: v.dtype for k, v in batch.items()} == {
            "image": np.float32, "image_size": np.int32, "label": np.int32, "index": np.int32,
        }  # fmt: skip
        assert batch["image"].shape == (4, 32, 40, 3)
        np.testing.assert_array_equal(batch["index"], data.indices(step))
        np.testing.assert_array_equal(batch["image_size"], [(32, 40)] * 4)
        for row, index in enumerate(batch["index"]):
            image = read_image(examples[index].image_path)
            label = read_label(examples[index].label_path)
            view, ids = multi_scale_crop(
                image, label, sample_rng(3, step // 2, int(index)), **AT_SCALES
            )
            np.testing.assert_array_equal(batch["image"][row], view)
            np.testing.assert_array_equal(batch["label"][row], ids)
            padding = (view == np.float32(AT_SCALES["colour"])).all(-1)
            assert (ids[padding] == 255).all()
            sides |= {side for side in (0, -1) if padding[:, side].all()}
            fractions += (view != np.rint(view)).any()
    assert sides == {0, -1}  # flipped after it was padded, as published
    assert fractions


def test_views_at_scales_draw_as_published():
    """The scale, the box's top and left, the flip; each scale is as likely as another."""
    image, label = seeded.image(50, 70, 1), seeded.label_map(50, 70, 5, 1)
    sizes = []
    for seed in range(300):
        rng, own = sample_rng(seed, 0, 0), sample_rng(seed, 0, 0)
        view, ids = multi_scale_crop(image, label, rng, **AT_SCALES)
        scale = AT_SCALES["scales"][own.randint(3)]
        height, width = max(int(50 * scale), 32), max(int(70 * scale), 40)
        top, left = own.randint(height - 32 + 1), own.randint(width - 40 + 1)
        flipped = own.rand() < 0.5
        assert rng.rand() == own.rand()
        assert ids.dtype == label.dtype
        sizes.append(scale)
        if scale == 1.0:
            part = np.s_[top : top + 32, left : left + 40]
            turn = np.s_[:, ::-1] if flipped else np.s_[:, :]
            np.testing.assert_array_equal(view, image[part][turn])
            np.testing.assert_array_equal(ids, label[part][turn])
    assert all(70 < sizes.count(scale) < 130 for scale in AT_SCALES["scales"])


def test_views_at_scales_without_rounding():
    """Bilinear grey levels between uint8 ones, and labels as Pillow resizes them."""
    image, label = seeded.image(50, 70, 1), seeded.label_map(50, 70, 5, 1)
    recipe = {**AT_SCALES, "scales": (1.5,), "crop_hw": (75, 105)}
    rng = next(rng for seed in range(9) if (rng := sample_rng(seed, 0, 0)) and _unflipped(seed))
    view, ids = multi_scale_crop(image, label, rng, **recipe)
    positions = [
        np.clip((np.arange(n) + 0.5) / 1.5 - 0.5, 0, m - 1) for n, m in ((75, 50), (105, 70))
    ]
    rows, columns = (
        np.maximum(0, 1 - np.abs(p[:, None] - np.arange(m)))
        for p, m in zip(positions, (50, 70), strict=True)
    )
    expected = np.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(np.float64))
    np.testing.assert_allclose(view, expected, atol=1e-3)
    pillow = Image.fromarray(label).resize((105, 75), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(ids, np.asarray(pillow))


def _unflipped(seed):
    rng = sample_rng(seed, 0, 0)
    rng.randint(1), rng.randint(0, 1), rng.randint(0, 1)
    return rng.rand() >= 0.5


def test_at_scales_going_on_sharing_and_bad_files(world, tmp_path):
    """What holds for `training` holds here: resuming, processes, skipping."""
    whole = taken(made_at_scales(world), 6)
    for resumed, batch in zip(taken(made_at_scales(world), 3, 3), whole[3:], strict=True):
        same(resumed, batch)
    parts = [
        taken(made_at_scales(world, process_index=p, process_count=2, threads=2), 6) for p in (0, 1)
    ]
    for step, batch in enumerate(whole):
        same({k: np.concatenate([part[step][k] for part in parts]) for k in batch}, batch)
    spoil(tmp_path)
    data = made_at_scales(world, on_bad="skip")
    assert {int(i) for batch in taken(data, 6) for i in batch["index"]} == {1, 3, 6}
    assert len(data.skipped) == 4


def test_at_scales_without_labels(world, tmp_path):
    plain = catalog.folder(tmp_path, CLASSES, labels=None)
    (batch,) = taken(made_at_scales(plain), 1)
    assert (batch["label"] == 255).all()


@pytest.mark.parametrize("scales", [(), (1.0, 0.0)])
def test_at_scales_errors(world, scales):
    with pytest.raises(ValueError, match="give at least one, all above 0"):
        made_at_scales(world, scales=scales)


def test_an_epoch_shows_every_example(world):
    data = view_batches(world, seed=1)
    assert data.steps_per_epoch == 2
    epochs = [np.concatenate([data.indices(2 * e), data.indices(2 * e + 1)]) for e in range(5)]
    for order in epochs:
        assert sorted(order[:7]) == list(range(7))
        assert order[7] == order[0]  # filled up from the epoch's own start
    assert len({tuple(order) for order in epochs}) == 5
    assert (view_batches(world, seed=2).indices(0) != epochs[0][:4]).any()

    fixed = view_batches(world, seed=1, reshuffle=False)
    assert all((fixed.indices(2 * e) == epochs[0][:4]).all() for e in range(5))
    first, second = taken(fixed, 1)[0], taken(fixed, 1, start=2)[0]
    np.testing.assert_array_equal(first["index"], second["index"])
    assert (first["image"] != second["image"]).any()  # the views still differ


def test_more_rows_than_examples(world):
    data = view_batches(world, batch_size=16)
    assert data.steps_per_epoch == 1
    assert sorted(np.bincount(data.indices(3))) == [2, 2, 2, 2, 2, 3, 3]
    assert taken(data, 2)[1]["image"].shape[0] == 16


def test_going_on_equals_the_unbroken_run(world):
    whole = taken(view_batches(world), 9)
    for start in (1, 4, 8):
        for resumed, batch in zip(
            taken(view_batches(world), 9 - start, start), whole[start:], strict=True
        ):
            same(resumed, batch)


def test_going_on_is_no_skip(world, monkeypatch):
    """A late step reads its own rows' files (and what is made ahead), not those before it."""
    read = []
    monkeypatch.setattr(
        "input_pipeline.batches.loading.read_image",
        lambda path, longest: read.append(path) or read_image(path, longest),
    )
    stream = view_batches(world, batch_size=1, threads=1).batches(10**12)
    next(stream)
    stream.close()
    assert len(read) < 8


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch(world, processes):
    whole = taken(view_batches(world), 5)
    parts = [
        taken(view_batches(world, process_index=p, process_count=processes), 5)
        for p in range(processes)
    ]
    for step, batch in enumerate(whole):
        rows = [part[step] for part in parts]
        same({k: np.concatenate([row[k] for row in rows]) for k in batch}, batch)


def test_processes_read_their_own_rows(world, monkeypatch):
    read = set()
    monkeypatch.setattr(
        "input_pipeline.batches.loading.read_image",
        lambda path, longest: read.add(path.stem) or read_image(path, longest),
    )
    data = view_batches(world, process_index=1, process_count=2, reshuffle=False)
    taken(data, 6)
    own = {f"{i:03}" for step in (0, 1) for i in data.indices(step)[2:]}
    assert read == own
    assert len(own) == 4


def test_views_depend_on_epoch_and_example_alone(world):
    views = {}
    for options in ({"batch_size": 7}, {"batch_size": 1, "threads": 3}, {"batch_size": 4}):
        data = view_batches(world, reshuffle=False, **options)
        for step, batch in enumerate(taken(data, 2 * data.steps_per_epoch)):
            for row, index in enumerate(batch["index"]):
                key = step // data.steps_per_epoch, int(index)
                np.testing.assert_array_equal(
                    views.setdefault(key, batch["image"][row]), batch["image"][row]
                )
    assert len(views) == 14


def spoil(root):
    """One file of every bad kind: examples 0, 2, 4 and 5."""
    (root / "images" / "000.png").write_bytes(b"not an image")
    whole = (root / "images" / "002.png").read_bytes()
    (root / "images" / "002.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full(SIZES[4], 3, np.uint8)).save(root / "labels" / "004.png")  # no class 3
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(root / "labels" / "005.png")  # other size


def test_bad_files_give_their_place_to_the_next(world, tmp_path, caplog):
    good = {}
    for step, batch in enumerate(taken(view_batches(world), 8)):
        for row, index in enumerate(batch["index"]):
            good[step // 2, int(index)] = batch["image"][row]
    spoil(tmp_path)
    data = view_batches(world, on_bad="skip")
    whole = taken(data, 8)
    for step, batch in enumerate(whole):
        order = np.concatenate([data.indices(step - step % 2), data.indices(step - step % 2 + 1)])
        order = order[:7]
        for row, index in enumerate(batch["index"]):
            place = (4 * (step % 2) + row) % 7
            later = [i for i in np.roll(order, -place) if i in (1, 3, 6)]
            assert index == later[0]
            np.testing.assert_array_equal(batch["image"][row], good[step // 2, int(index)])
    reasons = {entry.name: entry.reason for entry in data.skipped}
    assert len(data.skipped) == len(reasons) == 4
    assert "000.png: not an image" in reasons["000"]
    assert "002.png: cannot decode the image" in reasons["002"]
    assert "label 3 at" in reasons["004"]
    assert "5 x 6 pixels, but its image" in reasons["005"]
    assert caplog.text.count("left out 002") == 1

    parts = [
        taken(view_batches(world, on_bad="skip", process_index=p, process_count=2), 8)
        for p in (0, 1)
    ]
    for step, batch in enumerate(whole):
        same({k: np.concatenate([part[step][k] for part in parts]) for k in batch}, batch)
    same(taken(view_batches(world, on_bad="skip"), 1, start=7)[0], whole[7])


def test_bad_files_raise(world, tmp_path):
    (tmp_path / "images" / "002.png").write_bytes(b"")
    with pytest.raises(BadImage, match=r"002\.png: not an image"):
        taken(view_batches(world), 2)


def test_nothing_left(world, tmp_path):
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(BadFile, match=r": 7 examples in a row .*\.png: not an image"):
        taken(view_batches(world, on_bad="skip"), 1)


def test_many_bad_in_a_row(tmp_path):
    """A disk that went away is not papered over with the few files that are left."""
    data = view_batches(
        write(tmp_path, [(8, 8)] * 50), on_bad="skip", reshuffle=False, batch_size=1
    )
    for index in data.indices(0).tolist() + [int(data.indices(i)[0]) for i in range(1, 32)]:
        (tmp_path / "images" / f"{index:03}.png").unlink()
    with pytest.raises(BadFile, match="32 examples in a row cannot be used"):
        taken(data, 1)
    assert taken(data, 1, start=1)[0]["index"] == data.indices(32)


def test_other_errors_always_raise(world, monkeypatch):
    def broken(path, longest):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("input_pipeline.batches.loading.read_image", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        taken(view_batches(world, on_bad="skip"), 1)


@pytest.mark.parametrize(("unlabelled", "value"), [(False, 255), (True, -1)])
def test_without_labels(world, tmp_path, unlabelled, value):
    plain = catalog.folder(tmp_path, CLASSES, labels=None)
    (batch,) = taken(view_batches(plain, unlabelled=unlabelled), 1)
    for row, (h, w) in enumerate(batch["image_size"]):
        assert (batch["label"][row][:h, :w] == value).all()
        assert (batch["label"][row] == value).sum() == (h * w if unlabelled else 32 * 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process_count": 3}, "batch_size 4 is not divisible by 3 processes; set it to 6"),
        ({"batch_size": 0}, "batch_size 0 is not divisible by 1 processes; set it to 1"),
        ({"process_index": 2, "process_count": 2}, "process_index 2 is not in 0..1"),
        ({"on_bad": "ignore"}, 'must be "raise" or "skip"'),
        ({"seed": -1}, "seed is -1; it must not be negative"),
    ],
)
def test_errors(world, options, message):
    with pytest.raises(ValueError, match=message):
        view_batches(world, **options)


def test_no_examples(world):
    with pytest.raises(ValueError, match="no examples to train on"):
        random_view_batches(world, [], batch_size=4, **RECIPE)


@pytest.mark.slow
def test_a_program_may_end_in_the_middle(tmp_path):
    """Threads that still decode must not keep it alive, nor crash it."""
    write(tmp_path, [(500, 375)] * 8)  # large enough to be at work when it ends
    code = f"""
import itertools
from input_pipeline.datasets.catalog import folder
from input_pipeline.batches.training import random_view_batches
world = folder({str(tmp_path)!r}, {CLASSES!r})
data = random_view_batches(
    world, world.index(""), batch_size=4, scale=(2048, 512), crop_hw=(512, 512)
)
stream = data.batches()
print(len(list(itertools.islice(stream, 3))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
