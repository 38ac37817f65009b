"""State dicts of WeCLIP and WTCLIP as the published code saves them, and as we store them.

A published state dict holds the head, the frozen CLIP, and arrays that the code computes. Spec
weclip, section 12; spec wtclip, section 7.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.weclip.head import Head, HeadConfig
from weights_convert.clip.build import is_carried, shapes_of
from weights_convert.clip.keys import OPENAI
from weights_convert.errors import CheckpointError
from weights_convert.trained.format import whole_clip
from weights_convert.trained.weclip.keys import COMPUTED, ENCODER, HEAD

WRAPPER = "module."
_OURS = "head."
_FUSE, _ADAPTERS = "decoder_fts_fuse.linear_fuse", "decoder_fts_fuse.linears_modulelist"
_BLOCKS, _BANDS = "decoder.transformer.resblocks", "decoder.wtconv.depthwise.wavelet_convs"
_FILTERS = tuple(key for key in COMPUTED if key.endswith("wt_filter"))
_HEAD_WIDTH = 32  # of the decoder's attention; it cannot be read from a file
# PAR's neighbours, and the four filters of the Haar wavelet: low-pass, then high-pass along the
# height, along the width, along both.
_NEIGHBOURS = np.delete(np.eye(9, dtype=np.float32), 4, axis=0).reshape(8, 1, 3, 3)
_HAAR = 0.5 * np.asarray(
    [[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]], np.float32
)
# What the published code keeps in float16 of its CLIP.
_HALF = (
    *(".conv1.weight", ".proj", "text_projection", ".out_proj.weight", ".out_proj.bias"),
    *(f".mlp.{layer}.{leaf}" for layer in ("c_fc", "c_proj") for leaf in ("weight", "bias")),
)


def from_published(state_dict: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The head of a published state dict by our paths; its CLIP is left out, unchecked.

    Raises:
      CheckpointError: its sizes cannot be determined; lists every missing, unexpected and wrongly
        shaped key; or its wavelet is not Haar's.
    """
    stored = {key.removeprefix(WRAPPER): value for key, value in state_dict.items()}
    head = {
        key: value
        for key, value in stored.items()
        if not (key in COMPUTED or is_carried(key.removeprefix(ENCODER)) or _is_of_clip(key))
    }
    sizes = _sizes(head, source)
    arrays = HEAD.to_right(head, _shapes(*sizes), source)
    for key in _FILTERS:
        filters = stored.get(key)
        if filters is None:
            continue
        haar = _filters(sizes[3].width)
        if filters.shape != haar.shape or not np.allclose(filters, haar, atol=1e-6):
            raise CheckpointError(
                f"{source}: {key} is not Haar's wavelet, the only one supported; nothing was loaded"
            )
    return arrays


def to_published(
    arrays: Mapping[str, np.ndarray], clip: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The state dict as the published code saves it.

    Args:
      arrays: a head's by our paths.
      clip: weights by OpenAI's names, both towers; None: the head alone, which the published
        loader accepts too, as it isn't strict.

    Raises:
      CheckpointError: a CLIP without its text tower.
    """
    out = {}
    if clip is not None:
        for key, value in whole_clip(clip, "WeCLIP").items():
            dtype = np.float16 if key.endswith(_HALF) else np.float32
            out[f"{ENCODER}{key}"] = np.asarray(value, dtype)
    out |= {key: np.asarray(value, np.float32) for key, value in HEAD.to_left(arrays).items()}
    if any(key.startswith(_BANDS) for key in out):
        width = out[f"{_FUSE}.bias"].size
        out |= {key: _filters(width) for key in _FILTERS}
    return out | {"par.kernel": _NEIGHBOURS}


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
            f"{source}: {lacking} is missing; without it the sizes cannot be determined. Check "
            "that the checkpoint is complete"
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
