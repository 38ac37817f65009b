"""Weights over several files, as Hugging Face's `save_pretrained` splits large ones.

`model.safetensors.index.json` or `pytorch_model.bin.index.json` holds {"weight_map": {key: file}}.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from weights_convert.clip.json_files import read_json
from weights_convert.errors import CheckpointError
from weights_convert.formats.reader import Checkpoint, read, tensors

_SUFFIX = ".index.json"
INDEX_FILES = (f"model.safetensors{_SUFFIX}", f"pytorch_model.bin{_SUFFIX}")
_SHARD_SUFFIXES = (".safetensors", ".bin")


def weight_files(path: Path) -> list[Path]:
    """The files that hold weights: `path` itself, or the shards that the index `path` names.

    Raises:
      CheckpointError: a damaged index, or one whose shards are not all beside it.
    """
    return [path] if not _is_index(path) else sorted(set(_shards(path).values()))


def read_weights(path: Path) -> Checkpoint:
    """The content of a checkpoint's file, or of all the shards that an index names.

    Raises:
      CheckpointError: as `read`; a damaged index, or a shard without a tensor that it should have.
    """
    if not _is_index(path):
        return read(path)
    shards = _shards(path)
    contents = {shard: read(shard) for shard in sorted(set(shards.values()))}
    arrays_of = {shard: tensors(each.content) for shard, each in contents.items()}
    arrays: dict[str, np.ndarray] = {}
    for key, shard in shards.items():
        if key not in arrays_of[shard]:
            raise CheckpointError(
                f"{shard} has no tensor {key!r:.80}, which {path.name} says is there; download the "
                "shards and the index again"
            )
        arrays[key] = arrays_of[shard][key]
    kinds = sorted({each.kind for each in contents.values()})
    return Checkpoint(f"{len(contents)} shards of {' and '.join(kinds)}", arrays)


def sha256(path: Path) -> str:
    """A file's digest, in hexadecimal; of an index, one over the digests of its shards."""
    files = weight_files(path)
    digests = []
    for each in files:
        with each.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if files == [path]:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _is_index(path: Path) -> bool:
    return path.name.endswith(_SUFFIX)


def _shards(index: Path) -> dict[str, Path]:
    """The shard of each tensor; all are regular files beside the index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map of tensors to files; download it again")
    for name in weight_map.values():
        plain = isinstance(name, str) and name == Path(name).name and name.endswith(_SHARD_SUFFIXES)
        if not plain or "\\" in name or "\0" in name:
            raise CheckpointError(
                f"{index} names the shard {name!r:.80}; shards are {' or '.join(_SHARD_SUFFIXES)} "
                "files beside the index"
            )
    paths = {name: index.parent / name for name in weight_map.values()}
    if missing := sorted(name for name, path in paths.items() if not path.is_file()):
        raise CheckpointError(
            f"{index.parent} lacks {missing[0]!r:.80}, {len(missing)} of {len(paths)} shards that "
            f"{index.name} names; download them beside it"
        )
    return {key: paths[name] for key, name in weight_map.items()}
