"""The read-outs against the published code: every case in the `readouts` folder of goldens.

A case is recognised by the start of its name; everything else is read from its json.
"""

from __future__ import annotations

from tests.parity import cases

FOLDER = "readouts"


def test_case(path, goldens):
    checks: dict = {}
    found = [check for stem, check in checks.items() if path.stem.startswith(stem)]
    assert len(found) == 1, f"no check for a case named {path.stem}"
    case, arrays = cases.load(path)
    found[0](case, arrays, goldens)
