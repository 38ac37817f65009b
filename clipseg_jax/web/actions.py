"""What happens when a visitor does something: from the values of the page to its new ones."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from clipseg_jax.core.files import write_json
from clipseg_jax.web import markup, results
from clipseg_jax.web.files import Files
from clipseg_jax.web.models import Model, Models, Run
from clipseg_jax.web.photos import Limits, Photo, Sample, read_photo
from clipseg_jax.web.results import Result
from clipseg_jax.web.sessions import Session, Sessions
from clipseg_jax.web.words import read_words
from input_pipeline import commands
from input_pipeline.text_lists import escaped
from input_pipeline.writing import write_atomic

NONE = "none"  # the word for no refinement
OWN = "its own"  # the word for a trained model's only read-out
_KEPT = 3  # pictures of a kind, for a browser that still fetches the last but one


class Upload(NamedTuple):
    """An uploaded file: where it is, and what its owner calls it."""

    path: str
    name: str


class Wish(NamedTuple):
    """The fields of the page that a run depends on."""

    words: str
    background: str
    model: str
    method: str | None
    refine: str


class View(NamedTuple):
    """What the page shows of a result."""

    overlay: str  # a file, as the next ones
    compare: tuple[str, str]
    legend: str  # HTML


class Heat(NamedTuple):
    """What the page shows of one class."""

    picture: str  # a file
    caption: str  # HTML
    legend: str  # HTML


class Actions:
    """What visitors can do. Every method may run in several threads at once.

    Args:
      models: the models that are offered.
      sessions: what is kept of the visitors.
      files: where pictures and downloads go.
      limits: of uploads.
      samples: photos that are offered.
    """

    def __init__(
        self,
        models: Models,
        sessions: Sessions,
        files: Files,
        limits: Limits,
        samples: tuple[Sample, ...],
    ):
        self._models, self._sessions, self._files = models, sessions, files
        self._limits, self._samples = limits, samples
        self._lock = threading.Lock()  # of the lists of files
        sessions.forget = self._remove_files

    def take_sample(self, index: int, visitor: str) -> tuple[str, Sample]:
        """A sample becomes the visitor's photo; returns its picture, and the sample."""
        if not 0 <= index < len(self._samples):
            raise ValueError("no such sample")
        sample = self._samples[index]
        return self._set_photo(visitor, sample.photo), sample

    def take_photo(self, upload: Upload, visitor: str) -> tuple[str, str]:
        """An upload becomes the visitor's photo; returns its picture, and what to say of it."""
        self._sessions.get(visitor).upload = Path(upload.path)
        photo = read_photo(upload.path, upload.name, self._limits)
        said = f"{photo.name}, {photo.size[1]} x {photo.size[0]} pixels"
        if photo.pixels.shape[:2] != photo.size:
            height, width = photo.pixels.shape[:2]
            said += f", worked on at {width} x {height}"
        if photo.animated:
            said += "; of the animation its first frame"
        return self._set_photo(visitor, photo), said

    def forget_upload(self, visitor: str) -> None:
        """The file that was dropped goes; the browser shows the picture that was made of it."""
        session = self._sessions.get(visitor)
        if session.upload is not None:
            self._files.remove(session.upload)
            session.upload = None

    def forget_photo(self, visitor: str) -> None:
        """The visitor's photo and result go."""
        self._sessions.drop(visitor)

    def plan(self, wish: Wish, visitor: str) -> tuple[Run, bool]:
        """The run that a visitor asks for, and whether it compiles first; reads the model.

        Raises:
          ValueError, OSError: no photo, wrong words, or a model that cannot be used.
        """
        photo = self._sessions.get(visitor).photo
        if photo is None:
            raise ValueError("Drop a photo first, or take one of the samples.")
        run = run_of(wish, self._models.get(wish.model))
        return run, self._models.is_new(run, photo.pixels.shape)

    def segment(self, run: Run, visitor: str) -> float:
        """Segments the visitor's photo; returns the seconds that it took."""
        session = self._sessions.get(visitor)
        photo = session.photo
        if photo is None:
            raise ValueError("This photo is no longer kept; drop it again.")
        scores, seconds = self._models.scores(run, photo.pixels)
        result = results.result_of(scores, _settings(run))
        height, width = photo.pixels.shape[:2]
        commands.say(
            f"pass: {escaped(run.model)}, {run.method or OWN}, "
            f"{run.refine or NONE}, {width} x {height}, {len(result.names)} names, {seconds:.2f} s"
        )
        if session.photo is photo:  # not another one meanwhile
            session.result, session.chosen = result, _largest(result)
        self._sessions.trim()
        return seconds

    def view(self, threshold: float, opacity: float, visitor: str) -> View:
        """The visitor's result at a threshold and an opacity, both 0 to 1."""
        session, photo, result = self._of(visitor)
        labels = result.labels_at(threshold)
        drawn = results.draw_overlay(photo.pixels, labels, opacity)
        overlay = self._picture(session, "overlay", drawn)
        before = self._before(session, photo)
        legend = markup.legend(result, labels, session.chosen)
        return View(overlay, (before, overlay), legend)

    def heat(self, index: int | None, threshold: float, visitor: str) -> Heat:
        """The heat map of one class of the visitor's result; None: of the one chosen last."""
        session, photo, result = self._of(visitor)
        index = session.chosen if index is None else index
        if index is None or not 0 <= index < len(result.names):
            raise ValueError("no such class; choose one of the legend")
        session.chosen = index
        picture = results.draw_heat(photo.pixels, result.heat[index])
        return Heat(
            self._picture(session, "heat", picture),
            markup.heat_caption(result, index),
            markup.legend(result, result.labels_at(threshold), index),
        )

    def class_at(self, x: int, y: int, threshold: float, visitor: str) -> int:
        """The class at a pixel of the overlay."""
        _, _, result = self._of(visitor)
        labels = result.labels_at(threshold)
        times = results.enlargement(labels.shape)
        x, y = x // times, y // times
        if not (0 <= y < labels.shape[0] and 0 <= x < labels.shape[1]):
            raise ValueError("no such pixel")
        return int(labels[y, x])

    def save_mask(self, threshold: float, visitor: str) -> str:
        """An index PNG of the photo's own size; returns the file."""
        session, photo, result = self._of(visitor)
        image = results.mask_image(result.labels_at(threshold), photo.size)
        path = self._files.new(f"{_stem(photo)}_mask.png")
        write_atomic(path, lambda file: image.save(file, "PNG"), sync=False)
        return self._kept(session, "mask", path)

    def save_description(self, threshold: float, visitor: str) -> str:
        """A JSON of names, colours, shares and settings; returns the file."""
        session, photo, result = self._of(visitor)
        content = results.description(
            result, result.labels_at(threshold), photo.name, photo.size, threshold
        )
        path = write_json(self._files.new(f"{_stem(photo)}_mask.json"), content)
        return self._kept(session, "description", path)

    def _remove_files(self, session: Session) -> None:
        for paths in session.files.values():
            for path in paths:
                self._files.remove(path)
        if session.upload is not None:
            self._files.remove(session.upload)

    def _set_photo(self, visitor: str, photo: Photo) -> str:
        session = self._sessions.get(visitor)
        session.photo, session.result, session.chosen = photo, None, None
        self._sessions.trim()
        return self._picture(session, "photo", results.draw_photo(photo.pixels))

    def _before(self, session: Session, photo: Photo) -> str:
        """The photo's picture; drawn again if it was swept away."""
        paths = session.files.get("photo", [])
        if paths and paths[-1].exists():
            return str(paths[-1])
        return self._picture(session, "photo", results.draw_photo(photo.pixels))

    def _of(self, visitor: str) -> tuple[Session, Photo, Result]:
        session = self._sessions.get(visitor)
        photo, result = session.photo, session.result
        if photo is None or result is None:
            raise ValueError("This result is no longer kept; segment the photo again.")
        return session, photo, result

    def _picture(self, session: Session, kind: str, pixels: np.ndarray) -> str:
        """A file with a picture, which replaces older ones of its kind."""
        path = self._files.new(f"{kind}.jpg")
        image = Image.fromarray(pixels)
        write_atomic(
            path, lambda file: image.save(file, "JPEG", quality=92, subsampling=0), sync=False
        )
        return self._kept(session, kind, path)

    def _kept(self, session: Session, kind: str, path: Path) -> str:
        with self._lock:
            paths = session.files.setdefault(kind, [])
            paths.append(path)
            gone, paths[:] = paths[:-_KEPT], paths[-_KEPT:]
        for old in gone:
            self._files.remove(old)
        return str(path)


def run_of(wish: Wish, model: Model) -> Run:
    """The run that the fields of the page ask for.

    Raises:
      ValueError: words are missing, too many, or in both fields.
    """
    refine = None if wish.refine == NONE else wish.refine
    if model.classes is not None:
        return Run(wish.model, (), (), None, refine)
    names, others = read_words(wish.words, wish.background)
    return Run(wish.model, tuple(names), tuple(others), wish.method, refine)


def _settings(run: Run) -> dict[str, object]:
    return {
        "model": run.model,
        "method": run.method,
        "refine": run.refine,
        "words": list(run.words),
        "background_words": list(run.background),
    }


def _largest(result: Result) -> int:
    """The class other than background that has most of the photo."""
    parts = results.shares(result.labels, len(result.names))
    return 1 + int(parts[1:].argmax()) if len(parts) > 1 else 0


def _stem(photo: Photo) -> str:
    """What a download is called: the photo's name, as far as it is plain."""
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(photo.name).stem)
    return plain[:60] or "photo"
