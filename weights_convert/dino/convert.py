"""From any supported checkpoint of a DINO to a tower, and from a converted one to PyTorch's files.

Converted files are as those of CLIP: arrays by our paths, with a record. The `mask_token` of
DINOv2's training is among the arrays for exports.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from clipseg_jax.core.checks import check_whole
from clipseg_jax.core.files import write_atomic, write_json
from clipseg_jax.core.modules import abstract
from clipseg_jax.models.dino import DINO, DINOConfig
from weights_convert.clip.build import check_finite, install, shapes_of
from weights_convert.clip.choices import check_choices
from weights_convert.clip.huggingface import weights_file
from weights_convert.clip.shards import read_weights, sha256
from weights_convert.dino.huggingface import CONFIG, check_sizes, config_json, read_config_json
from weights_convert.dino.keys import AUTHORS, MASK_TOKEN
from weights_convert.dino.layouts import (
    config_of,
    identify,
    sketch,
    to_huggingface,
    weights,
)
from weights_convert.errors import CheckpointError
from weights_convert.formats import safetensors as safetensors_file
from weights_convert.formats.converted import (
    Converted,
    is_converted,
    load_converted,
)
from weights_convert.formats.record import (
    check_arrays,
    check_record,
    entries,
    number,
    one_of,
    text,
    whole,
)
from weights_convert.formats.torch_writer import write_torch
from weights_convert.mapping import Shape
from weights_convert.named.find import find_weights

FORMAT = "clipseg_jax DINO 1"  # changed whenever older converted files must not be read
Layout = Literal["dino", "dino_huggingface"]
LAYOUTS: tuple[str, ...] = get_args(Layout)

_BOOL, _PIXELS, _COUNT = one_of(True, False), whole(1, 2**14), whole(0, 10_000)
_CONFIG = entries(
    {
        "image_px": _PIXELS, "patch_px": _PIXELS, "width": whole(1, 2**16), "layers": _COUNT,
        "heads": whole(1, 2**16), "mlp": one_of("gelu", "swiglu"), "layer_scale": _BOOL,
        "registers": _COUNT, "position_antialias": _BOOL, "norm_eps": number(0, 1),
        "dtype": one_of("float32", "bfloat16", "float16"),
    },
    {},
)  # fmt: skip
_RECORD = entries(
    {
        "format": text(), "source": text(), "sha256": text(64), "kind": text(), "layout": text(),
        "parameters": whole(0, 2**62), "bytes": whole(0, 2**62), "config": _CONFIG,
    },
    {},
)  # fmt: skip


def load_dino(path: str | Path, *, dtype: str = "float32", heads: int | None = None) -> DINO:
    """A DINO tower: the authors' `.pth`, a Hugging Face directory, a converted file, or a name.

    Args:
      path: a file or folder, or a name such as "dino_vitb8", see `find_weights`.
      dtype: of matrix products; parameters are float32.
      heads: replaces those of a config.json; without both there is one for each 64 channels, as in
        all released towers.

    Raises:
      CheckpointError: the file cannot be used, or holds a CLIP; lists every missing, unexpected and
        wrongly shaped key; weights that are not finite. FileNotFoundError: no file.
      ValueError: choices that cannot be meant.
    """
    check_choices(dtype=dtype)
    arrays, record = convert_dino(path, heads=heads)
    return _build(arrays, DINOConfig(**{**record["config"], "dtype": dtype}))


def dino_from_state_dict(state_dict: Mapping[str, np.ndarray], *, heads: int | None = None) -> DINO:
    """A DINO tower from a state dict by the authors' or by Hugging Face's names.

    `heads` None: one for each 64 channels.

    Raises:
      CheckpointError: lists every missing, unexpected and wrongly shaped key.
    """
    _, config, arrays = _fit(state_dict, "the state dict", None, heads)
    return _build(arrays, config)


def convert_dino(path: str | Path, *, heads: int | None = None) -> Converted:
    """Any supported checkpoint of a DINO as arrays by our paths, views where possible.

    Raises:
      CheckpointError, FileNotFoundError: as `load_dino`.
    """
    path = find_weights(path)
    weights_path = weights_file(path)
    if is_converted(weights_path):
        converted = _load(weights_path, heads)
        check_finite(converted.arrays, str(path))
        return converted
    checkpoint = read_weights(weights_path)
    config_path = weights_path.parent / CONFIG
    layout, config, arrays = _fit(checkpoint.content, str(path), config_path, heads)
    check_finite(arrays, str(path))
    record = {
        "format": FORMAT,
        "source": path.name,
        "sha256": sha256(weights_path),
        "kind": checkpoint.kind,
        "layout": layout,
        "parameters": sum(math.prod(array.shape) for array in arrays.values()),
        "bytes": sum(array.nbytes for array in arrays.values()),
        "config": dataclasses.asdict(config),
    }
    return Converted(arrays, record)


def export_dino(converted: Converted, path: str | Path, layout: str = "dino") -> Path:
    """Writes a file or directory that PyTorch code loads; dtypes and bits as in the source.

    Layouts: "dino", the authors' state dict in a torch zip file, which does not say the heads;
    "dino_huggingface", a directory with model.safetensors and config.json.

    Raises:
      ValueError: unknown layout. OSError: it cannot be written.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    state_dict = AUTHORS.to_left(converted.arrays)
    if layout == "dino":
        return write_torch(path, state_dict)
    config = DINOConfig(**converted.record["config"])
    directory, renamed = Path(path), to_huggingface(state_dict, config)
    write_atomic(
        directory / "model.safetensors",
        lambda file: safetensors_file.write(file, renamed, {"format": "pt"}),
    )
    write_json(directory / CONFIG, config_json(config))
    return directory


def _fit(
    content: object, source: str, config_path: Path | None, heads: int | None
) -> tuple[str, DINOConfig, dict[str, np.ndarray]]:
    """The layout of a checkpoint, its config, and its arrays by our paths."""
    _check_heads(heads)
    named = identify(content, source)
    named_by_authors = sketch(named)
    beside = None
    if config_path is not None and named.layout == "huggingface":
        beside = read_config_json(config_path)
    if beside is None:
        config = config_of(named_by_authors, source, heads)
    else:
        config = config_of(named_by_authors, source, beside.heads if heads is None else heads)
        check_sizes(config, beside)
        config = dataclasses.replace(config, norm_eps=beside.norm_eps)
    shapes = dict(_shapes(config))
    if MASK_TOKEN in named_by_authors:
        shapes[MASK_TOKEN] = (1, config.width)
    zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
    expected = {key: zero.shape for key, zero in AUTHORS.to_left(zeros).items()}
    state_dict = weights(named, expected, source)
    return named.layout, config, AUTHORS.to_right(state_dict, shapes, source)


@functools.lru_cache(maxsize=8)
def _shapes(config: DINOConfig) -> dict[str, Shape]:
    """The shape of each parameter by its path; tracing takes a second, so it is cached."""
    return shapes_of(abstract(lambda rngs: DINO(config, rngs=rngs)))


def _build(arrays: Mapping[str, np.ndarray], config: DINOConfig) -> DINO:
    tower = abstract(lambda rngs: DINO(config, rngs=rngs))
    parameters = {path: array for path, array in arrays.items() if path != MASK_TOKEN}
    install(tower, parameters, complete=("",))
    return tower


def _check_heads(heads: int | None) -> None:
    if heads is not None:
        check_whole("heads", heads)


def _load(path: Path, heads: int | None) -> Converted:
    """A converted file, its record checked by itself and against the arrays."""
    _check_heads(heads)
    arrays, record = load_converted(path, FORMAT)
    check_record(record, _RECORD, path)
    if heads is not None:
        record = record | {"config": record["config"] | {"heads": heads}}
    if record["config"]["layers"] > len(arrays):  # before a model of them is traced
        raise CheckpointError(
            f"{path}: its record has {record['config']['layers']} blocks for {len(arrays)} arrays"
        )
    try:
        config = DINOConfig(**record["config"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    mask = {MASK_TOKEN: (1, config.width)} if MASK_TOKEN in arrays else {}
    check_arrays(arrays, _shapes(config) | mask, path)
    return Converted(arrays, record)
