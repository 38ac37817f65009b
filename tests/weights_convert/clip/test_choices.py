"""Activation and heads: said, guessed with a warning, or evident; lost on export with a warning."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest

import weights_convert
from tests.weights_convert import toys
from weights_convert import CheckpointError
from weights_convert.__main__ import main
from weights_convert.clip.choices import parse_heads
from weights_convert.formats.torch_writer import write_torch


@pytest.fixture
def warned(caplog):
    def messages():
        out = [r.getMessage() for r in caplog.records if "activation" in r.getMessage()]
        caplog.clear()
        return out

    with caplog.at_level(logging.WARNING):
        yield messages


def test_a_guess_is_named_with_its_remedy_until_it_is_said(tmp_path, warned):
    path = write_torch(tmp_path / "a.pt", toys.vit())
    config = weights_convert.load_clip(path).model.cfg
    (message,) = warned()
    assert str(path) in message
    assert "quick_gelu, heads 2,1" in message
    assert "--activation gelu --heads 12,8" in message
    assert (config.vision.activation, config.vision.heads) == ("quick_gelu", 2)
    weights_convert.load_clip(path, activation="gelu")
    (message,) = warned()
    assert "assumed: heads 2,1." in message
    config = weights_convert.load_clip(path, activation="gelu", heads=(4, 2)).model.cfg
    assert not warned()
    assert config.vision.activation == config.text.activation == "gelu"
    assert (config.vision.heads, config.text.heads) == (4, 2)


def test_a_guess_stays_one_in_converted_files_and_in_the_cache(tmp_path, warned, monkeypatch):
    monkeypatch.setattr("weights_convert.clip.cache._CACHED_FROM_BYTES", 1)
    path, converted = write_torch(tmp_path / "a.pt", toys.vit()), tmp_path / "c.safetensors"
    weights_convert.save_converted(converted, weights_convert.convert(path))
    warned()
    for source in (converted, path, path):
        weights_convert.load_clip(source, cache_dir=tmp_path / "cache")
        assert len(warned()) == 1
    said = weights_convert.convert(converted, activation="gelu", heads=(4, 1))
    weights_convert.save_converted(tmp_path / "said.safetensors", said)
    config = weights_convert.load_clip(tmp_path / "said.safetensors").model.cfg
    assert (config.text.activation, config.vision.heads) == ("gelu", 4)
    assert not warned()


def test_what_is_evidently_openais_is_no_guess(tmp_path, warned):
    weights_convert.load_clip(toys.GOLDEN / "clip/toy_clip_jit.pt")
    released = toys.as_released(toys.vit())
    path = write_torch(tmp_path / "a.pt", released)
    weights_convert.load_clip(path)
    assert not warned()
    other = tmp_path / "open_clip_config.json"
    other.write_text(json.dumps({"model_cfg": {"quick_gelu": False, "text_cfg": {"heads": 2}}}))
    assert weights_convert.load_clip(path).model.cfg.vision.activation == "quick_gelu"
    other.unlink()
    # Shapes alone, float16 alone and the numbers alone tell nothing.
    numbers = {k: v for k, v in released.items() if v.dtype == np.int64}
    halves = {k: v for k, v in released.items() if k not in numbers}
    for state_dict in (toys.vit(), halves, toys.vit() | numbers):
        weights_convert.load_clip(write_torch(tmp_path / "b.pt", state_dict))
        assert len(warned()) == 1


def test_an_image_tower_of_relus_has_no_activation(tmp_path, warned):
    path = write_torch(tmp_path / "a.pt", toys.resnet())
    weights_convert.load_clip(path, vision_only=True)
    (message,) = warned()
    assert "assumed: heads 4." in message
    weights_convert.load_clip(path, vision_only=True, activation="gelu", heads=(4, 1))
    assert not warned()


def test_said_goes_before_a_config_beside_the_weights(tmp_path, warned):
    model = weights_convert.clip_from_state_dict(toys.vit())
    weights_convert.export_huggingface(model, tmp_path)
    config = weights_convert.load_clip(tmp_path, activation="gelu", heads=(8, 2)).model.cfg
    assert (config.text.activation, config.vision.heads, config.text.heads) == ("gelu", 8, 2)
    assert not warned()
    (tmp_path / "config.json").unlink()
    weights_convert.load_clip(tmp_path)
    assert len(warned()) == 1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"activation": "GELU"}, "activation 'GELU'; choose one of"),
        ({"heads": 12}, "heads 12; give two numbers"),
        ({"heads": (12,)}, r"heads \(12,\)"),
        ({"heads": (12, 0)}, r"heads \(12, 0\)"),
        ({"heads": (12, 8.0)}, r"heads \(12, 8.0\)"),
        ({"norm_eps": float("nan")}, "norm_eps nan"),
        ({"norm_eps": -1e-5}, "norm_eps -1e-05"),
        ({"dtype": "int8"}, "dtype 'int8'"),
    ],
)
def test_choices_that_cannot_be_meant_are_refused_before_any_work(choice, message):
    with pytest.raises(ValueError, match=message):
        weights_convert.load_clip("no such file", **choice)


def test_heads_that_do_not_divide_the_width(tmp_path):
    path = write_torch(tmp_path / "a.pt", toys.vit())
    with pytest.raises(CheckpointError, match=r"3 heads don't divide width 128 .*--heads 12,8"):
        weights_convert.load_clip(path, heads=(3, 1))
    with pytest.raises(CheckpointError, match=r"a\.pt: 3 heads don't divide width 64 of the text"):
        weights_convert.convert(path, heads=(2, 3))


def test_the_command_says_heads_and_activation(tmp_path, capsys):
    path = write_torch(tmp_path / "a.pt", toys.vit())
    target = tmp_path / "c.safetensors"
    said = ["--activation", "gelu", "--heads", "4,2"]
    assert main([str(path), "-o", str(target), *said]) == 0
    assert "4 heads, gelu" in capsys.readouterr().out
    assert main([str(path), "--inspect"]) == 0
    assert "activation and heads; no file says them" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(path), "-o", str(target), "--heads", "4"])
    assert "--heads is '4'; give two numbers" in capsys.readouterr().err
    assert parse_heads(" 12, 8") == parse_heads("(12,8)") == (12, 8)


@pytest.mark.parametrize("layout", ["openai", "maskclip"])
def test_what_a_layout_cannot_say_is_named_on_export(layout, tmp_path, warned):
    path = write_torch(tmp_path / "a.pt", toys.vit())
    converted = weights_convert.convert(path, activation="gelu", heads=(4, 1))
    weights_convert.export(converted, tmp_path / "b.pt", layout)
    (message,) = warned()
    assert "vision activation gelu (they take quick_gelu), vision heads 4 (they take 2)" in message
    assert ("text activation" in message) == (layout == "openai")
    assert "--to huggingface" in message
    plain = weights_convert.convert(path, activation="quick_gelu", heads=(2, 1))
    weights_convert.export(plain, tmp_path / "b.pt", layout)
    assert not warned()


def test_what_no_config_can_say_is_not_exported(tmp_path):
    clip = weights_convert.clip_from_state_dict(toys.vit())
    vision = dataclasses.replace(clip.cfg.vision, block_norm_eps=1e-6)
    changed = weights_convert.with_config(clip, dataclasses.replace(clip.cfg, vision=vision))
    with pytest.raises(CheckpointError, match="block_norm_eps 1e-06 beside norm_eps 1e-05"):
        weights_convert.export_huggingface(changed, tmp_path)


def test_huggingface_exports_say_everything(tmp_path, warned):
    path = write_torch(tmp_path / "a.pt", toys.vit())
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps(
            {
                "model_cfg": {
                    "vision_cfg": {"head_width": 32, "norm_kwargs": {"eps": 1e-6}},
                    "text_cfg": {"heads": 2, "norm_kwargs": {"eps": 1e-4}},
                }
            }
        )
    )
    converted = weights_convert.convert(path)
    weights_convert.export(converted, tmp_path / "hf", "huggingface")
    again = weights_convert.convert(tmp_path / "hf")
    assert again.record["config"] == converted.record["config"]
    assert again.record["config"]["vision"]["norm_eps"] == 1e-6
    assert not warned()
