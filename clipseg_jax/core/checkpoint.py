"""Checkpoints of a run: asynchronous, atomic, checksummed, restored on any number of devices."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from jax import Array

from clipseg_jax.core.files import json_text
from input_pipeline.places import is_remote
from input_pipeline.writing import CannotWrite

_log = logging.getLogger(__name__)
_FULL = "no space left, or the quota is used up"
_METADATA = 2**20  # bytes that Orbax writes besides the arrays, generously


class Restored(NamedTuple):
    """A restored checkpoint."""

    step: int
    state: Any  # arrays, sharded like the target
    record: dict[str, Any]  # the JSON values given to `save`


class Checkpoints:
    """The last `keep` checkpoints in a folder that all processes share.

    Every process must make every call. Orbax writes to a temporary folder and renames it, or in a
    bucket marks it as whole, so a killed run leaves the older checkpoints; corrupted files fail
    their checksum.
    """

    def __init__(self, folder: Path, keep: int = 1):
        if is_remote(folder) and not str(folder).startswith("gs://"):
            raise ValueError(
                f"{folder}: checkpoints can be in a folder or in gs:// alone; mount this bucket "
                "(for instance with mount-s3) and pass that path as --workdir"
            )
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
        self._folder = folder
        self._writing = (0, 0)  # step and bytes of the checkpoint that is being written
        self._manager = ocp.CheckpointManager(
            folder if is_remote(folder) else folder.absolute(),
            item_handlers=handlers,  # type: ignore[arg-type]
            options=options,
        )

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Copies `state` and starts writing it; returns before it is on disk.

        Does nothing if the step has a checkpoint.

        Args:
          step: number of completed steps.
          state: pytree of arrays.
          record: JSON values to store beside the arrays.

        Raises:
          CannotWrite: this checkpoint or the one before cannot be written; earlier ones remain.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        self._writing = step, sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = _free(self._folder)
        if free is not None and free < self._writing[1] + _METADATA:
            raise self._cannot_write(_FULL)
        record = json.loads(json_text(record))  # as it will be read
        sums = [int(value) for value in np.asarray(_checksums(state))]
        if jax.default_backend() == "cpu":
            # Orbax reads the arrays' buffers, which the next step may reuse (they are donated).
            state = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(state)
        with self._reports_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    record=ocp.args.JsonSave({"sums": sums, "crc": _crc(record), **record}),
                ),
            )

    def restore(self, like: Any, *keys: str) -> Restored | None:
        """The newest intact checkpoint; None if there is none.

        A damaged checkpoint is logged and renamed to STEP.damaged, and the previous one is tried.

        Args:
          like: pytree with the shapes, dtypes and shardings of the arrays to restore (arrays or
            jax.ShapeDtypeStruct).
          keys: values that the record must have.

        Raises:
          ValueError: the checkpoints are of another model.
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
                record = dict(loaded.record)
                sums, crc = record.pop("sums"), record.pop("crc", None)
                if missing := [key for key in keys if key not in record]:
                    raise ValueError(f"its record lacks {missing}")
                same = [int(v) for v in np.asarray(_checksums(loaded.state))] == sums
                # Earlier versions stored no checksum of the record.
                if same and crc in (None, _crc(record)):
                    return Restored(step, loaded.state, record)
                reason: object = "its checksum differs"
            except Exception as error:  # Orbax raises bare Exceptions for damaged files
                reason = " ".join(str(error).split())[:200]
            _log.warning("checkpoint %s/%d is damaged (%s)", self._folder, step, reason)
            self._put_aside(step)
        return None

    def wait(self) -> None:
        """Returns when all checkpoints are on disk.

        Raises:
          CannotWrite: one cannot be written.
        """
        with self._reports_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending writes and ends the background threads.

        Errors are for `wait` to raise: this one is called when another may be on its way.
        """
        with contextlib.suppress(CannotWrite), self._reports_errors():
            self._manager.close()

    @contextlib.contextmanager
    def _reports_errors(self) -> Iterator[None]:
        """Orbax's errors of the disk as one line; those of lost processes as they are."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise
        except Exception as error:  # OSError, or ValueError of TensorStore
            full = "RESOURCE_EXHAUSTED" in str(error) or "No space left" in str(error)
            reason = _FULL if full else " ".join(str(error).split())[:200]
            raise self._cannot_write(reason) from error

    def _cannot_write(self, reason: str) -> CannotWrite:
        step, size = self._writing
        free = _free(self._folder)
        what = f"cannot write the checkpoint {self._folder / str(step)} of {_megabytes(size)}: "
        if free is None:
            failed = CannotWrite(
                f"{what}{reason}; check the bucket and this machine's credentials, and run the "
                "command again to resume"
            )
            failed.errno = errno.EREMOTEIO  # a restart may mend it
            return failed
        return CannotWrite(
            f"{what}{reason}; {_megabytes(free)} are free there. Free space, and run the command "
            "again to resume"
        )

    def _check_shapes(self, step: int, target: Any) -> None:
        """Raises a one-line error for checkpoints of another model; Orbax's has many lines."""
        try:
            tree = self._manager.item_metadata(step)["state"].tree
            stored = _shapes(tree)
        except Exception:
            return  # unreadable metadata: restoring says why
        expected = _shapes(target)
        changed = sorted(k for k in stored.keys() | expected if stored.get(k) != expected.get(k))
        if changed:
            listed = "; ".join(f"{k}: {stored.get(k)} -> {expected.get(k)}" for k in changed[:4])
            raise ValueError(
                f"{self._folder}/{step} is a checkpoint of another model ({len(changed)} arrays "
                f"differ: {listed}); choose another --workdir, or delete it"
            )

    def _put_aside(self, step: int) -> None:
        path = self._folder / str(step)
        if jax.process_index() == 0:
            names = (f"{step}.damaged{suffix}" for suffix in itertools.chain([""], _numbers()))
            free = next(name for name in names if not (self._folder / name).exists())
            try:
                path.rename(self._folder / free)
            except OSError as error:  # it would be in the way of a new one
                raise CannotWrite(
                    f"cannot rename the damaged checkpoint {path}: {error.strerror}; delete it"
                ) from error
        self._manager.reload()


def _free(folder: Path) -> int | None:
    """Bytes that are free in a folder; None: in a bucket, which is never full."""
    return None if is_remote(folder) else shutil.disk_usage(folder).free


def _numbers() -> Iterator[str]:
    return (f".{number}" for number in itertools.count(2))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _crc(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _is_news(entry: logging.LogRecord) -> bool:
    """False for the tracebacks that Orbax's threads log of errors which it raises as well."""
    by_orbax = "orbax" in entry.pathname or "orbax" in entry.getMessage()
    return not (entry.levelno >= logging.ERROR and by_orbax)


absl_logging.get_absl_logger().addFilter(_is_news)
logging.getLogger("asyncio").addFilter(_is_news)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Dotted path -> shape of each leaf, of arrays as well as of Orbax's metadata."""

    def name(path: tuple) -> str:
        parts = (getattr(p, "key", getattr(p, "name", getattr(p, "idx", p))) for p in path)
        return ".".join(map(str, parts))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name(path): tuple(leaf.shape) for path, leaf in leaves}


@jax.jit
def _checksums(tree: Any) -> Array:
    """One uint32 per leaf that depends on values and their positions, not on the sharding."""

    def checksum(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        bits = leaf.astype(jnp.uint32)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            wide = leaf.astype(jnp.float32)
            bits = jax.lax.bitcast_convert_type(wide, jnp.uint32)
        position = jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape)
        mixed = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA6B) + position * jnp.uint32(0xC2B2AE35)
        mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0x27D4EB2F)
        return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)

    return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(tree)])
