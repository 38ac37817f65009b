"""What a work directory holds, as far as it can be read; nothing is computed anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clipseg_jax.core.comparison import apart
from clipseg_jax.core.files import load_array, read_json
from clipseg_jax.core.json_lines import parse_line
from clipseg_jax.reports.logs import Log, read_log
from clipseg_jax.stages.run_record import RUNS
from clipseg_jax.stages.work_directory import CONFIG
from input_pipeline.datasets.images import BadFile, read_image

_REMEDY = "it is left out"
_WORDS = {"crf": "with CRF", "cams": "CAMs", "maskclip": "MaskCLIP"}  # in names of files

T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """An image of an evaluation with its truth and its prediction."""

    name: str
    miou: float  # percent
    tiles: list[np.ndarray]  # image, truth, prediction: (h, w, 3) uint8
    classes: dict[str, str]  # name -> colour, "#rrggbb"


@dataclass(frozen=True)
class Evaluation:
    """A metrics file, and what is beside it."""

    file: str  # "metrics_crf.json"
    figures: dict[str, Any]
    classes: dict[str, dict[str, float | None]]  # name -> IoU, Acc, Prec in percent
    confusion: np.ndarray | None  # (classes, classes) int64: rows are labels
    scored: int | None  # images with a score of their own; None: there are no pictures
    best: list[Picture]
    worst: list[Picture]

    @property
    def name(self) -> str:
        """ "evaluation", or what the file's name adds to "metrics"."""
        words = self.file.removeprefix("metrics").removesuffix(".json").split("_")
        return " ".join(_WORDS.get(word, word) for word in words if word) or "evaluation"

    @property
    def metric(self) -> str:
        """The name of the metric that the method's paper prints."""
        name = self.figures.get("published_metric")
        return name if isinstance(name, str) else "mIoU"

    def number(self, metric: str) -> float | None:
        """A metric in percent; None where it is not there."""
        return _number(self.figures.get(metric))


@dataclass
class Results:
    """A work directory.

    Attributes:
      config: the resolved values; {} where they are lost.
      stages: the recipe's in their order, then others that are done.
      done: stage -> its record.
      evaluations: in the order of their stages.
      logs: name of a training -> its log; "NAME_evaluations": of the evaluations during it.
      runs: each start of the recipe, the newest last; see `stages.run_record`.
      content: config value -> path and checksum of the file that it names.
      problems: file of problems -> image -> why it was left out.
      robustness: kind of corruption -> level -> metrics.
      missing: what is not there, in whole sentences.
      damaged: what is there and cannot be read, or not all of it; each begins with its file.
    """

    workdir: Path
    config: dict[str, Any] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    logs: dict[str, Log] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    content: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[str, dict[str, Any]] = field(default_factory=dict)
    robustness: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def read_results(workdir: Path) -> Results:
    """Everything of a work directory that a report shows.

    Raises:
      ValueError: it is none: it has no config.json; or none of its files can be read.
    """
    if not (workdir / CONFIG).is_file():
        raise ValueError(f"{workdir} is no work directory of a recipe: it has no {CONFIG}")
    reader = _Reader(workdir)
    missing = reader.missing
    results = Results(workdir, reader.json(CONFIG), missing=missing, damaged=reader.damaged)
    planned = results.config.get("stages")
    results.stages = [str(name) for name in planned] if isinstance(planned, list) else []
    for name in reader.names("*.done.json"):
        results.done[name.removesuffix(".done.json")] = reader.json(name)
    results.stages += [name for name in results.done if name not in results.stages]
    for name in results.stages:
        if name not in results.done:
            missing.append(f"Stage {name} is not finished.")
    found = [reader.evaluation(name) for name in reader.names("metrics*.json")]
    results.evaluations = sorted(found, key=lambda each: _place(each.file, results.stages))
    if not found:
        unlabelled = any("scored" in record for record in results.done.values())
        nothing = "Nothing is scored: the images have no label maps."
        missing.append(nothing if unlabelled else "There is no evaluation yet.")
    for name in reader.names("*.jsonl"):
        if log := reader.log(name):
            results.logs[name.removesuffix(".jsonl")] = log
    results.runs = reader.runs()
    if not results.runs and not (workdir / RUNS).exists():
        missing.append(f"There is no {RUNS}: versions, devices and recipe are not known.")
    results.content = _dictionaries(reader.json("content.json"))
    for name in reader.names("*_problems.json"):
        results.problems[name] = reader.json(name)
    results.robustness = _dictionaries(reader.json("robustness.json"))
    read = (results.config, results.runs, results.logs, *results.done.values())
    if not any(read) and not any(each.figures for each in found):
        raise ValueError(
            f"{workdir} has nothing that can be read, so there is no report: "
            f"{' '.join(reader.damaged)} Run its recipe again in another folder"
        )
    return results


class _Reader:
    """Reads files of a work directory; what can't be read is noted and left out."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self.missing: list[str] = []
        self.damaged: list[str] = []

    def names(self, pattern: str) -> list[str]:
        return sorted(path.name for path in self._workdir.glob(pattern))

    def _read(self, name: str, read: Callable[[Path], T]) -> T | None:
        """What `read` makes of a file; None where it is missing or, noted, damaged."""
        path = self._workdir / name
        if not path.exists():
            return None
        try:
            return read(path)
        except (ValueError, OSError) as error:
            text = str(error).replace(f"{self._workdir}/", "").removesuffix(f"; {_REMEDY}")
            self.damaged.append(f"{text}; {_REMEDY}.")
            return None

    def json(self, name: str) -> dict[str, Any]:
        return self._read(name, lambda path: read_json(path, _REMEDY)) or {}

    def log(self, name: str) -> Log | None:
        """The log of a training; None for a file that is none, or has nothing."""
        log = self._read(name, read_log) or Log()
        trained = (self._workdir / "tensorboard" / name.removesuffix(".jsonl")).is_dir()
        if log.damaged and (log.series or trained):
            self.damaged.append(f"{name}: {log.damaged} damaged lines are left out.")
        return log if log.series else None

    def runs(self) -> list[dict[str, Any]]:
        content = self._read(RUNS, lambda path: path.read_bytes()) or b""
        lines = [line for line in content.splitlines() if line.strip()]
        parsed = [parse_line(line, {"started": str}) for line in lines]
        whole = [record for record in parsed if record]
        if damaged := len(lines) - len(whole):
            lost = "" if whole else ": versions, devices and recipe are not known"
            self.damaged.append(f"{RUNS}: {damaged} damaged lines are left out{lost}.")
        return whole

    def evaluation(self, name: str) -> Evaluation:
        suffix = name.removeprefix("metrics").removesuffix(".json")
        figures = self.json(name)
        classes = {
            str(each): {key: _number(row.get(key)) for key in ("IoU", "Acc", "Prec")}
            for each, row in _dictionaries(figures.get("classes")).items()
        }
        listed = self.json(f"examples{suffix}/examples.json")
        return Evaluation(
            name,
            figures,
            classes,
            self._confusion(f"confusion{suffix}.npy", len(classes)) if figures else None,
            listed["images"] if isinstance(listed.get("images"), int) else None,
            *(self._pictures(f"examples{suffix}", listed.get(kind)) for kind in ("best", "worst")),
        )

    def _confusion(self, name: str, classes: int) -> np.ndarray | None:
        counts = self._read(name, lambda path: load_array(path, _REMEDY))
        if counts is None:
            return None
        whole = counts.dtype == np.int64 and counts.shape == (classes, classes) and classes
        if not whole or counts.min() < 0:
            self.damaged.append(f"{name} holds no counts of {classes} classes; {_REMEDY}.")
            return None
        return counts

    def _pictures(self, folder: str, listed: Any) -> list[Picture]:
        pictures = []
        for entry in listed if isinstance(listed, list) else []:
            file = str(entry.get("file")) if isinstance(entry, dict) else ""
            if not re.fullmatch(r"(best|worst)_\d{1,2}\.jpg", file):
                continue
            tiles = self._read(f"{folder}/{file}", _tiles)
            if tiles is None:
                continue
            classes = entry.get("classes")
            colours = {
                str(name): colour
                for name, colour in (classes.items() if isinstance(classes, dict) else ())
                if re.fullmatch(r"#[0-9a-f]{6}", str(colour))
            }
            miou = _number(entry.get("mIoU"))
            pictures.append(Picture(str(entry.get("name")), miou or 0.0, tiles, colours))
        return pictures


def _tiles(path: Path) -> list[np.ndarray]:
    try:
        return apart(read_image(path))
    except BadFile as error:
        raise ValueError(str(error)) from error


def _place(file: str, stages: Sequence[str]) -> tuple[int, str]:
    """The place of the stage that writes a metrics file: "evaluate", or one of its name."""
    suffix = file.removeprefix("metrics").removesuffix(".json")
    for name in (f"evaluate{suffix}", suffix.removeprefix("_"), "evaluate"):
        if name in stages:
            return stages.index(name), file
    return len(stages), file


def _dictionaries(value: Any) -> dict[str, dict[str, Any]]:
    """The entries of a dictionary that are dictionaries; none where it isn't one."""
    if not isinstance(value, dict):
        return {}
    return {str(key): each for key, each in value.items() if isinstance(each, dict)}


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None
