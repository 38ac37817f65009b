"""The read-outs against the published code: every case in the `readouts` folder of goldens.

A case is recognised by the start of its name; everything else is read from its json.
"""

from __future__ import annotations

from tests.parity import cases, proxyclip_cases, readouts_cases, readouts_postprocess_cases

FOLDER = "readouts"
# The small cases take the same path; the other full-size ones stay.
LONG = ("clearclip_vit_b16", "naclip_vit_b16", "resclip_vit_b16")
CHECKS = readouts_cases.CHECKS | readouts_postprocess_cases.CHECKS | proxyclip_cases.CHECKS


def test_case(path, goldens):
    found = [check for stem, check in CHECKS.items() if path.stem.startswith(stem)]
    assert len(found) == 1, f"no check for a case named {path.stem}"
    case, arrays = cases.load(path)
    found[0](case, arrays, goldens)
