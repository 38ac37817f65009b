"""CLIP-RC's files in and out: all keys at full size, toys bit for bit, what users may confuse."""

from __future__ import annotations

import dataclasses
import functools
import json
import re

import numpy as np
import pytest

import weights_convert
from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.clip_rc.model import CLIPRCConfig, init_clip_rc
from clipseg_jax.models.clip import ViTConfig
from tests import seeded
from tests.weights_convert import toys
from weights_convert import CLIP_RC, CheckpointError
from weights_convert.__main__ import main
from weights_convert.clip.build import clip_from_state_dict, flat_arrays
from weights_convert.formats.torch_writer import write_torch
from weights_convert.trained.clip_rc.keys import UNUSED
from weights_convert.trained.clip_rc.published import build, from_published, to_published
from weights_convert.trained.kinds import format_of

GOLDEN = toys.GOLDEN / "clip_rc"
NAMES = ["cat", "dog", "tree"]
CFG = CLIPRCConfig(crop_px=32, prompts=3, region_side=2, decoder_blocks=2, heads=8, hidden=48)
DETAILS = {"seen": [0, 2], "setting": "inductive"}


def zeros(of):
    """Arrays of these shapes that take no memory."""
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in of.items()}


def test_every_key_of_a_released_file():
    shapes = json.loads((GOLDEN / "state_dict_shapes.json").read_text())["shapes"]
    shapes = {key: tuple(shape) for key, shape in shapes.items()}
    assert len(shapes) == 496
    arrays = from_published(zeros(shapes), "file")
    vision = ViTConfig(512, 16, 768, 12, 12, 512, position_resize="bilinear")
    model = abstract(lambda rngs: build(vision, CLIPRCConfig(), 20, rngs))
    model_shapes = {p: x.shape for p, x in flat_arrays(model).items() if p != "text_embeddings"}
    model_paths = {p: x.shape for p, x in arrays.items() if p.startswith(("encoder.", "head."))}
    assert model_paths == model_shapes
    back = to_published(arrays)
    assert {key: value.shape for key, value in back.items()} == shapes
    # What nothing uses is made up where it lacks, under the right names.
    used = {path: x for path, x in arrays.items() if not path.startswith("unused.")}
    assert {key: value.shape for key, value in to_published(used).items()} == shapes


@functools.cache
def clip_weights():
    """OpenAI's names: what the toy was trained around; positions of a 4 x 4 grid."""
    return seeded.state_dict(toys.vit_shapes(), 3)


@functools.cache
def published():
    """A toy's state dict as the published code saves it, of seeded values but CLIP's own."""
    clip = clip_from_state_dict(clip_weights())
    model = init_clip_rc(clip.visual, rows(), CFG)
    shapes = {p: tuple(x.shape) for p, x in flat_arrays(model).items() if p != "text_embeddings"}
    shapes |= {f"text.{p}": tuple(x.shape) for p, x in flat_arrays(clip.text).items()}
    stored_shapes = {key: value.shape for key, value in to_published(zeros(shapes)).items()}
    stored = seeded.state_dict(stored_shapes, 5)
    for key, value in clip_weights().items():
        name = key.replace("visual.", "backbone.") if "visual." in key else f"text_encoder.{key}"
        if name in stored:
            stored[name] = value
    return stored


def content():
    return {"meta": {"iter": 7}, "state_dict": published(), "optimizer": {"step": 7}}


@pytest.fixture
def raw(tmp_path):
    return write_torch(tmp_path / "iter_7.pth", content())


def rows():
    return seeded.unit_rows("text", 3, toys.EMBED, 1)


@pytest.mark.slow
def test_there_and_back_bit_for_bit(raw, tmp_path):
    released = weights_convert.load_trained(raw, CLIP_RC)
    record = released.record
    assert (record["prompts"], record["region_side"], record["crop_px"]) == (3, 2, 32)
    assert record["classes"] is None
    model = weights_convert.build_clip_rc(released, rows())
    assert model.cfg == CFG
    arrays = {path: np.asarray(x) for path, x in flat_arrays(model).items()}
    np.testing.assert_array_equal(arrays.pop("text_embeddings"), rows())
    kept = {p: x for p, x in released.arrays.items() if p.startswith(("encoder.", "head."))}
    toys.assert_same(arrays, kept)
    back = weights_convert.export_trained(released, tmp_path / "back.pth", CLIP_RC)
    toys.assert_same(weights_convert.read_state_dict(back), published())

    ours = weights_convert.save_converted(tmp_path / "ours.safetensors", released)
    back = weights_convert.export_trained(
        weights_convert.load_trained(ours, CLIP_RC), tmp_path / "again.pth", CLIP_RC
    )
    toys.assert_same(weights_convert.read_state_dict(back), published())


def test_layouts():
    """What each name holds."""
    theirs, ours = published(), from_published(published(), "file")
    pairs = {
        "encoder.prompt_proj.kernel": "backbone.prompt_proj.weight",
        "encoder.visual.transformer.resblocks.1.attn.in_proj.kernel": (
            "backbone.transformer.resblocks.1.attn.in_proj_weight"
        ),
        "head.lateral_proj.kernel": "decode_head.lateral_proj.weight",
        "head.decoder_v.1.multihead_attn.proj.kernel": (
            "decode_head.decoder_v.layers.1.multihead_attn.proj.weight"
        ),
        "head.recovery_decoder.decouple_q.0.linear2.kernel": (
            "decode_head.recovery_decoder.decouple_q.0.linear2.weight"
        ),
        "text.transformer.resblocks.0.mlp.c_fc.kernel": (
            "text_encoder.transformer.resblocks.0.mlp.c_fc.weight"
        ),
    }
    for path, key in pairs.items():
        np.testing.assert_array_equal(ours[path], theirs[key].T, err_msg=path)
    pairs = {
        "encoder.deep_prompt_embeddings": "backbone.deep_prompt_embeddings",
        "encoder.prompt_norm.scale": "backbone.prompt_norm.weight",
        "head.decoder_q.0.norm3.scale": "decode_head.decoder_q.layers.0.norm3.weight",
        "text.text_projection": "text_encoder.text_projection",
    }
    for path, key in pairs.items():
        np.testing.assert_array_equal(ours[path], theirs[key], err_msg=path)
    first = theirs["backbone.prompt_embeddings"]
    np.testing.assert_array_equal(ours["encoder.prompt_embeddings"], first[0])


@functools.cache
def trained():
    """What a run of ours would end with: `published`'s weights, but around a CLIP of its own."""
    clip = clip_from_state_dict(clip_weights())
    model = init_clip_rc(clip.visual, rows(), CFG)
    arrays = from_published(published(), "file")
    kept = ("encoder.prompt", "encoder.deep", "encoder.region", "head.")
    weights_convert.install(model, {p: x for p, x in arrays.items() if p.startswith(kept)})
    return model, clip


@pytest.mark.slow
def test_own_training_becomes_a_published_file(tmp_path):
    model, clip = trained()
    path = tmp_path / "ours.safetensors"
    details = DETAILS | {"figures": {"steps": 4}}
    weights_convert.save_trained(path, CLIP_RC, model, classes=NAMES, details=details)
    first = path.read_bytes()
    weights_convert.save_trained(path, CLIP_RC, model, classes=NAMES, details=details)
    assert path.read_bytes() == first
    ours = weights_convert.load_trained(path, CLIP_RC)
    assert ours.record["classes"] == NAMES
    assert ours.record["figures"] == {"steps": 4}
    assert not any(".visual." in p or p.startswith("text") for p in ours.arrays)

    other = init_clip_rc(clip.visual, rows(), CFG, seed=9)
    weights_convert.install_clip_rc(other, ours, path)
    toys.assert_same(
        {p: np.asarray(x) for p, x in flat_arrays(other).items()},
        {p: np.asarray(x) for p, x in flat_arrays(model).items()},
    )
    back = weights_convert.export_trained(
        ours, tmp_path / "iter_4.pth", CLIP_RC, clip=clip_weights()
    )
    written, expected = weights_convert.read_state_dict(back), published()
    assert written.keys() == expected.keys()
    for key, value in written.items():
        if not re.fullmatch(UNUSED, key):
            np.testing.assert_array_equal(value, expected[key], err_msg=key)
    again = weights_convert.build_clip_rc(weights_convert.load_trained(back, CLIP_RC), rows())
    toys.assert_same(
        {p: np.asarray(x) for p, x in flat_arrays(again).items()},
        {p: np.asarray(x) for p, x in flat_arrays(model).items()},
    )


def test_all_faults_at_once(tmp_path):
    bad = dict(published())
    del bad["backbone.prompt_norm.bias"]
    bad["decode_head.conv_seg.bias"] = np.zeros(3, np.float32)
    bad["decode_head.q_proj.bias"] = np.zeros(7, np.float32)
    with pytest.raises(CheckpointError) as caught:
        weights_convert.load_trained(write_torch(tmp_path / "bad.pth", bad), CLIP_RC)
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
        "- backbone.prompt_norm.bias: missing",
        "+ decode_head.conv_seg.bias (3,): unexpected",
        "~ decode_head.q_proj.bias: shape (7,), expected (32,)",
    ]
    bad = dict(published())
    del bad["text_encoder.ln_final.bias"]
    with pytest.raises(CheckpointError, match=r"text_encoder.*\n  - ln_final.bias: missing"):
        weights_convert.load_trained(write_torch(tmp_path / "bad.pth", bad), CLIP_RC)
    bad = {k: v for k, v in published().items() if k != "backbone.conv1.weight"}
    with pytest.raises(CheckpointError, match=r"conv1\.weight is missing or not an array of 4"):
        weights_convert.load_trained(write_torch(tmp_path / "bad.pth", bad), CLIP_RC)


def test_files_without_what_nothing_needs(tmp_path):
    """No text tower, no dead layers: as a user may have stripped them."""
    slim = {
        key: value
        for key, value in published().items()
        if not key.startswith("text_encoder.") and not re.fullmatch(UNUSED, key)
    }
    loaded = weights_convert.load_trained(write_torch(tmp_path / "slim.pth", slim), CLIP_RC)
    whole = weights_convert.build_clip_rc(loaded, rows())
    np.testing.assert_array_equal(
        whole.head.q_proj.kernel[...], slim["decode_head.q_proj.weight"].T
    )


def test_what_users_confuse(raw, tmp_path):
    model, clip = trained()
    ours = weights_convert.save_trained(
        tmp_path / "ours.safetensors", CLIP_RC, model, classes=NAMES, details=DETAILS
    )
    assert format_of(raw) is format_of(ours) is CLIP_RC
    loaded = weights_convert.load_trained(ours, CLIP_RC)
    with pytest.raises(CheckpointError, match="holds what was trained, not the CLIP"):
        weights_convert.build_clip_rc(loaded, rows())
    with pytest.raises(CheckpointError, match="give the CLIP that it was trained with"):
        weights_convert.export_trained(loaded, tmp_path / "no.pth", CLIP_RC)
    other_weights = seeded.state_dict(toys.vit_shapes(), 4)
    with pytest.raises(CheckpointError, match="trained with another CLIP"):
        weights_convert.export_trained(loaded, tmp_path / "no.pth", CLIP_RC, clip=other_weights)
    other = init_clip_rc(clip_from_state_dict(other_weights).visual, rows(), CFG)
    with pytest.raises(CheckpointError, match=r"ours\.safetensors was trained with another CLIP"):
        weights_convert.install_clip_rc(other, loaded, ours)
    more = dataclasses.replace(CFG, prompts=5)
    wider = init_clip_rc(clip.visual, rows(), more)
    with pytest.raises(CheckpointError, match=r"prompt_embeddings: shape \(3, 128\), expected \(5"):
        weights_convert.install_clip_rc(wider, loaded, ours)
    plain = write_torch(tmp_path / "clip.pt", clip_weights())
    assert format_of(plain) is None
    with pytest.raises(CheckpointError, match="holds no CLIP-RC"):
        weights_convert.load_trained(plain, CLIP_RC)
    with pytest.raises(CheckpointError, match="of format 'clipseg_jax CLIP-RC 1'"):
        weights_convert.load_clip(ours)


def test_command(raw, tmp_path, capsys):
    whole, back = tmp_path / "whole.safetensors", tmp_path / "back.pth"
    assert main([str(raw), "-o", str(whole)]) == 0
    line = "CLIP-RC, 3 prompts, 2 x 2 regions, classes not recorded"
    assert line in capsys.readouterr().out
    for path in (raw, whole):
        assert main(["--inspect", str(path)]) == 0
        facts = dict(row.split(maxsplit=1) for row in capsys.readouterr().out.splitlines()[:8])
        assert facts["layout"] == "CLIP-RC"
        assert facts["sizes"] == line
    assert main([str(whole), "--export", str(back), "--to", "clip_rc"]) == 0
    toys.assert_same(weights_convert.read_state_dict(back), published())

    ours = weights_convert.save_trained(
        tmp_path / "ours.safetensors", CLIP_RC, trained()[0], classes=NAMES, details=DETAILS
    )
    clip = write_torch(tmp_path / "clip.pt", clip_weights())
    capsys.readouterr()
    argv = [ours, "--export", back, "--to", "clip_rc"]
    assert main([str(part) for part in argv]) == 2
    assert "(--clip)" in capsys.readouterr().err
    assert main([str(part) for part in (*argv, "--clip", clip)]) == 0
    assert "inductive, 3 classes" in capsys.readouterr().out
    assert weights_convert.read_state_dict(back).keys() == published().keys()
    for argv, said in [
        ([clip, "--export", tmp_path / "no.pth", "--to", "clip_rc"], "holds no CLIP-RC"),
        ([raw, "--export", tmp_path / "no.pth", "--to", "openai"], "no CLIP among"),
    ]:
        assert main([str(part) for part in argv]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "no.pth").exists()
