"""The notebook: it runs from top to bottom, and what is stored in it was left by such a run."""

from __future__ import annotations

import base64
import importlib.util
import io
import itertools
import json
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 400_000
# Cells that end in a picture.
PICTURES = ("overlay", "words", "readouts", "threshold", "heat", "refine", "curve", "trained")


def by_path(path):
    """A module that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


store = by_path(ROOT / "examples/store.py")


@pytest.fixture
def notebook():
    return store.read()


def images(cell):
    """The pictures among the outputs of a cell."""
    for output in cell.outputs:
        if data := output.get("data", {}).get("image/jpeg"):
            yield Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.slow
def test_it_runs(notebook, tmp_path, monkeypatch):
    """Every cell, in an empty folder; small pictures, a training of two steps."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for cell in store.code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    short = {"SIDE": 96, "STEPS": 2, "LEARN": 8, "SCORE": 4}
    store.assign(notebook, READ_OUTS=["sclip"], REFINEMENTS=[None, "par"], **short)
    store.run(notebook, tmp_path)
    cells = {cell.id: cell for cell in store.code_cells(notebook)}
    assert [cell.execution_count for cell in cells.values()] == [*range(1, len(cells) + 1)]
    assert all([*images(cells[name])] for name in PICTURES)
    assert [*tmp_path.iterdir()] == [tmp_path / "quickstart"]  # what .gitignore names
    for name in ("masks/0.png", "masks/index.html", "trained/report.html"):
        assert (tmp_path / "quickstart" / name).exists()
    exported = tmp_path / "quickstart/segmenter.stablehlo"
    assert exported.stat().st_size
    assert json.loads(Path(f"{exported}.json").read_text())


def test_it_is_valid(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    assert "colab" in notebook.metadata


def test_every_cell_is_introduced(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    assert all("markdown" in pair for pair in itertools.pairwise(kinds))


def test_outputs_are_stored(notebook):
    cells = {cell.id: cell for cell in store.code_cells(notebook)}
    assert [cell.execution_count for cell in cells.values()] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells.values() for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"execute_result", "stream"}  # no error
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}  # no warning
    for name in PICTURES:
        (picture,) = images(cells[name])
        assert min(picture.size) >= 200


def test_the_stored_training_is_the_one_of_the_text(notebook):
    cells = {cell.id: cell for cell in store.code_cells(notebook)}
    steps = re.search(r"^STEPS = (\d+)", cells["yours"].source, re.M)[1]
    told = "".join(output.text for output in cells["train"].outputs)
    assert f"rectify: {steps}/{steps} steps" in told
    before, after = re.findall(r"mIoU \w+ ([\d.]+)", cells["curve"].outputs[0].text)
    assert 70 < float(before) < float(after)


def test_outputs_are_small_and_of_no_machine():
    content = store.NOTEBOOK.read_bytes()
    assert len(content) <= MOST_BYTES
    cells = json.loads(content)["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    for output in outputs:
        data = output.get("data", {})
        assert "image/png" not in data  # stored twice
        data.pop("image/jpeg", None)
    told = json.dumps(outputs)
    assert not re.search(r"/(home|root|tmp|work|Users|mnt|var|private)/", told)


def test_values_are_assigned_once(notebook):
    store.assign(notebook, STEPS=7)
    assert sum("STEPS = 7\n" in cell.source for cell in store.code_cells(notebook)) == 1
    with pytest.raises(ValueError, match="SPEED is set by 0 cells of the notebook"):
        store.assign(notebook, SPEED=7)
