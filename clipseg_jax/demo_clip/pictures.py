"""Precomputed training data: pictures, caption ids, and the nouns of each caption."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipseg_jax.demo import world
from clipseg_jax.demo_clip.captions import captions
from clipseg_jax.demo_clip.vocabulary import tokenizer
from input_pipeline.prepare.workers import in_processes

NOUNS = (*world.CLASSES, *world.SCENERY)
SIZE_PX = 64
CONTEXT = 32
CAPTIONS = 6  # per picture; training samples one each time
_CHUNK = 1000
_PARTS = ("single", "single", "mixed", "mixed", "mixed", "scenery")  # of every six pictures


class Pictures(NamedTuple):
    """n pictures with captions, memory-mapped."""

    images: np.ndarray  # (n, 64, 64, 3) uint8
    ids: np.ndarray  # (n, CAPTIONS, CONTEXT) int16
    named: np.ndarray  # (n, CAPTIONS, NOUNS) bool: nouns in the caption


def _chunk(indices: range) -> Pictures:
    tokenize = tokenizer()
    images = np.zeros((len(indices), SIZE_PX, SIZE_PX, 3), np.uint8)
    ids = np.zeros((len(indices), CAPTIONS, CONTEXT), np.int16)
    named = np.zeros((len(indices), CAPTIONS, len(NOUNS)), bool)
    for row, index in enumerate(indices):
        picture = world.make(_PARTS[index % len(_PARTS)], index, SIZE_PX)
        texts = captions(picture, CAPTIONS)
        images[row] = picture.image
        ids[row] = tokenize(texts, CONTEXT)
        for i, text in enumerate(texts):
            words = set(re.findall(r"[a-z]+", text))
            named[row, i] = [noun in words for noun in NOUNS]
    return Pictures(images, ids, named)


def load(folder: Path, count: int) -> Pictures:
    """The first `count` training pictures (a multiple of 1000); paints them if not in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}_{count}.npy" for name in Pictures._fields]
    if not all(path.exists() for path in paths):
        rests = [(SIZE_PX, SIZE_PX, 3), (CAPTIONS, CONTEXT), (CAPTIONS, len(NOUNS))]
        kinds = [np.uint8, np.int16, bool]
        whole = [
            np.lib.format.open_memmap(path.with_suffix(".part"), "w+", kind, (count, *rest))
            for path, kind, rest in zip(paths, kinds, rests, strict=True)
        ]
        chunks = [range(start, start + _CHUNK) for start in range(0, count, _CHUNK)]
        paint = in_processes("paint", unit="picture")
        for indices, chunk in zip(chunks, paint(_chunk, chunks), strict=True):
            for array, part in zip(whole, chunk, strict=True):
                array[indices.start : indices.stop] = part
        for array, path in zip(whole, paths, strict=True):
            array.flush()
            path.with_suffix(".part").rename(path)
    return Pictures(*(np.load(path, mmap_mode="r") for path in paths))
