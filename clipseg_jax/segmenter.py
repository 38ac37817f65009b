"""Segments images by class names with a frozen CLIP (MaskCLIP), without dataset or config."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np

import weights_convert
from clipseg_jax.core.mesh import make_mesh, replicate, shard_batch
from clipseg_jax.inference import (
    InferenceConfig,
    make_segment_fn,
    network_shapes,
    network_size,
    network_sizes,
)
from clipseg_jax.methods.maskclip import task as maskclip
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.ops.crf import CRFConfig
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from clipseg_jax.prompts import check_class_names, class_embeddings, templates, text_encoder
from input_pipeline.batches.buckets import PlannedBatch, plan_batches
from input_pipeline.datasets.images import BadImage, image_size, read_image


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The segmentation of one image at its own size."""

    labels: np.ndarray  # (h, w) uint8: 0 background, i the i-th class name
    scores: np.ndarray  # (h, w) float32: probability of the winning class
    names: tuple[str, ...]  # names[labels] is each pixel's class; names[0] is "background"

    def summary(self) -> dict[str, dict[str, float]]:
        """Class name -> share of the pixels and mean score on them, of the classes in the image."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        sums = np.bincount(self.labels.ravel(), self.scores.ravel(), minlength=len(self.names))
        return {
            name: {"share": round(count / self.labels.size, 4), "score": round(total / count, 4)}
            for name, count, total in zip(self.names, counts, sums, strict=True)
            if count
        }


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
        prompt_templates: str = "maskclip_85",
        short_side_px: int = 512,
        refine: MaskCLIPConfig | None = None,
        batch_size: int | None = None,
        dtype: str = "float32",
        devices: int | None = None,
        mode: Literal["whole", "slide"] = "whole",
        crop_px: tuple[int, int] = (512, 512),
        stride_px: tuple[int, int] = (341, 341),
        ratios: tuple[float, ...] = (1.0,),
        flip: bool = False,
        temperature: float = 100.0,
        crf: CRFConfig | None = None,
        crf_image: Literal["wrapped", "raw"] = "wrapped",
    ):
        """See `segment` for the arguments.

        Raises:
          ValueError: class names that are missing or repeated, or weights that are not a CLIP with
            a text tower.
        """
        words: list[str] = []
        thresh = 0.0
        if isinstance(background, (int, float)):
            thresh = float(background)
        elif background is not None:
            words = [background] if isinstance(background, str) else list(background)
        check_words(class_names, words)
        if len(class_names) > 254:
            raise ValueError(
                f"{len(class_names)} classes; pass at most 254, which fit an index PNG"
            )
        loaded = weights_convert.load_clip(weights, dtype=dtype)
        if loaded.model.cfg.text is None or loaded.tokenizer is None:
            raise ValueError(f"{weights} has no text tower, so it cannot read class names")
        text_embeddings = class_embeddings(
            [*class_names, *words],
            text_encoder(loaded.model.text),
            loaded.tokenizer,
            prompt_templates=templates(prompt_templates),
            context_length=loaded.model.cfg.text.context_length,
        )
        self.names = ("background", *class_names)
        self.config = InferenceConfig(
            mean=CLIP_MEAN,
            std=CLIP_STD,
            scale_px=(4 * short_side_px, short_side_px),
            embedding_labels=(*range(1, len(class_names) + 1), *(0 for _ in words)),
            background_threshold=thresh,
            mode=mode,
            crop_px=crop_px,
            stride_px=stride_px,
            ratios=ratios,
            flip=flip,
            temperature=temperature,
            crf=crf,
            crf_image=crf_image,
        )
        self._mesh = make_mesh(devices)
        if batch_size is None:
            batch_size = 1 if self._mesh.devices.flat[0].platform == "cpu" else 4
        self._batch_size = self._round_up(batch_size)
        task = maskclip.build(loaded.model.visual, text_embeddings, refine)
        state, segment_fn = make_segment_fn(task, self.config)
        self._state = replicate(self._mesh, state)
        self._segment_fn = jax.jit(segment_fn, static_argnums=4)

    def __call__(
        self, images: Sequence[np.ndarray | str | Path]
    ) -> Iterator[tuple[int, Segmentation | BadImage]]:
        """Yields (index, result) for every image, batched by size, so not in order.

        Args:
          images: arrays (h, w, 3) uint8 RGB, or files.

        Yields:
          The index of an image and its segmentation; for a file that cannot be read, the error.

        Raises:
          ValueError: an array of another shape or dtype.
        """
        sizes: list[tuple[int, int]] = []
        readable: list[int] = []  # indices
        for i, image in enumerate(images):
            try:
                size = (
                    _check_array(image, i) if isinstance(image, np.ndarray) else image_size(image)
                )
                network_sizes(size, self.config)
            except (BadImage, ValueError) as error:
                if isinstance(image, np.ndarray):
                    raise
                yield i, error if isinstance(error, BadImage) else BadImage(f"{image}: {error}")
                continue
            sizes.append(size)
            readable.append(i)
        if not readable:
            return
        size_at_network = functools.partial(network_size, cfg=self.config)
        batch_size = min(self._batch_size, self._round_up(len(readable)))
        readable_images = [images[i] for i in readable]
        for batch in plan_batches(sizes, batch_size, network_size=size_at_network):
            yield from self._segment_batch(batch, readable_images, readable, sizes)

    def _round_up(self, count: int) -> int:
        """`count` rounded up to a multiple of the number of devices."""
        return -(-count // self._mesh.size) * self._mesh.size

    def _segment_batch(
        self,
        batch: PlannedBatch,
        images: Sequence[np.ndarray | str | Path],
        indices: Sequence[int],
        sizes: Sequence[tuple[int, int]],
    ) -> Iterator[tuple[int, Segmentation | BadImage]]:
        pixels = np.zeros((len(batch.indices), *batch.bucket_hw, 3), np.uint8)
        failed: dict[int, BadImage] = {}
        for row, index in enumerate(batch.indices):
            if not batch.valid[row]:
                continue
            image = images[index]
            try:
                array = image if isinstance(image, np.ndarray) else read_image(image)
                pixels[row, : array.shape[0], : array.shape[1]] = array
            except BadImage as error:
                failed[row] = error
        image_sizes = np.asarray([sizes[i] for i in batch.indices], np.int32)
        at_network = [network_sizes(sizes[i], self.config) for i in batch.indices]
        arrays = shard_batch(
            self._mesh,
            {"images": pixels, "sizes": image_sizes, "network": np.asarray(at_network, np.int32)},
        )
        labels, scores = jax.device_get(
            self._segment_fn(
                self._state,
                arrays["images"],
                arrays["sizes"],
                arrays["network"],
                network_shapes(batch.network_hw, self.config),
            )
        )
        for row, index in enumerate(batch.indices):
            if not batch.valid[row]:
                continue
            if row in failed:
                yield indices[index], failed[row]
                continue
            h, w = sizes[index]
            yield (
                indices[index],
                Segmentation(labels[row, :h, :w].astype(np.uint8), scores[row, :h, :w], self.names),
            )


def segment(
    images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path,
    class_names: Sequence[str],
    *,
    weights: str | Path,
    background: float | Sequence[str] | None = None,
    prompt_templates: str = "maskclip_85",
    short_side_px: int = 512,
    refine: MaskCLIPConfig | None = None,
    batch_size: int | None = None,
    dtype: str = "float32",
    devices: int | None = None,
    mode: Literal["whole", "slide"] = "whole",
    crop_px: tuple[int, int] = (512, 512),
    stride_px: tuple[int, int] = (341, 341),
    ratios: tuple[float, ...] = (1.0,),
    flip: bool = False,
    temperature: float = 100.0,
    crf: CRFConfig | None = None,
    crf_image: Literal["wrapped", "raw"] = "wrapped",
) -> list[Segmentation]:
    """Segments `images` into `class_names` with a frozen CLIP (MaskCLIP).

    Loads the weights on every call; for repeated calls build a `segmenter.Segmenter` once.

    Args:
      images: one or several arrays (h, w, 3) uint8 RGB of any size, or files.
      class_names: any words; common spellings work best ("tv monitor", not "tvmonitor").
      weights: a CLIP checkpoint as released (OpenAI .pt, Hugging Face directory, OpenCLIP), or
        `clipseg_jax.demo.TINY_CLIP`, which is trained on a painted toy world only.
      background: None: every pixel gets a class. A number: pixels whose best class probability is
        lower are background. Words (["sky", "wall"]): classes that count as background.
      prompt_templates: name of a set; see `prompts.templates`.
      short_side_px: short side in pixels at which images reach the network.
      refine: MaskCLIP's key smoothing and prompt denoising; off by default.
      batch_size: images per batch; None: 4, or on CPUs one per device.
      dtype: of the network's computations, "float32" or "bfloat16".
      devices: how many devices to use; None: all.
      mode: "whole" images, or "slide": overlapping windows whose scores are averaged.
      crop_px, stride_px: (height, width) of the windows and of their steps, in pixels.
      ratios: test-time scales of `short_side_px`; their probabilities are averaged.
      flip: average with the mirror image.
      temperature: multiplies scores before the softmax that gives `Segmentation.scores` and the
        probability that `background` is compared with.
      crf: parameters of a dense CRF on the probabilities, for example `ops.crf.CLIP_ES`; None: off.
      crf_image: the image that the CRF takes; see `InferenceConfig`.

    Returns:
      One `Segmentation` per image, in order.

    Raises:
      ValueError: class names that are missing or repeated, arrays that are not images, or weights
        that are not a CLIP with a text tower.
      BadImage: a file that cannot be read as an image.
    """
    if isinstance(images, (str, Path)) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    results: dict[int, Segmentation] = {}
    segmenter = Segmenter(
        class_names,
        weights=weights,
        background=background,
        prompt_templates=prompt_templates,
        short_side_px=short_side_px,
        refine=refine,
        batch_size=batch_size,
        dtype=dtype,
        devices=devices,
        mode=mode,
        crop_px=crop_px,
        stride_px=stride_px,
        ratios=ratios,
        flip=flip,
        temperature=temperature,
        crf=crf,
        crf_image=crf_image,
    )
    for i, result in segmenter(images):  # type: ignore[arg-type]
        if isinstance(result, BadImage):
            raise result
        results[i] = result
    return [results[i] for i in range(len(results))]


def check_words(class_names: Sequence[str], words: Sequence[str]) -> None:
    """Validates class names and background words; no word may be in both lists.

    Raises:
      ValueError: see `check_class_names`.
    """
    check_class_names(class_names)
    check_class_names([*class_names, *words])


def _check_array(image: np.ndarray, index: int) -> tuple[int, int]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(
            f"image {index} is {image.dtype} {image.shape}; give uint8 RGB of shape (h, w, 3)"
        )
    return image.shape[0], image.shape[1]
