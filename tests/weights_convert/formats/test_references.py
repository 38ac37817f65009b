"""Parts of a pickle that are referred to many times: made once, and paid for."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest

import weights_convert
from clipseg_jax.core import safe_pickle
from tests.weights_convert import toys
from weights_convert import CheckpointError
from weights_convert.formats import reader
from weights_convert.formats.torch_writer import write_torch

REFERENCES = 3000
VALUES = np.arange(12, dtype=np.float32)
WHOLE = toys.storage("FloatStorage", "7", 12, None)
KEEP = pickle.LONG_BINPUT + bytes([9, 0, 0, 0])
AGAIN = pickle.LONG_BINGET + bytes([9, 0, 0, 0])


def listed(body):
    return toys.pickled(pickle.EMPTY_LIST + pickle.MARK + body + pickle.APPENDS)


def test_a_tensor_is_one_array(tmp_path):
    body = toys.tensor(WHOLE, 1, (3,), (2,)) + KEEP + AGAIN * REFERENCES
    path = toys.legacy(tmp_path / "a.pth", listed(body), [("7", VALUES)])
    found = weights_convert.read(path).content
    assert len(found) == 1 + REFERENCES
    assert len(set(map(id, found))) == 1
    np.testing.assert_array_equal(found[0], [1, 3, 5])
    assert not found[0].flags.writeable


def views(references):
    """Opcodes of a list with as many references to one view of a storage."""
    view = toys.storage("FloatStorage", "7", 12, ("8", 4, 6))
    pid = view.removesuffix(pickle.BINPERSID) + KEEP + pickle.BINPERSID
    body = toys.tensor(WHOLE, 0, (12,), (1,)) + pid + (AGAIN + pickle.BINPERSID) * references
    return listed(body)


def test_a_view_of_a_storage_is_made_once(tmp_path):
    path = toys.legacy(tmp_path / "a.pth", views(REFERENCES), [("7", VALUES)])
    _, *parts = weights_convert.read(path).content
    assert len(set(map(id, parts))) == 1
    np.testing.assert_array_equal(parts[0].data, VALUES[4:10])


def test_references_to_storages_are_paid_for(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_pickle, "LEAST_ALLOWED", 200 * REFERENCES)
    path = toys.legacy(tmp_path / "a.pth", views(REFERENCES), [("7", VALUES)])
    with pytest.raises(CheckpointError, match="fill the memory"):
        weights_convert.read(path)


def test_an_array_takes_little_beside_its_data(tmp_path):
    tensor = toys.tensor(toys.storage("FloatStorage", "0", 1), 0, (1,), (1,))
    call, parts = tensor.split(pickle.MARK, 1)
    arguments = pickle.MARK + parts.removesuffix(pickle.REDUCE) + KEEP
    body = call + arguments + pickle.REDUCE + (call + AGAIN + pickle.REDUCE) * REFERENCES
    path = toys.zipped(tmp_path / "a.pt", listed(body), [bytes(4)])
    tracemalloc.start()
    try:
        assert len(weights_convert.read(path).content) == 1 + REFERENCES
        assert tracemalloc.get_traced_memory()[1] < 600 * REFERENCES
    finally:
        tracemalloc.stop()


def test_names_by_shared_parts_are_limited(tmp_path, monkeypatch):
    long = "x" * 300
    shared = {f"{long}{i}": np.ones(1, np.float32) for i in range(20)}
    write_torch(tmp_path / "a.pth", {"a": shared})
    monkeypatch.setattr(reader, "_LARGEST_NAMES", 10_000)
    assert len(weights_convert.read_state_dict(tmp_path / "a.pth")) == 20
    body = pickle.EMPTY_DICT + pickle.MARK + toys.P("0") + pickle.EMPTY_DICT + KEEP + pickle.MARK
    for name in shared:
        body += toys.P(name) + toys.tensor(toys.storage("FloatStorage", "0", 1), 0, (1,), (1,))
    body += pickle.SETITEMS + b"".join(toys.P(str(i)) + AGAIN for i in range(1, 50))
    path = toys.zipped(tmp_path / "b.pt", toys.pickled(body + pickle.SETITEMS), [bytes(4)])
    with pytest.raises(CheckpointError, match="names of tensors of more than 10,000 bytes"):
        weights_convert.read(path)
