"""What TensorBoard reads of a log: scalars, pictures, tables; and that each step is there once."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from tensorboardX.event_file_writer import EventsWriter

from clipseg_jax.core.writer import Events, Shown, Writer
from input_pipeline.writing import CannotWrite
from tests.events import read_events


def picture():
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, :12] = (200, 40, 40)
    return pixels


def test_scalars_pictures_and_tables_are_read_back(tmp_path):
    shown = Shown({"iou/a/b": 3.5}, {"panel/0001": picture()}, {"classes": "| a | b |"})
    writer = Writer(tmp_path, "train")
    writer.write(2, {"mIoU": 12.5}, shown)
    writer.write(4, {"mIoU": 13.5})
    writer.close()
    found = read_events(tmp_path / "tensorboard" / "train")
    assert found["mIoU"] == {2: 12.5, 4: 13.5}
    assert found["iou/a/b"] == {2: 3.5}
    assert found["classes/text_summary"] == {2: "| a | b |"}
    assert np.abs(found["panel/0001"][2].astype(int) - picture()).mean() < 6  # JPEG
    # What is shown is TensorBoard's alone.
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert lines == [{"step": 2, "mIoU": 12.5}, {"step": 4, "mIoU": 13.5}]


def test_a_run_that_resumes_drops_what_is_logged_again(tmp_path):
    for start, steps in ((0, (1, 2, 3)), (2, (4,))):
        writer = Writer(tmp_path, "train", start=start)
        for step in steps:
            writer.write(step, {"loss": float(step)})
        writer.close()
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 4]
    assert [*read_events(tmp_path / "tensorboard/train")["session"]] == [1, 3]


def test_nothing_logged_leaves_no_run_in_tensorboard(tmp_path):
    Writer(tmp_path, "train_evaluations").close()
    silent = Writer(tmp_path / "b", "train", active=False)
    silent.write(1, {"loss": 1.0}, Shown(images={"a": picture()}))
    silent.close()
    assert [path.name for path in tmp_path.rglob("*")] == ["train_evaluations.jsonl"]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(EventsWriter, "flush", full)
    with pytest.raises(CannotWrite, match=r"cannot write .*run: No space left on device; free"):
        Events(tmp_path / "run").write(0, {"loss": 1.0})
