"""What ReCLIP's stages produce, as one file with a record; published files are read as well.

A safetensors file by the paths of `ReCLIP` (stage "rectification") or `Distillation` (stage
"distillation"): what was trained, not the frozen CLIP. Published files: `published`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipseg_jax.methods.reclip.distill_model import Distillation
from clipseg_jax.methods.reclip.model import ReCLIP
from clipseg_jax.models.clip import VisionTransformer
from weights_convert.clip.build import flat_arrays
from weights_convert.clip.convert import sha256
from weights_convert.clip.layouts import unwrap
from weights_convert.errors import CheckpointError
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
from weights_convert.trained.reclip.published import (
    Stage,
    by_our_paths,
    fingerprint,
    mark_of,
    recognise,
    to_published,
)

FORMAT = "clipseg_jax ReCLIP 1"
REVISIONS = ("2024", "2025")  # of the published code: their weights don't fit each other
METHODS = ("ReCLIP", "ReCLIP++")

# What of a model is a result, by the start of its paths.
_KEPT = {
    "rectification": ("reference.prompt", "head.", "visual.class_embedding"),
    "distillation": (
        "student.", "logit_scale", "teacher.head.", "teacher.visual.class_embedding",
        "teacher.text_embeddings", "teacher.reference.rows",
    ),
}  # fmt: skip


def kept_arrays(model: ReCLIP | Distillation) -> dict[str, np.ndarray]:
    """What a result file holds of a model: what was trained, and a distilled one's text rows."""
    kept = _KEPT["rectification" if isinstance(model, ReCLIP) else "distillation"]
    return {
        path: np.asarray(leaf) for path, leaf in flat_arrays(model).items() if path.startswith(kept)
    }


def record(
    stage: Stage,
    *,
    plus_plus: bool,
    revision: str | None,
    classes: Sequence[str],
    clip_sha256: str | None,
    visual: VisionTransformer,
    **more: Any,
) -> dict[str, Any]:
    """The record of a result; `more` is kept as it is (JSON)."""
    return {
        "format": FORMAT,
        "method": METHODS[plus_plus],
        "stage": stage,
        "revision": revision,
        "classes": list(classes),
        "class_count": len(classes),
        "clip_sha256": clip_sha256,
        "clip_mark": mark_of(visual),
        **more,
    }


def save_result(path: str | Path, arrays: Mapping[str, np.ndarray], record: dict) -> Path:
    """Writes `kept_arrays` and a `record` to one file; atomic, checksummed.

    Raises:
      OSError: the folder cannot be written or the disk is full.
    """
    return save_converted(path, Converted(dict(arrays), record))


def summary(record: Mapping[str, Any]) -> str:
    """A record in one line."""
    return (
        f"{record['method']}, {record['stage']}, revision {record['revision'] or 'not recorded'}, "
        f"{told_classes(record)}"
    )


def load_result(path: str | Path, *, revision: str | None = None) -> Converted:
    """Arrays by our paths and a record, from a file of ours or of the published code.

    A published file doesn't say which `revision` it belongs to; what is given goes on record.

    Raises:
      CheckpointError: neither, damaged, or lists every missing, unexpected and wrongly shaped key.
      FileNotFoundError: no file.
    """
    path = Path(path)
    if is_converted(path):
        loaded = load_converted(path, FORMAT)
        known = loaded.record["revision"]
        if revision and known and revision != known:
            raise CheckpointError(
                f"{path} belongs to revision {known}, not {revision}; choose revision {known}"
            )
        return Converted(loaded.arrays, loaded.record | {"revision": known or revision})
    checkpoint = read(path)
    published = recognise(unwrap(checkpoint.content))
    if published is None:
        raise CheckpointError(f"{path} is no result of ReCLIP or ReCLIP++")
    arrays = by_our_paths(published, str(path))
    told = {
        "format": FORMAT,
        "method": METHODS[published.plus_plus],
        "stage": published.stage,
        "revision": revision,
        "classes": None,
        "class_count": published.class_count,
        "clip_sha256": None,
        "clip_mark": published.clip_mark,
        "source": path.name,
        "sha256": sha256(path),
        "kind": checkpoint.kind,
    }
    return Converted(arrays, told)


def load_rectification(
    path: str | Path,
    *,
    plus_plus: bool,
    classes: Sequence[str],
    revision: str | None = None,
    visual: VisionTransformer | None = None,
) -> Converted:
    """A rectification result for these classes; `install(model, arrays)` puts it into a ReCLIP.

    Raises:
      CheckpointError: as `load_result`; or of another stage, method, class list, revision or, with
        `visual`, another CLIP.
    """
    return _fitting("rectification", path, plus_plus, classes, revision, visual)


def load_distillation(
    path: str | Path,
    *,
    plus_plus: bool,
    classes: Sequence[str],
    revision: str | None = None,
    visual: VisionTransformer | None = None,
) -> Converted:
    """The same of a distilled student. Published files lack text rows and reference."""
    return _fitting("distillation", path, plus_plus, classes, revision, visual)


def _fitting(
    stage: Stage,
    path: str | Path,
    plus_plus: bool,
    classes: Sequence[str],
    revision: str | None,
    visual: VisionTransformer | None,
) -> Converted:
    loaded = load_result(path, revision=revision)
    told = loaded.record
    if told["stage"] != stage:
        raise CheckpointError(f"{path} is a result of {told['stage']}; give one of {stage}")
    if told["method"] != METHODS[plus_plus]:
        raise CheckpointError(
            f"{path} is of {told['method']}; give weights of {METHODS[plus_plus]} or choose "
            f"{told['method']}"
        )
    check_classes(path, told, classes)
    own = None if visual is None else mark_of(visual)
    if None not in (own, told["clip_mark"]) and own != told["clip_mark"]:
        raise CheckpointError(
            f"{path} was trained with another CLIP; load the CLIP that it was trained with"
        )
    return loaded


def export_result(
    result: Converted, clip: Mapping[str, np.ndarray], path: str | Path, *, half: bool = True
) -> Path:
    """Writes a result as the published code reads it; arguments as `to_published`.

    Raises:
      CheckpointError: another CLIP than the result's, or one without its text tower.
      OSError: the folder cannot be written or the disk is full.
    """
    known, kernel = result.record["clip_mark"], clip.get("visual.conv1.weight")
    if kernel is not None and known not in (None, fingerprint(kernel)):
        raise CheckpointError("the result was trained with another CLIP; give the one it was with")
    arrays, stage = result.arrays, result.record["stage"]
    return write_torch(path, to_published(arrays, stage, clip, half=half))
