"""Robustness to corrupted images: the published metric for each kind and level.

Source: MaskCLIP's robustness runs, after Hendrycks and Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", 2019. Spec maskclip, section 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from clipseg_jax.core.files import read_json, write_json
from clipseg_jax.core.metrics import percent_text
from clipseg_jax.inference import InferenceConfig
from clipseg_jax.stages.evaluation import Evaluation
from clipseg_jax.task import Task
from input_pipeline.batches import corruptions

Figures = dict[str, dict[str, float]]  # level -> summary, of one kind


def measure(
    config: ConfigDict,
    cfg: InferenceConfig,
    task: Task,
    workdir: Path,
    unseen: Sequence[int] = (),
) -> dict:
    """Stage: metrics of the clean split and of every corruption, into robustness.json.

    Resumes after an interruption. `unseen`: see `Evaluation`.

    Raises:
      ValueError: the config corrupts the split already, or names an unknown kind or level.
    """
    chosen, published = config.robustness, config.evaluate.published_metric
    if config.dataset.corruption:
        raise ValueError(
            f"the images are corrupted already (dataset.corruption is "
            f"{config.dataset.corruption!r}); leave it unset for the stage `robustness`"
        )
    for name in ("kinds", "levels"):
        if not chosen[name]:
            raise ValueError(f"robustness.{name} is empty; give at least one")
    corrupted = [(kind, level) for kind in chosen.kinds for level in chosen.levels]
    for kind, level in corrupted:
        corruptions.check_corruption(kind, level)
    evaluation = Evaluation(config, cfg, unseen=unseen)
    partial = workdir / "robustness.partial.json"
    done = _read(partial, published)
    main_process = jax.process_index() == 0
    for kind, level in [("clean", 0), *corrupted]:
        figures = done.setdefault(kind, {})
        if str(level) in figures:
            continue
        if level:
            evaluation = evaluation.corrupted(kind, level, chosen.seed)
        figures[str(level)] = evaluation.figures(task)
        if main_process:
            print(
                f"{kind} {level}: {published} {percent_text(figures[str(level)][published])}",
                flush=True,
            )
            write_json(partial, done)
    if main_process:
        _print(done, chosen.levels, published)
        write_json(workdir / "robustness.json", done)
        partial.unlink(missing_ok=True)
    means = {kind: _mean(done[kind], published) for kind in chosen.kinds}
    return {"published_metric": published, "clean": done["clean"]["0"][published], **means}


def _read(path: Path, metric: str) -> dict[str, Figures]:
    """What an interrupted run has measured; nothing where the file is damaged."""
    if not path.exists():
        return {}
    try:
        done = read_json(path, "measuring again")
        return {kind: _figures(path, levels, metric) for kind, levels in done.items()}
    except ValueError as error:
        logging.warning("%s", error)
        return {}


def _figures(path: Path, levels: Any, metric: str) -> Figures:
    """The metrics of each level, with NaN for null."""
    try:
        return {
            level: {
                name: math.nan if value is None else float(value) for name, value in each.items()
            }
            for level, each in levels.items()
            if metric in each
        }
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); measuring again") from error


def _mean(figures: Figures, metric: str) -> float:
    """Over the levels."""
    return round(sum(each[metric] for each in figures.values()) / len(figures), 2)


def _print(done: dict[str, Figures], levels: tuple[int, ...], metric: str) -> None:
    table = Table(f"{metric}, level", *map(str, levels), "mean")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, figures in done.items():
        if kind != "clean":
            shown = [percent_text(figures[str(level)][metric]) for level in levels]
            table.add_row(kind, *shown, percent_text(_mean(figures, metric)))
    table.caption = f"clean: {percent_text(done['clean']['0'][metric])}"
    Console().print(table)
