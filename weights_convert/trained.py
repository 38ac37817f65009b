"""What was trained with a CLIP: how each published kind of file is known, read, written, told.

ReCLIP's files are apart (`results.py`): they need to be told which state of its code they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from weights_convert import clip_rc, deeplab, maskclip_plus_files, weclip_head
from weights_convert.convert import convert, load_clip
from weights_convert.export import to_state_dict
from weights_convert.names import read_state_dict
from weights_convert.stored import Converted


def _weights(clip: Path | None) -> dict[str, np.ndarray] | None:
    return None if clip is None else to_state_dict(convert(clip))


class Kind(NamedTuple):
    """One kind of trained network; published files, and those that `load` and a save made."""

    known: Callable[[Path], bool]
    load: Callable[[Path], Converted]
    export: Callable[[Converted, Path, Path | None], object]  # to a path, beside a CLIP's weights
    summary: Callable[[Mapping[str, Any]], str]  # of the record
    name: str | None  # None: the record's "method"
    stored: Callable[[Path], dict[str, np.ndarray]] = read_state_dict  # a published file's tensors
    with_clip: bool = True  # whether an export can repeat a CLIP


TRAINED = {
    "maskclip_plus": Kind(
        maskclip_plus_files.is_maskclip_plus,
        maskclip_plus_files.load_maskclip_plus,
        lambda made, target, clip: maskclip_plus_files.export_maskclip_plus(
            made, target, _weights(clip)
        ),
        maskclip_plus_files.summary,
        "MaskCLIP+",
    ),
    "weclip": Kind(
        weclip_head.is_weclip,
        weclip_head.load_weclip,
        lambda made, target, clip: weclip_head.export_weclip(made, _weights(clip), target),
        weclip_head.summary,
        None,
    ),
    "clip_rc": Kind(
        clip_rc.is_clip_rc,
        clip_rc.load_clip_rc,
        lambda made, target, clip: clip_rc.export_clip_rc(
            made, target, None if clip is None else load_clip(clip).model
        ),
        clip_rc.summary,
        "CLIP-RC",
    ),
    "deeplab": Kind(
        deeplab.is_deeplab,
        deeplab.load_deeplab,
        lambda made, target, clip: deeplab.export_deeplab(made, target),
        deeplab.summary,
        "DeepLabV2",
        lambda path: deeplab.stored_arrays(path)[0],
        with_clip=False,
    ),
}


def kind_of(path: Path, wanted: str | None = None) -> Kind | None:
    """The kind called `wanted`, if one is, else the kind of the file at `path`; None: no such."""
    if wanted is not None:
        return TRAINED.get(wanted)
    return next((kind for kind in TRAINED.values() if kind.known(path)), None)
