"""Containers: exact bits of good files, one clear error for each bad one, nothing ever run."""

from __future__ import annotations

import pickle
import resource
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

import weights_convert
from tests.weights_convert import toys
from weights_convert import CheckpointError, read
from weights_convert.formats.safetensors import write
from weights_convert.formats.torch_writer import write_torch

FIXTURES = ("toy_clip_jit.pt", "toy_zip.pth", "toy_legacy.pth")
KINDS = {
    "toy_clip_jit.pt": "torchscript",
    "toy_zip.pth": "torch zip",
    "toy_legacy.pth": "torch legacy",
}


@pytest.fixture(scope="module")
def expected():
    with np.load(toys.GOLDEN / "clip" / "toy_checkpoints.npz") as file:
        return {key: file[key] for key in file.files if not key.startswith("_")}


@pytest.mark.parametrize("fixture", FIXTURES)
def test_fixture_bit_for_bit(fixture, expected):
    path = toys.GOLDEN / "clip" / fixture
    assert weights_convert.read(path).kind == KINDS[fixture]
    prefix = "" if fixture.endswith(".pt") else "backbone."
    arrays = weights_convert.read_state_dict(path)
    toys.assert_same(arrays, {prefix + key: value for key, value in expected.items()})


def test_scripted_numbers_are_kept(expected):
    converted = weights_convert.convert(toys.GOLDEN / "clip" / "toy_clip_jit.pt")
    assert {"input_resolution", "context_length", "vocab_size"} <= set(converted.record["carried"])
    toys.assert_same(weights_convert.to_state_dict(converted), expected)


def test_meta_beside_the_weights(tmp_path):
    content = {"state_dict": {"x": np.ones(3, np.float32)}, "meta": {"epoch": 3, "lr": 0.5}}
    write_torch(tmp_path / "a.pth", content)
    assert weights_convert.read(tmp_path / "a.pth").content["meta"] == content["meta"]


# Names that no state dict needs; the last five are allowed in another module or nearly.
HOSTILE = [
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("__builtin__", "eval"),
    ("torch.hub", "load"),
    ("os", "OrderedDict"),
    ("torch", "_rebuild_tensor_v2"),
    ("numpy", "scalar"),
    ("torch.cuda", "FloatStorage"),
    ("__torch__x", "Module"),
]


def _call(module, attribute, command):
    return toys.name(module, attribute) + toys.P(command) + pickle.TUPLE1 + pickle.REDUCE


def _call_by_stack(module, attribute, command):
    return toys.P(module) + toys.P(attribute) + b"\x93" + toys.P(command) + b"\x85R"


def _zip(path, body):
    toys.zipped(path, toys.pickled(body))


def _zip_nested(path, body):
    _zip(path, pickle.EMPTY_DICT + toys.P("state_dict") + body + pickle.SETITEM)


def _legacy(path, body):
    toys.legacy(path, toys.pickled(body))


def _legacy_first(path, body):
    path.write_bytes(toys.pickled(body) + b" " * 16)


def _script(path, body):
    module = toys.name("__torch__.torch.nn", "Module") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    state = pickle.EMPTY_DICT + toys.P("weight") + body + pickle.SETITEM
    _zip(path, module + state + pickle.BUILD)


@pytest.mark.parametrize("form", [_zip, _zip_nested, _legacy, _legacy_first, _script])
@pytest.mark.parametrize("call", [_call, _call_by_stack])
def test_hostile_pickle_is_named_and_not_run(form, call, tmp_path):
    for module, attribute in HOSTILE:
        ran, path = tmp_path / "ran", tmp_path / "hostile.pt"
        command = f"touch {ran}" if attribute == "system" else f"open({str(ran)!r}, 'w')"
        form(path, call(module, attribute, command))
        with pytest.raises(CheckpointError, match="nothing was run") as caught:
            weights_convert.read(path)
        assert f"{module}.{attribute}," in str(caught.value)
        assert str(path) in str(caught.value)
        assert not ran.exists()


def test_allowed_names_cannot_be_changed(tmp_path):
    """BUILD sets attributes: of numpy's shared dtypes, of a storage, of what is called."""
    order = (3, ">", None, None, None, -1, -1, 0)
    dtype = toys.name("numpy", "dtype") + toys.P(("f8", False, True)) + pickle.REDUCE
    scalar = (
        toys.name("numpy.core.multiarray", "scalar")
        + pickle.MARK + dtype + toys.P(order) + pickle.BUILD
        + toys.name("_codecs", "encode") + toys.P(("?ð\x00\x00\x00\x00\x00\x00", "latin1"))
        + pickle.REDUCE + pickle.TUPLE + pickle.REDUCE
    )  # fmt: skip
    toys.zipped(tmp_path / "a.pt", toys.pickled(scalar))
    assert weights_convert.read(tmp_path / "a.pt").content == 1.0
    assert np.dtype("f8").isnative
    storage = toys.storage("FloatStorage", "0", 1)
    for target in (storage, toys.tensor(storage, 0, (1,), (1,)), toys.name("torch", "Size"),
                   toys.name("collections", "OrderedDict"), toys.name("torch", "FloatStorage"),
                   toys.name("__torch__", "Module")):  # fmt: skip
        for state in ({"data": "x" * 64}, (None, {"data": "x" * 64})):
            body = toys.pickled(target + toys.P(state) + pickle.BUILD)
            path = toys.zipped(tmp_path / "b.pt", body, [bytes(4)])
            with pytest.raises(CheckpointError):
                weights_convert.read(path)


def test_numpy_objects_and_other_storages_are_refused(tmp_path):
    for code in ("O", "V8", "f8,O"):
        dtype = toys.name("numpy", "dtype") + toys.P((code, False, True)) + pickle.REDUCE
        with pytest.raises(CheckpointError, match="numpy dtype"):
            weights_convert.read(toys.zipped(tmp_path / "a.pt", toys.pickled(dtype)))
    odd = toys.storage("Size", "0", 1)
    with pytest.raises(CheckpointError, match="storage of 1 elements"):
        weights_convert.read(toys.zipped(tmp_path / "b.pt", toys.pickled(odd), [bytes(8)]))


def test_any_byte_but_zero_is_true(tmp_path):
    body = toys.tensor(toys.storage("BoolStorage", "0", 4), 0, (4,), (1,))
    path = toys.zipped(tmp_path / "a.pt", toys.pickled(body), [bytes([0, 1, 2, 255])])
    array = weights_convert.read(path).content
    assert array.dtype == np.bool_
    assert array.view(np.uint8).tolist() == [0, 1, 1, 1]


def test_legacy_views_share_a_storage(tmp_path):
    values = np.arange(12, dtype=np.float32)
    body = pickle.MARK
    body += toys.tensor(toys.storage("FloatStorage", "7", 12, None), 0, (12,), (1,))
    body += toys.tensor(toys.storage("FloatStorage", "7", 12, ("8", 4, 6)), 1, (2, 2), (1, 2))
    path = toys.legacy(tmp_path / "a.pth", toys.pickled(body + pickle.LIST), [("7", values)])
    whole, part = weights_convert.read(path).content
    np.testing.assert_array_equal(whole, values)
    np.testing.assert_array_equal(part, [[5, 7], [6, 8]])
    for view in (("8", 8, 6), ("8", -1, 2)):
        body = toys.tensor(toys.storage("FloatStorage", "7", 12, view), 0, (1,), (1,))
        toys.legacy(path, toys.pickled(body), [("7", values)])
        with pytest.raises(CheckpointError, match=r"of storage 7|a size of -1"):
            weights_convert.read(path)


def test_tensor_larger_than_its_storage(tmp_path):
    for size, stride, offset in (((3, 2), (2, 1), 0), ((2,), (1,), 3), ((2,), (9,), 0)):
        body = toys.tensor(toys.storage("FloatStorage", "0", 4), offset, size, stride)
        path = toys.zipped(tmp_path / "a.pt", toys.pickled(body), [bytes(16)])
        with pytest.raises(CheckpointError, match="beyond its storage of 4"):
            weights_convert.read(path)
    body = toys.tensor(toys.storage("FloatStorage", "0", 4), 0, (2,), (-1,))
    with pytest.raises(CheckpointError, match="a size of -1"):
        weights_convert.read(toys.zipped(path, toys.pickled(body), [bytes(16)]))


def test_storage_shorter_than_told(tmp_path):
    body = toys.pickled(toys.tensor(toys.storage("FloatStorage", "0", 4), 0, (2,), (1,)))
    with pytest.raises(CheckpointError, match="12 bytes, 16 expected"):
        weights_convert.read(toys.zipped(tmp_path / "a.pt", body, [bytes(12)]))
    with pytest.raises(CheckpointError, match="archive/data/0 is missing"):
        weights_convert.read(toys.zipped(tmp_path / "b.pt", body))
    legacy = toys.legacy(tmp_path / "c.pt", body, [("0", np.zeros(3, np.float32))])
    with pytest.raises(CheckpointError, match="storage 0 of 4 elements has 3"):
        weights_convert.read(legacy)
    with pytest.raises(CheckpointError, match="no data for the storages"):
        weights_convert.read(toys.legacy(tmp_path / "d.pt", body))


def test_empty_tensors(tmp_path):
    content = {"none": np.zeros((0, 3), np.float32), "one": np.float16([2])}
    for path in (tmp_path / "a.pt", tmp_path / "b.safetensors"):
        if path.suffix == ".pt":
            write_torch(path, content)
        else:
            with path.open("wb") as file:
                write(file, content, {})
        toys.assert_same(weights_convert.read_state_dict(path), content)


def test_compressed_member(tmp_path):
    path = toys.zipped(tmp_path / "a.pt", toys.pickled(b"}"), (), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        weights_convert.read(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"short", "holds 5 bytes"),
        (b"<html>404 not found</html>" * 9, "is a web page"),
        (b"PK\x03\x04" + bytes(99), "damaged zip"),
        (b"\x80\x02" + bytes(99), "not a readable checkpoint"),
        (b"\x10" + bytes(7) + b'{"a": [1, 2]}   ', "not a readable checkpoint"),
        (pickle.dumps([1] * 20, 2), "torch.save did not write"),
    ],
)
def test_no_checkpoint(content, says, tmp_path):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        weights_convert.read(path)
    assert str(path) in str(caught.value)


def test_plain_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("photo.jpg", b"x")
    with pytest.raises(CheckpointError, match=r"without PyTorch's data\.pkl"):
        weights_convert.read(tmp_path / "a.zip")


@pytest.mark.parametrize(
    "huge",
    [
        b"Nr\xff\xff\xff\x7f",  # LONG_BINPUT into the memo's element 2**31
        b"\x96" + (2**40).to_bytes(8, "little"),  # BYTEARRAY8
        b"\x8e" + (2**40).to_bytes(8, "little"),  # BINBYTES8
        b"\x8b" + (2**31 - 1).to_bytes(4, "little"),  # LONG4
    ],
)
def test_no_memory_for_what_is_not_there(huge, tmp_path):
    path = toys.zipped(tmp_path / "a.pt", toys.pickled(huge))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    try:
        if huge[:1] == b"N":
            assert weights_convert.read(path).content is None
        else:
            with pytest.raises(CheckpointError):
                weights_convert.read(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _samples(tmp_path):
    for fixture in FIXTURES:
        yield (toys.GOLDEN / "clip" / fixture).read_bytes()
    path = tmp_path / "toy.safetensors"
    with path.open("wb") as file:
        write(file, {"a": np.ones((3, 4), np.float32), "b": np.ones(5, np.int64)}, {"format": "pt"})
    yield path.read_bytes()


def test_cut_short(tmp_path):
    path = tmp_path / "cut"
    for whole in _samples(tmp_path):
        for kept in (1, 40, len(whole) // 3, len(whole) * 9 // 10, len(whole) - 1):
            path.write_bytes(whole[:kept])
            with pytest.raises(CheckpointError):
                weights_convert.read(path)


def test_damage_raises_nothing_else(tmp_path):
    """Flipped bytes may go unseen in raw tensor bytes, but no other error may come out."""
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    for whole in _samples(tmp_path):
        refused = 0
        for position in rng.integers(0, len(whole), 150):
            damaged = bytearray(whole)
            damaged[position] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            try:
                weights_convert.read(path)
            except CheckpointError:
                refused += 1
        assert refused


def test_a_safetensors_header_of_any_length(tmp_path):
    """Its first byte is of the header's length; 0x80 is no pickle."""
    arrays, first = {"a": np.arange(3, dtype=np.float32)}, set()
    for extra in range(0, 256, 4):
        path = tmp_path / "file.safetensors"
        with path.open("wb") as file:
            write(file, arrays, {"about": "x" * extra})
        first.add(path.read_bytes()[0])
        toys.assert_same(weights_convert.read_state_dict(path), arrays)
    assert 0x80 in first


def test_a_flipped_bit_in_an_archive_is_told(tmp_path):
    path = write_torch(tmp_path / "a.pth", {"a": np.arange(1000, dtype=np.float32)})
    content = bytearray(path.read_bytes())
    content[content.index(np.arange(1000, dtype=np.float32).tobytes()) + 6] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="data/0 has another checksum than stated"):
        read(path)


def test_a_member_twice_is_refused(tmp_path):
    path = write_torch(tmp_path / "a.pth", {"a": np.arange(10, dtype=np.float32)})
    with zipfile.ZipFile(path, "a") as archive:
        name = next(n for n in archive.namelist() if n.endswith("data/0"))
        with warnings.catch_warnings(action="ignore"):
            archive.writestr(name, bytes(40))
    with pytest.raises(CheckpointError, match="two members of one name"):
        read(path)
