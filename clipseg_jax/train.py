"""The one training loop. A method brings a `Task`; everything else happens here.

    state = params + statistics + optimiser; update() jitted, donated, sharded
    for each step: batch -> update -> numbers -> (checkpoint) -> (evaluation)

Each step's random key and data follow from (seed, step) alone: a resumed run is the unbroken
one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from clipseg_jax.core.checkpoint import Checkpoints
from clipseg_jax.core.interrupt import Interrupted, Signals
from clipseg_jax.core.mesh import batch_sharding, parameter_shardings, replicate, shard_batch
from clipseg_jax.core.optim import OptimConfig, learning_rate, optimizer
from clipseg_jax.core.writer import Writer
from clipseg_jax.task import Task
from clipseg_jax.train_step import Parts, TrainState, init_state, make_update, split_model

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long a run is, and what it leaves."""

    total_steps: int
    seed: int = 0
    accumulate_steps: int = 1  # parts of a batch whose gradients are averaged, one after another
    log_every_steps: int = 20
    checkpoint_every_steps: int = 500
    keep_checkpoints: int = 2
    evaluate_every_steps: int = 0  # 0: never
    monitor: str = "mIoU"  # the best checkpoint is the one with the highest


class Trained(NamedTuple):
    """A finished run."""

    model: nnx.Module  # with the last parameters
    best: nnx.Module  # with the best ones; the last where nothing was evaluated
    figures: dict[str, Any]  # last loss; best step, its metrics and the one it was chosen by


class NonFiniteError(ValueError):
    """The loss or its gradient became infinite or not a number."""


def train(
    task: Task,
    batches: Callable[[int], Iterator[Batch]],
    optim: OptimConfig,
    cfg: TrainConfig,
    *,
    mesh: Mesh,
    workdir: Path,
    name: str,
    evaluate: Callable[[nnx.Module, int], dict[str, float]] | None = None,
    at: Mapping[int, Callable[[nnx.Module], None]] | None = None,
    example_names: Sequence[str] | None = None,
) -> Trained:
    """Trains to `cfg.total_steps`, going on from what an earlier run left in `workdir`.

    Args:
      batches: this process's rows of each step's batch, from the given step on, without end;
        `index` (b,) in them names examples in errors.
      evaluate: (model, step) -> metrics; called in every process.
      at: step -> what to do with the model once so many steps are done, in every process; done
        again by a run that goes on from there.

    Raises:
      NonFiniteError: a loss or gradient that is no number; the checkpoints before it remain.
      Interrupted: a signal came; everything is saved.
      ValueError: checkpoints of another model in `workdir`, or a batch that devices don't divide.
    """
    parts = split_model(task)
    tx = optimizer(optim, cfg.total_steps)
    state, frozen, shardings = init_state(parts, tx, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    step_once = jax.jit(
        make_update(task, parts, tx, seed=cfg.seed, accumulate_steps=cfg.accumulate_steps),
        donate_argnums=0,
        in_shardings=(shardings, parameter_shardings(mesh, frozen), batch_sharding(mesh)),
        out_shardings=(shardings, everywhere),
    )
    saved = Checkpoints(workdir / "checkpoints" / name, cfg.keep_checkpoints)
    best = _Best(workdir / "checkpoints" / f"{name}_best", cfg.monitor)
    if restored := saved.restore(_stored(state)):
        if restored.record["seed"] != cfg.seed:
            raise ValueError(
                f"{workdir} holds a run with seed {restored.record['seed']}, not {cfg.seed}; "
                "choose another --workdir, or delete it"
            )
        state = _from_stored(restored.state)
        logging.info("going on from step %d", restored.step)
    start = int(state.step)
    main_process = jax.process_index() == 0
    rate = learning_rate(optim, cfg.total_steps)
    writer = Writer(workdir, name, start=start, active=main_process)
    evaluated = Writer(workdir, f"{name}_evaluations", start=start, active=main_process)
    bar = tqdm(
        total=cfg.total_steps, initial=start, unit="step", desc=name,
        disable=None if main_process else True,
    )  # fmt: skip
    pending: tuple[int, Batch, dict[str, Array]] | None = None
    last: dict[str, float] = {}
    clock, images = time.monotonic(), 0

    def check() -> dict[str, float]:
        """The numbers of the newest step, once the device has them."""
        nonlocal pending, last
        if pending is None:
            return last
        step, batch, metrics = pending
        pending = None
        last = {key: float(value) for key, value in jax.device_get(metrics).items()}
        if last.pop("bad"):
            raise NonFiniteError(_explain(step, last, batch, example_names, saved.steps()))
        return last

    def save(step: int) -> None:
        check()  # nothing is saved before it is known to be good
        saved.save(step, _stored(state), {"seed": cfg.seed})

    step, all_there = start, True
    rows: Iterator[Batch] | None = None
    try:
        with Signals() as signals:
            while True:
                if evaluate and _due(step, cfg) and step not in evaluated.steps:
                    model = parts.model(state.params, state.stats, frozen)
                    figures = evaluate(model, step)
                    best.offer(step, state, figures)
                    evaluated.write(step, figures)
                    bar.write(f"step {step}: " + _shown(figures))
                    clock, images = time.monotonic(), 0
                if at and step in at:
                    check()
                    whole = replicate(mesh, (state.params, state.stats, frozen))
                    at[step](parts.model(*whole))
                if step == cfg.total_steps:
                    break
                rows = batches(step) if rows is None else rows
                batch = next(rows)
                state, metrics = step_once(state, frozen, shard_batch(mesh, batch))
                check()  # of the step before: the device is never left waiting
                pending = (step, batch, metrics)
                step += 1
                bar.update()
                images += len(batch["index"]) * jax.process_count()
                if step % cfg.log_every_steps == 0 or step == cfg.total_steps:
                    now = check() | {"rate": float(rate(step - 1))}
                    speed = images / max(time.monotonic() - clock, 1e-9)
                    writer.write(step, now | {"images_per_second": speed})
                    bar.set_postfix_str(f"loss {now['loss']:.4g}, {speed:.1f} images/s")
                    clock, images = time.monotonic(), 0
                stop = signals.stop_at(step)
                if (
                    stop
                    or step % cfg.checkpoint_every_steps == 0
                    or step == cfg.total_steps
                    or (evaluate and _due(step, cfg))
                ):
                    save(step)
                if stop:
                    saved.wait()
                    raise Interrupted(
                        f"{name}: stopped and saved at step {step} of {cfg.total_steps}; run the "
                        "same command again to go on",
                        signals.number or 15,
                    )
        saved.wait()
        # Whole on every device, so that any process can write or evaluate it.
        state, frozen = replicate(mesh, (state, frozen))
        model = parts.model(state.params, state.stats, frozen)
        told: dict[str, Any] = {"steps": step, "loss": last.get("loss"), "best": best.figures}
        return Trained(model, best.model(parts, state, frozen) or model, told)
    except jax.errors.JaxRuntimeError:
        all_there = jax.process_count() == 1
        raise
    finally:
        bar.close()
        writer.close()
        evaluated.close()
        if all_there:  # closing would wait for a process that is gone
            saved.close()
            best.close()


def _due(step: int, cfg: TrainConfig) -> bool:
    """Whether the model is evaluated after `step` updates."""
    every = cfg.evaluate_every_steps
    return step > 0 and every > 0 and (step % every == 0 or step == cfg.total_steps)


class _Stored(NamedTuple):
    """The state under the names, and with its leaves in the order, that checkpoints have."""

    step: Any
    params: Any
    stats: Any
    moments: Any  # `opt_state`
    bad: Any


def _stored(state: TrainState) -> _Stored:
    return _Stored(state.step, state.params, state.stats, state.opt_state, state.bad)


def _from_stored(stored: _Stored) -> TrainState:
    return TrainState(stored.step, stored.params, stored.stats, stored.moments, stored.bad)


class _Best:
    """The parameters and statistics of the best evaluation so far."""

    def __init__(self, folder: Path, monitor: str):
        self._saved, self._monitor = Checkpoints(folder, keep=1), monitor
        steps = self._saved.steps()
        self.figures: dict[str, Any] = self._saved.record(steps[-1])["figures"] if steps else {}

    def offer(self, step: int, state: TrainState, figures: Mapping[str, float]) -> None:
        """Keeps `state` if its figures are better than all before."""
        if figures[self._monitor] > self.figures.get(self._monitor, -math.inf):
            self.figures = {"step": step, "chosen_by": self._monitor, **figures}
            kept = {"params": state.params, "stats": state.stats}
            self._saved.save(step, kept, {"figures": self.figures})

    def model(self, parts: Parts, state: TrainState, frozen: Any) -> nnx.Module | None:
        """The best model; None before any evaluation."""
        self._saved.wait()
        found = self._saved.restore({"params": state.params, "stats": state.stats})
        return found and parts.model(found.state["params"], found.state["stats"], frozen)

    def close(self) -> None:
        self._saved.close()


def _explain(
    step: int, figures: Mapping[str, float], batch: Batch, names: Sequence[str] | None, kept: Any
) -> str:
    """What made the loss no number, and what to do."""
    indices = [int(i) for i in batch["index"]]
    shown = ", ".join(names[i] if names else f"example {i}" for i in indices[:8])
    more = ", ..." if len(indices) > 8 else ""
    last = (
        f"the last good checkpoint is of step {kept[-1]}" if kept else "no checkpoint is kept yet"
    )
    return (
        f"the loss is {figures['loss']} and its gradient's norm {figures['gradient_norm']} at step "
        f"{step + 1}, whose batch holds {shown}{more}; {last}. Lower the learning rate "
        "(--config.*.optim.learning_rate), limit the gradient (clip_norm), or look at these images"
    )


def _shown(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
