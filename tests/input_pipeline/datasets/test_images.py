"""Every kind of image becomes upright RGB, and every bad file one clear error."""

import ast
import io
import logging
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from input_pipeline.datasets import images
from input_pipeline.datasets.images import (
    BadFile,
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


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_images_are_shrunk(tmp_path, suffix, orientation):
    """To the size that the header gives; as Pillow shrinks the whole image."""
    pixels = np.kron(seeded.image(30, 40, 0), np.ones((20, 20, 1), np.uint8))  # 600 x 800
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path := tmp_path / f"a.{suffix}", quality=95, exif=exif)
    size = images.shrunk_size(*images.image_size(path), 100)
    assert size == ((75, 100) if orientation == 1 else (100, 75))
    shrunk, whole = images.read_image(path, 100), images.read_image(path)
    assert shrunk.shape[:2] == size
    expected = Image.fromarray(whole).resize(size[::-1], Image.Resampling.BILINEAR)
    assert np.abs(shrunk.astype(int) - np.asarray(expected)).mean() < 3
    np.testing.assert_array_equal(images.read_image(path, 800), whole)
    assert images.shrunk_size(3, 4000, 500) == (1, 500)


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


def bare_png(height, width, bits=1):
    """A PNG of zeros."""
    line = bytes(1 + (width * bits + 7) // 8)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(line * height, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("guard", [None, 500])
def test_the_number_of_pixels_is_limited_whatever_pillows_guard(tmp_path, monkeypatch, guard):
    path = tmp_path / "large.png"
    path.write_bytes(bare_png(37, 52))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", guard)
    monkeypatch.setattr(images, "MAX_PIXELS", 1900)
    for read in (read_image, image_size, read_label):
        with pytest.raises(BadFile, match=r"large\.png: .*pixels.* more than the 1900.* shrink it"):
            read(path)


@pytest.mark.parametrize(("height", "width"), [(4000, 4000), (100_000, 60), (60, 100_000)])
def test_memory_while_decoding_is_a_few_bytes_a_pixel(tmp_path, monkeypatch, height, width):
    path = tmp_path / "a.png"
    path.write_bytes(bare_png(height, width))
    monkeypatch.setattr(images, "_BAND_PIXELS", 1 << 18)
    tracemalloc.start()
    assert read_image(path).shape == (height, width, 3)
    peak = tracemalloc.get_traced_memory()[1]  # NumPy's and Python's; Pillow's own is 1 a pixel
    tracemalloc.stop()
    assert peak < 4 * height * width + (8 << 20)


def test_bands_equal_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_BAND_PIXELS", 300)
    for mode in ("L", "P", "CMYK", "RGB", "1"):
        image = Image.fromarray(RGB)
        image = image.quantize(16) if mode == "P" else image.convert(mode)
        path = saved(tmp_path / f"{mode}.tif", image)
        np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))
    deep = saved(tmp_path / "deep.png", Image.fromarray(RGB[..., 0].astype(np.uint16) * 256))
    np.testing.assert_array_equal(read_image(deep)[..., 1], RGB[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_equals_pillows(tmp_path, orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", Image.fromarray(RGB), exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2]
    monkeypatch.setattr(images, "_BAND_PIXELS", 300)
    np.testing.assert_array_equal(read_image(path), expected)


BOMB = zlib.compress(bytes(3 << 20), 9)
METADATA = {  # damaged chunks of a PNG
    "exif cut": (b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03"),
    "exif of letters": (b"eXIf", b"MM\0*" + b"x" * 40),
    "exif of lies": (b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x05\0\xff\xff\xff\x7f" * 30),
    "profile": (b"iCCP", b"sRGB"),
    "profile bomb": (b"iCCP", b"icc\0\0" + BOMB),
    "profile method": (b"iCCP", b"icc\0\x07abc"),
    "text bomb": (b"zTXt", b"Comment\0\0" + BOMB),
    "text of the world bomb": (b"iTXt", b"Comment\0\x01\0\0\0" + BOMB),
    "resolution": (b"pHYs", b"\0"),
    "chromaticity": (b"cHRM", b"abc"),
    "gamma": (b"gAMA", b""),
    "transparency": (b"tRNS", b"\0"),
}


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", METADATA)
def test_damaged_metadata_of_a_png_costs_no_pixels(tmp_path, name, where):
    plain = saved(tmp_path / "a.png", Image.fromarray(RGB)).read_bytes()
    at = plain.index(b"IDAT" if where == "before" else b"IEND") - 4
    for data in (chunk(*METADATA[name]), chunk(*METADATA[name])[:-1] + b"?"):  # also a wrong CRC
        path = tmp_path / "b.png"
        path.write_bytes(plain[:at] + data + plain[at:])
        np.testing.assert_array_equal(read_image(path), RGB)
        assert image_size(path) == (37, 52)


def test_orientation_stays_beside_damaged_texts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = saved(tmp_path / "a.png", Image.fromarray(RGB), exif=exif).read_bytes()
    at = plain.index(b"IDAT") - 4
    path = tmp_path / "b.png"
    path.write_bytes(plain[:at] + chunk(*METADATA["text bomb"]) + plain[at:])
    assert image_size(path) == (52, 37)
    np.testing.assert_array_equal(read_image(path), np.rot90(RGB, -1))


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
@pytest.mark.parametrize("seed", range(6))
def test_damaged_exif_of_any_format_costs_no_pixels(tmp_path, suffix, seed):
    image, options = Image.fromarray(RGB), {"lossless": True} if suffix == "webp" else {}
    expected = read_image(saved(tmp_path / f"a.{suffix}", image, **options))
    exif = Image.Exif()
    exif[0x010E], exif[0x8769] = "a text " * 9, {0x9286: b"comment" * 9, 0xA005: 9}
    damaged, rng = bytearray(exif.tobytes()), np.random.default_rng(seed)
    for at in rng.integers(6, len(damaged), 30):
        damaged[at] = rng.integers(256)
    path = saved(tmp_path / f"b.{suffix}", image, exif=bytes(damaged), **options)
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == (37, 52)


@pytest.mark.parametrize("pointer", [0, 1, 8, 100, 2**32 - 1])
@pytest.mark.parametrize("tag", [34665, 34853, 700, 34675, 34377])
def test_damaged_metadata_of_a_tiff_costs_no_pixels(tmp_path, tag, pointer):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[tag], info.tagtype[tag] = pointer, 4
    path = saved(tmp_path / "a.tif", Image.fromarray(RGB), tiffinfo=info)
    np.testing.assert_array_equal(read_image(path), RGB)
    assert image_size(path) == (37, 52)


def test_no_program_and_no_other_format(tmp_path):
    path = tmp_path / "holiday.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 72 72\n%%EndComments\nshowpage")
    for read in (read_image, image_size, read_label):
        with pytest.raises(BadFile, match=r"holiday\.jpg: not an? .* in a known format"):
            read(path)
    saved(tmp_path / "a.ppm", Image.fromarray(RGB))
    with pytest.raises(BadImage, match="known format"):
        read_image(tmp_path / "a.ppm")


def test_images_are_opened_with_formats_everywhere():
    """Pillow's other readers can be reached from any file name, and one starts a program."""
    root, wrong = Path(__file__).parents[3], []
    for top in ("clipseg_jax", "input_pipeline", "weights_convert"):
        for path in (root / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and ast.unparse(node.func) in ("Image.open", "PIL.Image.open")
                    and "formats" not in [keyword.arg for keyword in node.keywords]
                ):
                    wrong.append(f"{path}:{node.lineno}")
    assert not wrong


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_is_no_image(tmp_path, kind):
    path = tmp_path / "a.jpg"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    for read in (read_image, image_size, read_label):
        with pytest.raises(BadFile, match=r"a\.jpg is a .*not a file"):
            read(path)


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


@pytest.mark.parametrize("mode", ["LA", "RGBA", "JPEG"])
def test_other_kinds_of_label_maps_are_refused(tmp_path, mode):
    path = tmp_path / "a.png"
    if mode == "JPEG":
        Image.fromarray(RGB[..., 0]).save(path, "JPEG")
    else:
        Image.fromarray(RGB).convert(mode).save(path)
    with pytest.raises(BadLabel, match=r"a\.png: .*save the ids as a grey"):
        read_label(path)


def test_sixteen_bit_and_two_valued_label_maps(tmp_path):
    deep = np.array([[0, 300, 65535]], np.uint16)
    assert read_label(saved(tmp_path / "a.png", Image.fromarray(deep))).tolist() == deep.tolist()
    two = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert read_label(saved(tmp_path / "b.png", two)).tolist() == [[0, 1]]


def indexed(ids, palette):
    image = Image.fromarray(np.array(ids, np.uint8)).convert("P")
    image.putdata(np.array(ids).ravel().tolist())
    image.putpalette(palette)
    return image


def test_a_grey_palette_that_shows_other_numbers_is_named_once(tmp_path, caplog):
    for name in ("a.png", "b.png"):
        path = saved(tmp_path / name, indexed([[0, 1, 2]], [0, 0, 0, 7, 7, 7, 255, 255, 255]))
        assert read_label(path).tolist() == [[0, 1, 2]]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "a.png" in caplog.text
    assert "ids 0, 1, 2 as greys 0, 7, 255" in caplog.text


@pytest.mark.parametrize(
    "palette",
    [
        [0, 0, 0, 1, 1, 1, 2, 2, 2],  # the identity
        [0, 0, 0, 128, 128, 128, 64, 0, 0],  # colours of classes, some of them grey
        [0, 0, 0, 1, 1, 1, 2, 2, 2, 9, 9, 9],  # an entry that is not used
    ],
)
def test_other_palettes_are_silent(tmp_path, caplog, palette):
    assert read_label(saved(tmp_path / "a.png", indexed([[0, 1]], palette))).tolist() == [[0, 1]]
    assert not caplog.records


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_reduce_zero_label(dtype):
    label = np.array([0, 1, 20, 255], dtype)
    reduced = reduce_zero_label(label)
    assert reduced.tolist() == [255, 0, 19, 255]
    assert reduced.dtype == dtype
