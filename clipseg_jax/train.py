"""The training loop. A method provides a `Task`; everything else is here.

    state = parameters + batch statistics + optimiser state; update() is jitted, donated, sharded
    for each step: batch -> update -> metrics -> (checkpoint) -> (evaluation)

Each step's random key and data depend on (seed, step) only: a resumed run equals an uninterrupted
one bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from clipseg_jax.core.checkpoint import Checkpoints
from clipseg_jax.core.checks import check_whole
from clipseg_jax.core.interrupt import Interrupted, signals
from clipseg_jax.core.mesh import replicate, shard_batch
from clipseg_jax.core.optim import OptimConfig, learning_rate, optimizer
from clipseg_jax.core.progress import progress_bar
from clipseg_jax.core.step_clock import StepClock
from clipseg_jax.core.step_trace import StepTrace, check_profile_steps
from clipseg_jax.core.writer import Shown, Writer
from clipseg_jax.task import HostBatch, Task
from clipseg_jax.train_best import Best
from clipseg_jax.train_step import TrainState, init_state, jit_update, split_model


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of a run, and how often it logs, evaluates and writes checkpoints."""

    total_steps: int
    seed: int = 0
    accumulate_steps: int = 1  # sequential parts of a batch whose gradients are averaged
    log_every_steps: int = 20
    checkpoint_every_steps: int = 500
    keep_checkpoints: int = 2
    evaluate_every_steps: int = 0  # 0: never
    monitor: str = "mIoU"  # metric whose highest value selects the best checkpoint
    # The first and the last step that JAX's profiler traces, counted from 1.
    profile_steps: Sequence[int] | None = None

    def __post_init__(self) -> None:
        positive = ("total_steps", "accumulate_steps", "log_every_steps", "checkpoint_every_steps")
        for name in (*positive, "keep_checkpoints"):
            check_whole(name, getattr(self, name))
        for name in ("seed", "evaluate_every_steps"):
            check_whole(name, getattr(self, name), least=0)
        check_profile_steps(self.profile_steps)


class TrainResult(NamedTuple):
    """Result of a finished run."""

    model: nnx.Module  # with the last parameters
    # With the parameters of the best evaluation; without evaluations or where they are lost, the
    # last.
    best: nnx.Module
    metrics: dict[str, Any]  # "steps"; last "loss"; "best": its step, metrics, `monitor`, or {}


class Evaluated(NamedTuple):
    """What an evaluation during training gives to the loop."""

    metrics: dict[str, float]  # logged; one of them selects the best checkpoint
    shown: Shown | None = None  # in TensorBoard beside them


class NonFiniteError(ValueError):
    """The loss or its gradient became NaN or infinite."""


def train(
    task: Task,
    batches: Callable[[int], Iterator[HostBatch]],
    optim: OptimConfig,
    cfg: TrainConfig,
    *,
    mesh: Mesh,
    workdir: Path,
    name: str,
    evaluate: Callable[[nnx.Module, int], Evaluated] | None = None,
    callbacks: Mapping[int, Callable[[nnx.Module], None]] | None = None,
    example_names: Sequence[str] | None = None,
) -> TrainResult:
    """Trains to `cfg.total_steps`; resumes from the newest checkpoint of `name` in `workdir`.

    Args:
      task: model, loss and choice of trainable parameters.
      batches: start step -> endless iterator over this process's rows of each step's batch; their
        `index` (b,) identifies examples in error messages.
      optim: optimiser and learning-rate schedule.
      cfg: length of the run, and its intervals.
      mesh: devices over which batches (and with "fsdp" parameters) are sharded.
      workdir: folder of checkpoints, logs, TensorBoard events and traces.
      name: of this run within `workdir`.
      evaluate: (model, step) -> metrics and what is shown; called in every process.
      callbacks: number of completed steps -> function of the model, called in every process; called
        again by a run that resumes at that step.
      example_names: name of each example, for error messages.

    Raises:
      NonFiniteError: a NaN or infinite loss or gradient; earlier checkpoints remain.
      Interrupted: a signal was received; the state is saved.
      ValueError: `workdir` holds checkpoints of another model or seed, or the devices do not divide
        the batch.
    """
    parts = split_model(task)
    tx = optimizer(optim, cfg.total_steps)
    state, frozen = init_state(parts, tx, mesh)
    step_once = jit_update(
        task, parts, tx, mesh, seed=cfg.seed, accumulate_steps=cfg.accumulate_steps
    )
    last: dict[str, float] = {}
    saved = Checkpoints(workdir / "checkpoints" / name, cfg.keep_checkpoints)
    best = Best(workdir / "checkpoints" / f"{name}_best", cfg.monitor, state)
    if restored := saved.restore(_stored(state), "seed"):
        if restored.record["seed"] != cfg.seed:
            raise ValueError(
                f"{workdir} holds a run with seed {restored.record['seed']}, not {cfg.seed}; "
                "choose another --workdir, or delete it"
            )
        state = _from_stored(restored.state)
        last = restored.record.get("metrics", {})
        logging.info("resuming from step %d", restored.step)
    start = int(state.step)
    main_process = jax.process_index() == 0
    schedule = learning_rate(optim, cfg.total_steps)
    writer = Writer(workdir, name, start=start, active=main_process)
    evaluated = Writer(workdir, f"{name}_evaluations", start=start, active=main_process)
    # In a log, a line with each of the lines in NAME.jsonl.
    bar = progress_bar(
        total=cfg.total_steps, initial=start, unit="step", desc=name, every_s=math.inf
    )
    pending: tuple[int, HostBatch, dict[str, Array]] | None = None
    clock = StepClock()
    trace = StepTrace(workdir / "profile" / name, cfg.profile_steps)

    def check() -> dict[str, float]:
        """Metrics of the newest step; waits for the devices."""
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
        metrics = check()  # a state is saved only after its loss was found finite
        with clock.saving():
            writer.flush()
            evaluated.flush()
            saved.save(step, _stored(state), {"seed": cfg.seed, "metrics": metrics})

    step, peers_alive = start, True
    rows: Iterator[HostBatch] | None = None
    try:
        with signals() as caught:
            while True:
                if evaluate and _due(step, cfg) and step not in evaluated.steps:
                    saved.wait()
                    caught.at_once()
                    model = parts.model(state.params, state.stats, frozen)
                    metrics_now, shown = evaluate(model, step)
                    best.offer(step, state, metrics_now)
                    evaluated.write(step, metrics_now, shown)
                    bar.write(f"step {step}: " + _format(metrics_now))
                    clock.restart()
                if callbacks and step in callbacks:
                    check()
                    replicated = replicate(mesh, (state.params, state.stats, frozen))
                    callbacks[step](parts.model(*replicated))
                if step == cfg.total_steps:
                    break
                rows = batches(step) if rows is None else rows
                trace.before(step + 1)
                with clock.waiting_for_data():
                    batch = next(rows)
                state, metrics = step_once(state, frozen, shard_batch(mesh, batch))
                caught.defer()
                check()  # of the previous step, so that the devices always have work queued
                if step == start + 1:  # what came before was mostly compilation
                    clock.restart()
                pending = (step, batch, metrics)
                step += 1
                bar.update()
                clock.step(len(batch["index"]) * jax.process_count())
                if trace.ends_after(step):
                    check()
                    trace.close()
                if step % cfg.log_every_steps == 0 or step == cfg.total_steps:
                    scalars = check() | {"rate": float(schedule(step - 1))}
                    times = clock.numbers()
                    writer.write(step, scalars | times)
                    bar.set_postfix_str(
                        f"loss {scalars['loss']:.4g}, {times['images_per_second']:.1f} images/s, "
                        f"{times['data_wait']:.0%} waiting for data"
                    )
                stop = caught.stop()
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
                        "same command again to resume",
                        stop,
                    )
            saved.wait()
            caught.at_once()
        # Replicated, so that any process can write or evaluate it.
        state, frozen = replicate(mesh, (state, frozen))
        model = parts.model(state.params, state.stats, frozen)
        best_model = best.model(parts, state, frozen) or model
        summary: dict[str, Any] = {"steps": step, "loss": last.get("loss"), "best": best.metrics}
        return TrainResult(model, best_model, summary)
    except jax.errors.JaxRuntimeError:
        peers_alive = jax.process_count() == 1
        raise
    finally:
        trace.close()
        bar.close()
        writer.close()
        evaluated.close()
        if peers_alive:  # closing would wait for a lost process
            saved.close()
            best.close()


def _due(step: int, cfg: TrainConfig) -> bool:
    """Whether to evaluate after `step` updates."""
    every = cfg.evaluate_every_steps
    return step > 0 and every > 0 and (step % every == 0 or step == cfg.total_steps)


class _Stored(NamedTuple):
    """The state with the field names and leaf order of checkpoints."""

    step: Any
    params: Any
    stats: Any
    moments: Any  # `opt_state`
    bad: Any


def _stored(state: TrainState) -> _Stored:
    return _Stored(state.step, state.params, state.stats, state.opt_state, state.bad)


def _from_stored(stored: _Stored) -> TrainState:
    return TrainState(stored.step, stored.params, stored.stats, stored.moments, stored.bad)


def _explain(
    step: int,
    metrics: Mapping[str, float],
    batch: HostBatch,
    names: Sequence[str] | None,
    checkpoint_steps: Sequence[int],
) -> str:
    """The message of `NonFiniteError`: the batch, the last good checkpoint, and what to change."""
    indices = [int(i) for i in batch["index"]]
    listed = ", ".join(names[i] if names else f"example {i}" for i in indices[:8])
    more = ", ..." if len(indices) > 8 else ""
    last = (
        f"the last good checkpoint is of step {checkpoint_steps[-1]}"
        if checkpoint_steps
        else "there is no checkpoint yet"
    )
    return (
        f"the loss is {metrics['loss']} and its gradient's norm {metrics['gradient_norm']} at step "
        f"{step + 1}, whose batch holds {listed}{more}; {last}. Lower the learning rate "
        "(--config.*.optim.learning_rate), clip the gradient (clip_norm), or check these images"
    )


def _format(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
