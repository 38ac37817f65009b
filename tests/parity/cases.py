"""Finds golden cases and compares with them: what all parity tests share.

A case is a `<case>.json` that says what it is, with a `<case>.npz` of expected arrays. Inputs are
made from the seeds in the json (`tests/seeded.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipseg_jax.core.modules import abstract
from tests import seeded

DEFAULT = Path(__file__).resolve().parent.parent / "golden"
# Shares of an array's largest value; four times what is seen, for other compilers and processors.
ULPS = 5e-7  # four units in the last place: a handful of operations
FORWARD = 6e-6  # the rounding of a whole network's forward pass
# Share of equal labels where scores are equal to rounding: seen to differ in up to 6e-5.
LABELS = 0.9998


def find(goldens: Path, folder: str) -> list[Path]:
    """The .json of every case in a folder of goldens."""
    files = (goldens / folder).glob("*.json")
    return sorted(path for path in files if _head(path).keys() & {"case", "ran"})


def _head(path: Path) -> dict[str, Any]:
    loaded = json.loads(path.read_text())
    return loaded if isinstance(loaded, dict) else {}


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the arrays of a case."""
    with np.load(path.with_suffix(".npz")) as arrays:
        return json.loads(path.read_text()), dict(arrays)


def shapes(goldens: Path, model: str, folder: str = "clip") -> dict[str, tuple[int, ...]]:
    """State-dict shapes of a model, from the folder given or else from the repository's own."""
    path = goldens / folder / "shapes.json"
    path = path if path.is_file() else DEFAULT / folder / "shapes.json"
    return {key: tuple(shape) for key, shape in json.loads(path.read_text())[model].items()}


def weights(text: str, shapes_of: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Seeded weights as a case's "weights" text describes them (seed, restriction, adjustments)."""
    seed = int(re.search(r"seeded\.state_dict\(.*?,\s*(\d+)\)", text).group(1))
    if "restricted to visual" in text:
        shapes_of = {k: v for k, v in shapes_of.items() if k.startswith("visual.")}
    made = seeded.state_dict(shapes_of, seed)
    if scaled := re.search(r"every ([\w.*]+)\s+times ([\d.]+)", text):
        pattern = re.escape(scaled.group(1)).replace(r"\*", r".*")
        for key in made:
            if re.fullmatch(pattern, key):
                made[key] = made[key] * np.float32(scaled.group(2))
    return made


def model_name(text: str) -> str:
    """The CLIP variant that a case's "weights" text names."""
    return re.search(r'shapes\["(.+?)"\]', text).group(1)


def seed_list(text: str) -> list[int]:
    """The seeds in "for seed in [110, 111]"."""
    return [int(s) for s in re.search(r"for seed in \[([\d, ]+)\]", text).group(1).split(",")]


def steps(meaning: str) -> tuple[slice, ...]:
    """The slices written in an array's meaning, as in "[:, ::5, ::32]"."""
    text = re.findall(r"\[((?:\s*:?:?\d*\s*,?)+)\]", meaning)
    text = [t for t in text if "::" in t or ":" in t][-1]
    return tuple(
        slice(None, None, int(part.split("::")[1]) if "::" in part else None)
        for part in text.split(",")
    )


def zeros(make: Callable[[Any], Any]) -> Any:
    """The model `make(rngs)` with zeros as parameters, which takes no random numbers."""
    graph, state = nnx.split(abstract(make))
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), state))


def close(actual: Any, expected: np.ndarray, *, absolute: float, name: str) -> None:
    """Fails if any element differs by more than `absolute`."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, wanted {expected.shape}"
    worst = float(np.max(np.abs(actual.astype(np.float64) - expected)))
    assert worst <= absolute, f"{name}: differs by {worst:.3g}, at most {absolute:.3g} allowed"


def near(actual: Any, expected: np.ndarray, *, name: str, share: float = FORWARD) -> None:
    """Fails if any element differs by more than `share` of the largest expected one."""
    top = float(np.max(np.abs(expected)))
    close(actual, expected, absolute=share * top, name=name)


def same_half(
    actual: Any, expected: np.ndarray, *, share: float, name: str, gap: float = 0.0
) -> None:
    """Fails unless float16 values are equal but for this share, and that is one step off at most.

    Float32 values that differ by rounding can lie on both sides of where float16 rounds; `gap` is
    how far apart they may be themselves, if that is not small beside a step.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, wanted {expected.shape}"
    np.testing.assert_array_equal(actual.astype(np.float16), actual, err_msg=f"{name}: not halves")
    step = np.spacing(np.maximum(np.abs(actual), np.abs(expected)).astype(np.float16))
    worst = float(np.max(np.abs(actual - expected) / (step + gap)))
    assert worst <= 1, f"{name}: {worst:.3g} times a float16 step off"
    differ = float(np.mean(actual != expected))
    assert differ <= share, f"{name}: {differ:.5f} of the values differ, at most {share} may"


def same_labels(actual: Any, expected: np.ndarray, *, name: str, share: float = LABELS) -> None:
    """Fails if less than `share` of the pixels have equal labels."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, wanted {expected.shape}"
    equal = float(np.mean(actual == expected))
    assert equal >= share, f"{name}: {equal:.5f} of the labels equal, at least {share} wanted"


def nchw(x: Any) -> np.ndarray:
    """(b, h, w, c) -> (b, c, h, w), the layout of the goldens."""
    return np.moveaxis(np.asarray(x), -1, 1)
