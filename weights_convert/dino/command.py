"""DINO's part of the command `python -m weights_convert`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert.clip.huggingface import weights_file
from weights_convert.clip.layouts import read_state_dict
from weights_convert.clip.shards import read_weights
from weights_convert.dino.convert import FORMAT, LAYOUTS, convert_dino, export_dino
from weights_convert.dino.layouts import is_dino
from weights_convert.errors import CheckpointError
from weights_convert.formats.caffe import SUFFIX as CAFFE_SUFFIX
from weights_convert.formats.converted import is_converted, save_converted, stored_format

__all__ = ["LAYOUTS", "holds_dino", "inspect", "run"]


def holds_dino(path: Path) -> bool:
    """Whether a file or directory holds a DINO, by its record or its keys.

    Raises:
      CheckpointError: not a checkpoint. FileNotFoundError: no file.
    """
    weights_path = weights_file(path)
    if weights_path.suffix == CAFFE_SUFFIX:
        return False
    if is_converted(weights_path):
        return stored_format(weights_path) == FORMAT
    return is_dino(read_state_dict(weights_path))


def run(args: argparse.Namespace, target: Path) -> str:
    """Converts or exports a DINO by the command's arguments; returns a summary.

    Raises:
      CheckpointError: as `convert_dino`; or options that are for other models.
    """
    options = ("vision_only", "activation", "revision")
    if given := [name for name in options if getattr(args, name)]:
        raise CheckpointError(f"--{given[0].replace('_', '-')} is not for DINOs; omit it")
    converted = convert_dino(args.source, heads=args.heads and args.heads[0])
    if args.output:
        save_converted(target, converted)
    else:
        export_dino(converted, target, args.to)
    record = converted.record
    return (
        f"{_describe(record['config'])}, from {record['source']} ({record['kind']}, "
        f"{record['layout']}), {record['parameters']:,} parameters, {record['bytes']:,} bytes of "
        "tensors"
    )


def inspect(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a DINO's file by its names, and what is to be said of it.

    Raises:
      CheckpointError: a damaged converted file.
    """
    if is_converted(path):
        arrays, record = convert_dino(path)
        layout = f"clipseg_jax, from {record['source']} ({record['layout']})"
        sizes = _describe(record["config"])
        return arrays, {"kind": "converted", "layout": layout, "sizes": sizes}
    facts = {"kind": read_weights(path).kind, "layout": "not a complete DINO"}
    try:
        record = convert_dino(path).record
        facts |= {"layout": record["layout"], "sizes": _describe(record["config"])}
    except CheckpointError as error:
        facts["sizes"] = " ".join(str(error).split())
    return read_state_dict(path), facts


def _describe(config: Mapping[str, Any]) -> str:
    """A tower's sizes in one line."""
    version = "DINOv2" if config["layer_scale"] else "DINO"
    registers = f", {config['registers']} registers" if config["registers"] else ""
    return (
        f"{version}, patch {config['patch_px']}, width {config['width']}, {config['layers']} "
        f"layers, {config['heads']} heads, {config['mlp']}{registers}, {config['image_px']} px"
    )
