"""The training loop: values, resuming, interruption, shardings."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.core.interrupt import Interrupted
from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.optim import Group, OptimConfig
from clipseg_jax.train import Evaluated, NonFiniteError, TrainConfig, train
from tests import toy_task

OPTIM = OptimConfig(learning_rate=0.1, hold_steps=4)
SHORT = TrainConfig(total_steps=12, log_every_steps=3, checkpoint_every_steps=5)


def run(workdir, cfg=SHORT, *, optim=OPTIM, devices=1, fsdp=1, data=toy_task.batches, **options):
    mesh = make_mesh(devices, fsdp)
    return train(
        toy_task.build(), data, optim, cfg, mesh=mesh, workdir=workdir, name="toy", **options
    )


def flat(model):
    return {
        ".".join(map(str, path)): np.asarray(leaf[...])
        for path, leaf in nnx.to_flat_state(nnx.state(model))
    }


def assert_same(a, b, **bounds):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        if bounds:
            np.testing.assert_allclose(value, b[name], err_msg=name, **bounds)
        else:
            np.testing.assert_array_equal(value, b[name], err_msg=name)


def test_the_updates_are_pytorch_sgd(tmp_path):
    """Three steps by hand: decay joins the gradient, momentum has no dampening, poly rate."""
    cfg = dataclasses.replace(SHORT, total_steps=3)
    optim = OptimConfig(learning_rate=0.1, weight_decay=0.01)
    trained = run(tmp_path, cfg, optim=optim).model
    task = toy_task.build()
    names = ("head.kernel", "head.bias", "norm.scale", "norm.bias")
    speed = dict.fromkeys(names, 0.0)
    model = task.model
    rows = toy_task.batches(0)
    for step in range(3):
        batch = {k: jnp.asarray(v) for k, v in next(rows).items()}
        key = jax.random.fold_in(jax.random.key(0), step)
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, graph=graph, rest=rest, batch=batch, key=key, step=step):
            model_copy = nnx.merge(graph, params, rest, copy=True)
            value, _ = toy_task.loss(model_copy, batch, key, step)
            return value, nnx.state(model_copy, nnx.BatchStat)

        grads, stats = jax.grad(loss, has_aux=True)(params)
        nnx.update(model, stats)
        rate = 0.1 * (1 - step / 3) ** 0.9
        for name in names:
            module, leaf = name.split(".")
            parameter = getattr(getattr(model, module), leaf)
            speed[name] = 0.9 * speed[name] + grads[module][leaf][...] + 0.01 * parameter[...]
            parameter[...] = parameter[...] - rate * speed[name]
    assert_same(trained, model, rtol=1e-5, atol=1e-7)


def test_groups_have_their_own_rate_and_decay(tmp_path):
    cfg = dataclasses.replace(SHORT, total_steps=2)
    still = OptimConfig(learning_rate=0.1, groups=(Group(r"^head\.", rate=0.0),))
    before, after = flat(toy_task.build().model), flat(run(tmp_path, cfg, optim=still).model)
    for name, value in before.items():
        moved = name.startswith("norm.")
        assert np.array_equal(value, after[name]) != moved, name


def test_a_stopped_run_resumes_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole")

    def killed(step):
        def data(start):
            for i, batch in enumerate(toy_task.batches(start), start):
                if i == step:
                    raise RuntimeError("killed")
                yield batch

        return data

    for step in (2, 7, 11):
        with pytest.raises(RuntimeError, match="killed"):
            run(tmp_path / "broken", data=killed(step))
    again = run(tmp_path / "broken")
    assert_same(whole.model, again.model)
    lines = [json.loads(x) for x in (tmp_path / "broken/toy.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert lines[-1]["loss"] == json.loads(
        (tmp_path / "whole/toy.jsonl").read_text().splitlines()[-1]
    )["loss"]  # fmt: skip
    # Once more, as after a kill between the last checkpoint and what follows it.
    assert run(tmp_path / "broken").metrics == again.metrics == whole.metrics


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, number):
    def data(start):
        for i, batch in enumerate(toy_task.batches(start), start):
            if i == 6:
                os.kill(os.getpid(), number)
            yield batch

    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match="saved at step 7 of 12") as stopped:
        run(tmp_path / "a", data=data)
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) == handler
    assert_same(run(tmp_path / "a").model, run(tmp_path / "b").model)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    names = [f"image{i}" for i in range(200)]
    with pytest.raises(NonFiniteError, match=r"nan .* step 9, .*image64.* of step 5"):
        run(tmp_path, data=lambda s: toy_task.batches(s, poison=8), example_names=names)
    assert_same(run(tmp_path).model, run(tmp_path / "clean").model)


def test_the_best_evaluation_is_kept(tmp_path):
    cfg = dataclasses.replace(SHORT, evaluate_every_steps=4)
    scores, evaluated = {4: 1.0, 8: 3.0, 12: 2.0}, {}

    def evaluate(model, step):
        evaluated[step] = flat(model)
        return Evaluated({"mIoU": scores[step]})

    done = run(tmp_path, cfg, evaluate=evaluate)
    assert list(evaluated) == [4, 8, 12]
    assert done.metrics["best"] == {"step": 8, "chosen_by": "mIoU", "mIoU": 3.0}
    for name, value in flat(done.best).items():
        np.testing.assert_array_equal(value, evaluated[8][name])
    # Again: nothing is trained or evaluated, the same is returned.
    evaluated.clear()
    again = run(tmp_path, cfg, evaluate=evaluate)
    assert not evaluated
    assert_same(again.best, done.best)
    assert again.metrics["best"] == done.metrics["best"]


def test_accumulation_is_the_mean_of_parts(tmp_path):
    """With statistics that don't depend on the parts, k parts are one batch."""

    def fixed(model, batch, key, step):
        logits = model(batch["x"], train=False)
        log = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(log, batch["y"][:, None], axis=1)), {}

    def go(folder, parts):
        task = toy_task.build()._replace(loss=fixed)
        cfg = dataclasses.replace(SHORT, accumulate_steps=parts)
        return train(
            task, toy_task.batches, OPTIM, cfg, mesh=make_mesh(2), workdir=folder, name="toy"
        ).model

    assert_same(go(tmp_path / "a", 1), go(tmp_path / "b", 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("devices", "fsdp"), [(4, 1), (4, 2), (8, 8)])
def test_any_layout_gives_the_same(tmp_path, devices, fsdp, monkeypatch):
    monkeypatch.setattr("clipseg_jax.core.mesh._MIN_SHARDED", 1)
    one = run(tmp_path / "one")
    many = run(tmp_path / "many", devices=devices, fsdp=fsdp)
    assert_same(one.model, many.model, rtol=1e-5, atol=1e-6)
    # A checkpoint can be resumed with any other number of devices.
    short = dataclasses.replace(SHORT, total_steps=7)
    cut = tmp_path / "cut"
    held = dataclasses.replace(OPTIM, schedule_steps=12)
    run(cut, short, devices=devices, fsdp=fsdp, optim=held)
    assert_same(one.model, run(cut, optim=held).model, rtol=1e-5, atol=1e-6)


def test_a_damaged_checkpoint_is_put_aside(tmp_path, caplog):
    whole = run(tmp_path / "whole")
    cut = dataclasses.replace(SHORT, total_steps=11, checkpoint_every_steps=5)
    held = dataclasses.replace(OPTIM, schedule_steps=12)
    run(tmp_path / "cut", cut, optim=held)
    newest = tmp_path / "cut/checkpoints/toy/11"
    largest = max(newest.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(bytes(data))
    assert_same(whole.model, run(tmp_path / "cut", optim=held).model)
    assert "11 is damaged" in caplog.text
    assert (newest.parent / "11.damaged").exists()


def test_what_users_get_wrong(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match="seed 0, not 3"):
        run(tmp_path, dataclasses.replace(SHORT, seed=3))
    with pytest.raises(ValueError, match="8 rows is not divisible by 3 devices"):
        run(tmp_path / "b", devices=3)
    with pytest.raises(ValueError, match="selects no parameter"):
        train(
            toy_task.build()._replace(trainable=lambda path: False), toy_task.batches, OPTIM,
            SHORT, mesh=make_mesh(1), workdir=tmp_path / "c", name="toy",
        )  # fmt: skip
    with pytest.raises(ValueError, match="unknown schedule"):
        run(tmp_path / "d", optim=OptimConfig(schedule="linear"))


def test_the_log_says_where_the_time_goes(tmp_path):
    def slow(start):
        for batch in toy_task.batches(start):
            time.sleep(0.05)
            yield batch

    cfg = dataclasses.replace(SHORT, total_steps=12, checkpoint_every_steps=4)
    run(tmp_path, cfg, data=slow)
    first, *lines = [json.loads(x) for x in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert first["checkpoint_seconds"] == 0  # none before step 3
    for line in lines:
        passed = 24 / line["images_per_second"]  # of three steps of 8 images
        assert 3 * 0.05 < line["data_wait"] * passed < passed
        assert line["checkpoint_seconds"] > 0 or line["step"] == 12
        # Checkpoints are no steps.
        assert passed == pytest.approx(3 * line["step_seconds"] + line["checkpoint_seconds"])


def traces(workdir):
    return sorted((workdir / "profile/toy").rglob("*.xplane.pb"))


def test_a_window_of_steps_is_traced(tmp_path):
    cfg = dataclasses.replace(SHORT, profile_steps=(5, 7))
    whole = run(tmp_path / "plain")
    assert_same(run(tmp_path / "traced", cfg).model, whole.model)
    assert len(traces(tmp_path / "traced")) == 1
    assert not traces(tmp_path / "plain")
    run(tmp_path / "short", dataclasses.replace(SHORT, profile_steps=(13, 20)))
    assert not traces(tmp_path / "short")
    for wrong in ((3,), (0, 2), (5, 4)):
        with pytest.raises(ValueError, match="profile_steps"):
            dataclasses.replace(SHORT, profile_steps=wrong)


def test_a_run_that_stops_while_it_is_traced_resumes(tmp_path):
    def data(start):
        for i, batch in enumerate(toy_task.batches(start), start):
            if i == 6:
                raise RuntimeError("killed")
            yield batch

    cfg = dataclasses.replace(SHORT, profile_steps=(5, 9))
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "a", cfg, data=data)
    assert len(traces(tmp_path / "a")) == 1
    time.sleep(1.1)  # traces are named after the second in which they end
    assert_same(run(tmp_path / "a", cfg).model, run(tmp_path / "b").model)
    assert len(traces(tmp_path / "a")) == 2
