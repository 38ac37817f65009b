"""MaskCLIP's transforms and corruptions against the published code; driven by the case's json.

No accelerator and no network here: these go through `input_pipeline` alone.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from input_pipeline.batches import corruptions, transforms
from input_pipeline.datasets.images import image_size, read_image, read_label

# Four units in the last place of what normalised pixels can be, 2.7 at most; the json allows 0.03,
# and one grey level is 0.017.
NORMALISED_ATOL = 1e-6


def check_pipeline(case: dict[str, Any], arrays: Mapping[str, np.ndarray], seeded: Any) -> None:
    """Training samples step by step and as a whole, then both test transforms."""
    train_text, test_text = case["input"].split("test image")
    seed_offset = int(_find(r"seeded\.image\([^)]*?,\s*(\d+)\s*\+\s*i\)", train_text)[0])
    height, width, classes, label_offset = map(
        int, _find(r"seeded\.label_map\((\d+),\s*(\d+),\s*(\d+),\s*(\d+)\s*\+\s*i\)", train_text)
    )
    assert [height, width] == case.get("image_hw", [height, width])
    for i, sample in enumerate(case["samples"]):
        image, label = _through_files(
            seeded.image(height, width, seed_offset + i),
            seeded.label_map(height, width, classes, label_offset + i),
            case["reduce_zero_label"],
        )
        label = transforms.suppress(label, case["suppress_labels"])
        _check_sample(case, sample, {k: arrays[f"{k}_{i}"] for k in _SAMPLE}, image, label)

    test_image = seeded.image(
        *map(int, _find(r"seeded\.image\((\d+),\s*(\d+),\s*(\d+)\)", test_text))
    )
    for name in (name for name in arrays if name.startswith("test_")):
        meaning = case["arrays"][name]["meaning"]
        scale = tuple(map(int, _find(r"img_scale=\((\d+),\s*(\d+)\)", meaning)))
        if _find(r"keep_ratio=(\w+)", meaning)[0] == "True":
            size = transforms.rescaled_size(*test_image.shape[:2], scale)
        else:
            size = scale[::-1]
        made = normalized(transforms.resize(test_image, size)).transpose(2, 0, 1)
        assert list(made.shape) == [int(n) for n in _find(_SHAPE, meaning)], name
        step = int(_find(r"::(\d+), ::\d+\]", meaning)[0])
        np.testing.assert_allclose(
            made[:, ::step, ::step], arrays[name], rtol=0, atol=NORMALISED_ATOL, err_msg=name
        )


_SAMPLE = ("crop", "distorted", "final", "label")
_SHAPE = r"full shape \[(\d+),\s*(\d+),\s*(\d+)\]"


def _check_sample(
    case: dict[str, Any],
    sample: dict[str, Any],
    expected: Mapping[str, np.ndarray],
    image: np.ndarray,
    label: np.ndarray,
) -> None:
    crop_hw, ratio_range = tuple(case["crop_size"]), tuple(case["ratio_range"])
    rng = Recorder(sample["numpy_seed"])
    scale = transforms.random_scale(rng, case["img_scale"], ratio_range)
    assert list(scale) == sample["scale"]
    size = transforms.rescaled_size(*image.shape[:2], scale)
    assert list(size) == sample["resized_hw"]
    cropped, ids = transforms.random_crop(
        transforms.resize(image, size),
        transforms.resize_label(label, size),
        rng,
        crop_hw,
        cat_max_ratio=case["cat_max_ratio"],
    )
    np.testing.assert_array_equal(cropped, expected["crop"])
    flipped, flipped_ids = transforms.flip(cropped, ids, rng)
    assert np.array_equal(flipped_ids, ids[:, ::-1]) or not sample["flip"]
    distorted = transforms.distort_colours(flipped, rng)
    np.testing.assert_array_equal(distorted, expected["distorted"])
    final, final_ids = transforms.pad(normalized(distorted), flipped_ids, crop_hw)
    step = int(_find(r"::(\d+), ::\d+\]", case["arrays"]["final_0"]["meaning"])[0])
    np.testing.assert_allclose(
        final.transpose(2, 0, 1)[:, ::step, ::step],
        expected["final"],
        rtol=0,
        atol=NORMALISED_ATOL,
    )
    np.testing.assert_array_equal(final_ids, expected["label"])
    rng.check(sample["draws"])

    whole, whole_ids = transforms.random_view(
        image,
        label,
        np.random.RandomState(sample["numpy_seed"]),
        scale=case["img_scale"],
        crop_hw=crop_hw,
        ratio_range=ratio_range,
        cat_max_ratio=case["cat_max_ratio"],
    )
    np.testing.assert_array_equal(whole, distorted)
    np.testing.assert_array_equal(whole_ids, flipped_ids)


def normalized(image: np.ndarray) -> np.ndarray:
    """As the device normalizes, by ImageNet's statistics."""
    return np.asarray(normalize(jnp.asarray(image), IMAGENET_MEAN, IMAGENET_STD))


class Recorder:
    """A legacy generator that remembers every call as the json lists them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.RandomState(seed)
        self.draws: list[list[Any]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: float) -> Any:
            value = getattr(self.rng, name)(*args)
            self.draws.append([name, [float(a) for a in args], float(value)])
            return value

        return call

    def check(self, expected: list[list[Any]]) -> None:
        assert self.draws == expected


def check_corruptions(case: dict[str, Any], arrays: Mapping[str, np.ndarray], seeded: Any) -> None:
    """Every type and level that the case has an array of."""
    image = seeded.image(
        *map(int, _find(r"seeded\.image\((\d+),\s*(\d+),\s*(\d+)\)", case["input"]))
    )
    base = int(_find(r"seed\((\d+)\s*\+\s*level\)", case["input"])[0])
    for name, expected in arrays.items():
        kind, level = name.rsplit("_", 1)
        rng = np.random.RandomState(base + int(level))
        step = int(_find(r"::(\d+), ::\d+\]", case["arrays"][name]["meaning"])[0])
        made = corruptions.corrupt(image, kind, int(level), rng)
        difference = np.abs(made[::step, ::step].astype(int) - expected.astype(int))
        # OpenCV's and Pillow's versions may differ in these two; everything else within a level.
        if kind in ("jpeg_compression", "spatter"):
            assert np.mean(difference <= 2) > 0.95, (name, difference.max())
        else:
            assert difference.max() <= 1, (name, difference.max())
            assert np.mean(difference > 0) < 0.01, (name, np.mean(difference > 0))


def _through_files(
    image: np.ndarray, label: np.ndarray, reduce_zero_label: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Written as PNGs, the label with a palette, and read back as a dataset's files are."""
    with tempfile.TemporaryDirectory() as folder:
        image_path, label_path = Path(folder) / "image.png", Path(folder) / "label.png"
        Image.fromarray(image).save(image_path)
        palette = Image.frombytes("P", label.shape[::-1], label.tobytes())
        palette.putpalette(bytes(np.random.RandomState(0).permutation(256).repeat(3).astype("u1")))
        file = io.BytesIO()
        palette.save(file, "PNG")
        label_path.write_bytes(file.getvalue())
        read = read_image(image_path)
        assert image_size(image_path) == read.shape[:2]
        np.testing.assert_array_equal(read, image)
        return read, read_label(label_path, reduce_zero_label=reduce_zero_label)


def _find(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    assert found, f"no {pattern!r} in {text!r}"
    return found.groups()
