"""State files: what is damaged is named, with the remedy; JSON holds no NaN."""

from __future__ import annotations

import io
import json
import math
import os
import pickle

import numpy as np
import pytest

from clipseg_jax.core.files import json_text, load_array, load_arrays, read_json, write_json
from clipseg_jax.core.json_lines import read_lines

REMEDY = "delete it and run again"


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


WHOLE_NPY, WHOLE_NPZ = npy(np.arange(12.0)), npz(a=np.arange(12.0))
GIANT = WHOLE_NPY.replace(b"(12,), }        ", b"(10000000000,)}").ljust(len(WHOLE_NPY))
NO_JSON = {
    "empty": b"",
    "cut": b'{"images": 6, "cla',
    "a list": b"[]",
    "null": b"null",
    "text": b'"x"',
    "not UTF-8": b"\xff\xfe",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NUL bytes": bytes(64),
    "deep": b"[" * 100_000,
    "two values": b"{} {}",
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
}
NO_ARRAYS = {
    "empty": b"",
    "NUL bytes": bytes(256),
    "text": b"hello",
    "a pickle": pickle.dumps({"a": 1}),
}
NO_NPY = NO_ARRAYS | {
    "cut": WHOLE_NPY[:-8],
    "no data": WHOLE_NPY[:128],
    "half a header": WHOLE_NPY[:40],
    "pickled": npy(np.array({"a": 1}, object)),
    "a .npz": WHOLE_NPZ,
    "version 9": WHOLE_NPY[:6] + b"\x09" + WHOLE_NPY[7:],
    "another header": WHOLE_NPY.replace(b"'descr'", b"'xxxxx'"),
    "giant": GIANT,
}
NO_NPZ = NO_ARRAYS | {
    "cut": WHOLE_NPZ[:-30],
    "half": WHOLE_NPZ[: len(WHOLE_NPZ) // 2],
    "a bit flipped": WHOLE_NPZ[:200] + bytes([WHOLE_NPZ[200] ^ 1]) + WHOLE_NPZ[201:],
    "another array": npz(b=np.zeros(3)),
    "pickled": npz(a=np.array({"a": 1}, object)),
    "a .npy": WHOLE_NPY,
}


def check(read, path):
    with pytest.raises(ValueError, match=f"{path.name} is damaged .*; {REMEDY}") as error:
        read()
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < 500
    assert "pickle.load" not in said


@pytest.mark.parametrize("harm", NO_JSON)
def test_damaged_json(tmp_path, harm):
    path = tmp_path / "x.done.json"
    path.write_bytes(NO_JSON[harm])
    check(lambda: read_json(path, REMEDY), path)


@pytest.mark.parametrize("harm", NO_NPY)
def test_damaged_npy(tmp_path, harm):
    path = tmp_path / "x.npy"
    path.write_bytes(NO_NPY[harm])
    check(lambda: load_array(path, REMEDY), path)


@pytest.mark.parametrize("harm", NO_NPZ)
def test_damaged_npz(tmp_path, harm):
    path = tmp_path / "x.npz"
    path.write_bytes(NO_NPZ[harm])
    check(lambda: load_arrays(path, REMEDY, "a"), path)


def test_whole_files(tmp_path):
    (tmp_path / "x.npy").write_bytes(WHOLE_NPY)
    (tmp_path / "x.npz").write_bytes(WHOLE_NPZ)
    np.testing.assert_array_equal(load_array(tmp_path / "x.npy", REMEDY), np.arange(12.0))
    arrays = load_arrays(tmp_path / "x.npz", REMEDY, "a")
    np.testing.assert_array_equal(arrays["a"], np.arange(12.0))
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none", REMEDY)


def test_json_holds_no_nan(tmp_path):
    value = {"a": math.nan, "b": [math.inf, 1.5, (-math.inf,)], "c": {"d": np.float64("nan")}}
    path = write_json(tmp_path / "metrics.json", value)
    strict = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert strict == {"a": None, "b": [None, 1.5, [None]], "c": {"d": None}}
    assert json_text(value) == json.dumps(strict)
    path.write_text('{"a": NaN, "b": -Infinity}')  # as earlier versions wrote it
    assert read_json(path, REMEDY) == {"a": None, "b": None}


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_json(path, "delete it"),
        lambda path: load_array(path, "delete it"),
        lambda path: load_arrays(path, "delete it", "a"),
        read_lines,
    ],
)
def test_a_pipe_among_state_files_is_named_and_never_opened(tmp_path, read):
    os.mkfifo(tmp_path / "state")
    with pytest.raises(OSError, match="state is a named pipe"):
        read(tmp_path / "state")


def test_compressed_arrays_are_not_unpacked(tmp_path):
    """A file of some kilobytes must not fill the memory."""
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6))
    with pytest.raises(ValueError, match="a is compressed, or larger than the file"):
        load_arrays(tmp_path / "a.npz", REMEDY, "a")
