"""The stages of a method that trains nothing: class embeddings, then evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from clipseg_jax.stages import robustness
from clipseg_jax.stages.clip import text
from clipseg_jax.stages.data import check_splits
from clipseg_jax.stages.evaluation import Evaluation
from clipseg_jax.stages.inference import inference_config
from clipseg_jax.task import Task

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
