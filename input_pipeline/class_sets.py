"""Class names, prompts, palettes and label maps: data in class_sets.json, read here once."""

from __future__ import annotations

import functools
import importlib.resources
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassSet:
    """Classes in label order.

    `prompts` are the strings put into the templates. In the sets with a background (`voc21`,
    `context60`) label 0 has a name and a colour but no prompt: there `prompts` is one shorter
    than `names`. `unseen` are the label indices held out in zero-shot training. `names` and
    `palette` (RGB) are empty for the one set that is prompts only (`acontext`).
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    palette: tuple[Colour, ...]
    unseen: tuple[int, ...] = ()


@functools.cache
def _data() -> dict[str, Any]:
    file = importlib.resources.files("input_pipeline") / "class_sets.json"
    return json.loads(file.read_text(encoding="utf-8"))


def class_set_names() -> tuple[str, ...]:
    """Names that `class_set` accepts."""
    return tuple(_data()["sets"])


@functools.cache
def class_set(name: str) -> ClassSet:
    """The class set called `name`, e.g. "voc", "context60" or "batman".

    Raises:
      ValueError: there is no such set; the message lists those there are.
    """
    data = _data()
    if name not in data["sets"]:
        raise ValueError(f"No class set {name!r}; choose one of: {', '.join(data['sets'])}.")
    entry = data["sets"][name]
    # Sets with a background share the prompts of the set without: voc21 -> voc.
    prompts = entry["prompts"] or data["sets"][name.rstrip("0123456789")]["prompts"]
    return ClassSet(
        names=tuple(entry["names"] or ()),
        prompts=tuple(prompts),
        palette=tuple(tuple(colour) for colour in entry["palette"] or ()),
        unseen=tuple(data["unseen"].get(name, ())),
    )


def coco_stuff_train_ids() -> np.ndarray:
    """(256,) uint8 table: COCO-Stuff's raw label -> 0..170; ids without a class become 255."""
    table = np.full(256, 255, np.uint8)
    for raw, train_id in _data()["label_maps"]["coco_stuff164k_raw_to_train"].items():
        table[int(raw)] = train_id
    return table


def pascal_context_raw_ids() -> tuple[int, ...]:
    """The 60 raw Pascal Context ids, sorted: their position is the label, 0 the background."""
    return tuple(_data()["label_maps"]["pascal_context_sorted_raw_ids"])


def palette(classes: int) -> tuple[Colour, ...]:
    """Colours (RGB) for classes without a published palette: 20 distinct ones, then VOC's scheme.

    VOC's scheme spreads the bits of the class index over the three channels, high bits first.
    """
    colours = [tuple(colour) for colour in _data()["distinct_colours"][:classes]]
    for index in range(len(colours), classes):
        bits = [(index >> i) & 1 for i in range(24)]
        red, green, blue = (
            sum(bit << (7 - i) for i, bit in enumerate(bits[channel::3])) for channel in range(3)
        )
        colours.append((red, green, blue))
    return tuple(colours)
