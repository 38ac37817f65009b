"""MaskCLIP+ against the published code: the training cases of the `maskclip` goldens.

Everything is read from the case's json. Its bounds: ten times the deviation of the published code's
own float32 run from its float64 run, at least 1e-5 of the array's largest value; labels likewise.
Where a ReLU's sign flips by rounding gradients jump, not in ours and theirs alike: the largest such
jump among the gradients of the case is allowed in all, and what it makes of the parameters.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipseg_jax.core.optim import learning_rate, optimizer
from clipseg_jax.inference import image_scores
from clipseg_jax.methods.maskclip_plus import task as maskclip_plus
from clipseg_jax.train_step import TrainState, make_update, split_model
from tests.parity import cases
from tests.parity import maskclip_plus_models as models
from tests.parity.test_maskclip import inference, labels_at

FOLDER = models.FOLDER
ONLY = ("train_",)
SLOW = ONLY
# Minutes of compiling each; one stays.
LONG = ("train_annofree_r50", "train_distill", "train_zeroshot")
TIMES, FLOOR = 10, 1e-5  # the json's
LABEL_FLOOR = 1 - cases.LABELS  # the json's is 2e-3


def test_case(path, goldens):
    case, arrays = cases.load(path)
    model = models.build(case, arrays["text_embeddings"], goldens)
    cfg = models.choices(case)
    task = maskclip_plus.build(model, cfg)

    def loss(model, batch, key, step):
        """The task's, and what it saw."""
        seen = maskclip_plus.teacher_targets(model, batch, step, cfg)
        value, metrics = maskclip_plus.loss(seen, cfg)
        return value, metrics | {"logits": seen.logits, "labels": seen.labels}

    told = models.optim(case)
    tx = optax.chain(keep(), optimizer(told, case["max_iters"]))
    parts = split_model(task)
    update = jax.jit(make_update(task._replace(loss=loss), parts, tx), donate_argnums=0)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, parts.params, parts.stats, tx.init(parts.params), zero)
    state = jax.tree.map(jnp.copy, state)  # each its own memory, which the steps reuse
    names = case["param_names"]
    assert set(names) == set(of(state.params))
    batch = models.batch(case, arrays["labels"])
    rate = learning_rate(told, case["max_iters"])
    check = Check(case, arrays)
    for s, count in enumerate(case["iteration_counters"]):
        state = at_step(state, count - 1)
        np.testing.assert_allclose(rate(count - 1), arrays["lr"][s], rtol=cases.ULPS)
        state, metrics = update(state, parts.frozen, batch)
        check.labels(f"pseudo{s}", metrics["labels"])
        picked = cases.steps(case["arrays"][f"seg{s}"]["meaning"])
        check(f"seg{s}", cases.nchw(metrics["logits"])[picked])
        for name in ("loss_ce", "acc_seg", "loss_distill"):
            if name in arrays:
                check(name, metrics[name], s)
        gradient, params = of(state.opt_state[0]), of(state.params)
        check(f"grad_norms_{s}", [np.linalg.norm(gradient[name]) for name in names])
        for name in names:
            for kind, value in ((f"grad{s}", gradient[name]), (f"param{s}", params[name])):
                if f"{kind}:{name}" in arrays:
                    check(f"{kind}:{name}", models.thinned(name, value))
        stats = of(state.stats)
        for name in (f"bn_mean{s}", f"bn_var{s}"):
            key = re.match(r"\S+", case["arrays"][name]["meaning"]).group()
            check(name, models.thinned(key, stats[key]))
        del gradient, params, stats
    trained = parts.model(state.params, state.stats, parts.frozen)
    check.labels("eval_label", evaluated(task._replace(model=trained), batch, arrays))
    check.finish()


class Check:
    """Compares with arrays of the case, and complains about all at once."""

    def __init__(self, case, arrays):
        self._noise, self._arrays, self._wrong = case["float32_vs_float64"], arrays, []
        gradients = [v for k, v in self._noise.items() if k.startswith("grad0:")]
        self._jump = max(relative for _, relative in gradients)
        self._seen = {"text_embeddings", "labels", "lr"}

    def __call__(self, name, made, index=...):
        expected = np.asarray(self._arrays[name])
        bound = self._bound(name)
        made, expected = np.asarray(made, np.float64), expected[index]
        assert made.shape == expected.shape, f"{name}: {made.shape}, wanted {expected.shape}"
        self._note(name, np.max(np.abs(made - expected)), bound)

    def _bound(self, name):
        top = np.abs(self._arrays[name]).max()
        own = max(TIMES * self._noise[name][0], FLOOR * top)
        if name.startswith("grad0:"):
            return max(own, self._jump * top)
        if name.startswith("param"):  # momentum doubles a step at most, in these few
            kind, key = name.split(":")
            step = 2 * self._arrays["lr"][: int(kind[5:]) + 1].sum()
            return max(own, step * self._bound(f"grad0:{key}"))
        return own

    def labels(self, name, made):
        expected = self._arrays[name]
        made = np.asarray(made)
        assert made.shape == expected.shape, f"{name}: {made.shape}, wanted {expected.shape}"
        bound = max(TIMES * (1 - self._noise[name][0]), LABEL_FLOOR)
        self._note(name, np.mean(made != expected), bound)

    def _note(self, name, worst, bound):
        self._seen.add(name)
        print(f"{name}: {worst:.2e} of {bound:.2e}")
        if not worst <= bound:
            self._wrong.append(f"{name}: differs by {worst:.2e}, at most {bound:.2e} allowed")

    def finish(self):
        assert not self._wrong, "\n".join(self._wrong)
        assert self._seen == set(self._arrays)


def keep():
    """A transformation whose state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, state, params=None: (g, g)
    )


def of(tree):
    """Arrays of the student and the background by published key; of the teacher nothing."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {".".join(str(part.key) for part in path): leaf for path, leaf in flat}
    return models.published({k: v for k, v in named.items() if not k.startswith("teacher.")})


def at_step(state, step):
    """The state as if `step` updates were done, for the loss and the learning rate."""
    count = jnp.asarray(step, jnp.int32)

    def moved(leaf):
        is_count = isinstance(leaf, optax.ScaleByScheduleState)
        return leaf._replace(count=count.copy()) if is_count else leaf

    opt_state = jax.tree.map(
        moved, state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState)
    )
    return state._replace(step=count, opt_state=opt_state)


def evaluated(task, batch, arrays):
    """Labels of the first image, seen whole in a padded batch, at the size of `eval_label`."""
    image = np.asarray(batch["image"][0])
    size = image.shape[:2]
    padded = np.full((1, size[0] + 9, size[1] + 22, 3), 77, np.uint8)
    padded[0, : size[0], : size[1]] = image
    sizes = jnp.asarray([size])
    cfg = inference()

    @jax.jit
    def scores(model, padded):
        shape = padded.shape[1:3]
        return image_scores(task, model, padded, sizes, sizes, shape, cfg, rescale=False)

    view = scores(task.model, jnp.asarray(padded))
    return labels_at(view, size, arrays["eval_label"].shape, cfg)
