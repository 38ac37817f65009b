"""Zero-shot training: labels of unseen classes are hidden.

Which classes are unseen is in `class_sets.json` (VOC 2012, COCO-Stuff 164k, Pascal Context) and in
each record's `unseen`. Spec clip_rc, sections 7 and 9.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from input_pipeline.batches.training import TrainingBatches, View

Setting = Literal["inductive", "transductive", "fully"]
SETTINGS: tuple[Setting, ...] = ("inductive", "transductive", "fully")


def seen_classes(classes: int, unseen: Sequence[int]) -> tuple[int, ...]:
    """The labels below `classes` that are not unseen, ascending.

    Raises:
      ValueError: an unseen label is out of range, or no class is left.
    """
    if wrong := [label for label in unseen if not 0 <= label < classes]:
        raise ValueError(f"unseen labels {wrong} are not in 0..{classes - 1}")
    seen = tuple(label for label in range(classes) if label not in unseen)
    if not seen:
        raise ValueError(f"all {classes} classes are unseen; at least one must be seen")
    return seen


def label_table(setting: Setting, unseen: Sequence[int], *, ignore_label: int = 255) -> np.ndarray:
    """(256,) int16: the label that training sees in place of each label.

    "inductive": unseen classes are ignored. "transductive": all unseen classes become the first of
    them, as published, so that training sees where they are but not which is where. "fully": labels
    are unchanged.

    Raises:
      ValueError: an unknown setting.
    """
    if setting not in SETTINGS:
        raise ValueError(f"unknown setting {setting!r}; choose one of {', '.join(SETTINGS)}")
    table = np.arange(256, dtype=np.int16)
    if setting != "fully":
        table[list(unseen)] = ignore_label if setting == "inductive" else unseen[0]
    return table


def hide_unseen(
    batches: TrainingBatches,
    setting: Setting,
    unseen: Sequence[int],
    *,
    before_crop: bool = True,
) -> TrainingBatches:
    """The same batches with the labels of unseen classes replaced by `label_table`.

    Args:
      before_crop: replace them before the crop is chosen. False, as published: `random_crop` still
        counts the pixels of each unseen class, so that the crops depend on their labels.
    """
    table = label_table(setting, unseen, ignore_label=batches.dataset.ignore_label)

    view = functools.partial(_hiding_view, view=batches.view, table=table, before_crop=before_crop)
    return dataclasses.replace(batches, view=view)


def _hiding_view(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.RandomState,
    *,
    view: View,
    table: np.ndarray,
    before_crop: bool,
) -> tuple[np.ndarray, np.ndarray]:
    if before_crop:
        return view(image, table[label], rng)
    image, label = view(image, label, rng)
    return image, table[label]
