"""The two sides of a benchmark: how they are built, run alternately and compared.

A side is a callable that processes a batch and waits for the result. Ours is a compiled program on
a batch that stays on the devices; the peer's is PyTorch, imported only when a peer is built.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Both sides live in one process: JAX must not take the whole GPU for itself.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np

from benchmarks.inputs import SEED
from clipseg_jax.core.mesh import make_mesh, shard_batch
from clipseg_jax.core.optim import OptimConfig, optimizer
from clipseg_jax.task import Task
from clipseg_jax.train_step import init_state, jit_update, split_model

HAS_TORCH = importlib.util.find_spec("torch") is not None
CONSTANT_SGD = OptimConfig(schedule="constant")
# Largest relative differences; gradients stem from the few positions where two classes nearly tie.
TOLERANCE = {"loss": 1e-3, "gradient_norm": 1e-2}
Side = Callable[[], Any]


class Ours:
    """The training loop's update, compiled for one batch."""

    def __init__(
        self,
        task: Task,
        batch: Mapping[str, np.ndarray],
        devices: int = 1,
        optim: OptimConfig = CONSTANT_SGD,
        steps: int = 1,
    ):
        mesh = make_mesh(devices)
        parts = split_model(task)
        tx = optimizer(optim, steps)
        self.state, self.frozen = init_state(parts, tx, mesh)
        self.batch = shard_batch(mesh, batch)
        update = jit_update(task, parts, tx, mesh, seed=SEED)
        self.compiled = update.lower(self.state, self.frozen, self.batch).compile()

    def __call__(self) -> dict[str, float]:
        """Runs one step and returns its loss and gradient norm."""
        self.state, metrics = self.compiled(self.state, self.frozen, self.batch)
        jax.block_until_ready(self.state)
        return {name: float(metrics[name]) for name in TOLERANCE}

    def compiler_flops(self) -> float | None:
        """FLOPs by XLA's cost analysis: counts loop bodies once and library calls not at all."""
        cost = self.compiled.cost_analysis()
        return cost.get("flops") if cost else None


class TorchStep:
    """A training step in PyTorch: a loss, its gradient, the update."""

    def __init__(self, loss: Callable[..., Any], optimizer: Any, dtype: str):
        self.loss, self.optimizer, self.dtype = loss, optimizer, dtype

    def __call__(self, *args: Any, norm: bool = False) -> dict[str, float]:
        """Runs one step with `loss(*args)`; returns loss and, with `norm`, gradient norm."""
        import torch

        with autocast(self.dtype):
            loss = self.loss(*args)
        self.optimizer.zero_grad()
        loss.backward()
        metrics = {"loss": loss.item()}
        if norm:
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
            norms = [p.grad.norm() for p in params if p.grad is not None]
            metrics["gradient_norm"] = float(torch.stack(norms).norm())
        self.optimizer.step()
        return metrics


@functools.cache  # sets PyTorch up once
def torch_device() -> Any:
    """PyTorch's device, of the kind that JAX uses; with JAX's number of cores and TF32 products."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    set_tf32(True)
    gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    return torch.device("cuda" if gpu else "cpu")


def set_tf32(on: bool) -> None:
    """Whether PyTorch may round factors of float32 products on GPUs, as JAX's default does."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def autocast(dtype: str) -> Any:
    """A context in which PyTorch's products have this dtype."""
    import torch

    return torch.autocast(torch_device().type, torch.bfloat16, enabled=dtype == "bfloat16")


def channels_first(images: Any) -> Any:
    """(b, h, w, 3) -> PyTorch's (b, 3, h, w) on its device."""
    import torch

    tensor = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous()
    return tensor.to(torch_device())


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """A context in which PyTorch, and programs compiled here, do not round products to TF32."""
    torch_device()
    set_tf32(False)
    try:
        with jax.default_matmul_precision("highest"):
            yield
    finally:
        set_tf32(True)


def agreement(
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    tolerance: Mapping[str, float] = TOLERANCE,
) -> dict[str, float]:
    """Relative differences of a step's metrics between the two sides.

    Raises:
      ValueError: a difference exceeds `tolerance`.
    """
    differences = {name: abs(value / theirs[name] - 1) for name, value in ours.items()}
    if any(differences[name] > most for name, most in tolerance.items()):
        raise ValueError(f"the two sides differ by {differences} (relative), more than {tolerance}")
    return differences


def in_turn(steps: Mapping[str, Side], repeats: int) -> dict[str, list[float]]:
    """Seconds of each of `steps`, which are run alternately, `repeats` times."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def step_bytes(step: Side, compiled: Any = None) -> int | None:
    """Bytes that one step needs beyond weights, optimiser state and batch; None: unknown.

    On CPUs the increase of the process's peak memory; on GPUs the temporaries of our `compiled`
    program, or without one the peak of PyTorch's allocator.
    """
    if jax.default_backend() != "gpu":
        return process_peak(step)
    if compiled is not None:
        step()
        memory = compiled.memory_analysis()
        return memory.temp_size_in_bytes if memory else None
    import torch

    if not torch.cuda.is_available():
        return process_peak(step)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def process_peak(step: Side) -> int | None:
    """Bytes by which a call raises this process's peak memory; None except on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # free memory of the allocator would hide the step's use
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before = _status("VmRSS")
        step()
        return _status("VmHWM") - before
    return None


def _status(name: str) -> int:
    match = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024
