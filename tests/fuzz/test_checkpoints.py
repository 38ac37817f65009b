"""Readers of weights and CAMs on thousands of damaged files: a result or the documented error."""

from __future__ import annotations

import functools
import io
import json
import zlib

import numpy as np
import pytest

from clipseg_jax.methods.clip_es.published_cams import read_cam
from clipseg_jax.methods.clip_es.stored_cams import read_cams
from clipseg_jax.stages.label_list import read_label_list
from tests.fuzz.harness import INPUTS, check_reader
from tests.weights_convert import toys
from tests.weights_convert.dino import toys as dino_toys
from weights_convert import convert_dino, load_trained, read, save_converted
from weights_convert.__main__ import inspect
from weights_convert.clip.record import load_converted_clip
from weights_convert.formats import safetensors
from weights_convert.formats.caffe import read_caffe
from weights_convert.formats.torch_writer import write_torch
from weights_convert.trained.deeplab import build_deeplab
from weights_convert.trained.kinds import FORMATS, format_of
from weights_convert.trained.maskclip_plus.format import build_maskclip_plus

CLIP, STORED = toys.GOLDEN / "clip", toys.GOLDEN / "stored"
TRAINED = ("clip_rc", "deeplab", "maskclip_plus", "reclip_rectified", "weclip", "wtclip")


def small_legacy():
    """As torch.save wrote before 1.6, with a view, an optimizer's state and numbers beside it."""
    values = np.arange(12, dtype=np.float32)
    body = toys.pickle.EMPTY_DICT + toys.pickle.MARK
    body += toys.P("a.weight")
    body += toys.tensor(toys.storage("FloatStorage", "7", 12, None), 0, (3, 4), (4, 1))
    body += toys.P("state") + toys.pickle.EMPTY_DICT + toys.P(0)
    body += toys.tensor(toys.storage("FloatStorage", "7", 12, ("8", 4, 6)), 1, (2, 2), (1, 2))
    body += toys.pickle.SETITEM + toys.P("meta") + toys.P({"epoch": 3, "lr": 0.5, "x": (1, "y")})
    body += toys.pickle.SETITEMS
    out = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001}):
        out.write(toys.pickle.dumps(value, 2))
    out.write(toys.pickled(body) + toys.pickle.dumps(["7"], 2))
    out.write((12).to_bytes(8, "little") + values.tobytes())
    return out.getvalue()


def small_safetensors():
    out = io.BytesIO()
    arrays = {"a.weight": np.ones((3, 4), np.float32), "b": np.arange(5), "c": np.zeros((), bool)}
    safetensors.write(out, arrays, {"format": "pt"})
    return out.getvalue()


def small_caffe():
    from tests.weights_convert.formats.test_caffe import layer

    weight = np.ones((4, 3, 1, 1), np.float32)
    bn = [np.ones(4, np.float32), np.ones(4, np.float32), np.ones(1, np.float32)]
    return layer("conv1", weight, weight[:, 0, 0, 0]) + layer("bn2a_branch1", *bn)


def small_dino(folder):
    """A DINO as its authors store it, and converted."""
    published = write_torch(folder / "dino.pth", dino_toys.state_dict(layers=1))
    converted = save_converted(folder / "dino.safetensors", convert_dino(published))
    return published.read_bytes(), converted.read_bytes()


def small_npy(content, protocol=4):
    """As np.save writes an object."""
    out = io.BytesIO()
    array = np.empty((), object)
    array[()] = content
    np.lib.format.write_array_header_1_0(out, {"descr": "|O", "fortran_order": False, "shape": ()})
    toys.pickle.dump(array, out, protocol=protocol)
    return out.getvalue()


def small_cam(protocol=4):
    maps = np.ones((2, 5, 4), np.float16)
    return small_npy({"keys": np.array([3, 7]), "attn_highres": maps}, protocol)


def small_one_hot(protocol=4):
    return small_npy({"2007_000032": np.eye(3)[0], "2007_000039": np.eye(3)[1]}, protocol)


def small_npz():
    out = io.BytesIO()
    np.savez(out, classes=np.array([3, 7], np.int32), maps=np.ones((2, 5, 4), np.float32))
    return out.getvalue()


def signed(data):
    """A converted file with the checksum that its changed content has."""
    try:
        arrays, metadata = safetensors.parse(data)
        value = zlib.crc32(metadata["clipseg_jax"].encode())
        for name, array in arrays.items():
            value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
            value = zlib.crc32(safetensors.raw_bytes(array), value)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header["__metadata__"]["crc32"] = str(value)
        text = json.dumps(header).encode()
    except Exception:  # damaged where no checksum helps
        return data
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def hostile_record(data):
    """The record itself changed as JSON half of the times, else the whole file; then signed."""
    from tests.fuzz.mutations import mutated

    number = zlib.crc32(data)
    length = int.from_bytes(data[:8], "little")
    if number % 4 and length < len(data) and data[8:9] == b"{":
        try:
            header = json.loads(data[8 : 8 + length])
            record = header["__metadata__"]["clipseg_jax"].encode()
            record = mutated([record], number).decode()
            header["__metadata__"]["clipseg_jax"] = record
            text = json.dumps(header).encode()
            data = len(text).to_bytes(8, "little") + text + data[8 + length :]
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
    return signed(data)


def read_weights(path):
    """As `--inspect`, which prints every name, and whatever a kind of network needs."""
    read(path)
    "\n".join(inspect(path)).encode()


def read_caffemodel(path):
    read_caffe(path)


def read_converted(path):
    load_converted_clip(path)


def read_dino(path):
    convert_dino(path)


def read_trained(path):
    fmt = format_of(path) or FORMATS["weclip"]
    trained = load_trained(path, fmt)
    fmt.summary(trained.record)
    fmt.title.format_map(trained.record)
    if fmt.name == "deeplab":
        build_deeplab(trained)
    if fmt.name == "maskclip_plus":
        build_maskclip_plus(trained)


def read_stored_cam(path):
    read_cams(path, 100)


def read_labels(path):
    read_label_list(path, 3)


@functools.cache
def golden(*paths):
    return [path.read_bytes() for path in paths]


ERROR = ("CheckpointError",)
READERS = {
    "torch zip": (
        read_weights, lambda: golden(CLIP / "toy_zip.pth", CLIP / "toy_clip_jit.pt"), ERROR, ".pth"
    ),
    "torch legacy": (
        read_weights, lambda: [*golden(CLIP / "toy_legacy.pth"), small_legacy()], ERROR, ".pth"
    ),
    "safetensors": (read_weights, lambda: [small_safetensors()], ERROR, ".safetensors"),
    "caffe": (read_caffemodel, lambda: [small_caffe()], ERROR, ".caffemodel"),
    "cam": (read_cam, lambda: [small_cam(), small_cam(2)], ("ValueError",), ".npy"),
    "stored cam": (read_stored_cam, lambda: [small_npz()], ("ValueError",), ".npz"),
    "one-hot labels": (
        read_labels, lambda: [small_one_hot(), small_one_hot(2)], ("ValueError",), ".npy"
    ),
    "label list": (
        read_labels, lambda: ["a 0 1\nb 2\n\nc\nü 1\n".encode()], ("ValueError", "BadList"), ".txt"
    ),
}  # fmt: skip


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("name", READERS)
def test_reader(name, inputs):
    read_, seeds, errors, suffix = READERS[name]
    check_reader(read_, seeds(), inputs, errors, suffix=suffix)


@pytest.mark.parametrize("inputs", INPUTS)
def test_converted(inputs):
    seeds = golden(STORED / "clip.safetensors")
    check_reader(read_converted, seeds, inputs, ERROR, suffix=".safetensors", repair=hostile_record)


@pytest.mark.parametrize("inputs", INPUTS)
def test_trained(inputs):
    seeds = golden(*(STORED / f"{name}.safetensors" for name in TRAINED))
    check_reader(read_trained, seeds, inputs, ERROR, suffix=".safetensors", repair=hostile_record)


@pytest.mark.parametrize("inputs", INPUTS)
def test_dino(inputs, tmp_path):
    published, converted = small_dino(tmp_path)
    check_reader(read_dino, [published], inputs, ERROR, suffix=".pth")
    check_reader(
        read_dino, [converted], inputs, ERROR, suffix=".safetensors", repair=hostile_record
    )
