"""Which kind of trained network a file is: by its format, or its keys, which are read once."""

from __future__ import annotations

import json

import numpy as np
import pytest

import weights_convert
from tests.weights_convert import toys
from weights_convert import CheckpointError
from weights_convert.formats.converted import Converted
from weights_convert.formats.torch_writer import write_torch
from weights_convert.trained import kinds
from weights_convert.trained.kinds import FORMATS, format_of


def listed(name, *at):
    shapes = json.loads((toys.GOLDEN / name).read_text())
    for key in at:
        shapes = shapes[key]
    return shapes


@pytest.mark.parametrize(
    ("kind", "name", "at"),
    [
        ("deeplab", "deeplab/deeplabv2_msc_keys.json", ()),
        ("clip_rc", "clip_rc/state_dict_shapes.json", ("shapes",)),
        ("weclip", "weclip/infer_voc.json", ("head_shapes",)),
        ("weclip", "wtclip/infer_voc.json", ("head_shapes",)),
        *(
            ("reclip", f"reclip/{stage}_shapes_{method}.json", ("shapes",))
            for stage in ("rect", "distill")
            for method in ("ReCLIP", "RECLIPPP")
        ),
        *(
            ("maskclip_plus", "maskclip/shapes.json", (model,))
            for model in listed("maskclip/shapes.json")
            if model.startswith("maskclip_plus")
        ),
        (None, "clip/shapes.json", ("ViT-B/16",)),
    ],
)
def test_published_keys_are_of_one_kind(kind, name, at):
    stored = dict.fromkeys(listed(name, *at), np.zeros(1, np.float32))
    recognised = [name for name, fmt in FORMATS.items() if fmt.recognised(stored)]
    assert recognised == [kind] * (kind is not None)


def test_formats_keys_and_what_is_neither(tmp_path, monkeypatch):
    seen = []

    def counted(path):
        seen.append(path)
        return weights_convert.read_state_dict(path)

    monkeypatch.setattr(kinds, "read_state_dict", counted)
    for name, fmt in FORMATS.items():
        ours = tmp_path / f"{name}.safetensors"
        weights_convert.save_converted(
            ours, Converted({"x": np.zeros(4, np.float32)}, {"format": fmt.tag})
        )
        assert format_of(ours) is fmt
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(ours.read_bytes()[:-1])
    assert format_of(damaged) is None
    assert format_of(tmp_path) is None
    assert format_of(tmp_path / "lost.caffemodel") is FORMATS["deeplab"]
    assert not seen
    plain = write_torch(tmp_path / "plain.pth", {"x": np.zeros(4, np.float32)})
    assert format_of(plain) is None
    assert seen == [plain]
    (tmp_path / "notes.txt").write_text("not a checkpoint at all, but longer than sixteen bytes\n")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        format_of(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError):
        format_of(tmp_path / "lost.pth")
