"""An interrupted run that an earlier version stored is resumed."""

from __future__ import annotations

import shutil

import numpy as np
from flax import nnx

from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.train import TrainConfig, train
from tests import toy_task
from tests.weights_convert import toys

STORED = toys.GOLDEN / "stored"


def test_the_checkpoint_resumes(tmp_path):
    """From step 2 on, to the parameters of the unbroken run, momentum included."""
    shutil.copytree(STORED / "run", tmp_path / "run")
    first_steps = []

    def batches(start):
        first_steps.append(start)
        return toy_task.batches(start)

    trained = train(
        toy_task.build(),
        batches,
        OptimConfig(learning_rate=0.1, hold_steps=4),
        TrainConfig(total_steps=4, log_every_steps=1, checkpoint_every_steps=2),
        mesh=make_mesh(1, 1),
        workdir=tmp_path / "run",
        name="toy",
    )
    assert first_steps == [2]
    assert not [*(tmp_path / "run/checkpoints/toy").glob("*.damaged")]
    state = nnx.to_flat_state(nnx.state(trained.model))
    with np.load(STORED / "run_after_4_steps.npz") as expected:
        assert len(state) == len(expected.files)
        for path, leaf in state:
            name = ".".join(map(str, path))
            np.testing.assert_allclose(
                leaf[...], expected[name], rtol=1e-6, atol=1e-7, err_msg=name
            )
