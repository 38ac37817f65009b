"""Every kind of image becomes upright RGB, and every bad file one clear error."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets.images import (
    BadImage,
    BadLabel,
    image_size,
    read_image,
    read_label,
    reduce_zero_label,
)
from tests import seeded

RGB = seeded.image(37, 52, 5)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def test_jpeg_equals_opencv(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.fromarray(RGB), quality=80)
    read = read_image(path)
    np.testing.assert_array_equal(read, cv2.imread(str(path))[..., ::-1])
    assert read.dtype == np.uint8
    assert read.flags.writeable
    assert image_size(path) == (37, 52)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation(tmp_path, suffix, orientation):
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{suffix}", image, exif=exif)
    read = read_image(path)
    assert image_size(path) == read.shape[:2] == ((37, 52) if orientation == 3 else (52, 37))
    turns = {3: 2, 6: 3, 8: 1}[orientation]
    assert np.abs(read.astype(int) - np.rot90(RGB, turns)).mean() < 15
    if suffix in ("jpg", "png"):
        np.testing.assert_array_equal(read, cv2.imread(str(path))[..., ::-1])


def test_grey_and_palette_and_transparent(tmp_path):
    grey = Image.fromarray(RGB).convert("L")
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "l.png", grey)), expected)
    np.testing.assert_array_equal(
        read_image(saved(tmp_path / "la.png", grey.convert("LA"))), expected
    )
    palette = Image.fromarray(RGB).quantize(64)
    np.testing.assert_array_equal(
        read_image(saved(tmp_path / "p.png", palette)), np.asarray(palette.convert("RGB"))
    )
    rgba = np.dstack([RGB, np.arange(37 * 52).reshape(37, 52).astype(np.uint8)])
    np.testing.assert_array_equal(
        read_image(saved(tmp_path / "rgba.png", Image.fromarray(rgba))), RGB
    )
    bits = saved(tmp_path / "1.png", grey.convert("1"))
    assert set(np.unique(read_image(bits))) == {0, 255}


def test_sixteen_bits(tmp_path):
    deep = RGB[..., 0].astype(np.uint16) * 256 + 77
    path = saved(tmp_path / "deep.png", Image.fromarray(deep))
    np.testing.assert_array_equal(read_image(path), np.repeat(RGB[..., :1], 3, axis=2))
    cv2.imwrite(str(tmp_path / "rgb.png"), RGB[..., ::-1].astype(np.uint16) * 256 + 9)
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), RGB)


def test_cmyk(tmp_path):
    path = saved(tmp_path / "c.jpg", Image.fromarray(RGB).convert("CMYK"), quality=95)
    read = read_image(path).astype(int)
    assert np.abs(read - cv2.imread(str(path))[..., ::-1]).max() <= 2
    assert np.abs(read - RGB).mean() < 6


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (1, 1)])
def test_thin(tmp_path, size):
    image = seeded.image(*size, 3)
    path = saved(tmp_path / "thin.png", Image.fromarray(image))
    np.testing.assert_array_equal(read_image(path), image)
    assert image_size(path) == size


def test_six_thousand_pixels(tmp_path):
    path = saved(tmp_path / "large.jpg", Image.new("RGB", (6000, 6000), (9, 99, 199)))
    assert image_size(path) == (6000, 6000)
    assert read_image(path).shape == (6000, 6000, 3)


def test_too_large_for_the_guard(tmp_path, monkeypatch):
    path = saved(tmp_path / "bomb.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(BadImage, match=r"bomb\.png: .*raise PIL.Image.MAX_IMAGE_PIXELS"):
        read_image(path)


def test_truncated(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(seeded.image(120, 160, 1)).save(buffer, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    assert image_size(path) == (120, 160)
    with pytest.raises(BadImage, match=r"cut\.jpg: cannot decode.*truncated.*remove it"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_not_an_image(tmp_path, content):
    path = tmp_path / "odd.png"
    path.write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(BadImage, match=r"odd\.png: "):
            read(path)
    with pytest.raises(BadLabel, match=r"odd\.png: .*label map"):
        read_label(path)


def test_missing_and_float(tmp_path):
    with pytest.raises(BadImage, match=r"gone\.jpg: no such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(BadImage, match="cannot decode"):
        read_image(tmp_path)
    path = saved(tmp_path / "f.tif", Image.fromarray(RGB[..., 0].astype(np.float32)))
    with pytest.raises(BadImage, match="save it with 8 bits"):
        read_image(path)


def test_label_keeps_palette_ids(tmp_path):
    ids = seeded.label_map(20, 30, 21, 2)
    image = Image.frombytes("P", (30, 20), ids.tobytes())
    image.putpalette(bytes(reversed(range(256))) * 3)
    path = saved(tmp_path / "p.png", image)
    label = read_label(path, 21)
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, ids)


@pytest.mark.parametrize(
    ("reduced", "message"),
    [
        (False, r"bad\.png: label 7 at 2 pixels .* 5 classes have labels 0 to 4 and 255"),
        (True, r"bad\.png: label 7 at 2 pixels .* 5 classes have labels 1 to 5, 0 \(no class\)"),
    ],
)
def test_label_out_of_range(tmp_path, reduced, message):
    path = saved(tmp_path / "bad.png", Image.fromarray(np.array([[0, 7, 7, 255]], np.uint8)))
    with pytest.raises(BadLabel, match=message):
        read_label(path, 5, reduce_zero_label=reduced)
    assert read_label(path, 8).tolist() == [[0, 7, 7, 255]]


def test_colour_label(tmp_path):
    path = saved(tmp_path / "rgb.png", Image.fromarray(RGB))
    with pytest.raises(BadLabel, match=r"colour image.*save the ids"):
        read_label(path, 5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_reduce_zero_label(dtype):
    label = np.array([0, 1, 20, 255], dtype)
    reduced = reduce_zero_label(label)
    assert reduced.tolist() == [255, 0, 19, 255]
    assert reduced.dtype == dtype
