"""Checkpoints in and out: reads PyTorch files without PyTorch, writes files that PyTorch loads."""

from __future__ import annotations

from weights_convert.clip.architectures import ARCHITECTURES, RANDOM, random_clip
from weights_convert.clip.build import (
    clip_from_state_dict,
    clip_to_state_dict,
    install,
    with_config,
)
from weights_convert.clip.choices import check_choices
from weights_convert.clip.convert import (
    MISSING_TOKENIZER,
    CLIPFacts,
    LoadedCLIP,
    clip_facts,
    convert,
    load_clip,
)
from weights_convert.clip.export import export, export_huggingface, to_state_dict
from weights_convert.clip.huggingface import weights_file
from weights_convert.clip.layouts import read_state_dict
from weights_convert.dino.convert import (
    convert_dino,
    dino_from_state_dict,
    export_dino,
    load_dino,
)
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import Converted, load_converted, save_converted
from weights_convert.formats.reader import Checkpoint, read
from weights_convert.named.find import find_cached, find_weights
from weights_convert.trained.clip_rc.format import CLIP_RC, build_clip_rc, install_clip_rc
from weights_convert.trained.deeplab import DEEPLAB, build_deeplab, load_deeplab_backbone
from weights_convert.trained.files import export_trained, load_trained, save_trained
from weights_convert.trained.format import Format
from weights_convert.trained.imagenet import export_imagenet, load_imagenet
from weights_convert.trained.maskclip_plus.format import MASKCLIP_PLUS, build_maskclip_plus
from weights_convert.trained.reclip.format import RECLIP
from weights_convert.trained.weclip.format import WECLIP

__all__ = [
    "ARCHITECTURES",
    "CLIP_RC",
    "DEEPLAB",
    "MASKCLIP_PLUS",
    "MISSING_TOKENIZER",
    "RANDOM",
    "RECLIP",
    "WECLIP",
    "CLIPFacts",
    "Checkpoint",
    "CheckpointError",
    "Converted",
    "Format",
    "LoadedCLIP",
    "build_clip_rc",
    "build_deeplab",
    "build_maskclip_plus",
    "check_choices",
    "clip_facts",
    "clip_from_state_dict",
    "clip_to_state_dict",
    "convert",
    "convert_dino",
    "dino_from_state_dict",
    "export",
    "export_dino",
    "export_huggingface",
    "export_imagenet",
    "export_trained",
    "find_cached",
    "find_weights",
    "install",
    "install_clip_rc",
    "load_clip",
    "load_converted",
    "load_deeplab_backbone",
    "load_dino",
    "load_imagenet",
    "load_trained",
    "random_clip",
    "read",
    "read_state_dict",
    "save_converted",
    "save_trained",
    "to_state_dict",
    "weights_file",
    "with_config",
]
