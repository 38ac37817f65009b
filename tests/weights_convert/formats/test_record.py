"""Records of our own files: each entry is checked, whoever wrote the checksum."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

import weights_convert
from tests.weights_convert import toys
from weights_convert import CheckpointError
from weights_convert.__main__ import main
from weights_convert.formats.converted import Converted, load_converted, save_converted
from weights_convert.formats.record import (
    check_arrays,
    check_record,
    entries,
    list_of,
    mapping_of,
    maybe,
    number,
    one_of,
    text,
    whole,
)
from weights_convert.trained.kinds import FORMATS

STORED = toys.GOLDEN / "stored"
FILES = {
    "reclip": "reclip_rectified", "maskclip_plus": "maskclip_plus", "weclip": "weclip",
    "clip_rc": "clip_rc", "deeplab": "deeplab",
}  # fmt: skip
NAN = float("nan")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (whole(1, 9), [1, 9], [0, 10, 1.0, True, "1", None, [1]]),
        (number(0, 1), [0, 1, 0.5], [-0.1, 2, NAN, True, "0", None]),
        (text(5), ["", "abcde", "ü"], ["abcdef", "\x1b[2J", "\ud800", 1, None, []]),
        (one_of("a", True), ["a", True], ["b", 1, None, []]),
        (maybe(text()), ["x", None], [1]),
        (list_of(whole(0, 9), 1, 2), [[1], [1, 2]], [[], [1, 2, 3], ["1"], (1,), "1", None]),
        (mapping_of(whole(0, 9), 1), [{}, {"a": 1}], [{"a": "1"}, {"a": 1, "b": 2}, [], None]),
        (entries({"a": text()}, {"b": text()}), [{"a": ""}, {"a": "", "b": ""}],
         [{}, {"b": ""}, {"a": "", "c": ""}, {"a": 1}, {"a": "", "b": 1}, None, []]),
        (entries({}, {"b": text()}, others=True), [{"c": 1}], [{"b": 1}]),
    ],
)  # fmt: skip
def test_checks(check, good, bad):
    for value in good:
        check_record(value, check, "file")
    for value in bad:
        with pytest.raises(CheckpointError, match=r"^file: its record"):
            check_record(value, check, "file")


def test_the_entry_and_its_value_are_named():
    check = entries({"vision": entries({"layers": whole(1, 9)}, {})}, {})
    said = r"file: its record\.vision\.layers is 99, expected a whole number from 1 to 9"
    with pytest.raises(CheckpointError, match=said):
        check_record({"vision": {"layers": 99}}, check, "file")


def test_arrays():
    arrays = {"a": np.zeros((2, 3)), "b": np.zeros(1)}
    check_arrays(arrays, {"a": (2, 3), "b": (1,)}, "file")
    with pytest.raises(CheckpointError) as caught:
        check_arrays(arrays, {"a": (3, 2), "c": ()}, "file")
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "- c: missing", "+ b (1,): unexpected", "~ a: shape (2, 3), expected (3, 2)",
    ]  # fmt: skip


def changed(record, place, value):
    record = copy.deepcopy(record)
    *outer, last = place.split(".")
    inner = record
    for name in outer:
        inner = inner[name]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return record


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("config", KeyError), ("config", None), ("config.kind", "cnn"), ("config.vision", []),
        ("config.vision.layers", "2"), ("config.vision.layers", 9_000_000),
        ("config.vision.layers", 999), ("config.vision.width", 0), ("config.vision.patch_px", 0),
        ("config.vision.heads", 7), ("config.vision.other", 1), ("config.vision.norm_eps", NAN),
        ("config.vision.activation", "relu"), ("config.vision.blocks", [1, 1, 1, 1]),
        ("config.vision.embed_dim", 2**70), ("config.text.vocabulary", 5), ("config.text", "x"),
        ("tokenizer", {"merges": [["a"]], "ids": None}), ("tokenizer", []), ("parameters", "many"),
        ("source", "\x1b[2J"), ("carried", {"x": ["float32"]}), ("absent", None),
    ],
)  # fmt: skip
def test_a_hostile_record_of_a_clip(place, value, tmp_path, capsys):
    arrays, record = load_converted(STORED / "clip.safetensors")
    path = save_converted(
        tmp_path / "a.safetensors", Converted(arrays, changed(record, place, value))
    )
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        weights_convert.load_clip(path)
    assert main(["--inspect", str(path)]) == 2
    assert capsys.readouterr().err.count("error:") == 1


@pytest.mark.parametrize("name", FORMATS)
def test_a_hostile_record_of_a_trained_network(name, tmp_path, capsys):
    fmt = FORMATS[name]
    arrays, record = load_converted(STORED / f"{FILES[name]}.safetensors", fmt.tag)
    records = [{"format": fmt.tag}, {**record, "classes": [1]}]
    if "class_count" in record:
        records.append({**record, "classes": ["x"] * 2})
    for entry in fmt.entries[0].keys() - {"revision"}:  # which may be missing from the code's files
        records += [changed(record, entry, value) for value in (KeyError, None, -1, {}, NAN)]
    for hostile in records:
        path = save_converted(tmp_path / "a.safetensors", Converted(arrays, hostile))
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            weights_convert.load_trained(path, fmt)
        assert main(["--inspect", str(path)]) == 2
        assert capsys.readouterr().err.count("error:") == 1


@pytest.mark.parametrize("name", ["deeplab", "maskclip_plus"])
def test_arrays_that_the_record_does_not_imply(name, tmp_path):
    fmt = FORMATS[name]
    arrays, record = load_converted(STORED / f"{FILES[name]}.safetensors", fmt.tag)
    first, *_, last = arrays
    for wrong in (
        {k: v for k, v in arrays.items() if k != last},
        {**arrays, "backbone.layers.999999999.0.x": arrays[last]},
        {**arrays, first: arrays[first][None]},
    ):
        path = save_converted(tmp_path / "a.safetensors", Converted(wrong, record))
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            weights_convert.load_trained(path, fmt)
