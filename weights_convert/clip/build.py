"""A CLIP from arrays by OpenAI's names or by our paths, and back."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from clipseg_jax.core.modules import abstract as abstract_module
from clipseg_jax.models.clip import CLIP, CLIPConfig, ViTConfig
from weights_convert.clip.keys import OPENAI
from weights_convert.errors import CheckpointError
from weights_convert.formats.reader import release

_KEYS_PER_BLOCK = 12


@functools.lru_cache(maxsize=8)
def abstract(config: CLIPConfig) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """A CLIP's structure, and the shape of each parameter and statistic by its path.

    Nothing is computed or allocated. Tracing takes a second, so the last ones are remembered.
    """
    graph, state = nnx.split(abstract_module(lambda rngs: CLIP(config, rngs=rngs)))
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return graph, {".".join(map(str, path)): tuple(leaf.shape) for path, leaf in flat.items()}


def build(arrays: Mapping[str, np.ndarray], config: CLIPConfig) -> CLIP:
    """A CLIP with float32 parameters from arrays by our paths, complete and of the right shapes."""
    graph, shapes = abstract(config)
    return nnx.merge(graph, _state({path: arrays[path] for path in shapes}))


def _state(arrays: Mapping[str, np.ndarray]) -> nnx.State:
    """Float32 copies of arrays by path as a model's state."""
    tree: dict[tuple, Any] = {}
    for path, array in arrays.items():
        parts = tuple(int(part) if part.isdigit() else part for part in path.split("."))
        tree[parts] = jnp.asarray(_own_copy(array))
        release(array)
    return nnx.State(traverse_util.unflatten_dict(tree))


def _own_copy(array: np.ndarray) -> np.ndarray:
    """A float32 copy in C order that JAX takes over as it is, for its address is a multiple of 64.

    Copied at all, because a mapped file can change on disk under the parameters.
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
    """Shapes of the same; the model may be of shapes alone."""
    return {path: tuple(leaf.shape) for path, leaf in flat_arrays(model).items()}


def install(
    model: nnx.Module, arrays: Mapping[str, np.ndarray], *, complete: tuple[str, ...] = ()
) -> None:
    """Puts arrays by our paths into a model, as float32; what they don't name stays.

    Raises:
      CheckpointError: lists every path that the model lacks (+) or has in another shape (~), and
        (-) those that start with one of `complete` and are not given. Then nothing is changed.
    """
    own = shapes_of(model)
    problems = [
        f"~ {path}: shape {array.shape}, expected {own[path]}"
        if path in own
        else f"+ {path} {array.shape}: unexpected"
        for path, array in arrays.items()
        if own.get(path) != array.shape
    ]
    missing = [path for path in own if path.startswith(complete) and path not in arrays]
    problems += [f"- {path}: missing" for path in missing]
    if problems:
        problems.sort(key=lambda line: ("-+~".index(line[0]), line))
        listed = "\n  ".join(problems)
        raise CheckpointError(f"these weights don't fit the model; nothing was loaded:\n  {listed}")
    nnx.update(model, _state(arrays))


def with_config(clip: CLIP, config: CLIPConfig) -> CLIP:
    """The same parameters, not copied, in a CLIP with other choices (activation, epsilon, dtype).

    Raises:
      ValueError: a config of other sizes.
    """
    graph, shapes = abstract(config)
    own = shapes_of(clip)
    if own != shapes:
        path = sorted(p for p in own.keys() | shapes.keys() if own.get(p) != shapes.get(p))[0]
        raise ValueError(
            f"a config of other sizes: {path} is {own.get(path)}, the config wants "
            f"{shapes.get(path)}; only choices such as activation, norm_eps, dtype may differ"
        )
    return nnx.merge(graph, nnx.state(clip))


def clip_from_state_dict(
    state_dict: Mapping[str, np.ndarray], config: CLIPConfig | None = None
) -> CLIP:
    """A CLIP from an OpenAI-named state dict; image tower keys (`visual.`) alone are enough.

    `config` defaults to the sizes in the shapes with OpenAI's choices. The released archives' three
    numbers and BatchNorm's counters are left out.

    Raises:
      CheckpointError: lists every missing, unexpected and wrongly shaped key.
    """
    weights = {key: value for key, value in state_dict.items() if not is_carried(key)}
    config = config_of(weights) if config is None else config
    arrays = OPENAI.to_right(weights, abstract(config)[1], "the state dict")
    return build(arrays, config)


def clip_to_state_dict(model: CLIP) -> dict[str, np.ndarray]:
    """A CLIP's weights float32 by OpenAI's names, in PyTorch's layout."""
    out = OPENAI.to_left({path: np.asarray(leaf) for path, leaf in flat_arrays(model).items()})
    return {key: np.asarray(value, order="C") for key, value in (out | counters(out)).items()}


def wanted_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each weight by OpenAI's names, in PyTorch's layout."""
    shapes = abstract(config)[1]
    zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
    return {key: zero.shape for key, zero in OPENAI.to_left(zeros).items()}


def counters(keys: Iterable[str]) -> dict[str, np.ndarray]:
    """PyTorch's counts of batches, which nothing reads, for the running means among `keys`."""
    ending = ".running_mean"
    names = [key.removesuffix(ending) for key in keys if key.endswith(ending)]
    return {f"{name}.num_batches_tracked": np.zeros((), np.int64) for name in names}


def is_carried(key: str) -> bool:
    """True for what state dicts hold beside weights: an exported file needs it, no model does."""
    return key in ("input_resolution", "context_length", "vocab_size", "logit_bias") or (
        key.endswith((".num_batches_tracked", ".embeddings.position_ids"))
    )


def config_of(weights: Mapping[str, np.ndarray]) -> CLIPConfig:
    """The sizes of OpenAI-named weights, with OpenAI's choices.

    A single missing key does not hide what model it is: sizes are taken from its neighbours where
    possible, so that the engine can name the key.

    Raises:
      CheckpointError: no CLIP, or so incomplete that its sizes cannot be told.
    """
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    try:
        _fill(shapes)
        config = CLIPConfig.from_shapes(shapes)
        vision, text = config.vision, config.text
        if isinstance(vision, ViTConfig):
            vision = dataclasses.replace(vision, layers=_layers(shapes, "visual."))
        if text is not None:
            text = dataclasses.replace(text, layers=_layers(shapes, ""), embed_dim=vision.embed_dim)
        return CLIPConfig(vision, text)
    except KeyError as error:
        raise CheckpointError(
            f"- {error.args[0]}: missing; without it the model's sizes cannot be told. Check that "
            "the checkpoint is whole"
        ) from error
    except (ValueError, IndexError, TypeError) as error:
        raise CheckpointError(f"not the weights of a CLIP: {error}") from error


def _fill(shapes: dict[str, tuple[int, ...]]) -> None:
    """Gives the keys that sizes are read from, when one is missing, the shape it must have had."""

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
        shapes.setdefault("text_projection", (width, 0))  # as wide as the image tower's embedding
        shapes.setdefault("ln_final.weight", (width,))
        shapes.setdefault("positional_embedding", (77, width))
        shapes.setdefault("token_embedding.weight", (49408, width))


def _layers(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Blocks of a transformer: the highest index that has most of a block's keys, plus one."""
    pattern = re.compile(rf"{prefix}transformer\.resblocks\.([0-9]+)\.")
    counts = collections.Counter(int(m.group(1)) for key in shapes if (m := pattern.match(key)))
    return 1 + max((i for i, n in counts.items() if 2 * n >= _KEYS_PER_BLOCK), default=-1)
