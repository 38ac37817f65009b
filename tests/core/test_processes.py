"""Evaluation by two real processes of two devices each equals that of one process."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipseg_jax.core.mesh import make_mesh
from tests.test_evaluate import root, run  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import sys
import jax
process, port, root, out = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_default_matmul_precision", "highest")
jax.distributed.initialize(f"localhost:{port}", 2, process)
import numpy as np
from tests.test_evaluate import run
indices = []
progress = run(root, 4, None, processes=2, on_image=lambda one: indices.append(one.index))
counts = dict(confusion=progress.confusion, images=progress.images)
np.savez(f"{out}/{process}.npz", indices=indices, **counts)
"""


@pytest.mark.slow
def test_two_processes(root, tmp_path):  # noqa: F811
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = [str(port), str(root), str(tmp_path)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(process), *arguments],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for process in (0, 1)
    ]  # fmt: skip
    for worker in workers:
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors[-3000:]
    alone = run(root, 4, 4)
    results = [dict(np.load(tmp_path / f"{process}.npz")) for process in (0, 1)]
    for result in results:
        assert result["images"] == alone.images
        np.testing.assert_array_equal(result["confusion"], alone.confusion)
    indices = sorted([*results[0]["indices"], *results[1]["indices"]])
    assert indices == list(range(alone.images))  # every image in one process, none twice
    assert make_mesh().size == 8
