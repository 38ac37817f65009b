"""The parameters that were best so far in the evaluations of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from flax import nnx

from clipseg_jax.core.checkpoint import Checkpoints, Restored
from clipseg_jax.train_step import Parts, TrainState


class Best:
    """The checkpoint of the best evaluation so far, whose record calls its metrics "figures".

    Metrics without intact parameters count as no evaluation.
    """

    def __init__(self, folder: Path, monitor: str, state: TrainState):
        self._saved, self._monitor = Checkpoints(folder, keep=1), monitor
        self.metrics: dict[str, Any] = {}
        self._restore(state)

    def _restore(self, state: TrainState) -> Restored | None:
        """Parameters and statistics like those of `state`; takes their metrics over."""
        restored = self._saved.restore({"params": state.params, "stats": state.stats}, "figures")
        if not restored and self.metrics:
            logging.warning("the best parameters, of step %s, are lost", self.metrics.get("step"))
        self.metrics = restored.record["figures"] if restored else {}
        return restored

    def offer(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Saves `state` if its monitored metric is the highest so far."""
        highest = self.metrics.get(self._monitor)  # null: NaN
        if metrics[self._monitor] > (-math.inf if highest is None else highest):
            self.metrics = {"step": step, "chosen_by": self._monitor, **metrics}
            arrays = {"params": state.params, "stats": state.stats}
            self._saved.save(step, arrays, {"figures": self.metrics})

    def model(self, parts: Parts, state: TrainState, frozen: Any) -> nnx.Module | None:
        """The best model; None without evaluations, or where it is lost."""
        self._saved.wait()
        best = self._restore(state)
        return best and parts.model(best.state["params"], best.state["stats"], frozen)

    def close(self) -> None:
        """Waits for what is being written."""
        self._saved.close()
