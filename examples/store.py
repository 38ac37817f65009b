"""Runs the notebook from top to bottom and stores its outputs, pictures as JPEG, in it.

    python examples/store.py

Needs the extra "test". It runs in an empty folder, so what `examples/quickstart` holds is neither
used nor changed. Two to five minutes on two CPU cores.
"""

from __future__ import annotations

import base64
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
_LONGEST_S = 3600  # of a cell
_QUALITY = 60  # of JPEGs


def read() -> NotebookNode:
    """The notebook as it is stored."""
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def assign(notebook: NotebookNode, **values: Any) -> None:
    """Changes the values of variables that the notebook sets in lines of their own.

    Raises:
      ValueError: none or several lines set a name.
    """
    for name, value in values.items():
        line = re.compile(rf"^{name} = .*$", re.M)
        places = [cell for cell in code_cells(notebook) if line.search(cell.source)]
        if len(places) != 1:
            raise ValueError(f"{name} is set by {len(places)} cells of the notebook, not by one")
        places[0].source = line.sub(f"{name} = {value!r}", places[0].source)


def run(notebook: NotebookNode, folder: Path) -> None:
    """Runs all cells in a kernel whose folder is `folder`; the outputs are in the notebook then.

    Raises:
      CellExecutionError: a cell failed; the message has it and its traceback.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    client = NotebookClient(
        notebook,
        timeout=_LONGEST_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    for cell in code_cells(notebook):
        for output in cell.outputs:
            _shrink(output)
    notebook.metadata.language_info = {"name": "python"}  # no version of this machine


def _shrink(output: NotebookNode) -> None:
    """Leaves of a picture its JPEG alone, which is all that is shown of it."""
    data = output.get("data", {})
    if "image/png" in data:
        image = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png"))))
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=_QUALITY, optimize=True)
        data["image/jpeg"] = base64.b64encode(file.getvalue()).decode("ascii")
        data["text/plain"] = f"<{image.width} x {image.height} pixels>"
        output.metadata = {}


def main() -> None:
    """Renews the stored outputs."""
    notebook = read()
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, Path(folder))
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.relative_to(ROOT)}: {NOTEBOOK.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
