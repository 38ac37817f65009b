"""Training in several processes: equal results, and errors when one of them is lost."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clipseg_jax.core import processes as peers
from tests.test_train import SHORT, flat, run

ROOT = Path(__file__).resolve().parent.parent

WORKER = """
import dataclasses, sys, time
import jax
process, processes, port, devices, folder, steps, slow = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(devices))
jax.config.update("jax_default_matmul_precision", "highest")
from clipseg_jax.core.command import exit_code
from clipseg_jax.core import processes as peers
peers._HEARTBEAT_S = 10
peers.initialize(f"localhost:{port}", int(processes), int(process))
import numpy as np
from pathlib import Path
from tests import toy_task
from tests.test_train import OPTIM, SHORT, flat, run
cfg = dataclasses.replace(SHORT, total_steps=int(steps))
optim = dataclasses.replace(OPTIM, schedule_steps=SHORT.total_steps)

def data(start):
    for i, batch in enumerate(
        toy_task.batches(start, process=int(process), processes=int(processes)), start
    ):
        print("step", i, flush=True)
        time.sleep(float(slow))
        yield batch

def work():
    trained = run(Path(folder), cfg, optim=optim, devices=None, data=data)
    np.savez(f"{folder}/{process}.npz", **flat(trained.model))

from clipseg_jax.core.interrupt import signals
with signals():
    sys.exit(peers.end_together(lambda: exit_code(lambda: peers.exit_if_peer_lost(work))))
"""


def start(folder, processes, *, devices=2, steps=12, slow=0.0):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [
                sys.executable, "-c", WORKER,
                *map(str, (i, processes, port, devices, folder, steps, slow)),
            ],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip


def wait_for(worker, line):
    for printed in worker.stdout:
        if printed.strip() == line:
            return
    raise AssertionError(worker.stderr.read()[-3000:])


def finish(workers, seconds=400):
    out = [worker.communicate(timeout=seconds) for worker in workers]
    return [worker.returncode for worker in workers], [errors for _, errors in out]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    codes, errors = finish(start(tmp_path, 2, steps=7))
    assert codes == [0, 0], errors
    # The other five steps by one process with four devices, from the checkpoint of two.
    codes, errors = finish(start(tmp_path, 1, devices=4))
    assert codes == [0], errors
    alone = flat(run(tmp_path / "alone").model)
    for name, value in np.load(tmp_path / "0.npz").items():
        np.testing.assert_allclose(value, alone[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_one_step(tmp_path):
    workers = start(tmp_path, 2, steps=SHORT.total_steps, slow=0.3)
    wait_for(workers[1], "step 3")
    workers[1].send_signal(signal.SIGTERM)
    codes, errors = finish(workers)
    assert codes == [143, 143], errors
    stopped = [text.split("saved at step ")[1].split()[0] for text in errors]
    assert stopped[0] == stopped[1]
    assert int(stopped[0]) < SHORT.total_steps
    codes, errors = finish(start(tmp_path, 2))
    assert codes == [0, 0], errors
    alone = flat(run(tmp_path / "alone").model)
    for name, value in np.load(tmp_path / "1.npz").items():
        np.testing.assert_allclose(value, alone[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_killed_peer_ends_the_others(tmp_path):
    workers = start(tmp_path, 2, steps=SHORT.total_steps, slow=0.5)
    wait_for(workers[1], "step 8")
    workers[1].kill()
    began = time.monotonic()
    codes, errors = finish(workers, 120)
    assert time.monotonic() - began < 90  # heartbeats of ten seconds, on a busy machine
    assert codes[0] == peers.PEER_LOST, errors
    # Where the kill comes between two collectives, JAX's own heartbeat ends the process first.
    assert "lost a peer" in errors[0] or "a lost peer" in errors[0]
    assert "resumes from the last checkpoint" in errors[0]
    codes, errors = finish(start(tmp_path, 1, devices=2))
    assert codes == [0], errors
    alone = flat(run(tmp_path / "alone").model)
    for name, value in np.load(tmp_path / "0.npz").items():
        np.testing.assert_allclose(value, alone[name], rtol=1e-5, atol=1e-6, err_msg=name)
