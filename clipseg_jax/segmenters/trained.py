"""A trained network that segments the classes it was trained for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from clipseg_jax.core.checks import check_number
from clipseg_jax.core.mesh import replicate
from clipseg_jax.inference_config import REFINEMENTS, InferenceConfig, Refinement
from clipseg_jax.prompts import MOST_CLASSES
from clipseg_jax.segment_options import REFINE_PX, check_refine
from clipseg_jax.segmentation import ClassScores, Segmentation
from clipseg_jax.segmenters.results import in_order
from clipseg_jax.segmenters.runner import Functions, Runner, compiled
from clipseg_jax.stages.network import Network
from input_pipeline.datasets.images import BadImage
from input_pipeline.pictures import Picture

# Longest side in pixels of photos at networks that take images at their own size: those of the
# datasets that they were trained on are half as large.
LONGEST_PX = 1024


class Trained:
    """A trained network; made by `clipseg_jax.load`, then called on any images."""

    def __init__(
        self,
        network: Network,
        names: Sequence[str],
        *,
        background: bool,
        mesh: Mesh,
        batch_size: int,
    ):
        """`names` of the network's labels; `background`: the first is it.

        Raises:
          ValueError: more classes than an index PNG holds.
        """
        self.classes = tuple(names[int(background) :])
        if len(self.classes) > MOST_CLASSES:
            raise ValueError(
                f"the network has {len(self.classes)} classes, an index PNG at most {MOST_CLASSES}"
            )
        cfg = network.cfg
        labels = cfg.embedding_labels or tuple(range(len(names)))
        # As everywhere here, label 0 is the background, also of a network that has none.
        labels = tuple(label + (not background) for label in labels)
        if cfg.scale_px is None and cfg.average != "logits":
            cfg = dataclasses.replace(cfg, scale_px=(LONGEST_PX, LONGEST_PX), enlarge=False)
        self._cfg = dataclasses.replace(
            cfg, embedding_labels=labels, background_label=0, refine_px=REFINE_PX
        )
        self._network, self._mesh, self._batch_size = network, mesh, batch_size
        self._compiled: dict[InferenceConfig, tuple[nnx.State, Functions]] = {}

    def segment(
        self,
        images: Iterable[Picture] | Picture,
        words: Sequence[str] | None = None,
        *,
        background: float | None = None,
        refine: Refinement | str | None = "auto",
    ) -> list[Segmentation]:
        """Segments images into `classes`.

        Args:
          images: one or several; see `clipseg_jax.segment`.
          words: None; or `classes`, which are all that a trained network knows.
          background: a probability below which nothing is named.
          refine: "pamr", "par", "crf" or a config of one: makes the masks follow edges; None: off;
            "auto": as the network was evaluated.

        Returns:
          One `Segmentation` per image, in order: label i is the i-th of `classes`, 0 background.

        Raises:
          ValueError: an argument without meaning, or something that is no image.
          BadImage: a file that cannot be read as an image, or a size that cannot be used.
        """
        return in_order(self.stream(images, words, background=background, refine=refine))

    def stream(
        self,
        images: Iterable[Picture] | Picture,
        words: Sequence[str] | None = None,
        *,
        background: float | None = None,
        refine: Refinement | str | None = "auto",
    ) -> Iterator[tuple[int, Segmentation | BadImage]]:
        """As `segment`, one image after the other, batched by size and so not in order.

        Yields:
          The index of an image and its segmentation; for one that cannot be used, the error.
        """
        return self.runner(words, background, refine)(images)

    def scores(
        self,
        images: Iterable[Picture] | Picture,
        words: Sequence[str] | None = None,
        *,
        background: None = None,
        refine: Refinement | str | None = "auto",
        longest_px: int | None = 1024,
    ) -> list[ClassScores]:
        """The probabilities of all classes in each image; see `segment`.

        `background`: None; thresholds are for `ClassScores.segmentation`. `longest_px`: maps of
        larger images have this many pixels on their longer side; None: the images' own.

        Raises:
          ValueError, BadImage: as `segment`.
        """
        if background is not None:
            raise ValueError(
                f"background is {background!r}; give the threshold to `segmentation` of the scores"
            )
        return in_order(self.runner(words, None, refine).scores(images, longest_px))

    def features(self, images: Iterable[Picture] | Picture) -> list[np.ndarray]:
        """Dense features (gh, gw, e) float32 of whole images: what class scores are made of."""
        return in_order(self.runner(None, None, None).features(images))

    def runner(
        self,
        words: Sequence[str] | None,
        background: float | None,
        refine: Refinement | str | None,
    ) -> Runner:
        """The network with a threshold and a refinement.

        Raises:
          ValueError: other words than the classes, or a value without meaning.
        """
        listed = isinstance(words, Iterable) and not isinstance(words, str)
        if words is not None and not (listed and tuple(words) == self.classes):
            raise ValueError(
                f"words are {words!r}; a trained network knows only its classes "
                f"({', '.join(self.classes)}): leave words out, or load a CLIP"
            )
        if isinstance(background, (str, Sequence)):
            raise ValueError(
                f"background is {background!r}; a trained network knows only its classes: give a "
                "probability below which nothing is named, or None"
            )
        check_refine(refine)
        cfg, threshold = self._cfg, 0.0
        if background is not None:
            threshold = check_number("background", background, 0, 1)
            cfg = dataclasses.replace(cfg, background_threshold=0.0)  # the runner has it
        if refine != "auto":
            chosen = REFINEMENTS[refine] if isinstance(refine, str) else refine
            cfg = dataclasses.replace(cfg, refine=chosen, crf_image="raw")
        if cfg not in self._compiled:
            state, functions = compiled(self._network.task, cfg, self._network.features)
            # On the devices once, not at every call.
            self._compiled[cfg] = replicate(self._mesh, state), functions
        state, functions = self._compiled[cfg]
        names = ("background", *self.classes)
        return Runner(
            state,
            functions,
            cfg,
            names,
            mesh=self._mesh,
            batch_size=self._batch_size,
            threshold=threshold,
        )
