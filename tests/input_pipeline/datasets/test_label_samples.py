"""Class ids are the samples of a file, not the brightnesses that they stand for."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets.images import BadLabel, read_label

GREY, PALETTE = 0, 3


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(ids, bits):
    """Rows of ids (h, w) in as few bytes as their bits need."""
    digits = (ids[..., None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(digits.reshape(len(ids), -1).astype(np.uint8), axis=1)


def png(ids, bits, colour_type):
    height, width = ids.shape
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in packed(ids, bits))
    palette = chunk(b"PLTE", bytes(range(3, 51))) if colour_type == PALETTE else b""
    data = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + data


def tiff(ids, bits, photometric):
    height, width = ids.shape
    data = packed(ids, bits).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 200, 277: 1,
            278: height, 279: len(data)}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return (b"II*\0" + directory).ljust(200, b"\0") + data


def all_ids(bits):
    return np.random.default_rng(bits).permuted(np.arange(15 * 2**bits) % 2**bits).reshape(5, -1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["grey.png", "palette.png", "grey.tif"])
def test_ids_of_few_bits(tmp_path, kind, bits):
    ids, path = all_ids(bits), tmp_path / kind
    if kind == "grey.tif":
        path.write_bytes(tiff(ids, bits, 1))
    else:
        path.write_bytes(png(ids, bits, GREY if kind == "grey.png" else PALETTE))
    np.testing.assert_array_equal(read_label(path), ids)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_tiff_whose_0_is_white(tmp_path, bits):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(all_ids(bits), bits, 0))
    with pytest.raises(BadLabel, match=r"a\.tif: .* 0 is white; save the ids as a grey PNG"):
        read_label(path)


def test_a_jpeg_within_a_tiff(tmp_path):
    file = io.BytesIO()
    Image.fromarray(all_ids(8).astype(np.uint8)).save(file, "TIFF", compression="jpeg")
    (tmp_path / "a.tif").write_bytes(file.getvalue())
    with pytest.raises(BadLabel, match="changes ids"):
        read_label(tmp_path / "a.tif")
