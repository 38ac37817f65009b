"""Reads TensorBoard's event files, with TensorFlow's reader."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image


def read_events(folder: Path) -> dict[str, dict[int, object]]:
    """Tag -> step -> number, picture (h, w, 3) uint8 or text; "session": steps of its starts."""
    found: dict[str, dict[int, object]] = defaultdict(dict)
    for path in sorted(folder.glob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            if event.HasField("session_log"):
                found["session"][event.step] = True
            for value in event.summary.value:
                assert event.step not in found[value.tag], f"{value.tag} twice at {event.step}"
                found[value.tag][event.step] = _content(value)
    return found


def _content(value):
    if value.HasField("image"):
        pixels = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
        assert pixels.shape == (value.image.height, value.image.width, value.image.colorspace)
        return pixels
    if value.HasField("tensor"):
        assert value.metadata.plugin_data.plugin_name == "text"
        return value.tensor.string_val[0].decode()
    return value.simple_value
