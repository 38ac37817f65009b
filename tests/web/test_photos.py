"""Uploads: what is taken, and what is said of the rest."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from clipseg_jax.web.photos import WORK_PX, Limits, read_photo, samples, shown_name, shrunk
from input_pipeline.datasets.images import BadImage

LIMITS = Limits(megabytes=1, megapixels=0.5)


def stored(path, image, *arguments, **options):
    image.save(path, *arguments, **options)
    return path


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def test_a_photo(tmp_path):
    pixels = noise(30, 40)
    path = stored(tmp_path / "upload", Image.fromarray(pixels), "PNG")
    photo = read_photo(path, "C:\\mine\\Holiday 1.png", LIMITS)
    assert (photo.name, photo.size, photo.animated) == ("Holiday 1.png", (30, 40), False)
    assert np.array_equal(photo.pixels, pixels)


def test_exif_turns_it_and_its_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = stored(tmp_path / "a.jpg", Image.fromarray(noise(30, 40)), exif=exif)
    photo = read_photo(path, "a.jpg", LIMITS)
    assert photo.size == (40, 30)
    assert photo.pixels.shape == (40, 30, 3)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("CMYK", "JPEG"), ("P", "GIF")],
)
def test_every_kind_becomes_rgb(tmp_path, mode, kind):
    image = Image.fromarray(noise(20, 24))
    if mode == "I;16":
        image = Image.fromarray(noise(20, 24)[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    photo = read_photo(stored(tmp_path / "upload", image, kind), "a", LIMITS)
    assert photo.pixels.shape == (20, 24, 3)
    assert photo.pixels.std() > 20


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    photo = read_photo(path, "a.gif", LIMITS)
    assert photo.animated
    assert (photo.pixels == (255, 0, 0)).all()


def test_bytes_are_checked_before_the_content(tmp_path):
    path = tmp_path / "big.jpg"
    path.write_bytes(bytes(1_500_000))
    with pytest.raises(BadImage, match=r"big.jpg has 2 MB; up to 1 are taken"):
        read_photo(path, "big.jpg", LIMITS)


def test_pixels_are_checked_before_they_are_decoded(tmp_path):
    raw = zlib.compress(bytes(30_000 * 3751), 9)  # 900 megapixels of 1 bit
    path = tmp_path / "bomb.png"
    path.write_bytes(png(30_000, 30_000, raw))
    claim = tmp_path / "claim.png"
    claim.write_bytes(png(4_000_000_000, 4_000_000_000, raw))
    some = stored(tmp_path / "some.png", Image.new("L", (800, 800)))
    tracemalloc.start()
    for file in (path, claim, some):
        with pytest.raises(BadImage, match=r"x.png has more than the 0.5 megapixels taken here"):
            read_photo(file, "x.png", LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def png(width, height, data):
    def chunk(kind, content):
        sum_ = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + sum_

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_what_is_no_image(tmp_path):
    path = tmp_path / "hidden-name"
    for content in (b"just text", b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7"):
        path.write_bytes(content)
        with pytest.raises(BadImage, match=r"^me.jpg is not an image that can be read here"):
            read_photo(path, "me.jpg", LIMITS)


def test_a_damaged_one_does_not_tell_the_servers_path(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(noise(80, 80)).save(whole, "JPEG")
    path = tmp_path / "hidden-name"
    path.write_bytes(whole.getvalue()[:2000])
    with pytest.raises(BadImage, match=r"^me.jpg is damaged \(.*truncated.*\)") as caught:
        read_photo(path, "me.jpg", LIMITS)
    assert "hidden" not in str(caught.value)
    with pytest.raises(BadImage) as caught:
        read_photo(path, "a\x1b[31m\n" + "b" * 500, LIMITS)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((300, 400), 1024, (300, 400)),
        ((600, 800), 400, (300, 400)),
        ((5000, 4000), 100, (100, 80)),
        ((3000, 1), 100, (100, 1)),
    ],
)
def test_shrunk(size, longest, expected):
    pixels = np.broadcast_to(np.linspace(0, 255, size[0])[:, None, None], (*size, 3))
    small = shrunk(pixels.astype(np.uint8), longest)
    assert small.shape == (*expected, 3)
    rows = np.linspace(0, 255, expected[0])
    assert np.abs(small[:, 0, 0] - rows).mean() < 2


def test_names():
    assert shown_name("/etc/passwd") == "passwd"
    assert shown_name("") == "the file"
    assert len(shown_name("x" * 999)) < 70


def test_samples():
    painted, real = samples(real=False), samples(real=True)
    assert len(painted) == len(real) == 8
    assert real[0].photo.name == "geese.jpg"
    for sample in {*painted, *real}:
        assert max(sample.photo.size) <= WORK_PX
        assert not {*sample.words} & {*sample.background}
