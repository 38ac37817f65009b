"""Joining under simulated Slurm, Open MPI, JobSet and TPU-pod variables; who sees which devices."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clipseg_jax.core import processes
from clipseg_jax.core.processes import local_device_ids

ROOT = Path(__file__).resolve().parents[2]

SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "4",
    "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_GPUS_ON_NODE": "8",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}  # fmt: skip
TPU_POD = {
    "TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost,localhost",
    "TPU_SKIP_MDS_QUERY": "1", "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080",
    "MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0",
}  # fmt: skip
JOBSET = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
EIGHT = "0,1,2,3,4,5,6,7"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({}, [], id="none"),
        pytest.param(JOBSET, [], id="jobset"),
        pytest.param(SLURM, [], id="slurm, a task a node"),
        pytest.param(
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_LOCALID": "3"}, [3],
            id="slurm, a task a GPU",
        ),
        pytest.param(
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1,2(x2)", "SLURM_NODEID": "2",
                     "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": EIGHT},
            [4, 5, 6, 7], id="slurm, two tasks on the third node",
        ),
        pytest.param(
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_LOCALID": "3",
                     "CUDA_VISIBLE_DEVICES": "3"},
            [], id="slurm, bound to its GPU",
        ),
        pytest.param(
            {k: v for k, v in SLURM.items() if k != "SLURM_GPUS_ON_NODE"}
            | {"SLURM_STEP_TASKS_PER_NODE": "8"},
            None, id="slurm, unknown GPUs",
        ),
        pytest.param(OPEN_MPI, [], id="open mpi, a process a node"),
        pytest.param(
            OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                        "CUDA_VISIBLE_DEVICES": EIGHT},
            [4, 5, 6, 7], id="open mpi, two",
        ),
        pytest.param(SLURM | {"JAX_LOCAL_DEVICE_IDS": "2"}, None, id="the user's choice"),
    ],
)  # fmt: skip
def test_the_gpus_of_a_process(environment, expected):
    assert local_device_ids(environment) == expected


def test_processes_that_cannot_share_the_gpus():
    environment = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3"}
    with pytest.raises(ValueError, match="3 processes cannot share 8 GPUs evenly"):
        local_device_ids(environment)


# JAX's own detection runs; only the connection is left out. What it would restrict is recorded.
JOIN = """
import json, sys
import jax
from jax._src import distributed
import jax._src.clusters.cluster as cluster, jax._src.clusters.cloud_tpu_cluster as tpu
cluster.running_in_cloud_tpu_vm = tpu.running_in_cloud_tpu_vm = sys.argv[1] == "tpu"
class Client:
    def connect(self): pass
    def shutdown(self): pass
    def key_value_try_get(self, key): raise jax.errors.JaxRuntimeError("NOT_FOUND: nothing")
distributed._jax.get_distributed_runtime_client = lambda *_, **__: Client()
distributed._jax.get_distributed_runtime_service = lambda *_, **__: Client()
from clipseg_jax.core import processes
processes.initialize(*json.loads(sys.argv[2]))
state = distributed.global_state
from jax._src import xla_bridge
visible = xla_bridge.CUDA_VISIBLE_DEVICES.value
print(json.dumps([state.coordinator_address.split(":")[0], state.num_processes, state.process_id,
                  visible]))
"""


def join(environment, arguments=(), kind=""):
    done = subprocess.run(
        [sys.executable, "-c", JOIN, kind, json.dumps(arguments)],
        cwd=ROOT, env=clean() | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def clean():
    """This environment without what a cluster may have set."""
    ours = ("SLURM_", "OMPI_", "TPU_", "KUBERNETES_", "CUDA_", "XLA_FLAGS", "JAX_COMPILATION")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | {
        "JAX_PLATFORMS": "cpu"
    }


@pytest.mark.parametrize(
    ("environment", "arguments", "kind", "expected"),
    [
        pytest.param(SLURM, (), "", ["localhost", 4, 0, "all"], id="slurm"),
        pytest.param(
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_PROCID": "1",
                     "SLURM_LOCALID": "1"},
            (), "", ["localhost", 4, 1, "4,5,6,7"], id="slurm, two a node",
        ),
        pytest.param(OPEN_MPI, (), "", ["127.0.0.1", 4, 0, "all"], id="open mpi"),
        pytest.param(TPU_POD, (), "tpu", ["localhost", 2, 0, "all"], id="tpu pod"),
        pytest.param(JOBSET, ("here:8476", 4, 1), "", ["here", 4, 1, "all"], id="jobset"),
    ],
)  # fmt: skip
def test_joining(environment, arguments, kind, expected):
    assert join(environment, arguments, kind) == expected


def test_two_real_processes_say_what_they_are():
    """Under Slurm's variables, with a port of this test."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = (
        "import jax; jax.config.update('jax_num_cpu_devices', 2)\n"
        "from clipseg_jax.core import processes\n"
        "processes.initialize(); print(processes.describe())\n"
        "processes.end_together(lambda: 0)"
    )
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env=clean() | SLURM | {
                "SLURM_NTASKS": "2", "SLURM_PROCID": str(i), "SLURM_NODEID": str(i),
                "JAX_COORDINATOR_PORT": str(port),
            },
        )
        for i in range(2)
    ]  # fmt: skip
    for task in tasks:
        text, _ = task.communicate(timeout=120)
        assert task.returncode == 0
        assert "2 processes, 4 devices: cpu" in text


def test_some_of_the_arguments():
    with pytest.raises(ValueError, match="pass all of --coordinator, --processes and --process"):
        processes.initialize("localhost:1", None, 0)
    with pytest.raises(ValueError, match=r"--process 4 is not in 0\.\.3"):
        processes.initialize("localhost:1", 4, 4)
