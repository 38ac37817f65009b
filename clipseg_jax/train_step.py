"""One update of the training state, to be jitted, donated and sharded by `train.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clipseg_jax.core.mesh import batch_sharding, on_mesh, parameter_shardings
from clipseg_jax.task import Task


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: Array  # () int32: completed updates
    params: Any  # the parameters that `task.trainable` selects, as nested dicts
    stats: Any  # running batch statistics
    opt_state: Any  # of the optax transformation
    bad: Array  # () int32: 1 once a loss or gradient was NaN or infinite; then updates do nothing


class Parts(NamedTuple):
    """A task's model, split by `split_model`."""

    graph: Any  # structure, for nnx.merge
    params: Any  # trainable parameters
    stats: Any  # batch statistics
    frozen: Any  # everything else

    def model(self, params: Any, stats: Any, frozen: Any | None = None) -> Any:
        """A copy of the model with these values; its statistics may be updated in place."""
        states = [nnx.State(x) for x in (params, stats, self.frozen if frozen is None else frozen)]
        return nnx.merge(self.graph, *states, copy=True)


def split_model(task: Task) -> Parts:
    """Splits a task's model into trainable parameters, batch statistics and frozen state.

    Raises:
      ValueError: `task.trainable` selects no parameter.
    """
    chosen = task.trainable
    assert chosen is not None, "a task without `trainable` can't be trained"

    def trained(path: tuple, _: Any) -> bool:
        return chosen(".".join(map(str, path)))

    filters = (nnx.All(nnx.Param, trained), nnx.BatchStat, ...)
    graph, params, stats, frozen = nnx.split(task.model, *filters)  # type: ignore[misc]
    if not jax.tree.leaves(params):
        raise ValueError("task.trainable selects no parameter; at least one must be trained")
    return Parts(graph, *(nnx.to_pure_dict(part) for part in (params, stats, frozen)))


def make_update(
    task: Task,
    parts: Parts,
    tx: optax.GradientTransformation,
    *,
    seed: int = 0,
    accumulate_steps: int = 1,
) -> Callable[[TrainState, Any, dict[str, Array]], tuple[TrainState, dict[str, Array]]]:
    """The function of one step, to be jitted: (state, frozen, batch) -> state, metrics.

    Args:
      task: with `loss`.
      parts: of the task's model.
      tx: the optimiser.
      seed: the step's random key is `fold_in(key(seed), step)`.
      accumulate_steps: sequential parts of a batch whose gradients are averaged.
    """
    assert task.loss is not None, "a task without `loss` can't be trained"
    loss_of = task.loss

    def gradient(
        params: Any, old_stats: Any, frozen: Any, rows: Any, key: Array, step: Array
    ) -> Any:
        def loss_and_aux(params: Any) -> Any:
            model = parts.model(params, old_stats, frozen)
            loss, metrics = loss_of(model, rows, key, step)
            return loss, (metrics, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

        (loss, (metrics, stats)), grads = jax.value_and_grad(loss_and_aux, has_aux=True)(params)
        return grads, stats, metrics | {"loss": loss}

    def accumulated(params: Any, stats: Any, frozen: Any, rows: Any, key: Array, step: Array):
        """Gradient and metrics averaged over parts of the batch; each part updates statistics."""
        k = accumulate_steps

        def split(x: Array) -> Array:  # part i has rows i, i + k, ..: devices keep their rows
            return x.reshape(x.shape[0] // k, k, *x.shape[1:]).swapaxes(0, 1)

        def one(carry: Any, part: Any) -> Any:
            stats, total = carry
            rows, i = part
            part_key = jax.random.fold_in(key, i)
            grads, stats, metrics = gradient(params, stats, frozen, rows, part_key, step)
            return (stats, jax.tree.map(jnp.add, total, grads)), metrics

        zeros = jax.tree.map(jnp.zeros_like, params)
        rows_of_parts = jax.tree.map(split, rows), jnp.arange(k)
        (stats, total), metrics = jax.lax.scan(one, (stats, zeros), rows_of_parts)
        mean = jax.tree.map(lambda x: x / k, total)
        return mean, stats, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)

    def update(state: TrainState, frozen: Any, batch: dict[str, Array]) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        run = gradient if accumulate_steps == 1 else accumulated
        grads, stats, metrics = run(state.params, state.stats, frozen, batch, key, state.step)
        norm = optax.global_norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # After a NaN or infinite loss the state stays unchanged until the host raises.
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm) & (state.bad == 0)
        new = TrainState(state.step + 1, params, stats, opt_state, state.bad)
        state = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        state = state._replace(bad=1 - good.astype(jnp.int32))
        return state, metrics | {"gradient_norm": norm, "bad": state.bad}

    return update


def jit_update(
    task: Task,
    parts: Parts,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int = 0,
    accumulate_steps: int = 1,
) -> Any:
    """`make_update` jitted for a mesh: state and parameters sharded, the old state donated."""
    state, frozen = abstract_state(parts, tx, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (state, frozen))
    everywhere = NamedSharding(mesh, PartitionSpec())
    update = make_update(task, parts, tx, seed=seed, accumulate_steps=accumulate_steps)
    return jax.jit(
        on_mesh(mesh, update),
        donate_argnums=0,
        in_shardings=(*shardings, batch_sharding(mesh)),
        out_shardings=(shardings[0], everywhere),
    )


def init_state(parts: Parts, tx: optax.GradientTransformation, mesh: Mesh) -> tuple[Any, Any]:
    """The initial `TrainState` and the frozen state on the mesh."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(parts, tx, mesh))
    first = functools.partial(_first_state, tx)
    state = jax.jit(first, out_shardings=shardings[0])(parts.params, parts.stats)
    return state, jax.device_put(parts.frozen, shardings[1])


def abstract_state(parts: Parts, tx: optax.GradientTransformation, mesh: Mesh) -> tuple[Any, Any]:
    """Shapes, types and shardings of what `init_state` returns; computes and allocates nothing."""

    def sharded(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            parameter_shardings(mesh, tree),
        )

    state = jax.eval_shape(functools.partial(_first_state, tx), parts.params, parts.stats)
    return sharded(state), sharded(parts.frozen)


def _first_state(tx: optax.GradientTransformation, params: Any, stats: Any) -> TrainState:
    # Copies, because steps donate the state's buffers.
    params, stats = jax.tree.map(jnp.copy, (params, stats))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, stats, tx.init(params), zero)
