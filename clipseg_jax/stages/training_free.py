"""The stages of a method that trains nothing: class embeddings, then evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from clipseg_jax.stages import programs, robustness
from clipseg_jax.stages.clip import row_words, text
from clipseg_jax.stages.data import check_splits
from clipseg_jax.stages.evaluation import Evaluation
from clipseg_jax.stages.inference import inference_config
from clipseg_jax.task import Task

Programs = Callable[[ConfigDict, Path, tuple[int, int]], Iterator[programs.Program]]
Stage = Callable[[ConfigDict, Path], dict]


def stages_of(build: Callable[[ConfigDict, Path], Task]) -> Mapping[str, Stage]:
    """The stages `data`, `text`, `evaluate` and `robustness`, by their names.

    Args:
      build: (config, workdir) -> the frozen network, with the class embeddings of the stage `text`.
    """

    def data(config: ConfigDict, workdir: Path) -> dict:
        """Checks that the dataset is there; paints the demo world."""
        del workdir
        return check_splits(config.dataset, config.dataset.split)

    def evaluate(config: ConfigDict, workdir: Path) -> dict:
        """mIoU over the split, into metrics.json; overlays into pictures/."""
        evaluation = Evaluation(config, inference_config(config))
        return evaluation.write(build(config, workdir), workdir)

    def measure(config: ConfigDict, workdir: Path) -> dict:
        """mIoU under each corruption, into robustness.json."""
        task = build(config, workdir)
        return robustness.measure(config, inference_config(config), task, workdir)

    return {"data": data, "text": text, "evaluate": evaluate, "robustness": measure}


def programs_of(build: Callable[[ConfigDict, Path], Task]) -> Programs:
    """(config, workdir, image_px) -> the evaluation's program; `build` as in `stages_of`."""

    def evaluation(
        config: ConfigDict, workdir: Path, image_px: tuple[int, int]
    ) -> Iterator[programs.Program]:
        programs.random_embeddings(config, workdir, row_words(config))
        task, cfg = build(config, workdir), inference_config(config)
        yield programs.evaluation("evaluate", config, task, cfg, image_px)

    return evaluation
