"""WeCLIP's inference against the published code: the `infer*` cases of its goldens."""

from __future__ import annotations

from tests.parity import cases
from tests.parity.weclip_infer_cases import check_infer

FOLDER = "weclip"
ONLY = SLOW = ("infer",)


def test_case(path):
    check_infer(*cases.load(path))
