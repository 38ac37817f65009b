"""`predict`'s files and records: what is an image, what results are called, what is done."""

from __future__ import annotations

import json
import os
import signal
import unicodedata

import numpy as np
import pytest
from PIL import Image

from clipseg_jax import predict, predict_model, segmentation
from clipseg_jax.core import label_images
from clipseg_jax.core.run_lock import RunLock
from clipseg_jax.predict_files import find_images, list_images
from clipseg_jax.results import overlays
from clipseg_jax.segmentation import Segmentation
from input_pipeline.datasets.images import BadImage, image_size


class QuickSegmenter:
    """Labels every pixel 1, without any network."""

    def __init__(self, class_names, **_):
        self.names = ("background", *class_names)

    def __call__(self, paths):
        for i, path in enumerate(paths):
            try:
                size = image_size(path)
            except BadImage as error:
                yield i, error
                continue
            yield i, Segmentation(np.ones(size, np.uint8), np.ones(size, np.float32), self.names)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(predict_model, "Segmenter", QuickSegmenter)


def paint(path, size=(40, 50), kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path, kind)
    return path


def command(out, *paths, more=()):
    arguments = [*map(str, paths), "--classes=cow, dog", "--weights=demo", f"--out={out}", *more]
    return predict.main(arguments)


def rows(out):
    return [json.loads(line) for line in (out / "summary.jsonl").read_text().splitlines()]


def masks(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))


@pytest.mark.parametrize(
    "names",
    [
        ("d1/a.jpg", "d2/a.jpg", "d3/a_jpg_2.jpg"),
        ("d1/a.jpg", "d1/a.png", "d1/a_jpg.png"),
        ("d1/a.jpg", "d1/A.jpg", "d1/A.png"),
        tuple(unicodedata.normalize(form, "d1/caf\u00e9.jpg") for form in ("NFC", "NFD")),
        ("d1/x.jpg", "d1/x.png/y.jpg"),
        ("d1/x.jpg", "d1/x_overlay.jpg/y.jpg", "d1/x_overlay.jpg/z.jpg"),
        ("d1/a.jpg", "d1/b.jpg", "d1/a_overlay.jpg"),
    ],
    ids=lambda names: " ".join(names),
)
def test_no_two_results_meet(tmp_path, names):
    """Not on file systems that ignore case or Unicode forms, nor a file and a folder."""
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_images(sorted(path for path in tmp_path.iterdir()))
    assert len(found) == len(names)
    written = [f"{name}{suffix}" for _, name in found for suffix in (".png", "_overlay.jpg")]
    folders = {parent for _, name in found for parent in name.rpartition("/")[:1] if parent}
    same = [unicodedata.normalize("NFC", each).casefold() for each in [*written, *folders]]
    assert len(set(same)) == len(same)


def test_an_image_that_is_given_twice_is_one(tmp_path):
    path = paint(tmp_path / "photos" / "a.png")
    sources, left_out = list_images([tmp_path / "photos", path, path.parent / "." / "a.png"])
    assert [source.path for source in sources] == [path]
    assert [reason for _, reason in left_out] == ["is given twice"] * 2


def test_own_results_are_no_images(tmp_path, capsys):
    photos = tmp_path / "photos"
    for name in ("a.png", "trip/b.png", "trip/trip/c.png"):
        paint(photos / name)
    for _ in range(2):
        assert command(photos / "masks", photos) == 0
        assert masks(photos / "masks") == ["a.png", "trip/b.png", "trip/trip/c.png"]
    assert command(photos / "others", photos) == 0  # another output folder, beside the first
    assert masks(photos / "others") == masks(photos / "masks")
    assert "masks: holds 6 results of this command" in capsys.readouterr().err
    # The output folder is above the images, so that results come to lie among them.
    for _ in range(2):
        assert command(photos, photos / "trip", more=["--overwrite"]) == 0
    assert [row["mask"] for row in rows(photos)] == ["b.png", "trip/c.png"]


def test_no_image_of_the_user_is_replaced(tmp_path, capsys):
    path = paint(tmp_path / "photos" / "a.png")
    other = paint(tmp_path / "other" / "a.jpg")
    before = path.read_bytes()
    for out, given, more, message in [
        (path.parent, path.parent, [], "is the output folder as well"),
        (path.parent, path, ["--overwrite"], "would replace the image"),
        (path.parent, other, [], "exists and is not of this command"),
    ]:
        assert command(out, given, more=more) == 2
        assert message in capsys.readouterr().err
    assert path.read_bytes() == before


def test_what_cannot_be_used_is_named_and_counted_each_time(tmp_path, capsys):
    photos = tmp_path / "photos"
    paint(photos / "a.png")
    (photos / "bad.jpg").write_bytes(b"no picture")
    os.mkfifo(photos / "pipe.jpg")
    (photos / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    (photos / "again").symlink_to(photos)
    for made in (1, 0):
        assert command(tmp_path / "out", photos) == 0
        said = capsys.readouterr()
        assert f"{made} masks in" in said.out
        assert "4 images skipped" in said.out
        skipped = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
        for name in ("bad.jpg", "pipe.jpg", "gone.jpg", "again"):
            assert f"photos/{name}: " in said.err
            assert sum(json.loads(line)["image"].endswith(name) for line in skipped) == 1
    for path in (*photos.glob("*.jpg"), photos / "again"):
        path.unlink()
    assert command(tmp_path / "out", photos) == 0
    assert not (tmp_path / "out" / "skipped.jsonl").exists()


def test_the_status_says_when_nothing_was_segmented(tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    assert command(tmp_path / "out", tmp_path / "bad.jpg", "/dev/null") == 2
    assert "no image could be segmented; 2 were skipped" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert command(tmp_path / "out", tmp_path / "empty") == 2
    assert "no images (.jpg" in capsys.readouterr().err


def test_trouble_with_one_image_costs_that_image_alone(tmp_path, capsys, monkeypatch):
    """A name that is too long with its ending, one that vanishes, one that is replaced."""
    photos = tmp_path / "photos"
    for name in ("a.jpg", f"{'m' * 245}.jpg", "vanishes.jpg", "grows.jpg", "line\nfeed.jpg"):
        paint(photos / name, kind="JPEG")
    save = predict.save

    def meanwhile(result, path, *others):
        if path.name == "vanishes.jpg":
            path.unlink()
        if path.name == "grows.jpg":
            paint(path, (60, 60), "JPEG")
        return save(result, path, *others)

    monkeypatch.setattr(predict, "save", meanwhile)
    assert command(tmp_path / "out", photos) == 0
    assert masks(tmp_path / "out") == ["a.png", "line\nfeed.png"]
    said = capsys.readouterr()
    assert "3 images skipped" in said.out
    for word in ("too long", "vanishes.jpg", "grows.jpg: was replaced"):
        assert word in said.err


def test_results_of_two_folders_have_two_names(tmp_path, capsys):
    out = tmp_path / "out"
    first, second = paint(tmp_path / "d1/a.png"), paint(tmp_path / "d2/a.png", (60, 70))
    for path in (first, second):
        assert command(out, path.parent) == 0
    assert [row["image"] for row in rows(out)] == [str(first), str(second)]
    assert len(masks(out)) == 2
    # A moved image keeps its results, a changed one is segmented again.
    first.parent.rename(tmp_path / "d3")
    paint(second, (80, 90))
    capsys.readouterr()
    assert command(out, tmp_path / "d3", tmp_path / "d2") == 0
    assert "1 of 2 images already have masks" in capsys.readouterr().out
    assert len(rows(out)) == len(masks(out)) == 2
    assert np.asarray(Image.open(out / rows(out)[1]["mask"])).shape == (80, 90)


def test_an_image_of_the_same_size_is_another(tmp_path, capsys, monkeypatch):
    """All uncompressed pictures of a camera have equally many bytes."""
    out, path = tmp_path / "out", paint(tmp_path / "d1/a.bmp", kind="BMP")
    again = "images already have masks"
    assert command(out, path) == command(out, path) == 0
    assert f"1 of 1 {again}" in capsys.readouterr().out
    os.utime(path, ns=(0, 7))  # replaced by a file with an older date
    assert command(out, path) == 0
    assert again not in capsys.readouterr().out
    os.utime(paint(tmp_path / "d2/a.bmp", kind="BMP"), ns=(0, 9))
    path.unlink()
    assert command(out, tmp_path / "d2/a.bmp") == 0
    assert again not in capsys.readouterr().out
    assert len(rows(out)) == 2
    # Replaced while it is segmented: the mask may be of either, so that it is made again.
    save = predict.save

    def meanwhile(result, image, *others):
        small = save(result, image, *others)
        os.utime(image, ns=(0, 11))
        return small

    monkeypatch.setattr(predict, "save", meanwhile)
    path = paint(tmp_path / "b.bmp", kind="BMP")
    for _ in range(2):
        assert command(out, path) == 0
        assert again not in capsys.readouterr().out


def test_a_summary_without_times_counts(tmp_path, capsys):
    """As earlier versions wrote it."""
    out, path = tmp_path / "out", paint(tmp_path / "a.png")
    assert command(out, path) == 0
    (row,) = rows(out)
    del row["modified_ns"]
    (out / "summary.jsonl").write_text(json.dumps(row) + "\n")
    assert command(out, path) == 0
    assert "1 of 1 images already have masks" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["line", "png", "jpeg", "gone", "double"])
def test_results_that_are_not_whole_are_made_again(tmp_path, capsys, damage):
    out = tmp_path / "out"
    for name in ("a.png", "b.png"):
        paint(tmp_path / "photos" / name)
    assert command(out, tmp_path / "photos") == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    summary = out / "summary.jsonl"
    if damage == "line":
        summary.write_bytes(whole["summary.jsonl"][:-20])
    elif damage == "double":
        summary.write_bytes(whole["summary.jsonl"] * 2 + b'["no line of ours"]\n{"image"')
        (out / "b.png").unlink()
    elif damage == "gone":
        (out / "b_overlay.jpg").unlink()
    else:
        path = out / ("b.png" if damage == "png" else "b_overlay.jpg")
        path.write_bytes(path.read_bytes()[:-8])
    (out / ".writing-a1b2c3").write_bytes(b"half")  # of a killed run
    capsys.readouterr()
    assert command(out, tmp_path / "photos") == 0
    done = 2 if damage in ("jpeg", "gone") else 1  # overlays are made of masks
    assert f"{done} of 2 images already have masks" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole


def test_overwriting_doubles_no_line(tmp_path):
    out = tmp_path / "out"
    for name in ("a.png", "b.png"):
        paint(tmp_path / "photos" / name)
    for _ in range(2):
        assert command(out, tmp_path / "photos", more=["--overwrite"]) == 0
        assert len(rows(out)) == 2
    # With other settings, what is not made again no longer counts.
    assert command(out, tmp_path / "photos/a.png", more=["--overwrite", "--flip"]) == 0
    assert [row["mask"] for row in rows(out)] == ["a.png"]
    assert command(out, tmp_path / "photos/a.png") == 2


@pytest.mark.parametrize("content", ["", "[]", '{"classes": ', "\x00"])
def test_damaged_settings_are_named(tmp_path, capsys, content):
    path, out = paint(tmp_path / "a.png"), tmp_path / "out"
    assert command(out, path) == 0
    (out / "settings.json").write_text(content)
    assert command(out, path) == 2
    said = capsys.readouterr().err
    assert "settings.json is damaged" in said
    assert "--overwrite" in said
    assert command(out, path, more=["--overwrite"]) == 0


def test_a_summary_of_a_stranger_leads_nowhere(tmp_path):
    path, out = paint(tmp_path / "a.png"), tmp_path / "out"
    out.mkdir()
    names = ["../../evil.png", "/tmp/evil.png", 7]
    lines = [json.dumps({"image": str(path), "mask": name, "classes": {}}) for name in names]
    (out / "summary.jsonl").write_text("\n".join(lines) + "\n")
    assert command(out, path) == 0
    assert masks(tmp_path) == ["a.png", "out/a.png"]
    assert [row["mask"] for row in rows(out)] == ["a.png"]


def test_two_runs_in_one_folder(tmp_path, capsys):
    path = paint(tmp_path / "a.png")
    with RunLock(tmp_path / "out"):
        assert command(tmp_path / "out", path) == 2
    assert f"process {os.getpid()}" in capsys.readouterr().err
    assert command(tmp_path / "out", path) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_image(tmp_path, capfd, monkeypatch, number, status):
    for name in "abc":
        paint(tmp_path / "photos" / f"{name}.png")
    save = predict.save

    def interrupted(*given):
        os.kill(os.getpid(), number)
        return save(*given)

    monkeypatch.setattr(predict, "save", interrupted)
    assert command(tmp_path / "out", tmp_path / "photos") == status
    assert "stopped after 1 of 3 images" in capfd.readouterr().err
    assert masks(tmp_path / "out") == [row["mask"] for row in rows(tmp_path / "out")] == ["a.png"]
    monkeypatch.setattr(predict, "save", save)
    assert command(tmp_path / "out", tmp_path / "photos") == 0
    assert masks(tmp_path / "out") == ["a.png", "b.png", "c.png"]


def test_class_names_with_commas_and_from_a_file(tmp_path):
    path, listed = paint(tmp_path / "a.png"), tmp_path / "classes.txt"
    more = ["--class", "a sign, white on a pole", "--class='lorry'", f"--classes-file={listed}"]
    names = ["cow", "dog", "a sign, white on a pole", "'lorry'", "caf\u00e9, closed", "car"]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        listed.write_bytes("# mine\n\ncaf\u00e9, closed \r\ncar".encode(encoding))
        assert command(tmp_path / encoding, path, more=more) == 0
        assert json.loads((tmp_path / encoding / "settings.json").read_text())["classes"] == names


def test_a_bad_file_of_classes_is_named(tmp_path, capsys):
    path, listed = paint(tmp_path / "a.png"), tmp_path / "classes.txt"
    for content, message in [
        (b"car\ncaf\xe9, closed\n", "classes.txt, line 2, is not UTF-8; save"),
        (b"", "classes.txt is an empty list"),
        (b"['car',\n'bus']", "has ['car', with a quote or bracket around it"),
        (b"# nothing\n", "classes.txt names no class"),
    ]:
        listed.write_bytes(content)
        assert command(tmp_path / "out", path, more=[f"--classes-file={listed}"]) == 2
        assert message in capsys.readouterr().err
    listed.unlink()
    os.mkfifo(listed)
    assert command(tmp_path / "out", path, more=[f"--classes-file={listed}"]) == 2
    assert "is a named pipe" in capsys.readouterr().err


def test_overlays_of_large_images_are_scaled_down(tmp_path, monkeypatch):
    monkeypatch.setattr(overlays, "_MOST_PX", 40 * 50)
    assert command(tmp_path / "out", paint(tmp_path / "a.png", (80, 120))) == 0
    assert np.asarray(Image.open(tmp_path / "out/a.png")).shape == (80, 120)
    # A third of 80, and a line of legend below.
    assert 27 < Image.open(tmp_path / "out/a_overlay.jpg").height < 60


def test_large_images_are_handled_some_rows_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 30, 3)).astype(np.uint8)
    labels, scores = rng.integers(0, 3, (50, 30)).astype(np.uint8), rng.random((50, 30))
    result = Segmentation(labels, scores.astype(np.float32), ("background", "cow", "dog"))
    whole = label_images.overlay(image, labels, label_images.palette(), 0.3), result.summary()
    for module in (label_images, segmentation):
        monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 7 * 30)
    np.testing.assert_array_equal(
        label_images.overlay(image, labels, label_images.palette(), 0.3), whole[0]
    )
    assert result.summary() == whole[1]
    for name, i in (("background", 0), ("dog", 2)):
        assert whole[1][name]["share"] == round(float(np.mean(labels == i)), 4)
        assert whole[1][name]["score"] == pytest.approx(scores[labels == i].mean(), abs=1e-4)


@pytest.mark.parametrize("name", ["summary.jsonl", "settings.json", "a.png", "a_overlay.jpg"])
def test_a_pipe_in_the_output_folder_is_never_opened(tmp_path, capsys, name):
    paint(tmp_path / "in/a.png")
    assert command(tmp_path / "out", tmp_path / "in") == 0
    (tmp_path / "out" / name).unlink()
    os.mkfifo(tmp_path / "out" / name)
    capsys.readouterr()
    code = command(tmp_path / "out", tmp_path / "in")
    error = capsys.readouterr().err
    if name.startswith("a"):  # a result that is none is made again
        assert code == 0
        assert (tmp_path / "out" / name).is_file()
    else:
        assert code == 2
        assert f"{name} is a named pipe" in error


def test_links_in_the_output_folder_lead_nowhere_else(tmp_path, capsys):
    """An output folder may be a stranger's: results stay in it, whatever it holds."""
    paint(tmp_path / "in/sub/a.png")
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.mkdir()
    out.mkdir()
    (out / "sub").symlink_to(victim)
    assert command(out, tmp_path / "in") == 2
    assert "is a link that leads out of" in capsys.readouterr().err
    (out / "sub").unlink()
    # A recorded name through a link is not used, nor are the lines written through one.
    (out / "link").symlink_to(victim)
    row = {"image": str(tmp_path / "in/sub/a.png"), "mask": "link/evil.png", "classes": {}}
    (out / "summary.jsonl").write_text(json.dumps(row) + "\n")
    assert command(out, tmp_path / "in", more=["--overwrite"]) == 0
    assert masks(out) == ["sub/a.png"]
    (out / "summary.jsonl").unlink()
    (out / "summary.jsonl").symlink_to(victim / "new")
    assert command(out, tmp_path / "in", more=["--overwrite"]) != 0
    assert "summary.jsonl" in capsys.readouterr().err
    assert not [*victim.iterdir()]


@pytest.mark.parametrize(
    "mask",
    ["a\0b.png", "\ud800.png", "settings.json/x.png", "../x.png", "m" * 300 + ".png", ".png"],
)
def test_impossible_names_in_the_records_are_not_used(tmp_path, mask):
    image = paint(tmp_path / "in/a.png")
    assert command(tmp_path / "out", image) == 0
    row = {"image": str(image), "mask": mask, "classes": {}}
    (tmp_path / "out/summary.jsonl").write_text(json.dumps(row) + "\n")
    assert command(tmp_path / "out", image) == 0
    assert [each["mask"] for each in rows(tmp_path / "out")] == ["a.png"]
