"""A stranger's .npy files: what NumPy wrote is read, and no memory is reserved for what is not."""

from __future__ import annotations

import io

import numpy as np
import pytest

from clipseg_jax.core.npy import parse_array, read_dictionary


def saved(array, **options):
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="<f4").reshape(2, 3),
        np.arange(6, dtype=">i8").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
        np.array(3.0),
        np.zeros((0, 4), np.uint8),
        np.array([True, False]),
    ],
)
def test_an_array(array):
    parsed = parse_array(saved(array))
    assert parsed.dtype == array.dtype
    np.testing.assert_array_equal(parsed, array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        saved(np.zeros(4))[:-1],
        saved(np.zeros(4)).replace(b"(4,)", b"(4000000000000,)"),
        saved(np.zeros(4)).replace(b"(4,)", b"(-4,)"),
        saved(np.zeros(4)).replace(b"'<f8'", b"'|O8'"),
        saved(np.zeros(4)).replace(b"(4,)", b"(((((4)))))"),
        saved(np.zeros(2, [("a", "f4")])),
        saved(np.array([{}], object), allow_pickle=True),
    ],
)
def test_another_file(content, tmp_path):
    with pytest.raises(ValueError, match=r"no \.npy|bytes for"):
        parse_array(content)


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


def test_no_dictionary(tmp_path):
    for content in (np.zeros(3), np.array([1, "x"], object)):
        np.save(tmp_path / "x.npy", content, allow_pickle=True)
        with pytest.raises(ValueError, match=r"no \.npy file of one dictionary"):
            read_dictionary(tmp_path / "x.npy")
