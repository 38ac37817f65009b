"""The models that the page offers: found by name, loaded once, used one pass at a time."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipseg_jax.models.clip import ViTConfig
from clipseg_jax.segment_options import DEFAULT_METHOD, MASKCLIP, METHODS, PROXY
from clipseg_jax.segmentation import ClassScores
from clipseg_jax.segmenters.files import RECORD, is_work_directory

DEMO = "demo"
_MODEL_FILES = (".pt", ".pth", ".safetensors", ".npz")
_MOST_FOUND = 100  # in a folder
_MOST_VALUES = 1 << 26  # probabilities of a run, 4 bytes each
_MOST_COMPILED = 100  # computations, each of megabytes; then all models start anew
_STEP_PX = 64  # to which networks pad photos: as many shapes are compiled


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that is in memory.

    Attributes:
      network: what `clipseg_jax.load` gave.
      classes: its names, or None: any words.
      methods: its read-outs by name; none of a trained one.
      method: the usual one of them, or None.
    """

    network: Any
    classes: tuple[str, ...] | None
    methods: tuple[str, ...]
    method: str | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as a visitor asks for it.

    Attributes:
      model: its name in the list.
      words: class names; none for a trained model.
      background: words for what else is there; none for a trained model.
      method: a read-out, or None: the model's own.
      refine: "auto", "pamr", "par", "crf", or None.
    """

    model: str
    words: tuple[str, ...]
    background: tuple[str, ...]
    method: str | None
    refine: str | None


class Models:
    """Models by the names that visitors see.

    Args:
      offered: name -> what `load` takes.
      load: `clipseg_jax.load`.
      most: models in memory; the least recently used goes.
    """

    def __init__(
        self, offered: Mapping[str, str | Path], load: Callable[..., Any], *, most: int = 2
    ):
        self._offered = dict(offered)
        self._load, self._most = load, most
        self._loaded: OrderedDict[str, Model] = OrderedDict()
        self._devices = threading.Lock()  # one pass, or one model that is read, at a time
        self._compiled: set[tuple[Any, ...]] = set()

    @property
    def names(self) -> list[str]:
        """In the order of the list."""
        return list(self._offered)

    def get(self, name: str) -> Model:
        """The model of that name, read if it isn't in memory.

        Raises:
          ValueError, OSError: no such name, or what is there cannot be used.
        """
        with self._devices:
            return self._get(name)

    def trained(self) -> dict[str, tuple[str, ...]]:
        """The classes of each trained model in memory, by its name."""
        loaded = list(self._loaded.items())
        return {name: model.classes for name, model in loaded if model.classes is not None}

    def is_loaded(self, name: str) -> bool:
        """Whether it is in memory."""
        return name in self._loaded

    def is_new(self, run: Run, shape: tuple[int, ...]) -> bool:
        """Whether such a run on a photo (h, w, 3) compiles first."""
        return _compiles(run, shape) not in self._compiled

    def scores(self, run: Run, pixels: np.ndarray) -> tuple[ClassScores, float]:
        """The probabilities of the classes of a photo (h, w, 3) uint8, and the seconds it took.

        Raises:
          ValueError, OSError: see `get`; words or a method that the model cannot take.
        """
        with self._devices:
            if self.is_new(run, pixels.shape) and len(self._compiled) >= _MOST_COMPILED:
                self._loaded.clear()
                self._compiled.clear()
            model = self._get(run.model)
            start = time.monotonic()
            count = len(model.classes or (*run.words, *run.background)) + 1
            longest = min(max(pixels.shape), int((_MOST_VALUES / count) ** 0.5))
            words: dict[str, Any] = {}
            if model.classes is None:
                words = {"words": run.words, "background": run.background or None}
                words["method"] = run.method
            (found,) = model.network.scores(
                [pixels], **words, refine=run.refine, longest_px=longest
            )
            self._compiled.add(_compiles(run, pixels.shape))
        return found, time.monotonic() - start

    def _get(self, name: str) -> Model:
        if name not in self._offered:
            raise ValueError(f"no model {name[:60]!r} is offered here")
        model = self._loaded.get(name)
        if model is None:
            while len(self._loaded) >= self._most:
                gone, _ = self._loaded.popitem(last=False)
                self._compiled = {key for key in self._compiled if key[0] != gone}
            network = self._load(self._offered[name])
            model = self._loaded[name] = _model(network)
        self._loaded.move_to_end(name)
        return model


def find_models(folder: Path) -> dict[str, Path]:
    """Name -> path of what may be a model in a folder: weight files, work directories, folders.

    Whether one is a model shows when it is chosen. Names are those of the files, without the
    folder's path.

    Raises:
      ValueError: nothing is found. OSError: no such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"--models {folder} is no folder; give one with models in it")
    found = {}
    for path in sorted(folder.iterdir()):
        unfinished = is_work_directory(path) and not any(path.glob("*.done.json"))
        weights = path.is_file() and path.suffix in _MODEL_FILES
        if weights or ((path / RECORD).is_file() and not unfinished):
            found[path.name] = path
    if not found:
        raise ValueError(
            f"--models {folder} has no weights ({', '.join(_MODEL_FILES)}) and no work directory; "
            "give the folder that they are in"
        )
    return dict(list(found.items())[:_MOST_FOUND])


def _compiles(run: Run, shape: Sequence[int]) -> tuple[Any, ...]:
    """What a compiled computation depends on, about."""
    rounded = tuple(-(-side // _STEP_PX) for side in shape[:2])
    return run.model, run.method, run.refine, len(run.words), len(run.background), rounded


def _model(network: Any) -> Model:
    if network.classes is not None:
        return Model(network, network.classes, (), None)
    if not isinstance(network.clip.cfg.vision, ViTConfig):
        return Model(network, None, (MASKCLIP,), MASKCLIP)
    methods = tuple(method for method in METHODS if method != PROXY)  # which needs a DINO
    return Model(network, None, methods, DEFAULT_METHOD)
