"""MATLAB files: the same ids as SciPy reads, and one error for anything else."""

import io
import struct

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import eye

from input_pipeline.prepare import mat_files
from input_pipeline.prepare.mat_files import read_ids
from tests import seeded

IDS = seeded.label_map(9, 11, 20, 0)


def saved(content, compress=False):
    file = io.BytesIO()
    savemat(file, content, do_compression=compress)
    return file.getvalue()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8", "i8"])
def test_ids_equal_scipys(dtype, compress):
    ids = IDS.astype(dtype)
    boundaries = np.empty((20, 1), object)  # SBD's, which are passed over
    for i in range(20):
        boundaries[i, 0] = eye(9, 11, format="csc")
    segmentation = {"Boundaries": boundaries, "Segmentation": ids, "CategoriesPresent": ids[:1]}
    for content in ({"other": 1.0, "LabelMap": ids}, {"GTcls": segmentation}):
        read = read_ids(saved(content, compress))
        np.testing.assert_array_equal(read, IDS)
        expected = loadmat(io.BytesIO(saved(content)))
        expected = expected.get("LabelMap", ids)
        assert read.dtype == expected.dtype


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1)])
def test_small_maps_lie_in_their_tags(shape):
    ids = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(read_ids(saved({"LabelMap": ids})), ids)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a MATLAB file of version 5"),
        (saved({"LabelMap": IDS})[:-9], "longer than what contains it"),
        (saved({"LabelMap": IDS})[:130], "damaged"),
        (saved({"LabelMap": IDS}, True)[:-9], "longer than what contains it"),
        (saved({"Other": IDS}), "neither LabelMap nor GTcls"),
        (saved({"LabelMap": "text"}), "an array of class 4"),
        (saved({"LabelMap": np.zeros((2, 3, 4))}), "shape .2, 3, 4."),
        (saved({"LabelMap": {"a": 1}}), "an array of class 2"),
        (saved({"LabelMap": np.zeros((0, 4))}), "0 values"),
        (saved({"GTcls": IDS}), "GTcls is not one structure"),
        (saved({"GTcls": {"Boundaries": 1}}), "GTcls has no field Segmentation"),
    ],
)
def test_other_files(content, said):
    with pytest.raises(ValueError, match=said):
        read_ids(content)


def test_a_bomb_is_not_unpacked(monkeypatch):
    content = saved({"LabelMap": np.zeros((1000, 1000))}, True)
    monkeypatch.setattr(mat_files, "_MAX_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="an array has more than 1048576 bytes"):
        read_ids(content)


def test_bombs_of_other_arrays_are_not_unpacked(monkeypatch):
    """Many may lie before the ids, each of some kilobytes."""
    content = saved({"Other": np.zeros((100, 1000)), "LabelMap": IDS}, True)
    monkeypatch.setattr(mat_files, "_MAX_BYTES", 1 << 12)
    np.testing.assert_array_equal(read_ids(content), IDS)
    with pytest.raises(ValueError, match="neither LabelMap nor GTcls"):
        read_ids(saved({"Other": np.zeros((100, 1000))}, True))


def test_a_shape_that_lies(monkeypatch):
    content = saved({"LabelMap": IDS.astype(np.uint8)})
    at = content.index(struct.pack("<ii", *IDS.shape))
    for shape in ((9, 12), (-9, -11), (2**31 - 1, 2**31 - 1), (0, 0)):
        changed = content[:at] + struct.pack("<ii", *shape) + content[at + 8 :]
        with pytest.raises(ValueError, match="99 values of shape"):
            read_ids(changed)
