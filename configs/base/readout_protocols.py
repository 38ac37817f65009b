"""The published protocol of each read-out of CLIP on each dataset, ViT-B/16.

Source: spec readouts, sections 1, 6, 8 and 9. Numbers of one protocol say nothing about another's:
names, sizes and thresholds move mIoU more than the read-out does. Keys are values of
`config.inference` (configs/base/readouts.py) but for

  names     the set of names in input_pipeline/datasets/readout_rows.json
  short_px  shorter side of the image at the network
  feedback  ResCLIP's probability of a temporary label (published: temp_thd), share of earlier
            attention (lr), factor of the scores (ts) and share of the feedback (ls)
"""

from __future__ import annotations

from typing import Any

# What a method does on every dataset unless the dataset's cell says otherwise.
_WINDOWS = {"short_px": 336, "crop_px": (224, 224), "stride_px": (112, 112), "temperature": 40.0}
METHODS: dict[str, dict[str, Any]] = {
    "sclip": _WINDOWS,
    "naclip": _WINDOWS,
    "clearclip": {
        "short_px": 448, "crop_px": (448, 448), "stride_px": (224, 224), "temperature": 50.0,
        "pad_to_px": 16,  # the patch
    },
    "scclip": _WINDOWS,
    "resclip": _WINDOWS,
    "proxyclip": {
        **_WINDOWS, "crop_px": (336, 336),
        "pad_to_px": 56,  # whole patches of 8 and of 14
    },
}  # fmt: skip
# SCLIP's authors ran these in their own protocol; other numbers of them are not comparable.
SAME_AS = {"clip": "sclip", "value": "sclip"}

_CITY = {"short_px": 560}
_NONE: dict[str, Any] = {}
DATASETS: dict[str, dict[str, Any]] = {
    "voc21": {
        "dataset": "voc12_21", "root": "data/VOCdevkit/VOC2012", "names": "voc21.sclip",
        "sclip": {"temperature": 65.0, "background_threshold": 0.1, "area_threshold": 0.1},
        "naclip": {"background_threshold": 0.1, "mode": "whole"},
        "clearclip": {"background_threshold": 0.5, "names": "voc21.clearclip"},
        "scclip": {"temperature": 50.0, "background_threshold": 0.15, "area_threshold": 0.1},
        "resclip": {
            "background_threshold": 0.1, "mode": "whole", "feedback": (0.5, 0.3, 2.2, 0.7),
        },
        "proxyclip": {"background_threshold": 0.2, "names": "voc21.proxyclip"},
    },
    "context60": {
        "dataset": "context_60", "root": "data/VOCdevkit/VOC2010", "names": "context60",
        "sclip": {"temperature": 50.0, "background_threshold": 0.1},
        "naclip": {"background_threshold": 0.1},
        "clearclip": {"background_threshold": 0.15},
        "scclip": {"background_threshold": 0.15},
        "resclip": {"background_threshold": 0.1, "feedback": (0.3, 0.3, 1.8, 0.7)},
        "proxyclip": {"background_threshold": 0.15},
    },
    "coco_object": {
        "dataset": "coco_object", "root": "data/coco_stuff164k", "names": "coco_object.sclip",
        "sclip": {"temperature": 50.0, "background_threshold": 0.1},
        "naclip": {"background_threshold": 0.1},
        "clearclip": {"background_threshold": 0.4, "names": "coco_object.clearclip"},
        "scclip": {"temperature": 55.0, "background_threshold": 0.35},
        "resclip": {"background_threshold": 0.1, "feedback": (0.11, 0.4, 1.8, 0.7)},
        "proxyclip": {"background_threshold": 0.25, "names": "coco_object.proxyclip"},
    },
    "voc20": {
        "dataset": "voc12_20", "root": "data/VOCdevkit/VOC2012", "names": "voc20.sclip",
        "sclip": _NONE,
        "naclip": {"mode": "whole"},
        "clearclip": {"names": "voc20.clearclip_proxyclip"},
        "scclip": _NONE,
        "resclip": {"mode": "whole", "feedback": (0.1, 0.6, 2.1, 0.6)},
        "proxyclip": {"names": "voc20.clearclip_proxyclip"},
    },
    "cityscapes": {
        "dataset": "cityscapes", "root": "data/cityscapes", "names": "city_scapes",
        "sclip": _CITY,
        "naclip": _CITY,
        "clearclip": {"crop_px": (224, 224), "stride_px": (224, 224)},
        "scclip": _CITY,
        "resclip": {**_CITY, "feedback": (0.1, 0.2, 2.1, 0.6)},
        "proxyclip": {"short_px": 448, "crop_px": (224, 224)},
    },
    "context59": {
        "dataset": "context_59", "root": "data/VOCdevkit/VOC2010", "names": "context59",
        "sclip": _NONE,
        "naclip": _NONE,
        "clearclip": _NONE,
        "scclip": _NONE,
        "resclip": {"feedback": (0.25, 0.4, 1.8, 0.7)},
        "proxyclip": _NONE,
    },
    "ade20k": {
        "dataset": "ade20k", "root": "data/ADEChallengeData2016", "names": "ade20k",
        "sclip": _NONE,
        "naclip": _NONE,
        "clearclip": _NONE,
        "scclip": _NONE,
        "resclip": {"feedback": (0.25, 0.3, 2.1, 0.7)},
        "proxyclip": {"short_px": 448},
    },
    "coco_stuff": {
        "dataset": "coco_stuff_164k", "root": "data/coco_stuff164k", "names": "coco_stuff",
        "sclip": {"short_px": 448},
        "naclip": _NONE,
        "clearclip": _NONE,
        "scclip": _NONE,
        "resclip": {"feedback": (0.11, 0.4, 1.8, 0.7)},
        "proxyclip": _NONE,
    },
}  # fmt: skip


def protocol(dataset: str, method: str) -> dict[str, Any]:
    """The config values, by their full names, of a method on one of `DATASETS`."""
    row, method = DATASETS[dataset], SAME_AS.get(method, method)
    cell = METHODS[method] | row[method]
    values = {
        "dataset.name": row["dataset"],
        "dataset.root": row["root"],
        "text.names": cell.pop("names", row["names"]),
        "inference.scale_px": (2048, cell.pop("short_px")),
    }
    if feedback := cell.pop("feedback", None):
        keys = ("feedback.threshold", "cross", "feedback.gain", "feedback.share")
        values |= {f"read_out.{key}": value for key, value in zip(keys, feedback, strict=True)}
    return values | {f"inference.{key}": value for key, value in cell.items()}
