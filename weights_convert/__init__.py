"""Checkpoints in and out: reads PyTorch files without PyTorch, writes files that it loads."""

from __future__ import annotations

from weights_convert.clip.build import (
    clip_from_state_dict,
    clip_to_state_dict,
    install,
    with_config,
)
from weights_convert.clip.convert import LoadedCLIP, convert, load_clip
from weights_convert.clip.export import export, export_huggingface, to_state_dict
from weights_convert.clip.layouts import read_state_dict
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import Converted, load_converted, save_converted
from weights_convert.formats.reader import Checkpoint, read
from weights_convert.trained.clip_rc.files import (
    clip_rc_from,
    export_clip_rc,
    install_clip_rc,
    load_clip_rc,
    save_clip_rc,
)
from weights_convert.trained.deeplab import (
    deeplab_from,
    export_deeplab,
    load_deeplab,
    load_initial,
    save_deeplab,
)
from weights_convert.trained.imagenet import export_imagenet, load_imagenet
from weights_convert.trained.maskclip_plus.files import (
    export_maskclip_plus,
    load_maskclip_plus,
    maskclip_plus_from,
    save_maskclip_plus,
)
from weights_convert.trained.reclip.files import (
    kept_arrays,
    load_distillation,
    load_rectification,
    load_result,
    save_result,
)
from weights_convert.trained.reclip.published import to_published
from weights_convert.trained.weclip.files import export_weclip, load_weclip, save_weclip

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Converted",
    "LoadedCLIP",
    "clip_from_state_dict",
    "clip_rc_from",
    "clip_to_state_dict",
    "convert",
    "deeplab_from",
    "export",
    "export_clip_rc",
    "export_deeplab",
    "export_huggingface",
    "export_imagenet",
    "export_maskclip_plus",
    "export_weclip",
    "install",
    "install_clip_rc",
    "kept_arrays",
    "load_clip",
    "load_clip_rc",
    "load_converted",
    "load_deeplab",
    "load_distillation",
    "load_imagenet",
    "load_initial",
    "load_maskclip_plus",
    "load_rectification",
    "load_result",
    "load_weclip",
    "maskclip_plus_from",
    "read",
    "read_state_dict",
    "save_clip_rc",
    "save_converted",
    "save_deeplab",
    "save_maskclip_plus",
    "save_result",
    "save_weclip",
    "to_published",
    "to_state_dict",
    "with_config",
]
