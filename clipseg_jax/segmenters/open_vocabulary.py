"""A CLIP that segments by any words."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

import weights_convert
from clipseg_jax.core.mesh import replicate
from clipseg_jax.inference_config import Refinement
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.prompts import (
    check_class_names,
    class_embeddings,
    is_threshold,
    read_words,
    text_encoder,
)
from clipseg_jax.segment_options import SegmentOptions
from clipseg_jax.segmentation import ClassScores, Segmentation
from clipseg_jax.segmenters.results import in_order
from clipseg_jax.segmenters.runner import Functions, Runner, compiled
from input_pipeline.datasets.images import BadImage
from input_pipeline.pictures import Picture

_MOST_KEPT = 8  # word lists and protocols whose networks are kept, of the last used


class OpenVocabulary:
    """A CLIP with a text tower; made by `clipseg_jax.load`, then called on any words and images.

    Texts are embedded once for each list of words. Networks are compiled once for each protocol,
    number of words and shape of images.
    """

    classes = None  # any words

    def __init__(
        self,
        loaded: weights_convert.LoadedCLIP,
        *,
        source: str | Path,
        mesh: Mesh,
        batch_size: int,
    ):
        """`source`: what errors call the weights. See `runner.devices_and_batch` for the others.

        Raises:
          ValueError: a CLIP without text tower or tokenizer.
        """
        if loaded.model.cfg.text is None:
            raise ValueError(f"{source} has no text tower, so it cannot read class names")
        if loaded.tokenizer is None:
            raise ValueError(f"{source} has no {weights_convert.MISSING_TOKENIZER}")
        # On the devices once, however many networks share it.
        graph, state = nnx.split(loaded.model)
        self.clip = nnx.merge(graph, replicate(mesh, state))
        self._loaded, self._mesh, self._batch_size = loaded, mesh, batch_size
        self._encode = text_encoder(self.clip.text)
        self._rows: dict[tuple, np.ndarray] = {}
        self._functions: dict[str, Functions] = {}
        self._runners: dict[tuple, Runner] = {}

    def segment(
        self,
        images: Iterable[Picture] | Picture,
        words: Sequence[str] | None = None,
        *,
        background: float | Sequence[str] | None = None,
        method: str | None = None,
        refine: Refinement | str | None = "auto",
        short_side_px: int | None = None,
        options: SegmentOptions | None = None,
    ) -> list[Segmentation]:
        """Segments images by words; the arguments are those of `clipseg_jax.segment`.

        Args:
          images: one or several; see there.
          words: one name for each class.
          background: words for what else is in the images, or a probability below which nothing is
            named.
          method, refine, short_side_px: see there.
          options: instead of these three, all that a protocol has.

        Returns:
          One `Segmentation` per image, in order.

        Raises:
          ValueError: an argument without meaning, or something that is no image.
          BadImage: a file that cannot be read as an image, or a size that cannot be used.
        """
        return in_order(
            self.stream(
                images,
                words,
                background=background,
                method=method,
                refine=refine,
                short_side_px=short_side_px,
                options=options,
            )
        )

    def stream(
        self,
        images: Iterable[Picture] | Picture,
        words: Sequence[str] | None = None,
        *,
        background: float | Sequence[str] | None = None,
        method: str | None = None,
        refine: Refinement | str | None = "auto",
        short_side_px: int | None = None,
        options: SegmentOptions | None = None,
    ) -> Iterator[tuple[int, Segmentation | BadImage]]:
        """As `segment`, one image after the other, batched by size and so not in order.

        Yields:
          The index of an image and its segmentation; for one that cannot be used, the error.
        """
        chosen = chosen_options(options, method=method, refine=refine, short_side_px=short_side_px)
        return self.runner(words, background, chosen)(images)

    def scores(
        self,
        images: Iterable[Picture] | Picture,
        words: Sequence[str] | None = None,
        *,
        background: Sequence[str] | None = None,
        method: str | None = None,
        refine: Refinement | str | None = "auto",
        short_side_px: int | None = None,
        options: SegmentOptions | None = None,
        longest_px: int | None = 1024,
    ) -> list[ClassScores]:
        """The probabilities of all words in each image; see `segment`.

        `background`: words, or None: thresholds are for `ClassScores.segmentation`. `longest_px`:
        maps of larger images have this many pixels on their longer side; None: the images' own.

        Raises:
          ValueError, BadImage: as `segment`; or `background` is a number.
        """
        if background is not None and is_threshold(background):
            raise ValueError(
                f"background is {background!r}; give words or None here, and the threshold to "
                "`segmentation` of the scores"
            )
        chosen = chosen_options(options, method=method, refine=refine, short_side_px=short_side_px)
        return in_order(self.runner(words, background, chosen).scores(images, longest_px))

    def features(
        self,
        images: Iterable[Picture] | Picture,
        *,
        method: str | None = None,
        short_side_px: int | None = None,
    ) -> list[np.ndarray]:
        """Dense features (gh, gw, e) float32 of whole images, of length 1, a row for each patch.

        Their products with `embed(words)` are cosines. `method`: the read-out.
        """
        chosen = chosen_options(None, method=method, refine=None, short_side_px=short_side_px)
        return in_order(self.runner(["object", "thing"], None, chosen).features(images))

    def embed(self, words: Sequence[str], *, prompt_templates: str | None = None) -> np.ndarray:
        """Embeddings (words, e) float32 of length 1, the means over the templates' prompts."""
        options = SegmentOptions(prompt_templates=prompt_templates)
        return self._embed(tuple(check_class_names(words)), options)

    def runner(
        self,
        words: Sequence[str] | None,
        background: float | Sequence[str] | None,
        options: SegmentOptions,
    ) -> Runner:
        """The network of these words and protocol; made once.

        Raises:
          ValueError: no words, or as `prompts.read_words` and `SegmentOptions.inference`.
        """
        if words is None:
            raise ValueError(
                "words is None; a CLIP has no classes of its own: name those to look for, such as "
                "words=['cat', 'sofa']"
            )
        names, others, threshold = read_words(words, background)
        vision = self.clip.cfg.vision
        labels = (*range(1, len(names) + 1), *(0 for _ in others))
        cfg = options.inference(vision, labels, 0.0)  # the runner has the threshold
        cfg = dataclasses.replace(cfg, mean=self._loaded.mean, std=self._loaded.std)
        protocol = repr((cfg, options))
        key = (tuple(names), tuple(others), threshold, protocol)
        runner = self._runners.get(key)
        if runner is None:
            if len(names) == 1 and not others:
                warnings.warn(
                    f"one class and no background: every pixel becomes {names[0]!r}; name what "
                    "else is in the images as background words: background=['wall', 'floor'], or "
                    "--background-words 'wall, floor'",
                    stacklevel=4,
                )
            task = options.task(self.clip, self._embed((*names, *others), options))
            state, functions = compiled(task, cfg, _features)
            functions = self._functions.setdefault(protocol, functions)
            runner = Runner(
                state,
                functions,
                cfg,
                ("background", *names),
                mesh=self._mesh,
                batch_size=self._batch_size,
                threshold=threshold,
            )
        _keep(self._runners, key, runner)
        _keep(self._functions, protocol, runner.functions)
        return runner

    def _embed(self, words: tuple[str, ...], options: SegmentOptions) -> np.ndarray:
        text = self.clip.cfg.text
        assert text is not None
        assert self._loaded.tokenizer is not None
        templates = options.templates(self.clip.cfg.vision)
        rows = self._rows.get((words, templates))
        if rows is None:
            rows = class_embeddings(
                words,
                self._encode,
                self._loaded.tokenizer,
                prompt_templates=templates,
                context_length=text.context_length,
            )
        _keep(self._rows, (words, templates), rows)
        return rows


def chosen_options(
    options: SegmentOptions | None,
    *,
    method: str | None,
    refine: Refinement | str | None,
    short_side_px: int | None,
) -> SegmentOptions:
    """`options`, or those that the three other arguments are of.

    Raises:
      ValueError: both are given.
    """
    if options is None:
        return SegmentOptions(method=method, refine=refine, short_side_px=short_side_px)
    if (method, refine, short_side_px) != (None, "auto", None):
        raise ValueError("options and one of method, refine, short_side_px are given; give options")
    return options


def _features(model: Any, images: Array, sizes: Array) -> Array:
    return l2_normalize(model.features(images, sizes))


def _keep(kept: dict, key: Hashable, value: object) -> None:
    """Puts an entry last, and drops those that were not used for the longest time."""
    kept.pop(key, None)
    kept[key] = value
    while len(kept) > _MOST_KEPT:
        del kept[next(iter(kept))]
