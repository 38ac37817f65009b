"""The restricted unpickler: what a table allows is built, nothing else is even looked up."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest

from clipseg_jax.core.pickled_arrays import NUMPY, read_dictionary
from clipseg_jax.core.safe_pickle import (
    ForbiddenNameError,
    Function,
    NumpyDtype,
    SafeUnpickler,
)


def named(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def load(body, allowed=NUMPY, **options):
    return SafeUnpickler(io.BytesIO(b"\x80\x04" + body + pickle.STOP), allowed, **options).load()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("numpy", "dtype.type"),
        ("numpy.core", "_reconstruct"),
        ("_codecs", "decode"),
    ],
)
def test_other_names_are_refused(module, name):
    with pytest.raises(ForbiddenNameError, match=rf"{module}\.{name}") as caught:
        load(named(module, name))
    assert (caught.value.module, caught.value.name) == (module, name)


def test_a_package_is_allowed_with_a_star():
    allowed = {("pack", "*"): dict, ("other", "name"): list}
    assert load(named("pack", "a"), allowed) is dict
    assert load(named("pack.below", "b"), allowed) is dict
    assert load(named("other", "name"), allowed) is list
    for module in ("packed", "other", "other.pack"):
        with pytest.raises(ForbiddenNameError):
            load(named(module, "a"), allowed)


@pytest.mark.parametrize("name", [("numpy", "dtype"), ("numpy", "ndarray"), ("_codecs", "encode")])
def test_stand_ins_cannot_be_changed(name):
    body = named(*name) + pickle.EMPTY_DICT + pickle.BUILD
    with pytest.raises(pickle.UnpicklingError, match="takes no state"):
        load(body)


def test_instructions_that_no_file_needs():
    for body in (pickle.EXT1 + b"\x01", pickle.BYTEARRAY8 + bytes(7) + b"\xff"):
        with pytest.raises(pickle.UnpicklingError, match="an instruction"):
            load(body)


def test_persistent_ids():
    body = pickle.NONE + pickle.BINPERSID
    with pytest.raises(pickle.UnpicklingError, match="unknown reference"):
        load(body)
    assert load(body, persistent_load=lambda pid: (pid, 1)) == (None, 1)


def test_dtypes():
    for code in ("f4", "i8", "c16", "U7", "?"):
        assert NumpyDtype(code).dtype == np.dtype(f"<{code}")
    assert NumpyDtype("O8", objects=True).code == "O8"
    for code in ("O", "O8", "V8", "f8,O", "M8[ns]"):
        with pytest.raises(pickle.UnpicklingError, match="numpy dtype"):
            NumpyDtype(code)


def test_functions_only_call():
    assert Function(int)("3") == 3
    assert not hasattr(Function(int), "__dict__")


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_dictionary_of_arrays(order, tmp_path):
    content = {
        "a": np.arange(6, dtype=f"{order}f4").reshape(2, 3),
        "b": np.asfortranarray(np.arange(6, dtype=f"{order}i8").reshape(2, 3)),
        "c": [1, "x", None],
    }
    np.save(tmp_path / "x.npy", content, allow_pickle=True)
    loaded = read_dictionary(tmp_path / "x.npy")
    assert list(loaded) == list(content)
    np.testing.assert_array_equal(loaded["a"], content["a"])
    np.testing.assert_array_equal(loaded["b"], content["b"])
    assert loaded["c"] == content["c"]
