"""JPEGs of very many scans are refused before they are decoded, real ones never."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets import jpeg_scans
from input_pipeline.datasets.images import BadImage, image_size, read_image
from input_pipeline.pictures import picture_list
from tests import seeded

SEQUENTIAL, PROGRESSIVE = 0xC0, 0xC2
SIZE = (9, 20)


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def scan(components, last):
    parts = b"".join(bytes([component, 0]) for component in components)
    return segment(0xDA, bytes([len(components)]) + parts + bytes([0, last, 0])) + b"\x7f"


def jpeg(frame, scans, between=b""):
    """A JPEG of three components in `frame`; a decoder takes zeros for the data that is not there.

    Args:
      scans: their components.
      between: bytes before each scan.
    """
    parts = b"".join(bytes([component, 0x11, 0]) for component in (1, 2, 3))
    table = bytes([1] + [0] * 15) + b"\0"
    content = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    content += segment(frame, struct.pack(">BHHB", 8, *SIZE, 3) + parts)
    content += segment(0xC4, b"\x00" + table) + segment(0xC4, b"\x10" + table)
    last = 63 if frame == SEQUENTIAL else 0
    return content + b"".join(between + scan(of, last) for of in scans) + b"\xff\xd9"


def one_each(count):
    return [(1 + i % 3,) for i in range(count)]


@pytest.mark.parametrize("between", [b"", b"\xff" * 3, b"garbage\xff\x00", segment(0xFE, b"text")])
@pytest.mark.parametrize("frame", [SEQUENTIAL, PROGRESSIVE])
def test_many_scans(frame, between, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(frame, one_each(100), between))
    assert read_image(path).shape == (*SIZE, 3)
    path.write_bytes(jpeg(frame, one_each(101), between))
    assert image_size(path) == SIZE
    with pytest.raises(BadImage, match=r"a\.jpg: .* more than 100 scans"):
        read_image(path)
    with Image.open(path) as image, pytest.raises(ValueError, match="more than 100 scans"):
        picture_list([image])


def test_scans_after_one_of_all_components_are_counted(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(SEQUENTIAL, [(1,), (1, 2, 3), *one_each(100)]))
    with pytest.raises(BadImage, match="more than 100 scans"):
        read_image(path)


def test_fewer_scans_of_a_giant_image(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(PROGRESSIVE, one_each(9)))
    monkeypatch.setattr(jpeg_scans, "_MOST_PIXELS_OF_SCANS", 9 * SIZE[0] * SIZE[1])
    read_image(path)
    path.write_bytes(jpeg(PROGRESSIVE, one_each(10)))
    with pytest.raises(BadImage, match="more than 9 scans"):
        read_image(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_what_looks_like_scans_elsewhere_is_not_counted(progressive, tmp_path):
    image, file = Image.fromarray(seeded.image(37, 52, 5)), io.BytesIO()
    image.save(file, "JPEG", progressive=progressive)
    content, many = file.getvalue(), b"\xff\xda\0\2" * 200
    (tmp_path / "plain.jpg").write_bytes(content)
    (tmp_path / "a.jpg").write_bytes(content[:2] + segment(0xED, many) + content[2:] + many)
    expected = read_image(tmp_path / "plain.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), expected)
    image.save(tmp_path / "b.mpo", "MPO", save_all=True, append_images=[image] * 11)
    np.testing.assert_array_equal(read_image(tmp_path / "b.mpo").shape, expected.shape)
