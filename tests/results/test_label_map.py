"""`labelmap.txt`, read as CVAT's importer does."""

from __future__ import annotations

from clipseg_jax.core.label_images import palette
from clipseg_jax.results.label_map import write_label_map


def read(path):
    """Label -> colour, as Datumaro, which CVAT imports with, reads the file."""
    labels = {}
    for line in path.read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, colour, parts, actions = line.split(":")
            assert name not in labels
            assert parts == actions == ""
            labels[name] = tuple(int(number) for number in colour.split(","))
    return labels


def test_line_numbers_are_the_values_of_the_masks(tmp_path):
    names = ["background", "cow", "sign: 50 km/h", "#1", "caf\u00e9\n"]
    assert write_label_map(tmp_path, names)
    labels = read(tmp_path / "labelmap.txt")
    assert [*labels] == ["background", "cow", "sign 50 km/h", "1", "caf\u00e9\\n"]
    assert [*labels.values()] == [tuple(colour) for colour in palette(5).tolist()]


def test_a_map_of_others_stays(tmp_path):
    assert write_label_map(tmp_path, ["background", "cow"])
    assert write_label_map(tmp_path, ["background", "dog"])
    assert "dog" in read(tmp_path / "labelmap.txt")
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nmine:1,2,3::\n")
    assert not write_label_map(tmp_path, ["background", "cow"])
    assert [*read(tmp_path / "labelmap.txt")] == ["mine"]
