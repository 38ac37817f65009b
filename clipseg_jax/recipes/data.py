"""Datasets by the name that configs give them."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from clipseg_jax.core.pictures import palette
from clipseg_jax.demo import world
from input_pipeline import datasets
from input_pipeline.datasets import Dataset

DEMO_IMAGES = 240

_BY_NAME = {
    "voc12_20": datasets.VOC12_20,
    "voc12_21": datasets.VOC12_21,
    "context_59": datasets.CONTEXT_59,
    "context_60": datasets.CONTEXT_60,
    "coco_stuff_164k": datasets.COCO_STUFF_164K,
    "ade20k": datasets.ADE20K,
    "cityscapes": datasets.CITYSCAPES,
}
