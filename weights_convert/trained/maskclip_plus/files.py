"""Files of trained MaskCLIP+: ours, and the published code's.

Published: {meta, state_dict, optimizer} of PyTorch. Ours: a safetensors file by the paths of
`MaskCLIPPlus`, without the teacher, with a record. The key maps are in `maskclip_plus`. Spec
maskclip, section 15.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipseg_jax.methods.maskclip_plus.model import MaskCLIPPlus
from clipseg_jax.models.deeplab import DeepLabV3Plus
from weights_convert.clip import layouts as names
from weights_convert.clip.build import flat_arrays, install
from weights_convert.clip.convert import sha256
from weights_convert.formats.converted import (
    Converted,
    check_classes,
    is_converted,
    load_converted,
    save_converted,
    told_classes,
)
from weights_convert.formats.reader import read
from weights_convert.formats.torch_writer import write_torch
from weights_convert.trained.maskclip_plus.published import (
    COUNTER,
    DECODER,
    ROWS,
    abstract_model,
    from_published,
    to_published,
)

FORMAT = "clipseg_jax MaskCLIP+ 1"


def recognised(stored: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict is of a trained MaskCLIP+, by its keys."""
    return ROWS in stored and any(key.startswith(DECODER) for key in stored)


def load_maskclip_plus(path: str | Path, *, classes: Sequence[str] | None = None) -> Converted:
    """Arrays by our paths and a record, of a trained file of ours or of the published code.

    Args:
      classes: what it is to tell apart, a background included; checked against the file's number
        of classes, and against its names where it has them.

    Raises:
      CheckpointError: neither, damaged, of other classes, or lists every missing, unexpected and
        wrongly shaped key. FileNotFoundError: no file.
    """
    path = Path(path)
    loaded = load_converted(path, FORMAT) if is_converted(path) else _load_published(path)
    check_classes(path, loaded.record, classes)
    return loaded


def _load_published(path: Path) -> Converted:
    checkpoint = read(path)
    stored = names.unwrap(checkpoint.content)
    arrays, sizes = from_published(stored, str(path))
    meta = checkpoint.content.get("meta") or {}
    told = meta.get("CLASSES")
    counter = stored.get(COUNTER)
    more = {
        "steps": meta.get("iter"),
        "iter_counter": None if counter is None else [str(counter.dtype), counter.tolist()],
        "source": path.name,
        "sha256": sha256(path),
        "kind": checkpoint.kind,
    }
    return Converted(arrays, _record(arrays, sizes, list(told) if told else None) | more)


def save_maskclip_plus(
    path: str | Path, model: MaskCLIPPlus, classes: Sequence[str], *, steps: int, **more: Any
) -> Path:
    """Writes a model without its teacher, and a record, to one file; atomic, checksummed.

    `classes`: names of all labels, a background included; `steps`: of its training. `more` is kept
    in the record (JSON).

    Raises:
      OSError: the folder cannot be written or the disk is full.
    """
    arrays = {
        key: np.asarray(value)
        for key, value in flat_arrays(model).items()
        if not key.startswith("teacher.")
    }
    cfg = model.student.backbone.cfg
    sizes = {
        "decoder": "deeplabv3plus" if isinstance(model.student, DeepLabV3Plus) else "deeplabv2",
        "blocks": list(cfg.blocks),
        "width": cfg.width,
        "variant": cfg.variant,
        "background": model.background_embedding is not None,
        "strides": list(cfg.strides),
        "dilations": list(cfg.dilations),
    }
    told = _record(arrays, sizes, list(classes)) | {"steps": steps, **more}
    return save_converted(path, Converted(arrays, told))


def export_maskclip_plus(
    trained: Converted, path: str | Path, clip: Mapping[str, np.ndarray] | None = None
) -> Path:
    """Writes a trained model as the published code reads it; `clip` as for `to_published`.

    Raises:
      CheckpointError: another CLIP than the student's. OSError: the folder cannot be written.
    """
    known = trained.record["classes"]
    meta = {"CLASSES": tuple(known)} if known else {}
    return write_torch(path, {"meta": meta, "state_dict": to_published(trained, clip)})


def maskclip_plus_from(trained: Converted, *, dtype: str = "float32") -> MaskCLIPPlus:
    """The model of what `load_maskclip_plus` gives, without a teacher: it segments.

    `dtype` is that of its convolutions.
    """
    arrays = trained.arrays
    made = abstract_model(trained.record["student"], arrays["text_embeddings"].shape, dtype)
    install(made, arrays, complete=("",))
    return made


def summary(record: Mapping[str, Any]) -> str:
    """A record in one line."""
    told = record["student"]
    depth = 2 + 3 * sum(told["blocks"])
    return f"MaskCLIP+, {told['decoder']}, ResNet-{depth} {told['variant']}, {told_classes(record)}"


def _record(
    arrays: Mapping[str, np.ndarray], sizes: Mapping[str, Any], classes: list[str] | None
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "student": dict(sizes),
        "classes": classes,
        "class_count": arrays["text_embeddings"].shape[0] + sizes["background"],
    }
