"""Words and images in, masks out: MaskCLIP on a frozen CLIP, without dataset or config."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

import weights_convert
from clipseg_jax.core.mesh import make_mesh, replicate, shard_batch
from clipseg_jax.inference import (
    InferenceConfig,
    network_shapes,
    network_size,
    network_sizes,
    segmenter,
)
from clipseg_jax.methods.maskclip import task as maskclip
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from clipseg_jax.prompts import check_class_names, class_embeddings, templates, text_encoder
from input_pipeline.batches.buckets import Batch, plan_batches
from input_pipeline.datasets.images import BadImage, image_size, read_image


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Masks of one image."""

    labels: np.ndarray  # (h, w) uint8: 0 background, i the i-th class
    scores: np.ndarray  # (h, w) float32: probability of the winning class
    names: tuple[str, ...]  # names[labels] is each pixel's class; names[0] is "background"

    def summary(self) -> dict[str, dict[str, float]]:
        """For each name in the image: its share of the pixels and its mean score there."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        sums = np.bincount(self.labels.ravel(), self.scores.ravel(), minlength=len(self.names))
        return {
            name: {"share": round(count / self.labels.size, 4), "score": round(total / count, 4)}
            for name, count, total in zip(self.names, counts, sums, strict=True)
            if count
        }


class Segmenter:
    """A CLIP and a class list, ready for images; made once, used for many."""

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
        **inference: object,
    ):
        """See `segment` for the arguments; `inference` are further `InferenceConfig` fields.

        Raises:
          ValueError: class names that are missing or repeated, or weights that are no CLIP.
        """
        words: list[str] = []
        thresh = 0.0
        if isinstance(background, (int, float)):
            thresh = float(background)
        elif background is not None:
            words = [background] if isinstance(background, str) else list(background)
        check_words(class_names, words)
        if len(class_names) > 254:
            raise ValueError(f"{len(class_names)} classes; an index PNG holds at most 254")
        loaded = weights_convert.load_clip(weights, dtype=dtype)
        if loaded.model.cfg.text is None or loaded.tokenizer is None:
            raise ValueError(f"{weights} has no text tower, so it cannot read class names")
        rows = class_embeddings(
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
            row_labels=(*range(1, len(class_names) + 1), *(0 for _ in words)),
            background_thresh=thresh,
            **inference,  # type: ignore[arg-type]
        )
        self._mesh = make_mesh(devices)
        if batch_size is None:
            batch_size = 1 if self._mesh.devices.flat[0].platform == "cpu" else 4
        self._batch_size = self._whole(batch_size)
        task = maskclip.build(loaded.model.visual, rows, refine)
        state, segment = segmenter(task, self.config)
        self._state = replicate(self._mesh, state)
        self._segment = jax.jit(segment, static_argnums=4)

    def __call__(
        self, images: Sequence[np.ndarray | str | Path]
    ) -> Iterator[tuple[int, Segmentation | BadImage]]:
        """Yields (index, result) for every image, in batches of like size, not in order.

        Images are arrays (h, w, 3) uint8 RGB or files. One that cannot be read gives the error as
        its result, so that a folder is not lost to one bad file.
        """
        sizes: list[tuple[int, int]] = []
        good: list[int] = []
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
            good.append(i)
        if not good:
            return
        at_network = functools.partial(network_size, cfg=self.config)
        batch_size = min(self._batch_size, self._whole(len(good)))
        readable = [images[i] for i in good]
        for batch in plan_batches(sizes, batch_size, network_size=at_network):
            yield from self._batch(batch, readable, good, sizes)

    def _whole(self, count: int) -> int:
        """`count` images, and what it takes to give every device as many."""
        return -(-count // self._mesh.size) * self._mesh.size

    def _batch(
        self,
        batch: Batch,
        images: Sequence[np.ndarray | str | Path],
        numbers: Sequence[int],
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
            self._segment(
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
                yield numbers[index], failed[row]
                continue
            h, w = sizes[index]
            yield (
                numbers[index],
                Segmentation(labels[row, :h, :w].astype(np.uint8), scores[row, :h, :w], self.names),
            )


def segment(
    images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path,
    class_names: Sequence[str],
    *,
    weights: str | Path,
    **options: object,
) -> list[Segmentation]:
    """Masks of `class_names` in `images`, with a frozen CLIP (MaskCLIP).

    Args:
      images: one or several; arrays (h, w, 3) uint8 RGB of any size, or files.
      class_names: any words, most frequent names work best ("tv monitor", not "tvmonitor").
      weights: a CLIP checkpoint as released (OpenAI .pt, Hugging Face directory, OpenCLIP), or
        `clipseg_jax.demo.TINY_CLIP`, which knows a painted toy world only.
      options: background: None (every pixel gets a class), a probability below which a pixel is
        background, or words that stand for background (["sky", "wall"]); prompt_templates: a set's
        name; short_side_px: size at the network; refine: a `MaskCLIPConfig`; batch_size: images at
        a time (None: 4, or on CPUs, which more don't make faster, one a device); dtype "bfloat16";
        mode="slide", ratios, flip (see `InferenceConfig`).

    Returns:
      One `Segmentation` for each image, in order.

    Raises:
      ValueError: class names that are missing or repeated, arrays that are no images, weights that
        are no CLIP.
      BadImage: a file that is no readable image.
    """
    if isinstance(images, (str, Path)) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    results: dict[int, Segmentation] = {}
    run = Segmenter(class_names, weights=weights, **options)  # type: ignore[arg-type]
    for i, result in run(images):  # type: ignore[arg-type]
        if isinstance(result, BadImage):
            raise result
        results[i] = result
    return [results[i] for i in range(len(results))]


def check_words(class_names: Sequence[str], words: Sequence[str]) -> None:
    """Both lists by themselves, then together: no word may mean a class and the background."""
    check_class_names(class_names)
    check_class_names([*class_names, *words])


def _check_array(image: np.ndarray, index: int) -> tuple[int, int]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(
            f"image {index} is {image.dtype} {image.shape}; give uint8 RGB of shape (h, w, 3)"
        )
    return image.shape[0], image.shape[1]
