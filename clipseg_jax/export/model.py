"""`export_model`: a model with its words as a file that runs without this library."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipseg_jax.core.checks import check_choice, check_sizes, check_whole
from clipseg_jax.demo import world
from clipseg_jax.export.files import check_path, write
from clipseg_jax.export.function import OUTPUTS, Function, Outputs, function_of
from clipseg_jax.export.onnx import check_onnx, run_onnx, to_onnx
from clipseg_jax.export.stablehlo import PLATFORMS, run_stablehlo, to_stablehlo
from clipseg_jax.inference_config import REFINEMENTS, CRFConfig, Refinement
from clipseg_jax.prompts import is_threshold
from clipseg_jax.segment_options import SegmentOptions
from clipseg_jax.segmenters.load import load
from clipseg_jax.segmenters.open_vocabulary import OpenVocabulary, chosen_options
from clipseg_jax.segmenters.trained import Trained

FORMATS = ("stablehlo", "onnx")
_MOST_MEGABYTES = 2000  # of a flatbuffer and of a protocol buffer
_MOST_DIFFERENCE = 1e-4  # of probabilities in ONNX, from those of this library


def export_model(
    model: OpenVocabulary | Trained | str | Path,
    path: str | Path,
    *,
    size: int | tuple[int, int],
    words: Sequence[str] | None = None,
    background: float | Sequence[str] | None = None,
    method: str | None = None,
    refine: Refinement | str | None = "auto",
    short_side_px: int | None = None,
    options: SegmentOptions | None = None,
    outputs: Outputs = "labels",
    batch: int | None = None,
    fmt: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a model as one function of uint8 RGB images of one size, and its record beside it.

    The file is run and compared with the model before it is written.

    Args:
      model: what `load` returned, or takes.
      path: the file; its record is `path` with ".json" after it.
      size: (height, width) of the images in pixels; one number: both.
      words, background, method, refine, short_side_px, options: see `OpenVocabulary.segment`; of
        these a trained network takes `background` and `refine` alone.
      outputs: "labels": labels (b, h, w) uint8 and the winning class's probability (b, h, w);
        "probabilities": those of all labels (b, h, w, names).
      batch: images at once; None: any number, one after the other; in ONNX 1.
      fmt: "stablehlo" or "onnx"; None: ONNX if `path` ends so.
      overwrite: replace files of these names.

    Returns:
      The record: names of the labels, inputs, outputs, and what the comparison found.

    Raises:
      ValueError: an argument without meaning, or a network that cannot be exported.
      OSError: no model, or a file that cannot be written.
    """
    path = check_path(path, overwrite=overwrite)
    named_onnx = path.suffix.lower() == ".onnx"
    fmt = fmt or ("onnx" if named_onnx else "stablehlo")
    check_choice("fmt", fmt, FORMATS)
    if named_onnx and fmt != "onnx":
        raise ValueError(f"{path} is named as ONNX and the format is {fmt}; give another name")
    check_choice("outputs", outputs, OUTPUTS)
    if outputs == "probabilities" and background is not None and is_threshold(background):
        raise ValueError(
            f"background is {background!r}; a threshold is for labels: omit it, and apply it to "
            "the probabilities"
        )
    h, w = check_sizes("size", (size, size) if isinstance(size, int) else size)
    if batch is not None:
        check_whole("batch", batch)
    if fmt == "onnx":
        check_onnx()
        if batch not in (None, 1):
            raise ValueError(f"batch is {batch}; an ONNX model takes one image at a time: omit it")
        batch = 1
    if not isinstance(model, OpenVocabulary | Trained):
        model = load(model, devices=1)
    if isinstance(model, OpenVocabulary):
        options = chosen_options(options, method=method, refine=refine, short_side_px=short_side_px)
        runner = model.runner(words, background, options)
    else:
        of_clips = {"method": method, "short_side_px": short_side_px, "options": options}
        for name, value in of_clips.items():
            if value is not None:
                raise ValueError(f"{name} is {value!r}; a trained network has its own: omit it")
        runner = model.runner(words, background, refine)  # type: ignore[arg-type]  # it checks
    if fmt == "onnx" and isinstance(runner.cfg.refine, CRFConfig):
        raise ValueError("ONNX cannot hold the loops of a CRF; refine with pamr, par or nothing")
    function = function_of(runner, (h, w), outputs)
    if function.megabytes > _MOST_MEGABYTES:
        raise ValueError(
            f"the weights have {function.megabytes:.0f} MB and an exported file at most "
            f"{_MOST_MEGABYTES}; give a smaller model, or dtype bfloat16"
        )
    content = to_onnx(function) if fmt == "onnx" else to_stablehlo(function, batch)
    run = run_onnx if fmt == "onnx" else run_stablehlo
    difference = _compare(function, lambda images: run(content, images), batch or 1)
    if fmt == "onnx" and difference > _MOST_DIFFERENCE:
        raise ValueError(
            f"the ONNX model's probabilities differ by {difference:.1g} from the network's, more "
            f"than {_MOST_DIFFERENCE:g}; export StableHLO"
        )
    record = {
        "format": fmt,
        "names": [*runner.names],
        "inputs": {"images": {"shape": [batch or "b", h, w, 3], "dtype": "uint8", "order": "RGB"}},
        "outputs": _described(function, batch),
        "background": _plain(background),
        "method": method,
        "refine": _called(runner.cfg.refine),
        "platforms": [*PLATFORMS] if fmt == "stablehlo" else None,
        "largest_difference": difference,
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": {name: importlib.metadata.version(name) for name in ("clipseg_jax", "jax")},
    }
    write(path, content, record)
    return record


def _plain(background: Any) -> float | list[str] | None:
    """A background as JSON has it."""
    if background is None:
        return None
    return float(background) if is_threshold(background) else [*background]


def _called(refine: Refinement | None) -> str | dict[str, Any] | None:
    """The word for a refinement, or its values."""
    for name, known in REFINEMENTS.items():
        if refine == known:
            return name
    return None if refine is None else dataclasses.asdict(refine)


def _compare(function: Function, run: Any, batch: int) -> float:
    """The largest difference of the file's probabilities from the network's, on a painted picture.

    Raises:
      ValueError: labels differ at more than 1 of 1000 pixels.
    """
    picture = world.make("evaluation", 0, max(function.size)).image
    images = np.stack([picture[: function.size[0], : function.size[1]]] * batch)
    ours, theirs = jax.device_get(jax.jit(function.call)(images)), run(images)
    if len(ours) == 2 and np.mean(ours[0] != np.asarray(theirs[0])) > 1e-3:
        raise ValueError("the exported function gives other labels than the network; report this")
    return float(np.max(np.abs(ours[-1] - np.asarray(theirs[-1]))))


def _described(function: Function, batch: int | None) -> dict[str, Any]:
    """Shapes and types of the outputs."""
    shape = [batch or "b", *function.size]
    if len(function.outputs) == 1:
        return {"probabilities": {"shape": [*shape, len(function.names)], "dtype": "float32"}}
    return {
        "labels": {"shape": shape, "dtype": "uint8"},
        "scores": {"shape": shape, "dtype": "float32"},
    }
