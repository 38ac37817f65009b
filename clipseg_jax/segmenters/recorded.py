"""The config that a trained file records, checked as a stranger's before a network is built of it.

A checksum proves nothing about who wrote a file. Of its record nothing is read but the values that
the method's recipe has, each within bounds; sizes must be those of the stored arrays; no value
leads to a file or an address.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from clipseg_jax.core.config_names import is_free, with_new_names
from clipseg_jax.core.safe_pickle import shown
from clipseg_jax.prompts import MOST_CLASSES, check_class_names
from clipseg_jax.segmenters.trained import LONGEST_PX
from clipseg_jax.stages.network import CONFIG
from clipseg_jax.stages.work_directory import flat
from configs.base import clip_es, clip_rc, maskclip_plus, reclip, weclip
from weights_convert import CheckpointError, Format
from weights_convert.formats.record import Check, Unfit, list_of, number, one_of, text, whole
from weights_convert.named.find import find_cached
from weights_convert.named.hub import PREFIX
from weights_convert.named.names import KNOWN

REMEDY = "take the file as its training wrote it, or run its recipe again"
MOST_SIDE_PX = 1536  # of the shorter side at the network, and of a window
_MOST_WINDOWS = 32  # along a side of so many pixels, or fewer
_MOST_VALUES = 2000
_MOST_WORDS = 1000  # of any list

# Format -> method, and a recipe of it, whose values are all that are read.
_RECIPES: Mapping[str, tuple[str, Callable[[], ConfigDict]]] = {
    "weclip": ("weclip", weclip.get_config),
    "clip_rc": ("clip_rc", clip_rc.get_config),
    "reclip": ("reclip", lambda: reclip.get_config("reclip++")),
    "maskclip_plus": (
        "maskclip_plus",
        lambda: maskclip_plus.get_config("deeplabv2_r50", "", "annotation_free"),
    ),
    "deeplab": ("clip_es", clip_es.get_config),
}
# Values that are paths of the machine that trained, which mean nothing here.
_PATHS = re.compile(r"(.+\.)?(root|file|trained_weights|init_weights)")
_BARE = re.compile(r"(?!\.)[\w.+@-]{1,200}", re.ASCII)  # the name of a file without its folder

_SIDE = whole(1, 100_000)  # pixels; CLIP-RC's published long side has no limit but this one
_ROUNDS = whole(0, 100)
_RATIOS = list_of(number(1 / 16, 4), 1, 16)
_BOUNDS: Mapping[str, Check] = {
    "dataset.class_names": list_of(text(200), 0, MOST_CLASSES + 1),
    "text.background_words": list_of(text(200), 0, MOST_CLASSES),
    "clip.weights": text(),
    "clip.heads": list_of(whole(1, 2**12), 2, 2),
    "train.seed": whole(-(2**31), 2**31 - 1),
    "par.iterations": _ROUNDS,
    "par.dilations": list_of(whole(1, 512), 1, 16),
    "crf.iterations": _ROUNDS,
    "inference.pamr.steps": _ROUNDS,
    "inference.pamr.dilations": list_of(whole(1, 512), 1, 16),
    "inference.ratios": _RATIOS,
    "student.ratios": _RATIOS,
}


def recorded_config(
    record: Mapping[str, Any], fmt: Format, arrays: Mapping[str, np.ndarray], source: str
) -> ConfigDict:
    """The config in the record of a file of format `fmt`, with today's names.

    Values that the recipe has not are left out; missing ones are not replaced.

    Raises:
      CheckpointError: a value that cannot be meant, or a size that its arrays do not have; names
        the file, the value and the remedy.
    """
    stored, (method, recipe) = record[CONFIG], _RECIPES[fmt.name]
    found = stored.get("method") if isinstance(stored, Mapping) else stored
    if found != method:
        raise CheckpointError(
            f"{source} holds a network of {method}, and its record a config of method "
            f"{shown(found)}; {REMEDY}"
        )
    named = with_new_names(flat(stored))
    decides = named.get("clip.decides")
    open_ = decides if isinstance(decides, list) else []  # what nothing needed may be None still
    values: dict[str, Any] = {}
    nested: dict[str, Any] = {}
    try:
        if len(named) > _MOST_VALUES:
            raise Unfit(f"config has {len(named):,} values, more than {_MOST_VALUES:,}")
        for name, (kind, default) in _leaves(recipe()).items():
            if any(other.startswith(f"{name}.") for other in named):
                raise Unfit(f"config.{name} is several values, expected one")
            if name not in named:
                continue
            value = None if _PATHS.fullmatch(name) else named[name]
            may_lack = default is None or name.endswith("_px") or name in open_
            if value is not None or not (may_lack or _PATHS.fullmatch(name)):
                (_BOUNDS.get(name) or _check_of(name, kind, default))(value, f"config.{name}")
            values[name] = _as_tuples(value)
            put(nested, name, value)
        _check_names(values, record)
        _check_views(values)
        _check_sizes(method, values, arrays)
    except Unfit as error:
        raise CheckpointError(f"{source}: its {error}; {REMEDY}") from error
    return ConfigDict(nested)


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Puts a value at its place in a nested dictionary; `name`: full, such as "head.width"."""
    *sections, key = name.split(".")
    for each in sections:
        values = values.setdefault(each, {})
    values[key] = _as_tuples(value)


def _as_tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(_as_tuples(each) for each in value) if isinstance(value, list) else value


def check_recorded_clip(weights: Any, source: str) -> str | None:
    """The CLIP that a trained file may choose by itself, which is little.

    That is "demo", a published name, and a file or folder beside the user, by its bare name; what
    has an address only where the user has downloaded it before. No file makes anything else be
    read, or fetched from a place of its choice.

    Raises:
      CheckpointError: anything else; the message has it, for the user to decide.
    """
    if weights is None or weights == "":
        return None
    if weights in KNOWN or _BARE.fullmatch(weights):
        return weights
    if weights.startswith((PREFIX, "https://")) and (cached := find_cached(weights)) is not None:
        return str(cached)
    raise CheckpointError(
        f"{source} says that it was trained on the CLIP {shown(weights)}; a file may not choose "
        "what is downloaded or read, so say yourself which CLIP to take: clip='ViT-B/16', an "
        "address or a file, or --clip"
    )


def _leaves(config: ConfigDict, prefix: str = "") -> dict[str, tuple[type, Any]]:
    """Type and default of each value of a recipe but those of how it runs, by its full name."""
    out: dict[str, tuple[type, Any]] = {}
    for key in config:
        value, name = config[key], f"{prefix}{key}"
        if isinstance(value, ConfigDict):
            out |= _leaves(value, f"{name}.")
        elif not is_free(name):
            out[name] = config.get_type(key), value
    return out


def _check_of(name: str, kind: type, default: Any) -> Check:
    """What a value may be by its name, and by its type in the recipe."""
    side = whole(1, MOST_SIDE_PX) if name.endswith(("crop_px", "stride_px")) else _SIDE
    if name.endswith("_px"):
        return list_of(side, 2, 2) if kind is tuple else side
    if kind is bool:
        return one_of(True, False)
    if kind is int:
        return whole(-(2**31), 2**31 - 1)
    if kind is float:
        return number(-1e9, 1e9)
    if kind is str:
        return text()
    assert kind is tuple, (name, kind)
    texts = not default or isinstance(default[0], str)
    return list_of(text() if texts else number(-1e9, 1e9), 0, _MOST_WORDS)


def _check_names(values: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """The class names of a user's folder are different, and those that the file itself names."""
    names = values.get("dataset.class_names")
    if values.get("dataset.name") not in ("folder", "demo_world") or names is None:
        return
    try:
        check_class_names(names, "config.dataset.class_names")
    except ValueError as error:
        raise Unfit(str(error)) from error
    if record["classes"] not in (None, [*names]):
        raise Unfit("config.dataset.class_names are other classes than those that its record names")


def _check_views(values: Mapping[str, Any]) -> None:
    """No photo is enlarged, or cut into windows, beyond what a machine can hold and finish."""
    for section in ("inference", "student"):
        scale = values.get(f"{section}.scale_px") or (LONGEST_PX, LONGEST_PX)
        smaller = min if values.get(f"{section}.keep_ratio", True) else max
        ratios = values.get(f"{section}.ratios", (1.0,))
        side = smaller(scale) * max(ratios)
        if side > MOST_SIDE_PX:
            raise Unfit(
                f"config.{section}.scale_px is {scale}, times {max(ratios):g} of its ratios more "
                f"than the {MOST_SIDE_PX} pixels that are taken"
            )
        stride = values.get(f"{section}.stride_px")
        if stride is not None and side > _MOST_WINDOWS * min(stride):
            raise Unfit(
                f"config.{section}.stride_px is {stride} of {side:g} pixels, which makes more than "
                f"{_MOST_WINDOWS} windows along a side"
            )


def _check_sizes(method: str, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """The sizes of the network are those of the stored arrays, before anything is built."""
    for name, stored in _stored_sizes(method, arrays).items():
        if values.get(name) != stored:
            found = _listed(values.get(name, "missing"))
            raise Unfit(f"config.{name} is {found}, its arrays have {_listed(stored)}")


def _listed(value: Any) -> str:
    return ", ".join(map(shown, value)) if isinstance(value, tuple) else shown(value)


def _stored_sizes(method: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The values of a recipe that its trained arrays determine."""
    if method == "weclip":
        wavelet, block = "head.decoder.wavelet.bands.", "head.decoder.transformer.resblocks."
        return {
            "head.width": _shape(arrays, "head.decoder.classifier.kernel", 2)[0],
            "head.layers": _count(arrays, block),
            "head.gate": any(path.startswith("head.fusion.gate.") for path in arrays),
            "head.wavelet_levels": _count(arrays, wavelet),
        }
    if method == "clip_rc":
        return {
            "clip_rc.prompts": _shape(arrays, "encoder.prompt_embeddings", 2)[0],
            "clip_rc.region_side": math.isqrt(_shape(arrays, "encoder.region_level_bridge", 2)[0]),
            "clip_rc.decoder_blocks": _count(arrays, "head.decoder_q."),
            "clip_rc.hidden": _shape(arrays, "head.decoder_q.0.linear1.kernel", 2)[1],
        }
    start = "student.backbone.layers."
    if method == "reclip" and _count(arrays, start):
        return {
            "student.blocks": tuple(_count(arrays, f"{start}{stage}.") for stage in range(4)),
            "student.width": _shape(arrays, f"{start}0.0.conv1.kernel", 4)[3],
        }
    return {}  # those of a student are in its format's own record


def _count(arrays: Mapping[str, np.ndarray], start: str) -> int:
    """How many layers have arrays whose paths begin so."""
    return len({p.removeprefix(start).split(".")[0] for p in arrays if p.startswith(start)})


def _shape(arrays: Mapping[str, np.ndarray], path: str, rank: int) -> tuple[int, ...]:
    if path not in arrays or arrays[path].ndim != rank:
        raise Unfit(f"array {path} is missing or not of {rank} axes")
    return arrays[path].shape
