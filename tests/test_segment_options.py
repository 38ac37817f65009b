"""Methods and their protocols: what each image tower gets where its caller gives nothing."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from clipseg_jax.inference_config import Refinement
from clipseg_jax.methods.maskclip.model import MaskCLIP, MaskCLIPConfig
from clipseg_jax.methods.readouts.feedback import FeedbackConfig
from clipseg_jax.methods.readouts.model import ReadOutModel
from clipseg_jax.methods.readouts.proxy import ProxyCLIP
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.models.clip.read_outs import READ_OUTS
from clipseg_jax.ops.crf import CRFConfig
from clipseg_jax.ops.pamr import PAMRConfig
from clipseg_jax.ops.par import PARConfig
from clipseg_jax.segment_options import DEFAULT_METHOD, METHODS, SegmentOptions
from tests import tiny
from tests.weights_convert.dino import toys
from weights_convert.formats.torch_writer import write_torch

LARGE = dataclasses.replace(tiny.VIT, image_px=336, patch_px=14)


DINO = {"proxyclip": {"dino": "dino.pth"}}  # what a method needs besides its name


def inference(vision=tiny.VIT, **given):
    given = DINO.get(given.get("method"), {}) | given
    return SegmentOptions(**given).inference(vision, (1, 2, 0), 0.25)


def test_the_default_is_the_best_that_a_clip_can():
    assert SegmentOptions().method_of(tiny.VIT) == DEFAULT_METHOD
    assert SegmentOptions().method_of(tiny.RESNET) == "maskclip"
    assert inference() == inference(method=DEFAULT_METHOD, refine="pamr")
    assert inference(tiny.RESNET) == inference(tiny.RESNET, method="maskclip", refine=None)
    for method in set(METHODS) - {"maskclip"}:
        with pytest.raises(ValueError, match=f"'{method}' reads .* this CLIP has a ResNet; give"):
            inference(tiny.RESNET, method=method)


def test_maskclip_is_as_it_was():
    cfg = inference(LARGE, method="maskclip")
    assert (cfg.scale_px, cfg.mode, cfg.crop_px, cfg.stride_px) == (
        (2048, 512), "whole", (512, 512), (341, 341),
    )  # fmt: skip
    assert (cfg.temperature, cfg.refine, cfg.average) == (100, None, "probabilities")
    assert (cfg.embedding_labels, cfg.background_threshold) == ((1, 2, 0), 0.25)
    options = SegmentOptions(method="maskclip")
    assert len(options.templates(tiny.VIT)) == 85
    assert inference(method="maskclip", mode="slide", crop_px=(96, 60)).stride_px == (64, 40)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"maskclip", "proxyclip"}))
def test_the_protocol_of_read_outs_follows_the_training_side(method):
    for vision, short, side in ((LARGE, 504, 336), (tiny.VIT, 96, 64)):
        cfg = inference(vision, method=method)
        assert (cfg.scale_px, cfg.mode) == ((4 * short, short), "slide")
        assert (cfg.crop_px, cfg.stride_px) == ((side, side), (side // 2, side // 2))
        assert (cfg.temperature, cfg.refine, cfg.average) == (40, PAMRConfig(), "scores")
    assert len(SegmentOptions(method=method).templates(tiny.VIT)) == 80


def test_proxyclip_sees_more_at_once():
    """Published: windows of 336 px, steps of 112 px, of a CLIP for 224 px; whole patches."""
    for side, pad in ((224, 112), (64, 0)):
        cfg = inference(dataclasses.replace(tiny.VIT, image_px=side), method="proxyclip")
        assert (cfg.scale_px[1], cfg.crop_px[0], cfg.pad_to_px) == (
            3 * side // 2,
            3 * side // 2,
            pad,
        )
        assert cfg.stride_px == (side // 2, side // 2)


def test_what_is_given_wins():
    cfg = inference(
        refine=None, short_side_px=80, mode="whole", temperature=7, ratios=(1.0, 2.0), flip=True
    )
    assert (cfg.scale_px, cfg.mode, cfg.temperature) == ((320, 80), "whole", 7)
    assert (cfg.refine, cfg.ratios, cfg.flip) == (None, (1.0, 2.0), True)
    assert inference(crop_px=(40, 20)).stride_px == (20, 10)
    assert inference(stride_px=(64, 3)).crop_px == (64, 64)
    with pytest.raises(ValueError, match=r"stride_px \(65, 3\) exceeds crop_px \(64, 64\)"):
        inference(stride_px=(65, 3))
    assert len(SegmentOptions(prompt_templates="single").templates(tiny.VIT)) == 1


@pytest.mark.parametrize("method", ["maskclip", "scclip"])
def test_refinements_by_name_and_by_config(method):
    kinds = {"pamr": PAMRConfig, "par": PARConfig, "crf": CRFConfig}
    for name, kind in kinds.items():
        cfg = inference(method=method, refine=name)
        assert isinstance(cfg.refine, kind)
        assert cfg.crf_image == "raw"
    given: Refinement = PARConfig(iterations=3)
    assert inference(method=method, refine=given).refine is given
    assert inference(method=method, refine=None).refine is None


def test_the_task_of_a_method():
    clip = tiny.clip()
    rows = l2_normalize(jax.random.normal(jax.random.key(0), (3, tiny.VIT.embed_dim)))
    cfg = MaskCLIPConfig(pd_threshold=0.5)
    model = SegmentOptions(method="maskclip", maskclip=cfg).task(clip, rows).model
    assert isinstance(model, MaskCLIP)
    assert (model.cfg, model.visual) == (cfg, clip.visual)
    model = SegmentOptions(method="sclip").task(clip, rows).model
    assert isinstance(model, ReadOutModel)
    assert model.read_out == READ_OUTS["sclip"]
    vision = model.visual.cfg
    assert (vision.position_offset, vision.position_keep_count) == (0.1, True)
    assert vision.pad_to_patch, "masks of photos are not shifted"
    assert clip.visual.cfg == tiny.VIT, "the CLIP given stays"
    assert model.feedback is None
    model = SegmentOptions(method="resclip_feedback").task(clip, rows).model
    assert (model.read_out, model.feedback) == (READ_OUTS["resclip"], FeedbackConfig())


def test_proxyclip_reads_a_dino(tmp_path):
    dino = write_torch(tmp_path / "dino.pth", toys.state_dict())
    rows = l2_normalize(jax.random.normal(jax.random.key(0), (3, tiny.VIT.embed_dim)))
    options = SegmentOptions(method="proxyclip", dino=dino)
    task = options.task(tiny.clip(), rows)
    assert isinstance(task.model, ProxyCLIP)
    assert task.model.dino.cfg.patch_px == toys.PATCH
    scores = task.predict(task.model, jax.numpy.ones((1, 32, 48, 3)), None)
    assert scores.shape == (1, 32 // toys.PATCH, 48 // toys.PATCH, 3)
    with pytest.raises(FileNotFoundError, match="absent"):
        SegmentOptions(method="proxyclip", dino=tmp_path / "absent.pth").task(tiny.clip(), rows)
