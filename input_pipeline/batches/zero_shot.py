"""Which classes a zero-shot run may learn from, and what becomes of the other classes' labels.

The splits are in `class_sets.json` (VOC 2012, COCO-Stuff 164k, Pascal Context) and in each record's
`unseen`. Spec clip_rc, sections 7 and 9.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from input_pipeline.batches.training import TrainingBatches, View

Setting = Literal["inductive", "transductive", "fully"]
SETTINGS: tuple[Setting, ...] = ("inductive", "transductive", "fully")


def seen_classes(classes: int, unseen: Sequence[int]) -> tuple[int, ...]:
    """The other labels below `classes`, ascending.

    Raises:
      ValueError: an unseen label that isn't one of them, or nothing is left.
    """
    if wrong := [label for label in unseen if not 0 <= label < classes]:
        raise ValueError(f"unseen labels {wrong} are none of the {classes} classes")
    seen = tuple(label for label in range(classes) if label not in unseen)
    if not seen:
        raise ValueError(f"all {classes} classes are unseen; leave at least one to learn from")
    return seen


def label_table(setting: Setting, unseen: Sequence[int], *, ignore_label: int = 255) -> np.ndarray:
    """(256,) int16: what training sees instead of each label.

    inductive: unseen classes are ignored like pixels without a label. transductive: they all become
    the first of them, so that where they are is known, as published, and not which is where. fully:
    every label stays.

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
    """The same batches with the labels of unseen classes hidden, by `label_table`.

    Args:
      before_crop: hide them before anything looks at the label map. False, as published: the choice
        of the crop still counts their pixels by class, so that other labels there give other crops.
    """
    table = label_table(setting, unseen, ignore_label=batches.dataset.ignore_label)

    def hidden(view: View) -> View:
        def of(
            image: np.ndarray, label: np.ndarray, rng: np.random.RandomState
        ) -> tuple[np.ndarray, np.ndarray]:
            if before_crop:
                return view(image, table[label], rng)
            image, label = view(image, label, rng)
            return image, table[label]

        return of

    return dataclasses.replace(batches, view=hidden(batches.view))
