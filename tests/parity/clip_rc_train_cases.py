"""CLIP-RC's training steps against the published code; driven by the case's json."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipseg_jax.core.optim import learning_rate, optimizer
from clipseg_jax.methods.clip_rc import task as clip_rc
from clipseg_jax.methods.clip_rc.loss import mask_losses
from clipseg_jax.train_step import TrainState, make_update, split_model
from tests import seeded
from tests.methods.clip_rc.tiny import OPTIM
from tests.parity import cases
from tests.parity import clip_rc_models as models
from weights_convert.trained.clip_rc.keys import CLIP_RC


def check_train(case, arrays, goldens, monkeypatch):
    """The loop's own update, in both settings: losses, gradients, parameters."""
    seen = tuple(case["reference_config"]["base_class"])
    weight = case["loss_config"]
    assert not weight["loss_weight"] - 1
    cfg = clip_rc.CLIPRCTaskConfig(
        setting="transductive" if case["self_training"] else "inductive",
        seen=seen,
        mask_weight=weight["mask_weight"],
        dice_weight=weight["dice_weight"],
        recovery_weight=weight["recovery_loss_weight"],
    )
    task = clip_rc.build(models.model(case, goldens), cfg)
    seen_by_loss: list = []
    monkeypatch.setattr(
        clip_rc, "mask_losses", lambda *a: (seen_by_loss.append(a[1]), mask_losses(*a))[1]
    )

    def loss(*args):
        value, metrics = task.loss(*args)
        return value, metrics | {"labels": seen_by_loss.pop()}

    tx = optax.chain(_keep(), optimizer(OPTIM, case["max_iters"]))
    parts = split_model(task)
    update = jax.jit(make_update(task._replace(loss=loss), parts, tx), donate_argnums=0)
    first, zero = case["iterations"][0], jnp.zeros((), jnp.int32)
    state = TrainState(zero, parts.params, parts.stats, _at(tx.init(parts.params), first), zero)
    state = jax.tree.map(jnp.copy, state)  # each its own memory, which the steps reuse
    batch = _batch(case)
    begin, steps = published(parts.params), len(case["iterations"])
    names = [name for name in case["grad_names"] if "multihead_attn.k.bias" not in name]
    assert sorted(case["grad_names"]) == sorted(begin)
    picked = [case["grad_names"].index(name) for name in names]  # true gradients of others are 0
    terms = ("loss_mask", "loss_dice", "recovery_loss_q", "recovery_loss_k", "loss")
    places = [i for i, name in enumerate(case["loss_names"]) if not name.endswith("acc_seg")]
    assert [case["loss_names"][i].removeprefix("decode.") for i in places] == [*terms]
    (accuracy,) = {*range(len(case["loss_names"]))} - {*places}
    for step in range(steps):
        state, metrics = update(state, parts.frozen, batch)
        made = [metrics[name] for name in terms]
        # Later steps: Adam makes as much of small gradients, rounding and all, as of large ones.
        bound = 3e-6 if step == 0 else 5e-5
        expected = arrays["loss"][step]
        np.testing.assert_allclose(made, expected[places], rtol=bound, err_msg=f"step {step}")
        # In percent of pixels, that may differ as labels may.
        assert abs(metrics["pixel_accuracy"] - expected[accuracy]) <= 100 * (1 - cases.LABELS)
        if step == 0:
            cases.same_labels(metrics["labels"], arrays["labels"], name="labels")
            gradient = published(state.opt_state[0])
            norms = np.asarray([np.linalg.norm(gradient[name]) for name in names])
            np.testing.assert_allclose(norms, arrays["grad_norm"][picked], rtol=1.6e-4)
            for name in [name for name in names if f"grad:{name}" in arrays]:
                expected = arrays[f"grad:{name}"]
                value = _slice(gradient[name], case["arrays"][f"grad:{name}"]["meaning"])
                # Of the largest; attention's gradients are small differences of large sums.
                cases.near(value, expected, share=2e-4, name=f"gradient of {name}")
    rates = np.asarray(
        [float(learning_rate(OPTIM, case["max_iters"])(i)) for i in case["iterations"]]
    )
    np.testing.assert_allclose(rates, arrays["lr"], rtol=cases.ULPS)
    end = published(state.params)
    for name in [n.removeprefix("param3:") for n in arrays if n.startswith("param3:")]:
        off = np.abs(
            _slice(end[name], case["arrays"][f"param3:{name}"]["meaning"])
            - arrays[f"param3:{name}"]
        )
        # Two units in the last place of weights of 1 to 2, in steps of up to 2.5e-5 in all; where a
        # gradient is nearly zero, Adam makes a full step of its sign.
        assert np.mean(off <= 5e-7) >= 0.99, f"{name} after {steps} steps: {np.sort(off)[-5:]}"
        assert off.max() <= 2 * rates.sum(), f"{name} after {steps} steps: {off.max()}"
    moved = np.asarray([np.linalg.norm(end[name] - begin[name]) for name in names])
    np.testing.assert_allclose(moved, arrays["delta_norm"][picked], rtol=7e-3)


def _slice(value, meaning):
    """ "flattened [::30][:256]" of an array."""
    step, count = map(int, re.search(r"flattened \[::(\d+)\]\[:(\d+)\]", meaning).groups())
    return np.asarray(value).reshape(-1)[::step][:count]


def _keep():
    """A transformation whose state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, state, params=None: (g, g)
    )


def _at(opt_state, iteration):
    """An optimiser's fresh state whose schedule stands at an iteration."""
    kind = optax.ScaleByScheduleState
    return jax.tree.map(
        lambda x: kind(jnp.asarray(iteration, jnp.int32)) if isinstance(x, kind) else x,
        opt_state,
        is_leaf=lambda x: isinstance(x, kind),
    )


def _batch(case):
    images = models.pictures(case)
    told = r"seeded\.label_map\((\d+),(\d+),(\d+),seed=(\d+)\+i\)"
    height, width, classes, seed = map(int, re.search(told, case["inputs"]).groups())
    labels = [seeded.label_map(height, width, classes, seed + i) for i in range(len(images))]
    return {
        "image": jnp.asarray(images),
        "image_size": jnp.asarray([(height, width)] * len(images)),
        "label": jnp.asarray(np.stack(labels), jnp.int32),
    }


def published(tree):
    """Parameters as a nested dictionary, by published key and in PyTorch's layout."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return CLIP_RC.to_left(
        {".".join(str(part.key) for part in path): np.asarray(leaf) for path, leaf in flat}
    )
