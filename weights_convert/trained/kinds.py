"""The kinds of trained networks, and which of them a file holds."""

from __future__ import annotations

from pathlib import Path

from weights_convert.clip.layouts import read_state_dict
from weights_convert.formats.caffe import SUFFIX as CAFFE_SUFFIX
from weights_convert.formats.converted import is_converted, stored_format
from weights_convert.trained.clip_rc.format import CLIP_RC
from weights_convert.trained.deeplab import DEEPLAB
from weights_convert.trained.format import Format
from weights_convert.trained.maskclip_plus.format import MASKCLIP_PLUS
from weights_convert.trained.reclip.format import RECLIP
from weights_convert.trained.weclip.format import WECLIP

FORMATS = {fmt.name: fmt for fmt in (RECLIP, MASKCLIP_PLUS, WECLIP, CLIP_RC, DEEPLAB)}


def format_of(path: Path) -> Format | None:
    """The format of a trained network's file, by its record or its keys; None: it is not one.

    Raises:
      CheckpointError: not a checkpoint. FileNotFoundError: no file.
    """
    if path.is_dir():
        return None
    if path.suffix == CAFFE_SUFFIX:
        return DEEPLAB  # the only kind in this format; for another network, loading fails
    if is_converted(path):
        tag = stored_format(path)
        return next((fmt for fmt in FORMATS.values() if fmt.tag == tag), None)
    state_dict = read_state_dict(path)
    return next((fmt for fmt in FORMATS.values() if fmt.recognised(state_dict)), None)
