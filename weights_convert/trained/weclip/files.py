"""Files of WeCLIP and WTCLIP: what the published code saves, and our own.

Published: a state dict of head and frozen CLIP together, and arrays that the code makes itself.
Ours: a safetensors file of the head by the paths of `WeCLIP`, with a record. Spec weclip, section
12; spec wtclip, section 7. The key map is in `weclip`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.weclip.head import Head, HeadConfig
from clipseg_jax.methods.weclip.model import WeCLIP
from clipseg_jax.models.clip import VisionTransformer
from weights_convert.clip.build import flat_arrays, is_carried, shapes_of
from weights_convert.clip.convert import sha256
from weights_convert.clip.keys import OPENAI
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
from weights_convert.trained.reclip.published import fingerprint, mark_of
from weights_convert.trained.weclip.keys import ENCODER, HEAD, MADE

FORMAT = "clipseg_jax WeCLIP 1"
METHODS = ("WeCLIP", "WTCLIP")
_OURS = "head."
_WRAPPER = "module."
_FUSE, _ADAPTERS = "decoder_fts_fuse.linear_fuse", "decoder_fts_fuse.linears_modulelist"
_BLOCKS, _BANDS = "decoder.transformer.resblocks", "decoder.wtconv.depthwise.wavelet_convs"
_FILTERS = tuple(key for key in MADE if key.endswith("wt_filter"))
_HEAD_WIDTH = 32  # of the decoder's attention; files don't tell
# PAR's neighbours, and the four filters of the Haar wavelet: low, then high along the height, along
# the width, along both.
_NEIGHBOURS = np.delete(np.eye(9, dtype=np.float32), 4, axis=0).reshape(8, 1, 3, 3)
_HAAR = 0.5 * np.asarray(
    [[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]], np.float32
)
# What the published code keeps in float16 of its CLIP.
_HALF = (
    *(".conv1.weight", ".proj", "text_projection", ".out_proj.weight", ".out_proj.bias"),
    *(f".mlp.{layer}.{leaf}" for layer in ("c_fc", "c_proj") for leaf in ("weight", "bias")),
)


def recognised(stored: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict is of WeCLIP or WTCLIP, by its keys."""
    return any(key.removeprefix(_WRAPPER).startswith("decoder_fts_fuse.") for key in stored)


def from_published(stored: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """A published state dict's head by our paths; the CLIP beside it is left out, unchecked.

    Raises:
      CheckpointError: its sizes cannot be told; lists every missing, unexpected and wrongly shaped
        key; or the wavelet is another one than Haar's.
    """
    stored = {key.removeprefix(_WRAPPER): value for key, value in stored.items()}
    own = {
        key: value
        for key, value in stored.items()
        if not (key in MADE or is_carried(key.removeprefix(ENCODER)) or _is_of_clip(key))
    }
    sizes = _sizes(own, source)
    arrays = HEAD.to_right(own, _shapes(*sizes), source)
    for key in _FILTERS:
        filters = stored.get(key)
        if filters is None:
            continue
        haar = _filters(sizes[3].width)
        if filters.shape != haar.shape or not np.allclose(filters, haar, atol=1e-6):
            raise CheckpointError(
                f"{source}: {key} is not Haar's wavelet, which alone is known here; nothing was "
                "loaded"
            )
    return arrays


def to_published(
    arrays: Mapping[str, np.ndarray], clip: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The state dict as the published code saves it.

    Args:
      arrays: a head's by our paths.
      clip: weights by OpenAI's names, both towers; None: the head alone, which the published
        loader takes as well, as it isn't strict.

    Raises:
      CheckpointError: a CLIP without its text tower.
    """
    out = {}
    if clip is not None:
        weights = {key: value for key, value in clip.items() if not is_carried(key)}
        if "text_projection" not in weights or "visual.conv1.weight" not in weights:
            raise CheckpointError("WeCLIP's files repeat the whole CLIP: give one with its text")
        for key, value in weights.items():
            dtype = np.float16 if key.endswith(_HALF) else np.float32
            out[f"{ENCODER}{key}"] = np.asarray(value, dtype)
    out |= {key: np.asarray(value, np.float32) for key, value in HEAD.to_left(arrays).items()}
    if any(key.startswith(_BANDS) for key in out):
        width = out[f"{_FUSE}.bias"].size
        out |= {key: _filters(width) for key in _FILTERS}
    return out | {"par.kernel": _NEIGHBOURS}


def load_weclip(
    path: str | Path,
    *,
    method: str | None = None,
    classes: Sequence[str] | None = None,
    visual: VisionTransformer | None = None,
) -> Converted:
    """Arrays by our paths and a record; `install(model, arrays, complete=("head.",))` uses them.

    Args:
      method: "WeCLIP" or "WTCLIP", which the file must be of.
      classes: with the background; checked against the file's number of classes, and against its
        names where it has them.
      visual: the image tower that it is to work on, checked where the file tells of its own.

    Raises:
      CheckpointError: neither, damaged, of something else than asked for, or lists every missing,
        unexpected and wrongly shaped key. FileNotFoundError: no file.
    """
    path = Path(path)
    if is_converted(path):
        loaded = load_converted(path, FORMAT)
    else:
        checkpoint = read(path)
        stored = unwrap(checkpoint.content)
        if not recognised(stored):
            raise CheckpointError(f"{path} holds no head of WeCLIP or WTCLIP")
        arrays = from_published(stored, str(path))
        kernels = [v for k, v in stored.items() if k.endswith(f"{ENCODER}visual.conv1.weight")]
        told = {
            "clip_mark": _mark(kernels[0]) if kernels else None,
            "source": path.name,
            "sha256": sha256(path),
            "kind": checkpoint.kind,
        }
        loaded = Converted(arrays, _record(arrays, None) | told)
    _check(path, loaded.record, method, classes, visual)
    return loaded


def save_weclip(path: str | Path, model: WeCLIP, classes: Sequence[str], **more: Any) -> Path:
    """Writes a model's head and a record to one file; `more` is kept in it (JSON).

    Atomic, checksummed.

    Raises:
      OSError: the folder cannot be written or the disk is full.
    """
    arrays = {
        key: np.asarray(value) for key, value in flat_arrays(model).items() if key.startswith(_OURS)
    }
    told = {"clip_mark": mark_of(model.clip.visual, np.float16), **more}
    return save_converted(path, Converted(arrays, _record(arrays, list(classes)) | told))


def export_weclip(
    trained: Converted, clip: Mapping[str, np.ndarray] | None, path: str | Path
) -> Path:
    """Writes a trained head as the published code saves it; arguments as `to_published`.

    Raises:
      CheckpointError: another CLIP than the head's, or one without its text tower.
      OSError: the folder cannot be written or the disk is full.
    """
    known = trained.record["clip_mark"]
    kernel = None if clip is None else clip.get("visual.conv1.weight")
    if kernel is not None and known not in (None, _mark(kernel)):
        raise CheckpointError("the head was trained on another CLIP; give the one it was on")
    return write_torch(path, to_published(trained.arrays, clip))


def summary(record: Mapping[str, Any]) -> str:
    """A record in one line."""
    return f"{record['method']}, head of {told_classes(record)}"


def _record(arrays: Mapping[str, np.ndarray], classes: list[str] | None) -> dict[str, Any]:
    more = any(key.startswith(("head.fusion.gate.", "head.decoder.wavelet.")) for key in arrays)
    return {
        "format": FORMAT,
        "method": METHODS[more],
        "classes": classes,
        "class_count": arrays["head.decoder.classifier.bias"].size,
    }


def _check(
    path: Path,
    told: Mapping[str, Any],
    method: str | None,
    classes: Sequence[str] | None,
    visual: VisionTransformer | None,
) -> None:
    if method is not None and told["method"] != method:
        raise CheckpointError(
            f"{path} is of {told['method']}; give weights of {method} or choose {told['method']}"
        )
    check_classes(path, told, classes)
    own = None if visual is None else mark_of(visual, np.float16)
    if None not in (own, told["clip_mark"]) and own != told["clip_mark"]:
        raise CheckpointError(
            f"{path} was trained on another CLIP; load the CLIP that it was trained on"
        )


def _mark(conv1: np.ndarray) -> int:
    """`published.fingerprint` in the precision that the published files have."""
    return fingerprint(np.asarray(conv1, np.float16))


def _is_of_clip(key: str) -> bool:
    return key.startswith(ENCODER) and OPENAI.right(key.removeprefix(ENCODER)) is not None


def _filters(width: int) -> np.ndarray:
    """(4 * width, 1, 2, 2), the same four for each channel."""
    return np.tile(_HAAR, (width, 1, 1))[:, None]


def _sizes(stored: Mapping[str, np.ndarray], source: str) -> tuple[int, int, int, HeadConfig]:
    """CLIP's width, how many of its layers are read, classes, and the head's own sizes."""

    def count(prefix: str) -> int:
        after = prefix.count(".") + 1
        return len({key.split(".")[after] for key in stored if key.startswith(f"{prefix}.")})

    needed = f"{_FUSE}.bias", f"{_ADAPTERS}.0.proj.weight", "decoder.linear_pred.bias"
    missing = [key for key in needed if key not in stored]
    if missing or stored[needed[1]].ndim != 2:
        lacking = ", ".join(missing) or f"{needed[1]} of two axes"
        raise CheckpointError(
            f"{source}: {lacking} is missing; without it the sizes cannot be told. Check that the "
            "checkpoint is whole"
        )
    fused, first, bias = (stored[key] for key in needed)
    cfg = HeadConfig(
        width=fused.size,
        layers=count(_BLOCKS),
        heads=max(fused.size // _HEAD_WIDTH, 1),
        gate=any(key.startswith("decoder_fts_fuse.spatial_attention.") for key in stored),
        wavelet_levels=count(_BANDS),
    )
    return first.shape[1], count(_ADAPTERS), bias.size, cfg


@functools.lru_cache(maxsize=4)
def _shapes(inputs: int, layers: int, classes: int, cfg: HeadConfig) -> dict[str, tuple[int, ...]]:
    head = abstract(lambda rngs: Head(inputs, layers, classes, cfg, rngs=rngs))
    return {f"{_OURS}{path}": shape for path, shape in shapes_of(head).items()}
