"""`Format`: what a method declares about the files of its trained network.

Each method has one constant of it; loading, saving and exporting are in `files`, for all of them.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from flax import nnx

from clipseg_jax.models.clip import VisionTransformer
from weights_convert.clip.build import flat_arrays, is_carried
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import Converted
from weights_convert.formats.record import Check, list_of, maybe, text, whole
from weights_convert.formats.safetensors import raw_bytes
from weights_convert.mapping import CONV

Arrays = Mapping[str, np.ndarray]
Record = Mapping[str, Any]

CLASS_COUNT: Check = whole(1, 100_000)
# Of every record: required entries, and optional ones. Others may be there, and nothing reads them.
RECORD: tuple[Mapping[str, Check], Mapping[str, Check]] = (
    {"format": text(), "classes": maybe(list_of(text(), 1))},
    {
        "clip_mark": maybe(whole(0, 2**32 - 1)), "kind": text(), "source": text(),
        "sha256": text(64), "setting": maybe(text()),
    },
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Format:
    """The files of one kind of trained network: stored ones, and those of the published code.

    A stored file holds arrays by the model's paths and a record. The entry "clip_mark" of a record
    is the `fingerprint` of the CLIP that the network was trained with.
    """

    name: str  # on the command line
    title: str  # for people, with entries of the record in braces
    tag: str  # the record's entry "format"; it changes whenever older files must not be read
    recognised: Callable[[Collection[str]], bool]  # whether a published state dict has these keys
    # (state dict, what is beside it in the file, source named in errors) -> arrays by the model's
    # paths, and what this file adds to the record.
    from_published: Callable[[Arrays, Record, str], Converted]
    # (trained, the CLIP's weights by OpenAI's names or None) -> content of the published file.
    to_published: Callable[[Converted, Arrays | None], Mapping[str, Any]]
    stored_arrays: Callable[[Any], dict[str, np.ndarray]]  # what is stored of a model, by path
    # (stored arrays, the model if there is one) -> the record's entries that describe the model.
    record: Callable[[Arrays, Any], dict[str, Any]]
    # What the record must hold besides `RECORD`: required entries, and optional ones.
    entries: tuple[Mapping[str, Check], Mapping[str, Check]]
    summary: Callable[[Record], str]  # a record in one line
    # (stored arrays, record) -> the shape of each array, of a network that needs no CLIP's sizes.
    shapes: Callable[[Arrays, Record], Mapping[str, tuple[int, ...]]] | None = None
    takes_clip: bool = True  # whether a published file can repeat a CLIP
    clip_dtype: type = np.float32  # precision in which published files repeat it


def arrays_of(model: nnx.Module, *, start: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
    """A model's arrays whose paths start with one of `start`."""
    return {
        path: np.asarray(leaf)
        for path, leaf in flat_arrays(model).items()
        if path.startswith(start)
    }


def whole_clip(clip: Arrays | None, title: str) -> dict[str, np.ndarray]:
    """The weights of a CLIP with both towers, for a published file that repeats it.

    Raises:
      CheckpointError: no CLIP, or one without its text tower.
    """
    if clip is None:
        raise CheckpointError(
            f"{title}'s published files repeat the whole CLIP, and the stored file holds only what "
            "was trained; give the CLIP that it was trained with (--clip)"
        )
    weights = {key: value for key, value in clip.items() if not is_carried(key)}
    if "text_projection" not in weights or "visual.conv1.weight" not in weights:
        raise CheckpointError(
            f"{title}'s published files repeat the whole CLIP; give one with its text tower"
        )
    return weights


def class_summary(record: Record) -> str:
    """The number of classes, and the first of their names if the record has them."""
    names = record["classes"]
    shown = f" ({', '.join(names[:3])}, ...)" if names else ", names not recorded"
    return f"{record['class_count']} classes{shown}"


def fingerprint(conv1: np.ndarray, dtype: type = np.float32) -> int:
    """Identifies a CLIP, whatever file it comes from, by its ViT's `conv1.weight`."""
    return zlib.crc32(raw_bytes(np.asarray(np.asarray(conv1, dtype), np.float32)))


def clip_fingerprint(visual: VisionTransformer, dtype: type = np.float32) -> int:
    """`fingerprint` of an image tower."""
    return fingerprint(CONV.inverse(np.asarray(visual.conv1.kernel[...])), dtype)
