import os
from types import SimpleNamespace

import numpy as np
import pytest

from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.stages import training
from configs import demo_weclip


@pytest.mark.parametrize(
    ("cores", "given", "processes"),
    [(2, None, 0), (8, None, 0), (16, None, 12), (112, None, 32), (112, 0, 0), (2, 5, 5)],
)
def test_worker_processes_where_there_are_cores(monkeypatch, cores, given, processes):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    assert training.loader_processes(given) == processes


def test_workers_end_with_a_training_that_fails(monkeypatch, tmp_path):
    told = []

    def batches(start, *, processes):
        told.append((start, processes))
        try:
            while True:
                yield {"index": np.zeros(8)}
        finally:
            told.append("closed")

    def train(task, batches, *others, **named):
        next(batches(7))
        raise OSError("a full disk")

    monkeypatch.setattr(training, "train", train)
    config = demo_weclip.get_config()
    config.run.loader_processes = 3
    data = SimpleNamespace(batches=batches, batch_size=8, examples=[])
    with pytest.raises(OSError, match="a full disk"):
        training.run(config, None, data, OptimConfig(), tmp_path, "train", total_steps=1)
    assert told == [(7, 3), "closed"]
