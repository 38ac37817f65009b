"""Readers of data sets: images, label maps, COCO's objects, records, lists, image labels."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("pycocotools.mask")

import tensorflow_datasets.proto.tf_example_pb2
from array_record.python import array_record_module
from scipy.io import loadmat, savemat

from clipseg_jax.stages.label_list import read_label_list
from input_pipeline import records_build
from input_pipeline.datasets import coco, images, records
from input_pipeline.datasets.catalog import VOC12_20, folder
from input_pipeline.datasets.image_labels import image_labels
from input_pipeline.datasets.images import BadLabel, image_size, read_image, read_label
from input_pipeline.datasets.layout import Annotations, Example, Layout, Part, Split
from input_pipeline.prepare.conversions import read_raw
from input_pipeline.text_lists import read_list
from tests import seeded
from tests.fuzz.harness import INPUTS, check_reader
from tests.input_pipeline.coco_files import SIZE, box, instances, thing

assert loadmat
assert tensorflow_datasets.proto.tf_example_pb2  # readers import nothing then

RGB = Image.fromarray(seeded.image(24, 31, 0))
EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 6, "a text"


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def text_chunks() -> TiffImagePlugin.ImageFileDirectory_v2:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[270], info[700] = "a text", b"<xmp>"
    return info


GREY, INDEXED, ALPHA = RGB.convert("L"), RGB.quantize(9), RGB.convert("RGBA")
SEEDS = {
    "jpg": [
        encoded(RGB, "JPEG", exif=EXIF, icc_profile=bytes(99)),
        encoded(GREY, "JPEG", progressive=True),
        encoded(RGB.convert("CMYK"), "JPEG"),
        encoded(RGB, "MPO", save_all=True, append_images=[RGB]),
    ],
    "png": [
        encoded(RGB, "PNG", exif=EXIF, icc_profile=bytes(99), dpi=(70, 70)),
        encoded(INDEXED, "PNG", transparency=3),
        encoded(GREY.convert("1"), "PNG"),
        encoded(GREY.convert("I;16"), "PNG"),
        encoded(ALPHA, "PNG", save_all=True, append_images=[ALPHA.rotate(90)]),
    ],
    "webp": [
        encoded(RGB, "WEBP", exif=EXIF),
        encoded(ALPHA, "WEBP", lossless=True, xmp=b"<xmp>"),
        encoded(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(90)]),
    ],
    "tif": [
        encoded(RGB, "TIFF", tiffinfo=text_chunks()),
        encoded(RGB, "TIFF", compression="tiff_lzw", exif=EXIF),
        encoded(INDEXED, "TIFF", compression="tiff_deflate"),
        encoded(GREY.convert("1"), "TIFF", compression="group4"),
        encoded(RGB, "TIFF", compression="jpeg", big_tiff=True),
    ],
    "gif": [
        encoded(INDEXED, "GIF", comment=b"a text"),
        encoded(INDEXED, "GIF", save_all=True, append_images=[INDEXED.rotate(90)], interlace=1),
    ],
    "bmp": [encoded(RGB, "BMP"), encoded(INDEXED, "BMP"), encoded(GREY.convert("1"), "BMP")],
}


def with_checksums(data: bytes) -> bytes:
    """A PNG with the right checksums, so that what lies behind them is reached."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        parts += [data[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + length
    return b"".join(parts) + data[at:]


def read_small_image(path: Path) -> None:
    images.MAX_PIXELS = 20_000_000  # a bound on memory that fits the harness's
    height, width = image_size(path)
    assert 0 < height * width <= images.MAX_PIXELS
    assert read_image(path).ndim == 3


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("form", SEEDS)
def test_images(form, inputs):
    check_reader(read_small_image, SEEDS[form], inputs, ("BadImage",), suffix=f".{form}")


@pytest.mark.parametrize("inputs", INPUTS)
def test_images_of_right_checksums(inputs):
    check_reader(
        read_small_image, SEEDS["png"], inputs, ("BadImage",), suffix=".png", repair=with_checksums
    )


def read_small_label(path: Path) -> None:
    images.MAX_PIXELS = 20_000_000
    label = read_label(path, 21)
    assert label.dtype == np.int32
    assert ((label < 21) | (label == 255)).all()


@pytest.mark.parametrize("inputs", INPUTS)
def test_label_maps(inputs):
    ids = Image.fromarray((seeded.label_map(24, 31, 21, 0) % 21).astype(np.uint8))
    coloured = ids.copy()
    coloured.putpalette(bytes(range(256)) * 3)
    seeds = [encoded(image, "PNG") for image in (ids, coloured, ids.convert("I;16"))]
    check_reader(
        read_small_label, seeds, inputs, ("BadLabel",), suffix=".png", repair=with_checksums
    )


def draw_objects(path: Path) -> None:
    images.MAX_PIXELS = coco.MAX_PIXELS = 20_000_000
    for image in coco.read_instances(path).values():
        try:
            assert coco.draw(image).shape == image.size
        except BadLabel as error:
            assert str(error).startswith(image.name)


@pytest.mark.parametrize("inputs", INPUTS)
def test_objects_of_coco(inputs):
    run = {"size": list(SIZE), "counts": [5, 20, SIZE[0] * SIZE[1] - 25]}
    packed = {"size": list(SIZE), "counts": "5d0gl0"}
    objects = {
        "a.jpg": [thing(0, box(0, 0, 5, 5)), thing(3, [*box(2, 2, 4, 4), *box(9, 9, 3, 3)], 2.5)],
        "b.jpg": [thing(5, run, iscrowd=1), thing(6, packed), thing(7, [])],
        "c.jpg": [],
    }
    seeds = [json.dumps(instances(objects)).encode()]
    check_reader(draw_objects, seeds, inputs, ("BadFile",), suffix=".json")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, bytes]:
    """The files of a small folder of records."""
    root = tmp_path_factory.mktemp("records")
    for name in ("images", "labels"):
        (root / name).mkdir()
    for i in range(3):
        RGB.save(root / f"images/{i}.jpg")
        GREY.point(lambda value: value % 3).save(root / f"labels/{i}.png")
    records_build.build(folder(root, ["a", "b", "c"]), root, root / "out", ["val"], name="x")
    kept = {p.name: p.read_bytes() for p in (root / "out").iterdir() if "array_record" in p.name}
    return kept


def read_records(path: Path) -> None:
    images.MAX_PIXELS = 20_000_000
    for example in records.index_records(folder("", ["a"]).layout, str(path), "val"):
        for file in (example.image_path, example.label_path):
            file.read_bytes()
        image_size(example.image_path)


@pytest.mark.parametrize("inputs", INPUTS)
def test_records(built, inputs):
    check_reader(read_records, [built], inputs, ("RecordsError", "BadFile", "BadImage"))


def read_index(path: Path) -> None:
    records.INDEX = f"{path.name}.array_record"
    writer = array_record_module.ArrayRecordWriter(f"{path}.array_record", "group_size:1")
    writer.write(path.read_bytes())
    writer.close()
    for split in ("val", "train"):
        records.index_records(VOC12_20.layout, str(path.parent), split)


@pytest.mark.parametrize("inputs", INPUTS)
def test_indices_of_records(inputs):
    """The JSON text inside; the shards it names are not there."""
    split = {
        "source": VOC12_20.layout.source("val"),
        "labels": True,
        "shards": [],
        "names": [],
        "sizes": [],
        "image_labels": [],
    }
    full = split | {
        "shards": [{"file": "x.array_record", "records": 2, "bytes": 10}],
        "names": ["a", "b"],
        "sizes": [[3, 4], [5, 6]],
        "image_labels": [[0], [3, 4]],
    }
    del split["image_labels"]
    splits = {
        "val": split | {"source": VOC12_20.layout.source("val")},
        "train": split | {"source": VOC12_20.layout.source("train")},
        "more": full,
    }
    seeds = [json.dumps({"format": 1, "dataset": "x", "splits": splits}).encode()]
    check_reader(
        read_index, seeds, inputs, ("RecordsError", "ValueError"), suffix=".json", names_file=False
    )


def read_both_lists(path: Path) -> None:
    assert read_list(path)
    try:
        read_label_list(path, 20)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("inputs", INPUTS)
def test_lists(inputs):
    text = "2007_000001 0 3\r\n2007_000002 19\nB\u00e4r 7 8 9\n\n/JPEGImages/a.jpg\n"
    seeds = [text.encode(each) for each in ("utf-8", "utf-8-sig", "utf-16", "utf-32")]
    check_reader(read_both_lists, seeds, inputs, ("BadList",), suffix=".txt")


SPLIT = Split((Part("images", None),), annotations=Annotations(xml="."))
ANNOTATED = dataclasses.replace(VOC12_20, layout=Layout((("val", SPLIT),)))


def read_objects_of_voc(path: Path) -> None:
    (ids,), _ = image_labels(ANNOTATED, path.parent, "val", [Example(path.stem, path, None)])
    assert all(0 <= i < 20 for i in ids)


@pytest.mark.parametrize("inputs", INPUTS)
def test_annotations_of_voc(inputs):
    entries = "".join(f"<object><name>{name}</name></object>" for name in ("cat", "dog", "cat"))
    bomb = '<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;&x;">]>'
    seeds = [
        f"<annotation><folder>VOC</folder>{entries}</annotation>".encode(),
        f"{bomb}<annotation><source>&y;</source>{entries}</annotation>".encode(),
    ]
    check_reader(read_objects_of_voc, seeds, inputs, ("BadFile",), suffix=".xml")


@pytest.mark.parametrize("inputs", INPUTS)
def test_raw_maps(inputs, tmp_path):
    ids = seeded.label_map(9, 11, 20, 0)
    seeds = []
    for compressed in (False, True):
        for content in ({"LabelMap": ids.astype(np.uint16)}, {"GTcls": {"Segmentation": ids}}):
            savemat(tmp_path / "a.mat", content, do_compression=compressed)
            seeds.append((tmp_path / "a.mat").read_bytes())
    check_reader(read_raw, seeds, inputs, ("BadLabel",), suffix=".mat")
