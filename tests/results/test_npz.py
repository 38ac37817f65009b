"""Stored scores: what NumPy reads, and what a damaged or strange file says."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from clipseg_jax.results.npz import has_scores, load_scores, save_scores
from clipseg_jax.segmentation import ClassScores

NAMES = ("background", "cow", "a sign, wei\u00df")


def scores(height=6, width=8, size=(12, 16)):
    values = np.random.default_rng(0).dirichlet(np.ones(3), (height, width)).astype(np.float32)
    return ClassScores(values, NAMES, size)


def test_numpy_reads_them_without_pickles(tmp_path):
    path = save_scores(tmp_path / "a.npz", scores())
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"scores", "names", "size"}
        assert (file["scores"].dtype, file["scores"].shape) == (np.float16, (6, 8, 3))
        assert tuple(file["names"]) == NAMES
        assert file["size"].tolist() == [12, 16]
        np.testing.assert_allclose(file["scores"], scores().values, atol=5e-4)
        read = load_scores(path)
        np.testing.assert_array_equal(read.values, file["scores"])
    assert (read.names, read.image_size) == (NAMES, (12, 16))
    labels = read.segmentation(0.5).labels
    assert set(np.unique(labels)) <= {0, 1, 2}
    assert [*tmp_path.iterdir()] == [path]


def npz(**changed):
    arrays = {"scores": np.zeros((2, 3, 2), np.float16), "names": np.array(["a", "b"])}
    arrays |= {"size": np.array([2, 3], np.int32)}
    file = io.BytesIO()
    np.savez(
        file, **{key: value for key, value in {**arrays, **changed}.items() if value is not None}
    )
    return file.getvalue()


def compressed():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scores.npy", bytes(10**6))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        npz()[:-30],
        npz(names=None),
        npz(scores=np.zeros((2, 3, 2), np.float32)),
        npz(scores=np.zeros((2, 3), np.float16)),
        npz(scores=np.zeros((0, 3, 2), np.float16)),
        npz(names=np.array(["a"])),
        npz(names=np.array([1, 2])),
        npz(size=np.array([1, 3], np.int32)),
        npz(size=np.array([2.0, 3.0])),
        npz(scores=np.full((2, 3, 2), np.nan, np.float16)),
        npz(scores=np.full((2, 3, 2), 2, np.float16)),
        npz(names=np.array([{"a": 1}, "b"], object)),
        compressed(),
    ],
    ids=range(15),
)
def test_other_files_are_named_with_the_remedy(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz .*; delete it, and run predict again") as error:
        load_scores(path)
    assert "\n" not in str(error.value)


def test_whole_files_of_the_asked_size_count(tmp_path):
    path = tmp_path / "a.npz"
    assert not has_scores(path, 8)
    save_scores(path, scores())
    assert has_scores(path, 8)
    assert not has_scores(path, 16)
    assert not has_scores(path, 4)
    save_scores(path, scores(size=(6, 8)))  # of a small image
    assert has_scores(path, 16)
    path.write_bytes(path.read_bytes()[:-20])
    assert not has_scores(path, 16)
    path.write_bytes(b"no archive")
    assert not has_scores(path, 16)
