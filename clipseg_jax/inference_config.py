"""The values of inference: how images reach the network and how scores become labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from clipseg_jax.core.checks import check_choice, check_number, check_sizes, check_whole
from clipseg_jax.ops.crf import CRFConfig
from clipseg_jax.ops.crf.config import WECLIP_TEST
from clipseg_jax.ops.pamr import NACLIP, PAMRConfig
from clipseg_jax.ops.par import PUBLISHED, PARConfig

Refinement = PAMRConfig | PARConfig | CRFConfig
# By the words of recipes, of `segment` and of `predict`.
REFINEMENTS: Mapping[str, Refinement] = {"pamr": NACLIP, "par": PUBLISHED, "crf": WECLIP_TEST}


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """How images reach the network and how its logits become labels.

    Raises:
      ValueError: a value that has no meaning; the message names it and what is taken.
    """

    mean: tuple[float, float, float]  # of RGB, in pixel values 0 to 255
    std: tuple[float, float, float]
    # (long, short) side in pixels: the largest size that exceeds neither, keeping the aspect; with
    # keep_ratio False (width, height) exactly; None: images are not resized.
    scale_px: tuple[int, int] | None = (2048, 512)
    keep_ratio: bool = True
    enlarge: bool = True  # False: images that are smaller keep their size
    mode: Literal["whole", "slide"] = "whole"
    crop_px: tuple[int, int] = (512, 512)  # (height, width), "slide" only
    stride_px: tuple[int, int] = (341, 341)
    # Windows, or whole images, are padded with zeros on all sides to a multiple of these pixels; 0:
    # as the network pads.
    pad_to_px: int = 0
    min_side_px: int = 1  # shortest side in pixels at the network; a shorter one raises ValueError
    ratios: tuple[float, ...] = (1.0,)  # test-time scales of scale_px
    # What of several views is averaged: "probabilities" (softmax without temperature, as MaskCLIP,
    # CLIP-RC and DeepLab publish) or "scores" at full size, or "logits" on the grid of the first
    # view, which selects WeCLIP's protocol as a whole: see `views`.
    average: Literal["probabilities", "scores", "logits"] = "probabilities"
    flip: bool = False  # average with the mirror image
    # Label of each text embedding; None: its index. Several embeddings may share a label
    # (background words).
    embedding_labels: tuple[int, ...] | None = None
    # Pixels whose best probability is lower get `background_label`; 0: off.
    background_threshold: float = 0.0
    background_label: int = 0
    # Labels from 1 on that get no more than this share of the image's pixels with such labels are
    # replaced by the next best of each pixel; 0: off.
    area_threshold: float = 0.0
    # Multiplies scores before their softmax, but for several views with `average="probabilities"`.
    temperature: float = 100.0
    # Follows the edges of the image: PAMR on the scores, before temperature and softmax; PAR or a
    # dense CRF on the probabilities; None: off. See `labels.refine`.
    refine: Refinement | None = None
    # Longest side in pixels at which images are refined; those of larger ones are refined at that
    # size and then enlarged. None: all at their own size, h * w * c numbers for an image.
    refine_px: int | None = None
    # The image that the CRF takes: "wrapped" as in deeplab-pytorch (see `ops.crf.wrapped_image`),
    # or "raw" RGB.
    crf_image: Literal["wrapped", "raw"] = "wrapped"

    def __post_init__(self) -> None:
        for name in ("mean", "std", "ratios"):
            self._set(name, _numbers(name, getattr(self, name), positive=name != "mean"))
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(f"mean {self.mean} and std {self.std} need three numbers each, of RGB")
        check_choice("keep_ratio", self.keep_ratio, (True, False))
        check_choice("enlarge", self.enlarge, (True, False))
        if self.scale_px is not None:
            order = "(long side, short side)" if self.keep_ratio else "(width, height)"
            self._set("scale_px", check_sizes("scale_px", self.scale_px, order))
        for name in ("crop_px", "stride_px"):
            self._set(name, check_sizes(name, getattr(self, name)))
        check_choice("mode", self.mode, ("whole", "slide"))
        check_choice("average", self.average, ("probabilities", "scores", "logits"))
        check_choice("flip", self.flip, (True, False))
        check_choice("crf_image", self.crf_image, ("wrapped", "raw"))
        if self.mode == "slide" and any(
            stride > crop for stride, crop in zip(self.stride_px, self.crop_px, strict=True)
        ):
            raise ValueError(
                f"stride_px {self.stride_px} exceeds crop_px {self.crop_px}: pixels between the "
                "windows would have no scores; give a stride from 1 to the crop"
            )
        if self.average == "logits" and (
            self.mode == "slide" or not self.keep_ratio or self.pad_to_px
        ):
            raise ValueError(
                "average='logits' takes whole images that keep their ratio; give mode='whole', "
                "keep_ratio=True and pad_to_px=0, or average='probabilities'"
            )
        check_whole("min_side_px", self.min_side_px)
        check_whole("pad_to_px", self.pad_to_px, 0)
        if self.embedding_labels is not None:
            if not len(self.embedding_labels):
                raise ValueError("embedding_labels is empty; give a label for each text embedding")
            labels = (check_whole("embedding_labels", label, 0) for label in self.embedding_labels)
            self._set("embedding_labels", tuple(labels))
        check_number("background_threshold", self.background_threshold, 0, 1)
        check_whole("background_label", self.background_label, 0)
        check_number("area_threshold", self.area_threshold, 0, 1)
        check_number("temperature", self.temperature, 0, above=True)
        if self.refine is not None and not isinstance(self.refine, Refinement):
            raise ValueError(
                f"refine is {self.refine!r}; give a PAMRConfig, a PARConfig, a CRFConfig or None"
            )
        if self.refine_px is not None:
            check_whole("refine_px", self.refine_px)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # of a frozen dataclass


def check_values(values: Mapping[str, Any]) -> None:
    """Checks a recipe's values of the names that `InferenceConfig` has; others are not its own.

    Raises:
      ValueError: see `InferenceConfig`.
    """
    fields = {field.name for field in dataclasses.fields(InferenceConfig)}
    own = {name: value for name, value in values.items() if name in fields}
    InferenceConfig(**{"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **own})


def _numbers(name: str, values: object, *, positive: bool) -> tuple[float, ...]:
    """A tuple of at least one finite number."""
    if not isinstance(values, (tuple, list)) or not values:
        raise ValueError(f"{name} is {values!r}; give a tuple of at least one number")
    low = 0.0 if positive else -math.inf
    return tuple(check_number(name, value, low, above=positive) for value in values)
