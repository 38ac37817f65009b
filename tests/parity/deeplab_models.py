"""Seeded DeepLabV2 models and inputs as the goldens describe them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from clipseg_jax.models.deeplab_v2 import MEAN, DeepLabV2
from tests import seeded
from tests.parity import cases
from weights_convert.formats.converted import Converted
from weights_convert.trained.deeplab import build_deeplab, from_published

FOLDER = "deeplab"


def shapes(goldens: Path, name: str) -> dict[str, tuple[int, ...]]:
    """A table of keys, from the folder given or else from the repository's own."""
    path = goldens / FOLDER / name
    path = path if path.is_file() else cases.DEFAULT / FOLDER / name
    return {key: tuple(shape) for key, shape in json.loads(path.read_text()).items()}


def weights(text: str, goldens: Path) -> dict[str, np.ndarray]:
    """The state dict of a case's "weights": seed, table, classes, and what is scaled."""
    seed = int(re.search(r"seeded\.state_dict\(shapes,\s*(\d+)\)", text).group(1))
    classes = int(re.search(r"class count (\d+)", text).group(1))
    told = shapes(goldens, re.search(r"\w+\.json", text).group())
    for key, shape in told.items():
        if ".aspp." in key:
            told[key] = (classes, *shape[1:])
    made = seeded.state_dict(told, seed)
    for pattern, factor in re.findall(r"([\w.]+) \*= ([\d.]+)", text):
        names = [pattern]
        if spread := re.fullmatch(r"(.*\.c)(\d)\.\.c(\d)(\..*)", pattern):
            head, first, last, tail = spread.groups()
            names = [f"{head}{i}{tail}" for i in range(int(first), int(last) + 1)]
        for name in names:
            made[name] = made[name] * np.float32(factor)
    return made


def model(text: str, goldens: Path) -> DeepLabV2:
    """The network of a case's "weights"."""
    arrays = from_published(weights(text, goldens), "the case")
    return build_deeplab(Converted(arrays, {}))


def numbers(text: str, function: str) -> list[int]:
    """The integers of the first "seeded.function(129,161,71...)" in a text."""
    found = re.search(rf"seeded\.{function}\(([\d,\s]+)", text).group(1)
    return [int(part) for part in found.split(",") if part.strip()]


def check_mean(text: str) -> None:
    """The mean that a text subtracts, in BGR, is ours."""
    found = re.search(r"minus \(([\d.,\s]+)\)", text).group(1)
    assert tuple(map(float, found.split(","))) == MEAN[::-1]


def picked(meaning: str) -> tuple[slice, ...]:
    """The slices of "... slice (slice(None, 4, None), slice(None, 16, None))"."""
    found = re.findall(r"slice\(None, (\d+|None), None\)", meaning)
    assert found, meaning
    return tuple(slice(None if stop == "None" else int(stop)) for stop in found)


def relative(actual: Any, expected: Any) -> float:
    """The largest relative deviation."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.max(np.abs(actual - expected) / np.abs(expected)))
