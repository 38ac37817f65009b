"""Converted CLIPs: their record is checked, and their arrays against the sizes that it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weights_convert.clip.build import abstract
from weights_convert.clip.cache import config_from_dict, tokenizer_from_dict
from weights_convert.clip.choices import ACTIVATIONS
from weights_convert.clip.huggingface import LEAST_STD
from weights_convert.clip.siglip_tokenizer_files import SIGLIP_TOKENIZER_FILES
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import Converted, load_converted
from weights_convert.formats.reader import DAMAGE, described
from weights_convert.formats.record import (
    check_arrays,
    check_record,
    entries,
    list_of,
    mapping_of,
    maybe,
    number,
    one_of,
    text,
    whole,
)

_WIDTH, _LAYERS, _PIXELS = whole(1, 2**16), whole(0, 10_000), whole(1, 2**14)
_DTYPE = one_of("float32", "bfloat16", "float16")
_BOOL = one_of(True, False)
_RESIZE = one_of("bicubic", "bilinear")
_ACTIVATION = one_of(*ACTIVATIONS)
_EPSILON = number(0, 1)

_VIT = entries(
    {
        "image_px": _PIXELS, "patch_px": _PIXELS, "width": _WIDTH, "layers": _LAYERS,
        "heads": _WIDTH, "embed_dim": _WIDTH,
    },
    {
        "mlp_width": maybe(_WIDTH), "activation": _ACTIVATION, "norm_eps": _EPSILON,
        "block_norm_eps": maybe(_EPSILON),
        "position_resize": _RESIZE, "position_half": _BOOL, "position_half_stored": _BOOL,
        "position_keep_count": _BOOL, "position_offset": number(0, 1), "pad_to_patch": _BOOL,
        "dtype": _DTYPE,
    },
)  # fmt: skip
_RESNET = entries(
    {
        "image_px": _PIXELS, "width": _WIDTH, "blocks": list_of(_LAYERS, 4, 4), "heads": _WIDTH,
        "embed_dim": _WIDTH,
    },
    {"position_resize": _RESIZE, "position_half": _BOOL, "dtype": _DTYPE},
)  # fmt: skip
_TEXT = entries(
    {
        "context_length": _PIXELS, "vocabulary": whole(1, 2**24), "width": _WIDTH,
        "layers": _LAYERS, "heads": _WIDTH, "embed_dim": _WIDTH,
    },
    {
        "mlp_width": maybe(_WIDTH), "activation": _ACTIVATION, "norm_eps": _EPSILON,
        "dtype": _DTYPE,
    },
)  # fmt: skip
_SIGLIP = entries(
    {
        "image_px": _PIXELS, "patch_px": _PIXELS, "width": _WIDTH, "layers": _LAYERS,
        "heads": _WIDTH, "mlp_width": _WIDTH, "activation": _ACTIVATION, "norm_eps": _EPSILON,
        "position_resize": one_of("bicubic", "bilinear_antialias"), "pad_to_patch": _BOOL,
        "dtype": _DTYPE,
    },
    {},
)  # fmt: skip
_SIGLIP_TEXT = entries(
    {
        "context_length": _PIXELS, "vocabulary": whole(1, 2**24), "width": _WIDTH,
        "layers": _LAYERS, "heads": _WIDTH, "embed_dim": _WIDTH, "mlp_width": _WIDTH,
        "activation": _ACTIVATION, "norm_eps": _EPSILON, "dtype": _DTYPE,
    },
    {},
)  # fmt: skip
_TOWERS = {"vit": (_VIT, _TEXT), "resnet": (_RESNET, _TEXT), "siglip": (_SIGLIP, _SIGLIP_TEXT)}


def _config(value: Any, at: str) -> None:
    kind = value.get("kind") if isinstance(value, dict) else None
    vision, text_tower = _TOWERS[kind if isinstance(kind, str) and kind in _TOWERS else "vit"]
    parts = {"kind": one_of(*_TOWERS), "vision": vision, "text": maybe(text_tower)}
    entries(parts, {})(value, at)


_BYTE_PAIRS = entries(
    {
        "merges": list_of(list_of(text(), 2, 2), most=10_000_000),
        "ids": maybe(mapping_of(whole(0, 2**31))),
    },
    {},
)
_TOKENIZER_FILE = entries({"file": one_of(*SIGLIP_TOKENIZER_FILES), "content": text(2**26)}, {})


def _tokenizer(value: Any, at: str) -> None:
    (_TOKENIZER_FILE if isinstance(value, dict) and "file" in value else _BYTE_PAIRS)(value, at)


def _scalar(value: Any, at: str) -> None:
    list_of(lambda *_: None, 2, 2)(value, at)
    one_of("int64", "int32", "float32", "float16", "bfloat16", "float64")(value[0], f"{at}[0]")
    _numbers(value[1], f"{at}[1]")


def _numbers(value: Any, at: str) -> None:
    if isinstance(value, list):  # position ids
        list_of(_numbers if at.count("[") < 6 else number(-(2**63), 2**63))(value, at)
    else:
        number(-(2**63), 2**63)(value, at)


_CLIP = entries(
    {
        "format": text(),
        "source": text(),
        "sha256": text(64),
        "kind": text(),
        "layout": text(),
        "model": maybe(text()),
        "parameters": whole(0, 2**62),
        "bytes": whole(0, 2**62),
        "absent": list_of(text(), most=100),
        "config": _config,
        "tokenizer": maybe(_tokenizer),
        "carried": mapping_of(_scalar, most=100_000),
    },
    {
        "guessed": list_of(text(), most=10),
        "image_mean": maybe(list_of(number(0, 1), 3, 3)),
        "image_std": maybe(list_of(number(LEAST_STD, 1), 3, 3)),
    },
)


def load_converted_clip(path: str | Path) -> Converted:
    """A converted CLIP whose record is sound, and whose arrays are those of its config.

    Raises:
      CheckpointError: as `load_converted`; names the first entry of the record that is not as it
        must be, or lists every missing, unexpected and wrongly shaped array.
      OSError: the file cannot be read.
    """
    converted = load_converted(path)
    arrays, record = converted
    check_record(record, _CLIP, path)
    sizes = record["config"]
    for tower in (sizes["vision"], sizes["text"] or {}):
        if "layers" in tower and tower["width"] % tower["heads"]:
            raise CheckpointError(
                f"{path}: its record has {tower['heads']} heads for a width of {tower['width']}"
            )
    layers = sizes["text"]["layers"] if sizes["text"] else 0
    layers += sum(sizes["vision"].get("blocks", [])) + sizes["vision"].get("layers", 0)
    if layers > len(arrays):  # before a model of them is traced
        raise CheckpointError(f"{path}: its record has {layers} blocks for {len(arrays)} arrays")
    try:
        shapes = abstract(config_from_dict(sizes))[1]
        tokenizer_from_dict(record["tokenizer"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (*DAMAGE, ZeroDivisionError, AssertionError) as error:
        raise CheckpointError(
            f"{path}: its record describes no CLIP ({described(error)}); convert its source again"
        ) from error
    check_arrays(arrays, shapes, path)
    return converted
