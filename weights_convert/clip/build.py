"""A CLIP from arrays by OpenAI's names or by our paths, and back."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from clipseg_jax.core.modules import abstract as abstract_module
from clipseg_jax.models.clip import CLIP, CLIPConfig, ResNetConfig
from weights_convert.clip.keys import OPENAI
from weights_convert.errors import CheckpointError
from weights_convert.formats.reader import release

_KEYS_PER_BLOCK = 12
_CHECKED_AT_ONCE = 2**18  # numbers; in the processor's cache


@functools.lru_cache(maxsize=8)
def abstract(config: CLIPConfig) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """A CLIP's graph, and the shape of each parameter and statistic by its path.

    Nothing is computed or allocated. Tracing takes a second, so recent results are cached.
    """
    graph, state = nnx.split(abstract_module(lambda rngs: CLIP(config, rngs=rngs)))
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return graph, {".".join(map(str, path)): tuple(leaf.shape) for path, leaf in flat.items()}


def build(arrays: Mapping[str, np.ndarray], config: CLIPConfig) -> CLIP:
    """A CLIP with float32 parameters from arrays by our paths; all of them, in the right shapes."""
    graph, shapes = abstract(config)
    return nnx.merge(graph, _state({path: arrays[path] for path in shapes}))


def _state(arrays: Mapping[str, np.ndarray]) -> nnx.State:
    """A model's state from arrays by path, as float32 copies."""
    tree: dict[tuple, Any] = {}
    for path, array in arrays.items():
        parts = tuple(int(part) if part.isdigit() else part for part in path.split("."))
        tree[parts] = jnp.asarray(_aligned_copy(array))
        release(array)
    return nnx.State(traverse_util.unflatten_dict(tree))


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    """A float32 copy in C order, 64-byte aligned, so that JAX uses it without another copy.

    Copied because a mapped file may change on disk, and the parameters with it.
    """
    memory = np.empty(array.size + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    copy = memory[first : first + array.size].reshape(array.shape)
    copy[...] = array
    return copy


def flat_arrays(model: nnx.Module) -> dict[str, Any]:
    """A model's parameters and statistics by path."""
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)))
    return {".".join(map(str, path)): leaf for path, leaf in flat.items()}


def shapes_of(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters and statistics by path; the model may be abstract."""
    return {path: tuple(leaf.shape) for path, leaf in flat_arrays(model).items()}


def install(
    model: nnx.Module, arrays: Mapping[str, np.ndarray], *, complete: tuple[str, ...] = ()
) -> None:
    """Puts arrays by path into a model, as float32; its other arrays keep their values.

    Args:
      complete: starts of paths for which all arrays of the model must be given.

    Raises:
      CheckpointError: lists every missing (-), unexpected (+) and wrongly shaped (~) path; the
        model is unchanged.
    """
    shapes = shapes_of(model)
    problems = [
        f"~ {path}: shape {array.shape}, expected {shapes[path]}"
        if path in shapes
        else f"+ {path} {array.shape}: unexpected"
        for path, array in arrays.items()
        if shapes.get(path) != array.shape
    ]
    missing = [path for path in shapes if path.startswith(complete) and path not in arrays]
    problems += [f"- {path}: missing" for path in missing]
    if problems:
        problems.sort(key=lambda line: ("-+~".index(line[0]), line))
        listed = "\n  ".join(problems)
        raise CheckpointError(f"the weights don't fit the model; nothing was loaded:\n  {listed}")
    nnx.update(model, _state(arrays))


def with_config(clip: CLIP, config: CLIPConfig) -> CLIP:
    """The same parameters, not copied, in a CLIP with another activation, epsilon or dtype.

    Raises:
      ValueError: the sizes in `config` differ.
    """
    graph, shapes = abstract(config)
    present = shapes_of(clip)
    if present != shapes:
        paths = present.keys() | shapes.keys()
        path = min(p for p in paths if present.get(p) != shapes.get(p))
        raise ValueError(
            f"the sizes of the config differ: {path} is {present.get(path)}, by the config "
            f"{shapes.get(path)}; only fields such as activation, norm_eps and dtype may differ"
        )
    return nnx.merge(graph, nnx.state(clip))


def clip_from_state_dict(
    state_dict: Mapping[str, np.ndarray], config: CLIPConfig | None = None
) -> CLIP:
    """A CLIP from a state dict by OpenAI's names; the keys of the image tower alone are enough.

    `config` defaults to the sizes of the arrays, and OpenAI's activation and epsilon. The three
    scalars of the released archives and the counters of BatchNorm are ignored.

    Raises:
      CheckpointError: lists every missing, unexpected and wrongly shaped key.
    """
    weights = {key: value for key, value in state_dict.items() if not is_carried(key)}
    config = config_of(weights) if config is None else config
    arrays = OPENAI.to_right(weights, abstract(config)[1], "the state dict")
    return build(arrays, config)


def clip_to_state_dict(model: CLIP) -> dict[str, np.ndarray]:
    """A CLIP's weights by OpenAI's names, float32, in PyTorch's layout."""
    out = OPENAI.to_left({path: np.asarray(leaf) for path, leaf in flat_arrays(model).items()})
    return {key: np.asarray(value, order="C") for key, value in (out | counters(out)).items()}


def expected_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each weight by OpenAI's names, in PyTorch's layout."""
    shapes = abstract(config)[1]
    zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
    return {key: zero.shape for key, zero in OPENAI.to_left(zeros).items()}


def counters(keys: Iterable[str]) -> dict[str, np.ndarray]:
    """PyTorch's `num_batches_tracked` for each running mean among `keys`; nothing reads them."""
    ending = ".running_mean"
    names = [key.removesuffix(ending) for key in keys if key.endswith(ending)]
    return {f"{name}.num_batches_tracked": np.zeros((), np.int64) for name in names}


def is_carried(key: str) -> bool:
    """True for entries of state dicts that exported files need and models do not."""
    return key in ("input_resolution", "context_length", "vocab_size", "logit_bias") or (
        key.endswith((".num_batches_tracked", ".embeddings.position_ids"))
    )


def config_of(weights: Mapping[str, np.ndarray]) -> CLIPConfig:
    """The sizes of weights by OpenAI's names, with OpenAI's activation and epsilon.

    If a key is missing, the size is taken from another one where possible, so that the key map can
    name what is missing.

    Raises:
      CheckpointError: not a CLIP, or too incomplete to determine its sizes.
    """
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    try:
        if "visual.head.probe" not in shapes:
            _fill(shapes)
        config = CLIPConfig.from_shapes(shapes)
        vision, text = config.vision, config.text
        if not isinstance(vision, ResNetConfig):
            vision = dataclasses.replace(vision, layers=_layers(shapes, "visual."))
        if text is not None:
            text = dataclasses.replace(text, layers=_layers(shapes, ""), embed_dim=vision.embed_dim)
        config = CLIPConfig(vision, text)
        _check_sizes(config)
        return config
    except KeyError as error:
        raise CheckpointError(
            f"- {error.args[0]}: missing; without it the sizes cannot be determined. Check that "
            "the checkpoint is complete"
        ) from error
    except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"not the weights of a CLIP: {error}") from error


def _check_sizes(config: CLIPConfig) -> None:
    """Raises ValueError for sizes of which no model can be built."""
    for name, tower in (("image", config.vision), ("text", config.text)):
        for field, value in (dataclasses.asdict(tower) if tower else {}).items():
            counts = value if field == "blocks" else (value,)
            if any(type(count) is int and count < 1 for count in counts):
                raise ValueError(f"{field} of the {name} tower is {value}")
    vision = config.vision
    if vision.grid < 1 or (isinstance(vision, ResNetConfig) and vision.width < 2):
        raise ValueError(f"an image tower of width {vision.width} for {vision.image_px} pixels")


def _fill(shapes: dict[str, tuple[int, ...]]) -> None:
    """Adds the shapes of missing keys that sizes are read from, where others determine them."""

    def first(key: str) -> int | None:
        return shapes[key][0] if key in shapes else None

    if "text_projection" in shapes and (width := first("visual.ln_post.weight")):
        shapes.setdefault("visual.proj", (width, shapes["text_projection"][1]))
    block = "visual.layer1.0"
    if f"{block}.conv1.weight" not in shapes and (width := first(f"{block}.bn1.weight")):
        shapes[f"{block}.conv1.weight"] = (width, width, 1, 1)
    if any(key.startswith(("transformer.", "token_embedding.", "ln_final.")) for key in shapes):
        width = first("text_projection") or first("ln_final.weight") or first("ln_final.bias")
        width = width or shapes["token_embedding.weight"][1]
        shapes.setdefault("text_projection", (width, 0))  # the image tower has the embedding width
        shapes.setdefault("ln_final.weight", (width,))
        shapes.setdefault("positional_embedding", (77, width))
        shapes.setdefault("token_embedding.weight", (49408, width))


def _layers(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """The number of blocks: the highest index with at least half of a block's keys, plus one.

    Raises:
      ValueError: more blocks are missing than are there, so the numbers are damaged.
    """
    pattern = re.compile(rf"{prefix}transformer\.resblocks\.([0-9]{{1,9}})\.")
    counts = Counter(int(m.group(1)) for key in shapes if (m := pattern.match(key)))
    blocks = [i for i, n in counts.items() if 2 * n >= _KEYS_PER_BLOCK]
    layers = 1 + max(blocks, default=-1)
    if layers > 2 * len(blocks):
        raise ValueError(f"{len(blocks)} blocks of {prefix}transformer, numbered to {layers - 1}")
    return layers


def check_finite(arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Checks that weights are floating point numbers, finite as float32.

    Raises:
      CheckpointError: names the first array that is not, and how many of its numbers are not.
    """
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise CheckpointError(
                f"{source}: {name} is of {array.dtype}; quantised weights are not supported, give "
                "the float weights that they were made from"
            )
        flat = array.reshape(-1)  # a view of what is contiguous, as nearly all are
        counts = Counter[str]()
        for start in range(0, flat.size, _CHECKED_AT_ONCE):
            part = flat[start : start + _CHECKED_AT_ONCE]
            with np.errstate(over="ignore"):
                part = part.astype(np.float32) if array.dtype == np.float64 else part
            if not (finite := np.isfinite(part)).all():
                counts["NaN"] += int(np.isnan(part).sum())
                counts["infinite"] += int((~finite).sum() - np.isnan(part).sum())
        release(array)
        if faults := [f"{count} {kind}" for kind, count in counts.items() if count]:
            raise CheckpointError(
                f"{source}: {name} holds {' and '.join(faults)} of {array.size} numbers; its "
                "training diverged or overflowed float16, or it is damaged: give other weights"
            )
