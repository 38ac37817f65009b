"""Segments images by class names with a frozen CLIP, without dataset or config."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from clipseg_jax.inference_config import Refinement
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.prompts import read_words
from clipseg_jax.segment_options import SegmentOptions
from clipseg_jax.segmentation import ClassScores, Segmentation
from clipseg_jax.segmenters.load import load_clip
from clipseg_jax.segmenters.results import in_order
from input_pipeline.datasets.images import BadImage
from input_pipeline.pictures import Picture, picture_list


class Segmenter:
    """A CLIP with a list of classes; built once, then called on any number of images.

    `segment` is the function for one call.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        weights: str | Path,
        background: float | Sequence[str] | None = None,
        method: str | None = None,
        refine: Refinement | str | None = "auto",
        maskclip: MaskCLIPConfig | None = None,
        dino: str | Path | None = None,
        prompt_templates: str | None = None,
        short_side_px: int | None = None,
        mode: Literal["whole", "slide"] | None = None,
        crop_px: tuple[int, int] | None = None,
        stride_px: tuple[int, int] | None = None,
        ratios: tuple[float, ...] = (1.0,),
        flip: bool = False,
        temperature: float | None = None,
        batch_size: int | None = None,
        dtype: str = "float32",
        activation: str | None = None,
        heads: tuple[int, int] | None = None,
        devices: int | None = None,
    ):
        """See `segment` for the arguments; all of them are checked before the weights are read.

        Raises:
          ValueError: an argument without meaning, or weights that are not a CLIP with a text tower.
        """
        options = SegmentOptions(
            method=method,
            refine=refine,
            maskclip=maskclip,
            dino=dino,
            prompt_templates=prompt_templates,
            short_side_px=short_side_px,
            mode=mode,
            crop_px=crop_px,
            stride_px=stride_px,
            ratios=ratios,
            flip=flip,
            temperature=temperature,
        )
        read_words(class_names, background)  # before the weights are read
        self._runner = load_clip(
            weights,
            dtype=dtype,
            devices=devices,
            batch_size=batch_size,
            activation=activation,
            heads=heads,
        ).runner(class_names, background, options)
        self.names, self.config = self._runner.names, self._runner.cfg

    def __call__(
        self, images: Iterable[Picture] | Picture
    ) -> Iterator[tuple[int, Segmentation | BadImage]]:
        """Yields (index, result) for every image, batched by size, so not in order.

        Args:
          images: files, Pillow images, or arrays uint8 (h, w, 3), (h, w, 4) or (h, w); any iterable
            of them, or one. An iterator is read 64 images at a time, anything else to its end
            first.

        Yields:
          The index of an image and its segmentation; for one that cannot be used, the error.

        Raises:
          ValueError: something that is no image.
        """
        return self._runner(images)

    def scores(
        self, images: Iterable[Picture] | Picture, longest_px: int | None = 1024
    ) -> Iterator[tuple[int, ClassScores | BadImage]]:
        """As a call, with the probabilities of all classes, which no threshold has changed.

        `longest_px`: of the maps' longer sides; None: the images' own.
        """
        return self._runner.scores(images, longest_px)


def segment(
    images: Iterable[Picture] | Picture,
    class_names: Sequence[str],
    *,
    weights: str | Path,
    background: float | Sequence[str] | None = None,
    method: str | None = None,
    refine: Refinement | str | None = "auto",
    maskclip: MaskCLIPConfig | None = None,
    dino: str | Path | None = None,
    prompt_templates: str | None = None,
    short_side_px: int | None = None,
    mode: Literal["whole", "slide"] | None = None,
    crop_px: tuple[int, int] | None = None,
    stride_px: tuple[int, int] | None = None,
    ratios: tuple[float, ...] = (1.0,),
    flip: bool = False,
    temperature: float | None = None,
    batch_size: int | None = None,
    dtype: str = "float32",
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    devices: int | None = None,
) -> list[Segmentation]:
    """Segments `images` into `class_names` with a frozen CLIP.

    Loads the weights on every call; for repeated calls build a `segmenter.Segmenter` once.

    Args:
      images: one or several (any iterable): files, Pillow images, or arrays uint8 (h, w, 3) RGB,
        (h, w, 4) or (h, w) of any size.
      class_names: any words; common spellings work best ("tv monitor", not "tvmonitor").
      weights: a CLIP checkpoint as released (OpenAI .pt, Hugging Face directory, OpenCLIP), or
        "demo": a tiny one that is trained on a painted toy world only.
      background: None: every pixel gets a class. A number from 0 to 1, with several classes: pixels
        whose best class probability is lower are background. Words (["sky", "wall"]): classes that
        count as background.
      method: how the image tower is read: "naclip", "scclip", "sclip", "clearclip", "resclip",
        "resclip_feedback" (with its second pass, which many classes make slow), "proxyclip" (with a
        DINO), "value", "clip" (all of ViTs), or "maskclip". None: `naclip`, or `maskclip` of a
        ResNet or SigLIP. Arguments left None are those of the method, see
        `segment_options.protocol`.
      refine: what makes masks follow the edges of an image: "pamr", "par", "crf", the config of one
        (`PAMRConfig`, `PARConfig`, `CRFConfig`), None: off. "auto": PAMR, with `maskclip` off.
        Images of more than 1024 pixels are refined at that size.
      maskclip: key smoothing and prompt denoising of method "maskclip"; None: off.
      dino: the DINO of method "proxyclip", as released: the authors' .pth or a Hugging Face
        directory.
      prompt_templates: name of a set; see `prompts.templates`.
      short_side_px: short side in pixels at which images reach the network.
      mode: "whole" images, or "slide": overlapping windows whose scores are averaged.
      crop_px, stride_px: (height, width) of the windows and of their steps, in pixels.
      ratios: test-time scales of `short_side_px`, whose results are averaged.
      flip: average with the mirror image.
      temperature: multiplies scores before the softmax that gives `Segmentation.scores` and the
        probability that `background` is compared with.
      batch_size: images per batch; None: 4, or on CPUs one per device.
      dtype: of the network's computations, "float32" or "bfloat16".
      activation, heads: of the weights, where their file does not say them; see
        `weights_convert.load_clip`.
      devices: how many devices to use; None: all.

    Returns:
      One `Segmentation` per image, in order.

    Raises:
      ValueError: an argument without meaning, something that is no image, or weights that are not
        a CLIP with a text tower.
      BadImage: a file that cannot be read as an image, or a size that cannot be used.
    """
    if not isinstance(images, Iterator):
        images = picture_list(images)  # checked before the weights are read
    segmenter = Segmenter(
        class_names,
        weights=weights,
        background=background,
        method=method,
        refine=refine,
        maskclip=maskclip,
        dino=dino,
        prompt_templates=prompt_templates,
        short_side_px=short_side_px,
        mode=mode,
        crop_px=crop_px,
        stride_px=stride_px,
        ratios=ratios,
        flip=flip,
        temperature=temperature,
        batch_size=batch_size,
        dtype=dtype,
        activation=activation,
        heads=heads,
        devices=devices,
    )
    return in_order(segmenter(images))
