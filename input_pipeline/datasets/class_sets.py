"""Class names, prompts, palettes and tables of label ids, from three .json files."""

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

    Attributes:
      names: class names; empty for `acontext`, which has prompts only.
      prompts: the strings for the templates. In the sets with a background (`voc21`, `context60`,
        `coco81`, `cod65`) label 0 has no prompt: `prompts` is one shorter than `names`.
      palette: RGB per class; empty for `acontext`.
      unseen: labels held out in zero-shot training.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    palette: tuple[Colour, ...]
    unseen: tuple[int, ...] = ()


@dataclass(frozen=True)
class PromptSet:
    """Prompts of CLIP-ES, TagCLIP, WeCLIP and WTCLIP.

    Attributes:
      names: class names, by class id.
      prompts: a prompt per class; synonyms are separated by commas.
      background: prompts of the background.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    background: tuple[str, ...]


@functools.cache
def _data(file_name: str = "class_sets.json") -> dict[str, Any]:
    file = importlib.resources.files("input_pipeline.datasets") / file_name
    return json.loads(file.read_text(encoding="utf-8"))


@functools.cache
def class_set(name: str) -> ClassSet:
    """The class set called `name`, e.g. "voc", "context60" or "batman".

    Raises:
      ValueError: there is no such set; the message lists all sets.
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


@functools.cache
def prompt_set(name: str, *, synonyms: bool) -> PromptSet:
    """The prompt set "voc" (20 classes), "coco" (80), "cod" (64) or "coco_stuff" (171).

    Args:
      name: of the set; "cod" are WTCLIP's camouflaged objects (spec wtclip, section 6).
      synonyms: with synonyms for some classes, as in CLIP-ES and WeCLIP; False: the plain names, as
        in TagCLIP.

    Raises:
      ValueError: there is no such set.
    """
    sets = _data("prompt_sets.json")["sets"]
    if name not in sets:
        raise ValueError(f"No prompt set {name!r}; choose one of: {', '.join(sets)}.")
    entry = sets[name]
    names = entry["names"]
    background = entry["background"]
    if synonyms:
        background = entry.get("cam_background", background)
    prompts = [entry["synonyms"].get(n, n) for n in names] if synonyms else names
    return PromptSet(tuple(names), tuple(prompts), tuple(background))


@functools.cache
def readout_rows(name: str) -> tuple[tuple[str, ...], ...]:
    """The names of each class in label order, as the read-outs of CLIP use them.

    Every name is a text row of its own. A set is called after its dataset and, where the methods
    differ, the methods: "context59", "voc21.sclip". Spec readouts, section 8.

    Raises:
      ValueError: there is no such set; the message lists all sets.
    """
    sets = _data("readout_rows.json")["sets"]
    if name not in sets:
        raise ValueError(f"No read-out names {name!r}; choose one of: {', '.join(sets)}.")
    return tuple(tuple(names.split(", ")) for names in sets[name])


def coco_stuff_171_labels() -> np.ndarray:
    """(256,) uint8 table: COCO-Stuff's raw id -> class 0..170; ids without a class become 255."""
    table = np.full(256, 255, np.uint8)
    for raw, label in _data()["label_maps"]["coco_stuff164k_raw_to_train"].items():
        table[int(raw)] = label
    return table


def coco_stuff_27_labels() -> np.ndarray:
    """(256,) uint8 table: COCO-Stuff's raw id -> super-class 0..26; ids without one become 255.

    The 27 super-classes, things first, are those of PiCIE and STEGO.
    """
    table = np.full(256, 255, np.uint8)
    labels = _data()["label_maps"]["coco_stuff_raw_to_27"]
    table[: len(labels)] = labels
    return table


def coco_stuff_171_to_27() -> np.ndarray:
    """(171,) int32 table: class of COCO-Stuff -> super-class 0..26."""
    fine = coco_stuff_171_labels()
    table = np.zeros(171, np.int32)
    table[fine[fine < 255]] = coco_stuff_27_labels()[fine < 255]
    return table


def pascal_context_raw_ids() -> tuple[int, ...]:
    """The 60 raw Pascal Context ids, sorted: their position is the label, 0 the background."""
    return tuple(_data()["label_maps"]["pascal_context_sorted_raw_ids"])


def palette(classes: int) -> tuple[Colour, ...]:
    """RGB colours for classes without a published palette: 20 distinct ones, then VOC's scheme.

    VOC's scheme distributes the bits of the class index over the three channels, high bits first.
    """
    colours = [tuple(colour) for colour in _data()["distinct_colours"][:classes]]
    for index in range(len(colours), classes):
        bits = [(index >> i) & 1 for i in range(24)]
        red, green, blue = (
            sum(bit << (7 - i) for i, bit in enumerate(bits[channel::3])) for channel in range(3)
        )
        colours.append((red, green, blue))
    return tuple(colours)
