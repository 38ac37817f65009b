"""From any supported checkpoint to a CLIP, and back to files that PyTorch loads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import mmap
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from clipseg_jax.core.files import write_atomic, write_json
from clipseg_jax.models.clip import (
    CLIP,
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    Tokenizer,
    ViTConfig,
)
from clipseg_jax.models.clip.tokenizer import vocabulary
from weights_convert import names, safetensors_file
from weights_convert.clip import OPENAI, RELEASED
from weights_convert.reader import Checkpoint, CheckpointError, read
from weights_convert.writer import write_torch

_FORMAT = "clipseg_jax CLIP 1"  # changes whenever older converted files must not be read
_CACHED_FROM_BYTES = 32 * 2**20  # smaller files convert faster than they are found in a cache
_log = logging.getLogger(__name__)


class LoadedCLIP(NamedTuple):
    """A CLIP ready to use."""

    model: CLIP
    tokenizer: Tokenizer | None  # None: an image tower alone
    meta: dict[str, Any]  # source, sha256, kind, layout, parameters, bytes


class Converted(NamedTuple):
    """A checkpoint by our paths and in our layout, values and dtypes as in the source."""

    arrays: dict[str, np.ndarray]
    record: dict[str, Any]


def abstract(config: CLIPConfig) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """A CLIP's structure, and the shape of each parameter and statistic by its path.

    Nothing is computed or allocated.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0))))
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return graph, {".".join(map(str, path)): tuple(leaf.shape) for path, leaf in flat.items()}


def build(arrays: Mapping[str, np.ndarray], config: CLIPConfig) -> CLIP:
    """A CLIP with float32 parameters from arrays by our paths, complete and of the right shapes."""
    graph, shapes = abstract(config)
    tree: dict[tuple, Any] = {}
    for path in shapes:
        parts = tuple(int(part) if part.isdigit() else part for part in path.split("."))
        tree[parts] = jnp.asarray(np.asarray(arrays[path], np.float32, order="C"))
    return nnx.merge(graph, nnx.State(traverse_util.unflatten_dict(tree)))


def flat_arrays(model: CLIP) -> dict[str, Any]:
    """A CLIP's parameters and statistics by path."""
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)))
    return {".".join(map(str, path)): leaf for path, leaf in flat.items()}


def with_config(clip: CLIP, config: CLIPConfig) -> CLIP:
    """The same parameters, not copied, in a CLIP with other choices (activation, epsilon, dtype)."""
    graph, _ = abstract(config)
    return nnx.merge(graph, nnx.state(clip))


def clip_from_state_dict(
    state_dict: Mapping[str, np.ndarray], config: CLIPConfig | None = None
) -> CLIP:
    """A CLIP from an OpenAI-named state dict; image tower keys (`visual.`) alone are enough.

    `config` defaults to the sizes in the shapes with OpenAI's choices.

    Raises:
      CheckpointError: lists every missing, unexpected and wrongly shaped key.
    """
    named = names.name(Checkpoint("memory", dict(state_dict)))
    config = _config(named.weights) if config is None else config
    arrays = OPENAI.to_ours(named.weights, abstract(config)[1], "the state dict")
    return build(arrays, config)


def clip_to_state_dict(model: CLIP) -> dict[str, np.ndarray]:
    """A CLIP's weights float32 by OpenAI's names, in PyTorch's layout."""
    arrays = {path: np.asarray(leaf) for path, leaf in flat_arrays(model).items()}
    out = OPENAI.to_torch(arrays)
    for path in arrays:
        if path.endswith(".mean"):  # PyTorch counts batches; frozen towers have none of their own
            key = OPENAI.to_torch({path: arrays[path]}).popitem()[0]
            counter = key.replace("running_mean", "num_batches_tracked")
            out[counter] = np.zeros((), np.int64)
    # order="C" and not ascontiguousarray, which would make a vector of a scalar
    return {key: np.asarray(value, order="C") for key, value in out.items()}


def convert(path: str | Path, *, vision_only: bool = False) -> Converted:
    """Any supported checkpoint by our paths; views of the mapped file where the layout allows it.

    Raises:
      CheckpointError, FileNotFoundError: see `reader.read`; keys that don't fit are all listed.
    """
    path = Path(path)
    weights_path = _weights_file(path)
    checkpoint = read(weights_path)
    if _is_converted(weights_path):
        return load_converted(weights_path)
    try:
        named = names.name(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    weights, carried = named.weights, named.carried
    if vision_only:
        weights = {key: v for key, v in weights.items() if key.startswith("visual.")}
    config = _config(weights, path)
    arrays = OPENAI.to_ours(weights, abstract(config)[1], str(path))
    digest = _sha256(weights_path)
    record = {
        "format": _FORMAT,
        "source": path.name,
        "sha256": digest,
        "kind": checkpoint.kind,
        "layout": named.layout,
        "model": _released(digest, path),
        "parameters": int(sum(math.prod(array.shape) for array in arrays.values())),
        "bytes": int(sum(array.nbytes for array in arrays.values())),
        "absent": list(named.absent),
        "config": _config_to_dict(config),
        "tokenizer": _tokenizer_to_dict(path, config),
        "carried": {k: [str(v.dtype), v.tolist()] for k, v in carried.items()},
    }
    return Converted(arrays, record)


def load_clip(
    path: str | Path, *, cache_dir: str | Path | None = None, vision_only: bool = False,
    **choices: Any,
) -> LoadedCLIP:  # fmt: skip
    """A CLIP from a raw checkpoint, a Hugging Face directory or a converted file.

    Large raw files are converted once and kept in `cache_dir` (default: $CLIPSEG_JAX_CACHE, else
    ~/.cache/clipseg_jax). `choices` override what the file says or cannot say, in each tower that
    has the choice: activation="gelu", norm_eps=1e-6, dtype="bfloat16".

    Raises:
      CheckpointError, FileNotFoundError: the file cannot be used; nothing is partly loaded.
      ValueError: an unknown choice.
    """
    path = Path(path)
    converted = _through_cache(path, cache_dir, vision_only)
    record = converted.record
    config = config_from_dict(record["config"]).replace(**choices)
    model = build(converted.arrays, config)
    meta = {k: v for k, v in record.items() if k not in ("carried", "tokenizer")}
    tokenizer = _tokenizer_from_dict(record["tokenizer"]) if config.text else None
    return LoadedCLIP(model, tokenizer, meta)


def _through_cache(path: Path, cache_dir: str | Path | None, vision_only: bool) -> Converted:
    weights_path = _weights_file(path)
    if weights_path.stat().st_size < _CACHED_FROM_BYTES or _is_converted(weights_path):
        return convert(path, vision_only=vision_only)
    default = os.environ.get("CLIPSEG_JAX_CACHE", Path.home() / ".cache" / "clipseg_jax")
    folder = Path(default if cache_dir is None else cache_dir)
    # The file's place, size and time instead of its digest: reading it all is what is to be saved.
    stat = weights_path.stat()
    identity = [str(weights_path.resolve()), stat.st_size, stat.st_mtime_ns, vision_only, _FORMAT]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    cached = folder / f"{name}.safetensors"
    if cached.exists():
        try:
            return load_converted(cached)
        except CheckpointError as error:
            _log.warning("converting again: %s", error)
    converted = convert(path, vision_only=vision_only)
    try:
        save_converted(cached, converted)
    except OSError as error:
        _log.warning("going on without a cache: %s", error)
    return converted


def save_converted(path: str | Path, converted: Converted) -> Path:
    """Writes one safetensors file by our paths, its record in the metadata; atomic, checksummed."""
    checksum = _checksum(converted.arrays)
    metadata = {"clipseg_jax": json.dumps(converted.record), "crc32": str(checksum)}
    return write_atomic(
        path, lambda file: safetensors_file.write(file, converted.arrays, metadata)
    )


def load_converted(path: str | Path) -> Converted:
    """What `save_converted` wrote.

    Raises:
      CheckpointError: not such a file, of another version, or damaged.
    """
    with Path(path).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        arrays, metadata = safetensors_file.parse(mapped)
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}); convert it again") from error
    record = json.loads(metadata.get("clipseg_jax", "{}"))
    if record.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not of format {_FORMAT!r}; convert its source again")
    if str(_checksum(arrays)) != metadata["crc32"]:
        raise CheckpointError(f"{path} is damaged: its checksum differs; convert its source again")
    return Converted(arrays, record)


def to_state_dict(converted: Converted) -> dict[str, np.ndarray]:
    """The source's state dict in OpenAI's names, bit for bit, with what it carried."""
    out = OPENAI.to_torch(converted.arrays)
    for key in converted.record["absent"]:
        del out[key]
    for key, (dtype, value) in converted.record["carried"].items():
        out[key] = np.asarray(value, np.dtype(dtype))
    return out


def export(converted: Converted, path: str | Path, layout: str = "openai") -> Path:
    """Writes a PyTorch-loadable file: "openai" (state dict), "maskclip", or "huggingface" (folder).

    Raises:
      ValueError: unknown layout. CheckpointError: the model has no such layout.
    """
    weights = OPENAI.to_torch(converted.arrays)
    if layout == "openai":
        return write_torch(path, to_state_dict(converted))
    if layout == "maskclip":
        counters = {
            key: np.asarray(value)
            for key, (_, value) in converted.record["carried"].items()
            if key.endswith("num_batches_tracked")
        }
        return write_torch(path, names.to_maskclip(weights, counters))
    if layout == "huggingface":
        model = build(converted.arrays, config_from_dict(converted.record["config"]))
        dtype = next(iter(weights.values())).dtype
        return export_huggingface(model, Path(path), dtype=dtype)
    raise ValueError(f"unknown layout {layout!r}; choose openai, maskclip or huggingface")


def export_huggingface(model: CLIP, directory: str | Path, *, dtype: Any = np.float32) -> Path:
    """Writes model.safetensors and config.json as `transformers.CLIPModel` reads them.

    Raises:
      CheckpointError: a ResNet, or an image tower alone.
    """
    vision, text = model.cfg.vision, model.cfg.text
    if not isinstance(vision, ViTConfig) or text is None:
        raise CheckpointError("Hugging Face's CLIP has ViT towers with a text tower only")
    weights = clip_to_state_dict(model)
    renamed = names.to_huggingface({key: v.astype(dtype) for key, v in weights.items()})
    directory = Path(directory)
    write_atomic(
        directory / "model.safetensors",
        lambda file: safetensors_file.write(file, renamed, {"format": "pt"}),
    )
    shared = {"hidden_act": vision.activation, "layer_norm_eps": vision.norm_eps}
    end = text.vocabulary - 1
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": vision.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": shared
        | {
            "model_type": "clip_text_model",
            "vocab_size": text.vocabulary,
            "max_position_embeddings": text.context_length,
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "projection_dim": vision.embed_dim,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        "vision_config": shared
        | {
            "model_type": "clip_vision_model",
            "image_size": vision.image_px,
            "patch_size": vision.patch_px,
            "hidden_size": vision.width,
            "intermediate_size": 4 * vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "projection_dim": vision.embed_dim,
        },
    }
    write_json(directory / "config.json", config)
    return directory


def _weights_file(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}; give a file or a Hugging Face directory")
    if not path.is_dir():
        return path
    for name in ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors",
                 "open_clip_pytorch_model.bin"):  # fmt: skip
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"{path} holds neither model.safetensors nor pytorch_model.bin")


def _is_converted(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    return head[8:9] == b"{" and b'"clipseg_jax"' in head


def _config(weights: Mapping[str, np.ndarray], path: Path | None = None) -> CLIPConfig:
    """Sizes from shapes; choices from a config.json or open_clip_config.json beside the weights."""
    config = CLIPConfig.from_shapes({key: value.shape for key, value in weights.items()})
    folder = None if path is None else path if path.is_dir() else path.parent
    if folder is None:
        return config
    if path.is_dir() and (folder / "config.json").is_file():  # type: ignore[union-attr]
        told = json.loads((folder / "config.json").read_text("utf-8"))
        return CLIPConfig(
            _told(config.vision, told.get("vision_config", {})),
            _told(config.text, told.get("text_config", {})) if config.text else None,
        )
    if (folder / "open_clip_config.json").is_file():
        told = json.loads((folder / "open_clip_config.json").read_text("utf-8"))
        quick = told.get("model_cfg", {}).get("quick_gelu", False)
        return config.replace(activation="quick_gelu" if quick else "gelu")
    return config


def _told(tower: Any, told: Mapping[str, Any]) -> Any:
    fields = {
        "heads": "num_attention_heads", "activation": "hidden_act", "norm_eps": "layer_norm_eps",
    }  # fmt: skip
    return dataclasses.replace(tower, **{k: told[v] for k, v in fields.items() if v in told})


def _config_to_dict(config: CLIPConfig) -> dict[str, Any]:
    kind = "vit" if isinstance(config.vision, ViTConfig) else "resnet"
    text = None if config.text is None else dataclasses.asdict(config.text)
    return {"kind": kind, "vision": dataclasses.asdict(config.vision), "text": text}


def config_from_dict(told: Mapping[str, Any]) -> CLIPConfig:
    """A config from a converted file's record."""
    if told["kind"] == "vit":
        vision: ViTConfig | ResNetConfig = ViTConfig(**told["vision"])
    else:
        vision = ResNetConfig(**{**told["vision"], "blocks": tuple(told["vision"]["blocks"])})
    return CLIPConfig(vision, TextConfig(**told["text"]) if told["text"] else None)


def _tokenizer_to_dict(path: Path, config: CLIPConfig) -> dict[str, Any] | None:
    """None for OpenAI's vocabulary; else the merges and ids that a directory brings."""
    if config.text is None or not path.is_dir() or not (path / "merges.txt").is_file():
        return None
    tokenizer = Tokenizer.from_directory(path)
    if tokenizer.ids == Tokenizer.openai().ids:
        return None
    standard = tokenizer.ids == vocabulary(tokenizer.merges)
    return {"merges": tokenizer.merges, "ids": None if standard else tokenizer.ids}


def _tokenizer_from_dict(told: Mapping[str, Any] | None) -> Tokenizer:
    if told is None:
        return Tokenizer.openai()
    return Tokenizer([tuple(pair) for pair in told["merges"]], told["ids"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _released(digest: str, path: Path) -> str | None:
    """The released model that a digest is of; warns if only the file's name is a released one."""
    if digest[:16] in RELEASED:
        return RELEASED[digest[:16]][0]
    if path.name in {file for _, file in RELEASED.values()}:
        _log.warning(
            "%s is named like a released checkpoint but its sha256 is another (%s)", path, digest
        )
    return None


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    value = 0
    for name, array in arrays.items():
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), value)
    return value
