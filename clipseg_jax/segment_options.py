"""How `segment` and `predict` read a CLIP: the method, and the protocol that belongs to it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

from jax.typing import ArrayLike

import weights_convert
from clipseg_jax.core.checks import check_choice, check_number, check_sizes, check_whole
from clipseg_jax.inference_config import REFINEMENTS, InferenceConfig, Refinement
from clipseg_jax.methods.maskclip import task as maskclip_task
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.methods.readouts import task as readouts_task
from clipseg_jax.methods.readouts.feedback import FeedbackConfig
from clipseg_jax.models.clip import CLIP, ResNetConfig, VisionConfig, ViTConfig
from clipseg_jax.models.clip.read_outs import READ_OUTS
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from clipseg_jax.prompts import templates
from clipseg_jax.task import Task

MASKCLIP = "maskclip"
FEEDBACK, PROXY = "resclip_feedback", "proxyclip"
METHODS = (MASKCLIP, *READ_OUTS, FEEDBACK, PROXY)
DEFAULT_METHOD = "naclip"  # of ViTs; a ResNet has no last block to read out: MaskCLIP
REFINE_PX = 1024  # longest side at which photos are refined


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What a method takes where its caller gives nothing."""

    prompt_templates: str
    short_side_px: int
    mode: Literal["whole", "slide"]
    window_px: int
    step: float  # from one window to the next, a share of the window
    temperature: float
    average: Literal["probabilities", "scores"]  # of several views
    refine: str | None = "pamr"  # name of a refinement
    pad_to_px: int = 0  # see `InferenceConfig`


_MASKCLIP = Protocol("maskclip_85", 512, "whole", 512, 2 / 3, 100.0, "probabilities", refine=None)
_USUAL_PX = 224  # what released CLIPs were trained at, or more
_ANY_PATCH_PX = 112  # whole patches of 8, 14 and 16


def protocol(method: str, vision: VisionConfig) -> Protocol:
    """The protocol of a method: MaskCLIP's is published (spec maskclip, section 7).

    The read-outs share the sizes and the logit scale that most of them publish (spec readouts,
    section 9), in terms of the side in pixels that the image tower was trained at, there 224;
    ProxyCLIP has windows of its own. Thresholds, which go with a dataset's names, are left out.

    Raises:
      ValueError: the method needs a ViT.
    """
    if method == MASKCLIP:
        side = getattr(vision, "image_px", _USUAL_PX)
        # Published for CLIPs of 224 px; a smaller one has never seen such large objects.
        small = dataclasses.replace(_MASKCLIP, short_side_px=3 * side // 2)
        return _MASKCLIP if side >= _USUAL_PX else small
    if not isinstance(vision, ViTConfig):
        has = "a ResNet" if isinstance(vision, ResNetConfig) else "SigLIP's attention pool"
        raise ValueError(
            f"method {method!r} reads the last block of a ViT, and this CLIP has {has}; "
            "give method='maskclip', or omit it"
        )
    side = vision.image_px
    usual = Protocol("imagenet_80", 3 * side // 2, "slide", side, 1 / 2, 40.0, "scores")
    if method != PROXY:
        return usual
    return dataclasses.replace(
        usual, window_px=3 * side // 2, step=1 / 3, pad_to_px=_ANY_PATCH_PX if side >= 224 else 0
    )


@dataclasses.dataclass(frozen=True)
class SegmentOptions:
    """Options of `segment` as its caller gives them; see there. None: those of the protocol.

    Raises:
      ValueError: a value without meaning; the message names it and what is taken.
    """

    method: str | None = None
    refine: Refinement | str | None = "auto"
    maskclip: MaskCLIPConfig | None = None
    dino: str | Path | None = None
    prompt_templates: str | None = None
    short_side_px: int | None = None
    mode: Literal["whole", "slide"] | None = None
    crop_px: tuple[int, int] | None = None
    stride_px: tuple[int, int] | None = None
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.method is not None:
            check_choice("method", self.method, METHODS)
        check_refine(self.refine)
        if self.maskclip is not None and not isinstance(self.maskclip, MaskCLIPConfig):
            raise ValueError(f"maskclip is {self.maskclip!r}; give a MaskCLIPConfig or None")
        if self.maskclip is not None and self.method != MASKCLIP:
            raise ValueError(
                f"maskclip is given with method {self.method!r}; give method='maskclip', which "
                "alone has these refinements"
            )
        if self.dino is not None and (
            not isinstance(self.dino, (str, os.PathLike)) or not str(self.dino)
        ):
            raise ValueError(f"dino is {self.dino!r}; give the path of a DINO checkpoint, or None")
        if self.method == PROXY and self.dino is None:
            raise ValueError(f"method {PROXY!r} needs a DINO; give dino= its checkpoint")
        if self.method != PROXY and self.dino is not None:
            raise ValueError(
                f"dino is given with method {self.method!r}; give method={PROXY!r}, which alone "
                "reads one"
            )
        name = self.prompt_templates
        if name is not None and not isinstance(name, str):
            raise ValueError(f"prompt_templates is {name!r}; give the name of a set")
        if name is not None:
            templates(name)
        if self.short_side_px is not None:
            check_whole("short_side_px", self.short_side_px)
        if self.mode is not None:
            check_choice("mode", self.mode, ("whole", "slide"))
        if self.crop_px is not None:
            check_sizes("crop_px", self.crop_px)
        if self.stride_px is not None:
            check_sizes("stride_px", self.stride_px)
        if self.temperature is not None:
            check_number("temperature", self.temperature, 0, above=True)
        # What they mean together, in an image tower whose windows no given step exceeds.
        side = max((2, *(self.stride_px or ())))
        self.inference(ViTConfig(side, side, width=1, layers=1, heads=1, embed_dim=1), (1,), 0.0)

    def method_of(self, vision: VisionConfig) -> str:
        """The method for an image tower: the one given, or the best that the tower can."""
        return self.method or (DEFAULT_METHOD if isinstance(vision, ViTConfig) else MASKCLIP)

    def templates(self, vision: VisionConfig) -> tuple[str, ...]:
        """The prompt templates for an image tower."""
        return templates(
            self.prompt_templates or protocol(self.method_of(vision), vision).prompt_templates
        )

    def inference(
        self, vision: VisionConfig, embedding_labels: tuple[int, ...], background_threshold: float
    ) -> InferenceConfig:
        """How images reach an image tower, and how its scores become labels.

        Raises:
          ValueError: the method needs a ViT, or its windows are smaller than the steps given.
        """
        own = protocol(self.method_of(vision), vision)
        short = own.short_side_px if self.short_side_px is None else self.short_side_px
        crop = self.crop_px or (own.window_px, own.window_px)
        steps = (max(int(crop[0] * own.step), 1), max(int(crop[1] * own.step), 1))
        refine = own.refine if self.refine == "auto" else self.refine
        return InferenceConfig(
            mean=CLIP_MEAN,
            std=CLIP_STD,
            scale_px=(4 * short, short),
            mode=self.mode or own.mode,
            crop_px=crop,
            stride_px=self.stride_px or steps,
            pad_to_px=own.pad_to_px,
            ratios=self.ratios,
            average=own.average,
            flip=self.flip,
            embedding_labels=embedding_labels,
            background_threshold=background_threshold,
            temperature=own.temperature if self.temperature is None else self.temperature,
            refine=REFINEMENTS[refine] if isinstance(refine, str) else refine,
            refine_px=REFINE_PX,
            crf_image="raw",
        )

    def task(self, clip: CLIP, text_embeddings: ArrayLike) -> Task:
        """A CLIP with text embeddings (c, e), read out by the method.

        Raises:
          ValueError: text embeddings of another CLIP, or `dino` is none. FileNotFoundError: no
            such file.
        """
        vision = clip.cfg.vision
        method = self.method_of(vision)
        if method == MASKCLIP:
            return maskclip_task.build(clip.visual, text_embeddings, self.maskclip)
        assert isinstance(vision, ViTConfig)
        # Spec readouts, section 2; but photos of any size are padded to whole patches, because
        # dropping the remainder would shift their masks.
        vision = dataclasses.replace(
            vision, position_offset=0.1, position_keep_count=True, pad_to_patch=True
        )
        cfg = dataclasses.replace(clip.cfg, vision=vision)
        visual = weights_convert.with_config(clip, cfg).visual
        if method == PROXY:
            assert self.dino is not None
            dino = weights_convert.load_dino(self.dino, dtype=vision.dtype)
            return readouts_task.build_proxy(visual, dino, text_embeddings)
        feedback = FeedbackConfig() if method == FEEDBACK else None
        read_out = READ_OUTS[method.removesuffix("_feedback")]
        return readouts_task.build(visual, text_embeddings, read_out, feedback=feedback)


def check_refine(refine: Any) -> None:
    """Checks a value of `SegmentOptions.refine`.

    Raises:
      ValueError: it is neither a word, nor a config, nor None.
    """
    words = ("auto", *REFINEMENTS)
    if refine is None or isinstance(refine, Refinement):
        return
    if isinstance(refine, str) and refine in words:
        return
    remedy = f"give {', '.join(map(repr, words))}, a PAMRConfig, PARConfig or CRFConfig, or None"
    if isinstance(refine, MaskCLIPConfig):
        remedy = "give a MaskCLIPConfig as maskclip=, with method='maskclip'"
    raise ValueError(f"refine is {refine!r}; {remedy}")
