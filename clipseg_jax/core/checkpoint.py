"""Checkpoints of a run: asynchronous, atomic, checksummed, restored on any number of devices."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array

_log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint's arrays, as the target was laid out, and its record."""

    step: int
    state: Any
    record: dict[str, Any]


class Checkpoints:
    """The last `keep` checkpoints below a folder that all processes share.

    Every call is made by every process. Orbax writes to a temporary folder and renames it, so a
    kill leaves the older ones; what was written wrongly or has changed since fails its checksum.
    """

    def __init__(self, folder: Path, keep: int = 1):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_handlers=handlers,  # type: ignore[arg-type]
            options=options,
        )

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def record(self, step: int) -> dict[str, Any]:
        """What `save` was given beside the arrays."""
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args).record

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Copies `state` and starts writing it; returns before it is on disk. `record` is JSON."""
        if step in self._manager.all_steps():
            return
        sums = [int(value) for value in np.asarray(_checksums(state))]
        if jax.default_backend() == "cpu":
            # Orbax would read the arrays' own memory, which the next step is allowed to reuse.
            state = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                record=ocp.args.JsonSave({"sums": sums, **record}),
            ),
        )

    def restore(self, like: Any) -> Restored | None:
        """The newest checkpoint that is whole; None if there is none.

        `like` has the arrays' shapes, dtypes and shardings (arrays or jax.ShapeDtypeStruct). A
        damaged checkpoint is reported, put aside as NAME.damaged, and the one before it taken.

        Raises:
          ValueError: checkpoints are there, but of another model.
        """
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        for step in reversed(self.steps()):
            self._check_shapes(step, target)
            try:
                loaded = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore()
                    ),
                )
                if [int(v) for v in np.asarray(_checksums(loaded.state))] == loaded.record["sums"]:
                    return Restored(step, loaded.state, loaded.record)
                reason: object = "its checksum differs"
            except Exception as error:  # Orbax raises bare Exceptions for damaged files
                reason = " ".join(str(error).split())[:200]
            _log.warning("checkpoint %s/%d is damaged (%s)", self._folder, step, reason)
            self._put_aside(step)
        return None

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          OSError and others: what went wrong while writing.
        """
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self._manager.close()

    def _check_shapes(self, step: int, target: Any) -> None:
        """Refuses checkpoints of another model in one line, before Orbax does so in many."""
        try:
            tree = self._manager.item_metadata(step)["state"].tree
            found = _shapes(tree)
        except Exception:
            return  # unreadable metadata: restoring says why
        wanted = _shapes(target)
        changed = sorted(k for k in found.keys() | wanted if found.get(k) != wanted.get(k))
        if changed:
            shown = "; ".join(f"{k}: {found.get(k)} -> {wanted.get(k)}" for k in changed[:4])
            raise ValueError(
                f"{self._folder}/{step} holds another model ({len(changed)} arrays differ: "
                f"{shown}); choose another --workdir, or delete it"
            )

    def _put_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                (self._folder / str(step)).rename(self._folder / f"{step}.damaged")
        self._manager.reload()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf by its dotted path, the same for live trees and Orbax's metadata."""

    def name(path: tuple) -> str:
        parts = (getattr(p, "key", getattr(p, "name", getattr(p, "idx", p))) for p in path)
        return ".".join(map(str, parts))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name(path): tuple(leaf.shape) for path, leaf in leaves}


@jax.jit
def _checksums(tree: Any) -> Array:
    """A number for each leaf that changes with any value or place, on any layout over devices."""

    def of(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        bits = leaf.astype(jnp.uint32)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            wide = leaf.astype(jnp.float32)
            bits = jax.lax.bitcast_convert_type(wide, jnp.uint32)
        place = jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape)
        mixed = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA6B) + place * jnp.uint32(0xC2B2AE35)
        mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0x27D4EB2F)
        return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)

    return jnp.stack([of(leaf) for leaf in jax.tree.leaves(tree)])
