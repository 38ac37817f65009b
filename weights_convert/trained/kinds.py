"""What was trained with a CLIP: how each kind of file is known, read, written, told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from weights_convert.clip.convert import convert, load_clip
from weights_convert.clip.export import to_state_dict
from weights_convert.clip.layouts import read_state_dict
from weights_convert.formats.caffe import SUFFIX as CAFFE_SUFFIX
from weights_convert.formats.converted import Converted, is_converted, stored_format
from weights_convert.trained import deeplab
from weights_convert.trained.clip_rc import files as clip_rc
from weights_convert.trained.maskclip_plus import files as maskclip_plus_files
from weights_convert.trained.reclip import files as results
from weights_convert.trained.reclip.published import recognise
from weights_convert.trained.weclip import files as weclip_head


def _weights(clip: Path | None) -> dict[str, np.ndarray] | None:
    return None if clip is None else to_state_dict(convert(clip))


class Kind(NamedTuple):
    """One kind of trained network; published files, and those that `load` and a save made."""

    format: str  # of our files
    recognised: Callable[[Mapping[str, np.ndarray]], object]  # true of a published file's tensors
    load: Callable[..., Converted]  # from a path
    export: Callable[[Converted, Path, Path | None], object]  # to a path, beside a CLIP's weights
    summary: Callable[[Mapping[str, Any]], str]  # of the record
    layout: str  # with fields of the record
    with_clip: bool = True  # whether an export can repeat a CLIP


TRAINED = {
    "reclip": Kind(
        results.FORMAT,
        recognise,
        results.load_result,
        lambda made, target, clip: results.export_result(made, _weights(clip) or {}, target),
        results.summary,
        "{method} {stage}",
    ),
    "maskclip_plus": Kind(
        maskclip_plus_files.FORMAT,
        maskclip_plus_files.recognised,
        maskclip_plus_files.load_maskclip_plus,
        lambda made, target, clip: maskclip_plus_files.export_maskclip_plus(
            made, target, _weights(clip)
        ),
        maskclip_plus_files.summary,
        "MaskCLIP+",
    ),
    "weclip": Kind(
        weclip_head.FORMAT,
        weclip_head.recognised,
        weclip_head.load_weclip,
        lambda made, target, clip: weclip_head.export_weclip(made, _weights(clip), target),
        weclip_head.summary,
        "{method}",
    ),
    "clip_rc": Kind(
        clip_rc.FORMAT,
        clip_rc.recognised,
        clip_rc.load_clip_rc,
        lambda made, target, clip: clip_rc.export_clip_rc(
            made, target, None if clip is None else load_clip(clip).model
        ),
        clip_rc.summary,
        "CLIP-RC",
    ),
    "deeplab": Kind(
        deeplab.FORMAT,
        deeplab.recognised,
        deeplab.load_deeplab,
        lambda made, target, clip: deeplab.export_deeplab(made, target),
        deeplab.summary,
        "DeepLabV2",
        with_clip=False,
    ),
}


def kind_of(path: Path) -> str | None:
    """Which of `TRAINED` a file is, by its format or, once read, its keys; None: no such.

    Raises:
      CheckpointError: no checkpoint. FileNotFoundError: no file.
    """
    if path.is_dir():
        return None
    if path.suffix == CAFFE_SUFFIX:
        return "deeplab"  # it is of nothing else here, and if it isn't, loading says so
    if is_converted(path):
        told = stored_format(path)
        return next((name for name, kind in TRAINED.items() if kind.format == told), None)
    stored = read_state_dict(path)
    return next((name for name, kind in TRAINED.items() if kind.recognised(stored)), None)
