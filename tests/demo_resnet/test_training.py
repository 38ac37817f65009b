"""The tiny ResNet's recipe learns, and the committed weights are worth starting from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.demo import TINY_RESNET, world
from clipseg_jax.demo_resnet import gates, pictures, training
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from clipseg_jax.train import TrainConfig, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures.load(tmp_path_factory.mktemp("pictures") / "p.npz", 500)


def test_pictures_and_their_labels(data):
    first = world.make("backbone", 0, pictures.SIDE_PX)
    np.testing.assert_array_equal(data.images[0], first.image)
    assert [*data.present[0]] == [name in first.classes for name in world.CLASSES]
    assert data.present.any(axis=0).all()


def test_each_epoch_has_all_pictures_once_and_an_order_of_its_own(data):
    stream = pictures.batches(data, 100, 0, 0)
    epochs = [np.concatenate([next(stream)["index"] for _ in range(5)]) for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [[*range(500)]] * 2
    assert not np.array_equal(*epochs)
    later = next(pictures.batches(data, 100, 0, 7))["index"]
    np.testing.assert_array_equal(later, epochs[1][200:300])


def test_the_soft_maximum_is_between_mean_and_maximum():
    scores = jax.random.normal(jax.random.key(0), (3, 4, 5, 2))
    pooled = training.soft_maximum(scores)
    assert bool(jnp.all(pooled > scores.mean((1, 2))))
    assert bool(jnp.all(pooled < scores.max((1, 2))))
    same = jnp.broadcast_to(jnp.asarray([2.0, -3.0]), (1, 4, 5, 2))
    np.testing.assert_allclose(training.soft_maximum(same)[0], [2.0, -3.0], atol=1e-5)


def test_views_differ_and_keep_what_a_picture_shows(data):
    image = jnp.asarray(data.images[0])
    views = jax.vmap(training.view, (None, 0))(image, jax.random.split(jax.random.key(0), 8))
    assert views.shape == (8, pictures.SIDE_PX, pictures.SIDE_PX, 3)
    black, white = (
        normalize(jnp.full((1, 1, 3), v, jnp.uint8), IMAGENET_MEAN, IMAGENET_STD) for v in (0, 255)
    )
    assert bool(jnp.all((views >= black - 1e-4) & (views <= white + 1e-4)))
    assert float(jnp.std(views, axis=0).mean()) > 0.1


@pytest.mark.long
def test_training_learns(data, tmp_path):
    task = training.build(0)
    losses = []
    for steps in (1, 40):
        config = TrainConfig(steps, 0, log_every_steps=1)
        trained = train(
            training.build(0),
            lambda start: pictures.batches(data, 16, 0, start),
            OptimConfig("adamw", 2e-3),
            config,
            mesh=make_mesh(1),
            workdir=tmp_path / str(steps),
            name="train",
        )
        batch = {"image": jnp.asarray(data.images[:64]), "present": jnp.asarray(data.present[:64])}
        losses.append(float(task.loss(trained.model, batch, jax.random.key(1), 0)[0]))
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.slow
def test_the_committed_weights():
    assert TINY_RESNET.stat().st_size < 3 * 2**20
    trained = gates.object_patches(gates.trained(), 60)
    control = gates.object_patches(gates.untrained(), 60)
    assert trained > 0.55
    assert control < trained - 0.3
