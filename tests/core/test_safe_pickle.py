"""The restricted unpickler: what a table allows is built, nothing else is even looked up."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest

from clipseg_jax.core import safe_pickle
from clipseg_jax.core.npy import NUMPY
from clipseg_jax.core.safe_pickle import (
    ForbiddenNameError,
    Function,
    NumpyDtype,
    SafeUnpickler,
    resolve,
    shown,
    sizes,
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


def text(value):
    raw = value.encode()
    return pickle.BINUNICODE + len(raw).to_bytes(4, "little") + raw


DEEP = b")" + pickle.TUPLE1 * 100_000
SHARED = b")q\x000" + b"".join(
    b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(60)
)


@pytest.mark.parametrize("key", [DEEP, SHARED + b"h\x3c", b"]", b"\x8f", text("x" * 10_001)])
@pytest.mark.parametrize("place", ["}%sNs", "}(%sNu", "(%sNd", "\x8f(%s\x90", "(%s\x91"])
def test_keys_and_members_are_plain(key, place):
    """To hash a tuple within tuples takes the stack of the process, or for ever."""
    before, after = place.encode("latin1").split(b"%s")
    with pytest.raises(pickle.UnpicklingError, match="as a key"):
        load(before + key + after)


def test_plain_keys():
    content = {"a": 1, 2: 3, b"c": 4, None: 5, True: 6, 0.5: 7, -(2**63): 8}
    members = {"a", 2, None}
    assert load(pickle.dumps([content, members], 4)[2:-1]) == [content, members]


@pytest.mark.parametrize(
    "body",
    [
        b"\x8f" * 50_000,  # sets of one byte each
        b"(" * 80_000,
        b"NQ" * 40_000,
        text("x" * 10_000) + b"q\x000" + named("_codecs", "encode")
        + b"q\x010](" + b"h\x01h\x00\x85R" * 4000 + b"e",
    ],
)  # fmt: skip
def test_the_budget(body, monkeypatch):
    monkeypatch.setattr(safe_pickle, "LEAST_ALLOWED", 10**7)
    with pytest.raises(pickle.UnpicklingError, match="fill the memory"):
        load(body, persistent_load=str)


def test_the_budget_follows_the_file(monkeypatch):
    monkeypatch.setattr(safe_pickle, "LEAST_ALLOWED", 10**7)
    assert load(b"\x8f" * 50_000 + b"N", size=2 * 10**7) is None


def test_a_shared_part_is_made_once():
    shared = {"a": [1, 2]}
    resolved = resolve({"x": shared, "y": (shared, shared)})
    assert resolved == {"x": shared, "y": [shared, shared]}
    assert resolved["x"] is resolved["y"][0]


def test_leaves_are_converted():
    assert resolve({"x": [1, (2.0, "y")], "z": {3}}, str) == {"x": ["1", ["2.0", "y"]], "z": ["3"]}


def test_a_sealed_leaf_is_converted_once():
    function, made = Function(int), []
    resolved = resolve([function, {"a": function}], lambda value: made.append(value) or len(made))
    assert resolved == [1, {"a": 1}]


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def doubled(levels):
    value = []
    for _ in range(levels):
        value = [value, value]
    return value


def itself():
    value = {}
    value["a"] = [value]
    return value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (nested(200), "containers within each other"),
        (nested(100_000), "containers within each other"),
        (doubled(60), "shared parts"),
        ([nested(60), {"a": [nested(60)] * 3, "b": nested(99)}], "containers within each other"),
        (itself(), "holds itself"),
    ],
)
def test_structures_without_bound(content, said):
    with pytest.raises(pickle.UnpicklingError, match=said):
        resolve(content)


def test_names_for_messages():
    assert shown("visual.proj") == "visual.proj"
    assert shown("\x1b[2J\ud800").isprintable()
    assert len(shown("x" * 10**6)) < 120
    assert shown(10**9999) == "a very large number"
    assert shown(DEEP) == "a bytes"
    assert shown([1]) == "a list"


def test_sizes():
    assert sizes([3, 0]) == (3, 0)
    for value in ("12", None, [-1], [2**63], [1.0], [True], [1] * 33, [[1]]):
        with pytest.raises(pickle.UnpicklingError, match=r"size|shape"):
            sizes(value)
