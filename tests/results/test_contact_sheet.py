"""The contact sheet: what is on it, what is kept of the one before, and how large it gets."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from clipseg_jax.core.label_images import palette, save_image, save_labels
from clipseg_jax.demo import world
from clipseg_jax.results import contact_sheet
from clipseg_jax.results.contact_sheet import thumbnail, write_contact_sheet

CLASSES = ["cow", "</script><b>", "dog"]


def folder(root, names, size=(60, 90)):
    """Images and the output folder of `predict`; returns the output folder and its rows."""
    out, rows = root / "out", {}
    for i, name in enumerate(names):
        labels = np.full(size, i % 4, np.uint8)
        labels[: size[0] // 2] = 0
        save_image(root / f"photos/{name}.jpg", np.full((*size, 3), 60 + i, np.uint8))
        save_labels(out / f"{name}.png", labels, coloured=True)
        rows[name] = {
            "image": str(root / f"photos/{name}.jpg"),
            "mask": f"{name}.png",
            "bytes": 10 + i,
            "modified_ns": i,
            "classes": {
                each: {"share": 0.5, "score": 0.7} for each in [None, *CLASSES][i % 4 :][:1] if each
            },
        }
    return out, rows


def content(out):
    text = (out / "index.html").read_text("utf-8")
    return json.loads(re.search(r'id="clipseg_jax-results">(.*?)</script>', text)[1])


def pixels(uri):
    data = base64.b64decode(uri.partition(",")[2])
    return Image.open(io.BytesIO(data))


def test_a_page_of_all_images(tmp_path):
    out, rows = folder(tmp_path, ["b", "a", "trip/c d#1", "x<b>"])
    assert write_contact_sheet(out, rows, CLASSES, "naclip <i>")
    text = (out / "index.html").read_text("utf-8")
    assert "naclip &lt;i&gt;" in text
    assert "4 images" in text
    assert not re.search(r"https?://|<b>|<i>", text)
    found = content(out)
    assert [each["name"] for each in found["images"]] == ["a", "b", "trip/c d#1", "x<b>"]
    assert [each["href"] for each in found["images"]][2:] == ["trip/c%20d%231.png", "x%3Cb%3E.png"]
    assert [each["color"] for each in found["classes"]] == palette(4)[1:].tolist()
    photo, mask = (pixels(found["images"][2][key]) for key in ("photo", "mask"))
    assert photo.size == mask.size == (90, 60)
    shown = np.asarray(mask.convert("RGBA"))
    assert not shown[:30, :, 3].any()
    assert (shown[30:] == (*palette(3)[2], 255)).all()
    (out / "a_overlay.jpg").write_bytes(b"")
    write_contact_sheet(out, rows, CLASSES)
    assert content(out)["images"][0]["href"] == "a_overlay.jpg"


def test_thumbnails_are_kept_while_image_and_mask_are_the_same(tmp_path, monkeypatch):
    out, rows = folder(tmp_path, "abc")
    write_contact_sheet(out, rows, CLASSES)
    first = (out / "index.html").read_bytes()
    read = []
    monkeypatch.setattr(
        contact_sheet,
        "read_image",
        lambda path, read_image=contact_sheet.read_image: read.append(path) or read_image(path),
    )
    write_contact_sheet(out, rows, CLASSES)
    assert (out / "index.html").read_bytes() == first
    assert read == []
    rows["a"] = {**rows["a"], "modified_ns": 99}
    rows["b"] = {**rows["b"], "classes": {}}
    known = thumbnail(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8))
    write_contact_sheet(out, rows, CLASSES, made={"b": known})
    assert read == [rows["a"]["image"]]
    assert content(out)["images"][1]["photo"] == known.photo


def test_images_that_are_gone_are_left_out(tmp_path):
    out, rows = folder(tmp_path, "abc")
    (tmp_path / "photos/a.jpg").unlink()
    (out / "b.png").write_bytes(b"\x89PNG")
    assert write_contact_sheet(out, rows, CLASSES)
    assert [each["name"] for each in content(out)["images"]] == ["c"]


@pytest.mark.parametrize(
    "block",
    [
        '{"images": [{"key": "a", "photo": "javascript:x", "mask": 7}, 5], "classes": 3}',
        '{"images": {"a": 1}}',
        '{"images": [{"key": ["a"]}]}',
        "{}",
    ],
)
def test_what_a_page_before_says_is_checked(tmp_path, block):
    out, rows = folder(tmp_path, "a")
    text = f'<script type="application/json" id="clipseg_jax-results">{block}</script>'
    (out / "index.html").write_text(text)
    assert write_contact_sheet(out, rows, CLASSES)
    assert content(out)["images"][0]["photo"].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("text", ["<h1>My site</h1>", "", "\udcff", "folder"])
def test_a_page_of_others_stays(tmp_path, text):
    out, rows = folder(tmp_path, "a")
    if text == "folder":
        (out / "index.html").mkdir()
    else:
        (out / "index.html").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert not write_contact_sheet(out, rows, CLASSES)
    assert not (out / "index.html").is_file() or "clipseg" not in (out / "index.html").read_text(
        errors="replace"
    )


def test_its_size_is_bounded(tmp_path, monkeypatch):
    out, rows = folder(tmp_path, [f"{i:02d}" for i in range(8)])
    monkeypatch.setattr(contact_sheet, "LIMIT", 5)
    write_contact_sheet(out, rows, CLASSES)
    assert "The first 5 of 8 images, by name" in (out / "index.html").read_text()
    assert len(content(out)["images"]) == 5
    # A thumbnail's size is of the page's, not of the image's.
    picture = world.make("evaluation", 0, 128)
    image = picture.image.repeat(9, axis=0).repeat(9, axis=1)
    labels = picture.label.repeat(9, axis=0).repeat(9, axis=1)
    small = thumbnail(image, labels)
    assert max(pixels(small.photo).size) == max(pixels(small.mask).size) == contact_sheet.SIDE_PX
    assert len(small.photo) + len(small.mask) < 15_000
    thin = thumbnail(np.zeros((1, 9000, 3), np.uint8), np.zeros((1, 9000), np.uint8))
    assert pixels(thin.photo).size == pixels(thin.mask).size == (200, 1)
