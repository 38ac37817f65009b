"""Trained networks: loaded, stored and exported, whatever their `Format`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from clipseg_jax.models.clip import VisionTransformer
from weights_convert.clip.convert import sha256
from weights_convert.clip.layouts import unwrap
from weights_convert.errors import CheckpointError
from weights_convert.formats.caffe import SUFFIX as CAFFE_SUFFIX
from weights_convert.formats.caffe import read_caffe
from weights_convert.formats.converted import (
    Converted,
    is_converted,
    load_converted,
    save_converted,
)
from weights_convert.formats.reader import DAMAGE, described, read
from weights_convert.formats.record import check_arrays, check_record, entries
from weights_convert.formats.torch_writer import write_torch
from weights_convert.named.find import find_weights
from weights_convert.trained.format import RECORD, Format, clip_fingerprint, fingerprint

# Entries of records that follow from the arrays.
_BY_ARRAYS = ("class_count", "prompts", "region_side", "method", "stage", "blocks")


class Published(NamedTuple):
    """A file of published code."""

    state_dict: dict[str, np.ndarray]
    beside: Mapping[str, Any]  # what the file holds beside the state dict
    kind: str  # "torch zip", "torch legacy", "safetensors", "caffemodel"


def read_published(path: Path) -> Published:
    """The state dict of a PyTorch or Caffe file.

    Raises:
      CheckpointError: not a checkpoint, or damaged. FileNotFoundError: no file.
    """
    if path.suffix == CAFFE_SUFFIX:
        return Published(read_caffe(path), {}, "caffemodel")
    checkpoint = read(path)
    beside = checkpoint.content if isinstance(checkpoint.content, Mapping) else {}
    return Published(unwrap(checkpoint.content), beside, checkpoint.kind)


def load_trained(
    path: str | Path,
    fmt: Format,
    *,
    classes: Sequence[str] | None = None,
    expected: Mapping[str, str] | None = None,
    visual: VisionTransformer | None = None,
) -> Converted:
    """Arrays by the model's paths, and a record, of a stored or a published file.

    Args:
      classes: names of all labels, a background included; the file must have as many, and the same
        names if it records names.
      expected: entries that the record must have, such as {"method": "WTCLIP"}. An entry that the
        file does not know is added to the record.
      visual: the image tower that the network is to run on; the file must have been trained with
        it, if it records a fingerprint.

    Raises:
      CheckpointError: a file of another kind, a damaged one, one that differs from what is
        expected, or lists every missing, unexpected and wrongly shaped key.
      FileNotFoundError: no file.
    """
    path = find_weights(path)
    if is_converted(path):
        arrays, record = load_converted(path, fmt.tag)
        _check_stored(path, fmt, arrays, record)
    else:
        state_dict, beside, kind = read_published(path)
        arrays, entries = fmt.from_published(state_dict, beside, str(path))
        record = {"format": fmt.tag, "classes": None, **fmt.record(arrays, None), **entries}
        record |= {"source": path.name, "sha256": sha256(path), "kind": kind}
    for entry, value in (expected or {}).items():
        recorded = record.get(entry)
        if recorded not in (None, value):
            raise CheckpointError(
                f"{path} is of {entry} {recorded}, not {value}; give a file of {entry} {value}, or "
                f"choose {recorded}"
            )
        record[entry] = value
    if classes is not None:
        _check_classes(path, record, list(classes))
    if visual is not None:
        check_clip(path, record, clip_fingerprint(visual, fmt.clip_dtype))
    return Converted(arrays, record)


def save_trained(
    path: str | Path,
    fmt: Format,
    model: nnx.Module,
    *,
    classes: Sequence[str],
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Writes what was trained of a model, and a record, to one file; atomic, with a checksum.

    Equal models and records give equal bytes.

    Args:
      classes: names of all labels, a background included.
      details: further entries of the record (JSON).

    Raises:
      OSError: the folder cannot be written, or the disk is full.
    """
    arrays = fmt.stored_arrays(model)
    record = {"format": fmt.tag, **fmt.record(arrays, model), "classes": list(classes)}
    return save_converted(path, Converted(arrays, record | dict(details or {})))


def export_trained(
    trained: Converted,
    path: str | Path,
    fmt: Format,
    *,
    clip: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Writes a trained network as the published code reads it.

    Args:
      clip: weights by OpenAI's names of the CLIP that it was trained with, for published files
        that repeat it.

    Raises:
      CheckpointError: no CLIP where one is needed, another one than the network was trained with,
        or one without its text tower. OSError: the folder cannot be written, or the disk is full.
    """
    conv1 = None if clip is None else clip.get("visual.conv1.weight")
    if conv1 is not None and conv1.ndim == 4:
        check_clip("the trained network", trained.record, fingerprint(conv1, fmt.clip_dtype))
    return write_torch(path, fmt.to_published(trained, clip))


def check_clip(source: str | Path, record: Mapping[str, Any], clip: int) -> None:
    """Compares the recorded fingerprint, if there is one, with that of a CLIP.

    Raises:
      CheckpointError: they differ.
    """
    if record.get("clip_mark") not in (None, clip):
        raise CheckpointError(
            f"{source} was trained with another CLIP; give the CLIP that it was trained with"
        )


def _check_stored(
    path: Path, fmt: Format, arrays: Mapping[str, np.ndarray], record: dict[str, Any]
) -> None:
    """Checks a stored file's record, by itself and against the arrays.

    Raises:
      CheckpointError: names the first entry that is not as it must be.
    """
    (required, optional), (more, more_optional) = RECORD, fmt.entries
    check = entries({**required, **more}, {**optional, **more_optional}, others=True)
    check_record(record, check, path)
    sizes = record.get("student", record)
    if (blocks := sum(sizes.get("blocks", []))) > len(arrays):  # before a model is traced
        raise CheckpointError(f"{path}: its record has {blocks} blocks for {len(arrays)} arrays")
    try:
        by_arrays = fmt.record(arrays, None)
        shapes = fmt.shapes(arrays, record) if fmt.shapes else None
    except (*DAMAGE, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{path} lacks arrays of {fmt.title.format_map(record)} ({described(error)}); convert "
            "its source again"
        ) from error
    for entry in _BY_ARRAYS:
        if entry in by_arrays and by_arrays[entry] != record[entry]:
            raise CheckpointError(
                f"{path}: its record has {entry} {record[entry]}, its arrays {by_arrays[entry]}; "
                "convert its source again"
            )
    if shapes is not None:
        check_arrays(arrays, shapes, path)
    classes, count = record["classes"], record.get("class_count")
    if None not in (classes, count) and len(classes) != count:
        raise CheckpointError(f"{path}: its record names {len(classes)} of {count} classes")


def _check_classes(path: Path, record: Mapping[str, Any], names: list[str]) -> None:
    count, recorded = record["class_count"], record["classes"]
    if count != len(names):
        raise CheckpointError(
            f"{path} was trained for {count} classes, the class list has {len(names)}; give the "
            "class list that it was trained with"
        )
    if recorded not in (None, names):
        i = next(i for i, name in enumerate(names) if recorded[i] != name)
        raise CheckpointError(
            f"{path} was trained with other classes: number {i} is {recorded[i]!r}, in the class "
            f"list {names[i]!r}; give the class list that it was trained with"
        )
