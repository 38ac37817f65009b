"""Evaluation batches: padding, processes, resume, bad files. Everything from a small folder."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from input_pipeline.batches.corruptions import corrupt
from input_pipeline.batches.evaluation import evaluation_batches
from input_pipeline.batches.loading import nearest, read_example
from input_pipeline.batches.transforms import rescaled_size, sample_rng
from input_pipeline.datasets import catalog
from input_pipeline.datasets.images import BadImage, BadLabel, read_image, read_label
from tests import seeded

SIZES = [(40, 60), (60, 40), (1, 90), (33, 60), (60, 60), (59, 41), (40, 64)]
CLASSES = ("sky", "cat", "dog")


@pytest.fixture
def world(tmp_path):
    """A labelled folder of seven images."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for i, (height, width) in enumerate(SIZES):
        image = seeded.image(height, width, i)
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
        label = seeded.label_map(height, width, len(CLASSES), i)
        Image.fromarray(label).save(tmp_path / "labels" / f"{i}.png")
    return catalog.folder(tmp_path, CLASSES)


def network_size(height, width):
    return rescaled_size(height, width, (512, 32))


def batches(dataset, **options):
    options = {"batch_size": 4, "network_size": network_size, "bucket_px": 16, **options}
    return evaluation_batches(dataset, dataset.index(""), **options)


def same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_large_images_and_labels_are_shrunk(world):
    """With their label maps, by the nearest pixel; sizes of the files stay known."""
    world = dataclasses.replace(world, longest_px=30)
    examples = world.index("")
    for batch in batches(world, max_buckets=1):
        for row in np.flatnonzero(batch["valid"]):
            height, width = SIZES[batch["index"][row]]
            factor = 30 / max(height, width)
            size = max(round(height * factor), 1), max(round(width * factor), 1)
            assert tuple(batch["image_size"][row]) == size
            assert tuple(batch["original_size"][row]) == (height, width)
            image, label = read_example(world, examples[batch["index"][row]])
            assert image.shape[:2] == label.shape == size
            np.testing.assert_array_equal(batch["label"][row, : size[0], : size[1]], label)
    whole = seeded.label_map(40, 60, len(CLASSES), 0)
    np.testing.assert_array_equal(read_example(world, examples[0])[1], whole[1::2, 1::2])
    np.testing.assert_array_equal(nearest(whole[1::2, 1::2], (40, 60))[::2, ::2], whole[1::2, 1::2])


def test_a_label_map_of_another_size_is_refused_where_images_shrink(world):
    world = dataclasses.replace(world, longest_px=30)
    (example, *_) = world.index("")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(example.label_path)
    with pytest.raises(BadLabel, match=r"20 x 30 pixels, but its image .* has 40 x 60"):
        read_example(world, example)


@pytest.mark.slow
def test_rows(world):
    examples = world.index("")
    loaded = batches(world, max_buckets=2)
    seen = []
    for batch in loaded:
        height, width = batch["bucket_hw"]
        assert batch["image"].shape == (4, height, width, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].shape == (4, height, width)
        assert {batch[k].dtype for k in ("label", "index", "image_size", "network_size")} == {
            np.dtype(np.int32)
        }
        for row in np.flatnonzero(batch["valid"]):
            index = batch["index"][row]
            seen.append(index)
            h, w = batch["image_size"][row]
            assert (h, w) == SIZES[index]
            assert tuple(batch["network_size"][row]) == network_size(h, w)
            assert all(batch["network_size"][row] <= batch["network_hw"])
            image, label = batch["image"][row], batch["label"][row]
            np.testing.assert_array_equal(image[:h, :w], read_image(examples[index].image_path))
            np.testing.assert_array_equal(label[:h, :w], read_label(examples[index].label_path))
            assert not image[h:].any()
            assert not image[:, w:].any()
            assert (label[h:] == 255).all()
            assert (label[:, w:] == 255).all()
        for row in np.flatnonzero(~batch["valid"]):
            assert not batch["image"][row].any()
            assert (batch["label"][row] == 255).all()
            assert (batch["image_size"][row] > 0).all()
    assert sorted(seen) == list(range(len(SIZES)))
    assert loaded.skipped == []
    assert len(loaded) == len(loaded.plan)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_equal_one(world, processes):
    whole = list(batches(world))
    parts = [
        list(batches(world, process_index=p, process_count=processes)) for p in range(processes)
    ]
    assert {len(part) for part in parts} == {len(whole)}
    for step, batch in enumerate(whole):
        rows = [part[step] for part in parts]
        assert {row["image"].shape for row in rows} == {(4 // processes, *batch["image"].shape[1:])}
        joined = {
            k: np.concatenate([row[k] for row in rows]) for k in batch if not k.endswith("_hw")
        }
        same(joined, {k: batch[k] for k in joined})
        assert all(row["network_hw"] == batch["network_hw"] for row in rows)


def test_resume_equals_tail(world):
    whole = list(batches(world, batch_size=2))
    assert len(whole) > 2
    for start in range(len(whole) + 1):
        tail = batches(world, batch_size=2).starting_at(start)
        assert len(tail) == len(whole) - start
        for resumed, batch in zip(tail, whole[start:], strict=True):
            same(resumed, batch)
    with pytest.raises(ValueError, match=r"batch 99 is not in 0\.\."):
        batches(world).starting_at(99)


def test_resume_does_not_decode(world, monkeypatch):
    whole = batches(world, batch_size=2)
    read = []
    monkeypatch.setattr(
        "input_pipeline.batches.loading.read_image",
        lambda path, longest: read.append(path) or read_image(path, longest),
    )
    last = list(whole.starting_at(len(whole) - 1))
    assert len(read) == last[0]["valid"].sum()


def test_twice_the_same(world):
    loaded = batches(world)
    for first, second in zip(loaded, loaded, strict=True):
        same(first, second)


def test_without_labels(world, tmp_path):
    plain = catalog.folder(tmp_path, CLASSES, labels=None)
    for batch in batches(plain):
        assert "label" not in batch
    mixed = world.index("")[:2] + plain.index("")[:1]
    with pytest.raises(ValueError, match="2 of 3 examples have a label"):
        evaluation_batches(world, mixed, batch_size=1)


def test_corruption_depends_on_the_image_alone(world):
    examples = world.index("")
    for options in ({"batch_size": 4}, {"batch_size": 3, "max_buckets": 1}):
        for batch in batches(world, corruption=("speckle_noise", 2), seed=9, **options):
            for row in np.flatnonzero(batch["valid"]):
                index, (h, w) = batch["index"][row], batch["image_size"][row]
                image = read_image(examples[index].image_path)
                expected = corrupt(image, "speckle_noise", 2, sample_rng(9, 0, int(index)))
                np.testing.assert_array_equal(batch["image"][row][:h, :w], expected)


def test_corrupted_again_reads_no_header(world, monkeypatch):
    """Whatever was done to the images before: the same as planned anew."""
    loaded = batches(world)
    expected = list(batches(world, corruption=("speckle_noise", 2), seed=9))
    monkeypatch.setattr("input_pipeline.batches.evaluation.example_sizes", None)
    again = loaded.corrupted("spatter", 5, 0).corrupted("speckle_noise", 2, 9)
    for first, second in zip(again, expected, strict=True):
        same(first, second)
    with pytest.raises(ValueError, match="No corruption 'fog'"):
        loaded.corrupted("fog", 1, 0)


def spoil(root):
    """One file of every bad kind; images 0, 2, 4, 5 and 6 are affected."""
    (root / "images" / "0.png").write_bytes(b"not an image")  # no header
    whole = (root / "images" / "2.png").read_bytes()
    (root / "images" / "2.png").write_bytes(whole[: len(whole) // 2])  # header only
    Image.fromarray(np.full(SIZES[4], 3, np.uint8)).save(root / "labels" / "4.png")  # no class 3
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(root / "labels" / "5.png")  # other size
    (root / "labels" / "6.png").write_bytes(b"")


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_files_are_skipped_and_counted_once(world, tmp_path, processes):
    spoil(tmp_path)
    skipped, valid = [], []
    for p in range(processes):
        loaded = batches(world, on_bad="skip", process_index=p, process_count=processes)
        for batch in loaded:
            valid += batch["index"][batch["valid"]].tolist()
            for row in np.flatnonzero(~batch["valid"]):
                assert (batch["label"][row] == 255).all()
        list(loaded)  # a second pass counts anew
        skipped += loaded.skipped
    assert sorted(valid) == [1, 3]
    reasons = {entry.name: entry.reason for entry in skipped}
    assert len(skipped) == len(reasons) == 5
    assert "0.png: not an image" in reasons["0"]
    assert "2.png: cannot decode the image" in reasons["2"]
    assert "label 3 at" in reasons["4"]
    assert "5.png: 5 x 6 pixels, but its image" in reasons["5"]
    assert "59 x 41" in reasons["5"]
    assert "6.png: not a label map" in reasons["6"]


def test_bad_files_raise(world, tmp_path):
    whole = (tmp_path / "images" / "2.png").read_bytes()
    (tmp_path / "images" / "2.png").write_bytes(whole[:-40])
    with pytest.raises(BadImage, match=r"2\.png: cannot decode"):
        list(batches(world))
    (tmp_path / "images" / "2.png").write_bytes(b"")
    with pytest.raises(BadImage, match=r"2\.png: not an image"):
        batches(world)
    (tmp_path / "images" / "2.png").write_bytes(whole)
    Image.fromarray(np.full(SIZES[4], 3, np.uint8)).save(tmp_path / "labels" / "4.png")
    with pytest.raises(BadLabel, match=r"4\.png: label 3 at .* out of range"):
        list(batches(world))


def test_other_errors_always_raise(world, monkeypatch):
    def broken(path, longest):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("input_pipeline.batches.loading.read_image", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        list(batches(world, on_bad="skip"))


def test_size_that_the_network_refuses(world):
    def refuse(height, width):
        if height == 1:
            raise ValueError("too thin; crop it")
        return height, width

    loaded = batches(world, network_size=refuse, on_bad="skip")
    list(loaded)
    assert [(s.index, s.name) for s in loaded.skipped] == [(2, "2")]
    assert "2.png: too thin; crop it" in loaded.skipped[0].reason
    with pytest.raises(BadImage, match=r"2\.png: too thin"):
        batches(world, network_size=refuse)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process_count": 3}, "batch_size 4 is not divisible by 3 processes; set it to 6"),
        ({"process_index": 2, "process_count": 2}, "process_index 2 is not in 0..1"),
        ({"on_bad": "ignore"}, 'must be "raise" or "skip"'),
        ({"corruption": ("fog", 1)}, "No corruption 'fog'; choose one of: gaussian_noise"),
        ({"corruption": ("spatter", 6)}, "level is 6"),
    ],
)
def test_errors(world, options, message):
    with pytest.raises(ValueError, match=message):
        batches(world, **options)


def test_nothing_left(world, tmp_path):
    for i in range(len(SIZES)):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 7 images .*0\.png: not an image"):
        batches(world, on_bad="skip")
