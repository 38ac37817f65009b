"""Segments images by class names with a frozen CLIP, without dataset or config."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

import weights_convert
from clipseg_jax.core.checks import check_choice, check_whole
from clipseg_jax.core.mesh import make_mesh, replicate, shard_batch
from clipseg_jax.demo import TINY_CLIP
from clipseg_jax.inference import make_segment_fn, network_shapes, network_size, network_sizes
from clipseg_jax.inference_config import Refinement
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.prompts import class_embeddings, read_words, text_encoder
from clipseg_jax.segment_options import SegmentOptions
from clipseg_jax.segmentation import Segmentation
from clipseg_jax.segmenter_images import read_batch
from input_pipeline.batches.buckets import PlannedBatch, plan_batches
from input_pipeline.datasets.images import BadImage
from input_pipeline.pictures import Picture, picture_list, picture_size

DTYPES = ("float32", "bfloat16")
ALONE_PX = 2**25  # pixels of an image from which on it makes a batch of its own


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
        names, words, threshold = read_words(class_names, background)
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
        check_choice("dtype", dtype, DTYPES)
        weights_convert.check_choices(activation, heads)
        if batch_size is not None:
            check_whole("batch_size", batch_size)
        if devices is not None:
            check_whole("devices", devices)
        self.names = ("background", *names)
        self._mesh = make_mesh(devices)
        if batch_size is None:
            batch_size = 1 if self._mesh.devices.flat[0].platform == "cpu" else 4
        self._batch_size = self._round_up(batch_size)
        if len(names) == 1 and not words:
            warnings.warn(
                f"one class and no background: every pixel becomes {names[0]!r}; name what else "
                "is in the images as background words: background=['wall', 'floor'], or "
                "--background-words 'wall, floor'",
                stacklevel=2,
            )
        loaded = load_weights(weights, dtype=dtype, activation=activation, heads=heads)
        text = loaded.model.cfg.text
        if text is None:
            raise ValueError(f"{weights} has no text tower, so it cannot read class names")
        if loaded.tokenizer is None:
            raise ValueError(f"{weights} has no {weights_convert.MISSING_TOKENIZER}")
        vision = loaded.model.cfg.vision
        labels = (*range(1, len(names) + 1), *(0 for _ in words))
        inference = options.inference(vision, labels, threshold)
        self.config = dataclasses.replace(inference, mean=loaded.mean, std=loaded.std)
        text_embeddings = class_embeddings(
            [*names, *words],
            text_encoder(loaded.model.text),
            loaded.tokenizer,
            prompt_templates=options.templates(vision),
            context_length=text.context_length,
        )
        task = options.task(loaded.model, text_embeddings)
        state, segment_fn = make_segment_fn(task, self.config, np.uint8)
        self._state = replicate(self._mesh, state)
        self._segment_fn = jax.jit(segment_fn, static_argnums=4)

    def __call__(
        self, images: Iterable[Picture] | Picture
    ) -> Iterator[tuple[int, Segmentation | BadImage]]:
        """Yields (index, result) for every image, batched by size, so not in order.

        Args:
          images: files, Pillow images, or arrays uint8 (h, w, 3), (h, w, 4) or (h, w); any iterable
            of them, which is read to its end first, or one.

        Yields:
          The index of an image and its segmentation; for a file that cannot be used, the error.

        Raises:
          ValueError: something that is no image.
        """
        return self._results(picture_list(images))

    def _results(
        self, pictures: Sequence[Picture]
    ) -> Iterator[tuple[int, Segmentation | BadImage]]:
        sizes: dict[int, tuple[int, int]] = {}  # of the readable ones, by index
        for i, picture in enumerate(pictures):
            try:
                size = picture_size(picture)
                network_sizes(size, self.config)
            except ValueError as error:
                if isinstance(picture, np.ndarray):
                    raise ValueError(f"image {i}: {error}") from error
                yield i, error if isinstance(error, BadImage) else BadImage(f"{picture}: {error}")
                continue
            sizes[i] = size
        large = [i for i, (h, w) in sizes.items() if h * w > ALONE_PX]
        usual = [i for i, (h, w) in sizes.items() if h * w <= ALONE_PX]
        at_network = functools.partial(network_size, cfg=self.config)
        rows = min(self._batch_size, self._round_up(len(usual)))
        for i in large:  # on one device, so that memory is that of one image
            (batch,) = plan_batches([sizes[i]], 1, network_size=at_network)
            yield from self._segment_batch(batch, self._one_device(), pictures, [i], sizes)
        for batch in plan_batches([sizes[i] for i in usual], max(rows, 1), network_size=at_network):
            yield from self._segment_batch(batch, self._mesh, pictures, usual, sizes)

    def _round_up(self, count: int) -> int:
        """`count` rounded up to a multiple of the number of devices."""
        return -(-count // self._mesh.size) * self._mesh.size

    def _one_device(self) -> Mesh:
        return self._mesh if self._mesh.size == 1 else make_mesh(1)

    def _segment_batch(
        self,
        batch: PlannedBatch,
        mesh: Mesh,
        pictures: Sequence[Picture],
        indices: Sequence[int],
        sizes: Mapping[int, tuple[int, int]],
    ) -> Iterator[tuple[int, Segmentation | BadImage]]:
        """Results of a batch, whose indices are positions in `indices`, those of its pictures."""
        chosen = [indices[i] for i in batch.indices]
        pixels, failed = read_batch(batch, pictures, chosen, sizes)
        at_network = [network_sizes(sizes[i], self.config) for i in chosen]
        arrays = shard_batch(
            mesh,
            {
                "images": pixels,
                "sizes": np.asarray([sizes[i] for i in chosen], np.int32),
                "network": np.asarray(at_network, np.int32),
            },
        )
        del pixels
        state = self._state if mesh is self._mesh else replicate(mesh, self._state)
        labels, scores = jax.device_get(
            self._segment_fn(
                state,
                arrays["images"],
                arrays["sizes"],
                arrays["network"],
                network_shapes(batch.network_hw, self.config),
            )
        )
        del arrays  # a large picture's; the caller may need as much again
        for row, index in enumerate(chosen):
            if not batch.valid[row]:
                continue
            if row in failed:
                yield index, failed[row]
                continue
            h, w = sizes[index]
            yield index, Segmentation(labels[row, :h, :w], scores[row, :h, :w], self.names)


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
      BadImage: a file that cannot be read as an image.
    """
    pictures = picture_list(images)
    results: dict[int, Segmentation] = {}
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
    for i, result in segmenter(pictures):
        if isinstance(result, BadImage):
            raise result
        results[i] = result
    return [results[i] for i in range(len(results))]


def load_weights(weights: str | Path, **choices: Any) -> weights_convert.LoadedCLIP:
    """The CLIP in a file or folder; "demo" is the built-in tiny one. `choices`: see `load_clip`.

    Raises:
      ValueError, OSError: what is not a CLIP.
    """
    if not isinstance(weights, (str, os.PathLike)) or not str(weights):
        raise ValueError(f"weights is {weights!r}; give the path of a CLIP checkpoint, or 'demo'")
    return weights_convert.load_clip(TINY_CLIP if weights == "demo" else weights, **choices)
