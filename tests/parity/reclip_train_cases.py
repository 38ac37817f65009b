"""ReCLIP's rectification steps against the published code; driven by the case's json."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from clipseg_jax.core.optim import OptimConfig, optimizer
from clipseg_jax.methods.reclip import task as reclip
from clipseg_jax.methods.reclip.loss import rectification_loss
from clipseg_jax.methods.reclip.tags import tag_matrix
from tests import seeded
from tests.parity import cases, reclip_models
from weights_convert.trained.reclip.keys import RECTIFICATION

# The masks are an argmax of strongly scaled logits: rounding grows in the gradients. They may
# differ from the float64 run by so many times what the published code's own float32 run does (the
# case's json), between these two; the json itself allows the greater.
TIMES = 10


def check_train(
    case: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    goldens: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All steps through `Task.loss` and our optimiser; the noise comes in the key's place."""
    model = reclip_models.build(case, goldens)
    model.cfg = dataclasses.replace(model.cfg, norm_over="batch")
    assert model.cfg.gumbel_scale == case["gumbel_scale"]
    mean, std = reclip_models.statistics(case["inputs"]["images"])
    task = reclip.build(model, mean=mean, std=std)
    made: list = []  # what the loss was made of, inside the traced step

    def spy(logits, *args, **kwargs):
        made.append((logits, rectification_loss(logits, *args, **kwargs)))
        return made[-1][1]

    monkeypatch.setattr(reclip, "rectification_loss", spy)
    monkeypatch.setattr(reclip, "gumbel_noise", lambda key, shape: key.reshape(shape))

    def owned(path: tuple, variable: object) -> bool:
        return isinstance(variable, nnx.Param) and task.trainable(".".join(map(str, path)))

    graph, params, stats, rest = nnx.split(model, owned, nnx.BatchStat, ...)
    sgd = _optimizer(case["optimizer"])

    @jax.jit
    def step(params, stats, rest, slots, batch, noise):
        def loss(params):
            model = nnx.merge(graph, params, stats, rest, copy=True)
            value, _ = task.loss(model, batch, noise, jnp.asarray(0))
            return value, (nnx.state(model, nnx.BatchStat), made.pop())

        (value, (stats, parts)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, slots = sgd.update(gradient, slots, params)
        return optax.apply_updates(params, updates), stats, slots, value, gradient, parts

    slots, first = sgd.init(params), _published(params)
    assert sorted(first) == sorted(case["trained_parameters"])
    last = len(case["inputs"]["gt_cls"]) - 1
    for s, tagged in enumerate(case["inputs"]["gt_cls"]):
        batch, noise = _batch(case, s, tagged), _noise(case, s, model, len(tagged))
        params, stats, slots, value, gradient, (logits, parts) = step(
            params, stats, rest, slots, batch, noise
        )
        np.testing.assert_allclose(value, arrays[f"loss_step{s}"], rtol=1e-6)
        np.testing.assert_allclose(parts.per_image, arrays[f"per_image_ce_step{s}"], rtol=4e-6)
        if s == 0:
            _check_masks(case, arrays, tagged, noise, logits, parts)
            _check_vectors(case, arrays, "grad", _published(gradient), "grad_norms_step0")
        if s in (0, last):
            now = _published(params)
            moved = {key: now[key] - first[key] for key in now}
            name = "delta" if s == last else None
            _check_vectors(case, arrays, name, moved, f"delta_norms_after_step{s}")
    buffers = _published(stats)
    for name in (n for n in arrays if n.startswith("bn.") and not n.endswith("batches_tracked")):
        expected = arrays[name]
        share = max(_share(case, name), min(_jump(case), 1e-4))  # the parameters' jumps
        cases.near(buffers[name.removeprefix("bn.")], expected, share=share, name=name)


def _optimizer(told: dict[str, Any]) -> optax.GradientTransformation:
    assert (told["type"], told["nesterov"], told["dampening"]) == ("SGD", False, 0)
    cfg = OptimConfig(
        learning_rate=told["lr"],
        schedule="constant",
        momentum=told["momentum"],
        weight_decay=told["weight_decay"],
    )
    return optimizer(cfg, total_steps=1)


def _batch(case: dict[str, Any], step: int, tagged: list[list[int]]) -> dict[str, jax.Array]:
    pattern = r"seeded\.image\((\d+), (\d+), (\d+) \+ (\d+)\*s \+ i\)"
    height, width, base, stride = map(int, re.search(pattern, case["inputs"]["images"]).groups())
    seeds = [base + stride * step + i for i in range(len(tagged))]
    return {
        "image": jnp.asarray(np.stack([seeded.image(height, width, seed) for seed in seeds])),
        "image_size": jnp.asarray([(height, width)] * len(tagged)),
        "tags": jnp.asarray(tag_matrix(tagged, case["num_classes"])),
    }


def _noise(case: dict[str, Any], step: int, model: Any, b: int) -> jax.Array:
    """(b, h * w, c), by the case's recipe."""
    recipe = r'RandomState\(\[(\d+), zlib\.crc32\(b"(\w+)<s>"\)\]\)'
    seed, name = re.search(recipe, case["inputs"]["gumbel"]).groups()
    height, width = re.search(r"seeded\.image\((\d+), (\d+),", case["inputs"]["images"]).groups()
    rows, columns = model.visual.grid_shape(int(height), int(width))
    state = np.random.RandomState([int(seed), zlib.crc32(f"{name}{step}".encode())])
    drawn = state.standard_exponential((b, rows * columns, case["num_classes"]))
    return jnp.asarray(-np.log(drawn.astype(np.float32)))


def _check_masks(case, arrays, tagged, noise, logits, parts) -> None:
    cases.near(noise, arrays["gumbel_noise_step0"], share=cases.ULPS, name="noise")
    share = _share(case, "output_step0")
    cases.near(cases.nchw(logits), arrays["output_step0"], share=share, name="output_step0")
    chosen = np.argmax(parts.masks, axis=-1)
    cases.same_labels(chosen, arrays["mask_index_step0"], name="mask_index_step0")
    for i, ids in enumerate(tagged):
        name = f"similarity_step0_image{i}"
        made = parts.similarities[i, jnp.asarray(ids)]
        cases.near(made, arrays[name], share=_share(case, name), name=name)


def _published(state: nnx.State) -> dict[str, np.ndarray]:
    """Arrays by the published keys, in PyTorch's layout."""
    found = {path: np.asarray(leaf) for path, leaf in reclip_models.flat(state).items()}
    return RECTIFICATION.to_left(found)


def _check_vectors(case, arrays, name, made, norms) -> None:
    """Norms of all arrays, and unless `name` is None the elements of each that the goldens keep."""
    lengths = [np.linalg.norm(made[key]) for key in case["trained_parameters"]]
    _compare(case, arrays, norms, lengths)
    for key, value in made.items() if name else ():
        value = value.ravel()
        index = np.arange(min(64, value.size)) * (value.size // 64 + 1) % value.size
        _compare(case, arrays, f"{name}.{key}", value[index])


def _share(case, name) -> float:
    """Of an array's largest value: by what the case states that float32 does to it."""
    return max(cases.FORWARD, TIMES * case["f32_vs_f64_relative_l2"][name])


def _jump(case) -> float:
    """The largest distance of a gradient, but of those that are zero."""
    told = case["f32_vs_f64_relative_l2"]
    return max(v for key, v in told.items() if key.startswith("grad.") and v < 1)


def _compare(case, arrays, name, made) -> None:
    """Relative L2 distance to the float64 run, by the original's own distance to it.

    Where a ReLU's sign flips by rounding gradients jump, not in ours and theirs alike: the largest
    distance of a gradient is allowed in all, and four times that in norms, whose parts jump
    together. Biases before a batch norm have a gradient of zero, so that theirs and ours are
    rounding noise alike.
    """
    told = case["f32_vs_f64_relative_l2"]
    allowed = max(TIMES * told[name], _jump(case) * (4 if "_norms_" in name else 1))
    expected, made = arrays[f"f64.{name}"], np.asarray(made, np.float64)
    apart = np.linalg.norm(made - expected) / np.linalg.norm(expected)
    assert apart <= allowed, f"{name}: {apart:.3g} from the float64 run, at most {allowed:.3g}"
