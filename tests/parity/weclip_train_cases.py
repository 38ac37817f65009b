"""Training steps of WeCLIP and WTCLIP against the published code; driven by the case's json."""

from __future__ import annotations

import dataclasses
import functools
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from clipseg_jax.core.optim import OptimConfig, learning_rate, optimizer
from clipseg_jax.methods.clip_es.model import CLIPES
from clipseg_jax.methods.weclip import task as weclip
from clipseg_jax.methods.weclip.affinity_loss import affinity_targets
from clipseg_jax.methods.weclip.head import affinity
from clipseg_jax.methods.weclip.model import Features, WeCLIP
from clipseg_jax.ops.affinity import attention_map_weights, sinkhorn_normalize
from clipseg_jax.ops.cam import min_max_normalize, upsample
from clipseg_jax.train_step import split_model
from tests.parity import cases
from tests.parity.weclip_head_cases import check_gradients
from tests.parity.weclip_models import (
    Arrays,
    Case,
    model_of,
    normalised,
    pictures,
    published,
    stride,
    thinned,
)

THRESHOLD = {"voc": 15000, "coco": 40000}  # forward passes before the late phase
# What the share of pixels that have another label adds to relative bounds: as pixels of some
# hundred times the mean loss would, and gradients follow the largest.
LOSSES, GRADIENTS = 2, 10
# Of the largest value, four times what is seen: Grad-CAM differences small parts of large sums, and
# what is scaled to 0 .. 1 carries that on.
SHARES = {
    "seg_logits": 1.2e-5, "fuse_sub": 2.5e-5, "attn_pred_rows": 1.4e-5,
    "probs": 1.4e-5, "act_ln1_sub": 2e-5, "channel_weights": 6e-5, "cam_raw": 6e-5, "cam": 1e-4,
    "attn_weight_rows": 5e-5, "cam_refined": 3e-5, "trans_mat_rows": 7e-6, "refined_up_sub": 1.3e-4,
}  # fmt: skip


def check_train(case: Case, arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps through `Task.loss` and our optimiser; stored dropout masks in the key's place."""
    model, config = model_of(case), case["config"]
    task, tx = _task(case, model), optimizer(_optim(case), config["max_iters"])
    batch = _batch(case, model)
    features = _features(model, normalised(batch["image"]))
    shape = model.clip.visual.grid_shape(*batch["image"].shape[1:3])
    made = _spy(monkeypatch)
    taken = split_model(task)
    params = taken.params

    @jax.jit
    def step(params, frozen, opt_state, batch, features, kept, count):
        features = features._replace(shape=shape)
        # The frozen blocks run once for all steps and cases.
        monkeypatch.setattr(WeCLIP, "encode", lambda self, images, sizes: features)

        def loss(params):
            model = taken.model(params, taken.stats, frozen)
            value, metrics = task.loss(model, batch, kept, count)
            return value, (metrics, {name: made[name] for name in list(made)})

        (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value, gradient, aux

    sizes = model.head.cfg
    everything = np.full(
        (len(arrays["losses"]), len(batch["image"]), sizes.width), 1 - sizes.dropout
    )
    masks = arrays.get("dropout_keep", everything)  # one program, with dropout or without
    assert "dropout_keep" not in arrays or f"Dropout2d({sizes.dropout})" in config["dropout"]
    opt_state, first = tx.init(params), published(params)
    counter = config["iteration_counter_before_first_forward"]
    rate = learning_rate(_optim(case), config["max_iters"])
    (group,) = weclip.GROUPS
    for s, expected in enumerate(arrays["losses"]):
        kept = jnp.asarray(masks[s], jnp.float32)
        params, opt_state, value, gradient, (metrics, parts) = step(
            params, taken.frozen, opt_state, batch, features, kept, jnp.asarray(counter + s)
        )
        if s == 0:
            apart = float(np.mean(parts["labels"].labels != arrays["pseudo_label"]))
        ours = [metrics["segmentation_loss"], metrics["affinity_loss"], value]
        # From the second step on parameters differ too, where Adam scales up small gradients.
        bound = (1.5e-4 if s else 1e-5) + LOSSES * apart
        np.testing.assert_allclose(ours, expected, rtol=bound, err_msg=f"losses of step {s}")
        np.testing.assert_allclose(group.rate * rate(s), arrays["lrs_head"][s], rtol=cases.ULPS)
        if s == 0:
            _check_labels(case, arrays, jax.device_get(parts), shape)
            length, bound = optax.global_norm(gradient), 6e-5 + GRADIENTS * apart
            np.testing.assert_allclose(length, arrays["grad_total_norm"], rtol=bound)
            start = published(gradient)
            check_gradients(case, arrays, start, share=bound)
    now = published(params)
    for name in (n.removeprefix("delta3:") for n in arrays if n.startswith("delta3:")):
        _check_moved(name, now[name] - first[name], start[name], arrays[f"delta3:{name}"])


def _check_moved(name: str, moved: np.ndarray, gradient: np.ndarray, expected: np.ndarray) -> None:
    """Where the gradient is more than a thousandth of its largest; the json allows 4e-6.

    Two units in the last place of weights of 1, in three steps of up to 1e-4.
    """
    counted = np.abs(gradient) > 1e-3 * np.abs(gradient).max()
    if name.endswith("in_proj_bias"):  # the keys' true gradient is 0: what is there is rounding
        third = len(gradient) // 3
        counted[third : 2 * third] = False
    counted = thinned(counted)
    assert counted.any()
    cases.close(thinned(moved)[counted], expected[counted], absolute=1e-6, name=name)


def _task(case: Case, model: WeCLIP) -> Any:
    config = case["config"]
    late_step = THRESHOLD["coco" if "coco" in case["case"] else "voc"]
    cfg = weclip.TaskConfig(late_step=late_step)
    assert cfg.affinity_radius == config["radius"]
    assert cfg.affinity_weight == config["aff_weight"] / config["seg_weight"]
    late = config["iteration_counter_before_first_forward"] >= late_step
    blocks = model.cfg.late_blocks if late else model.cfg.early_blocks
    assert blocks == config["last_layers"]
    return weclip.build(model, cfg)


def _optim(case: Case) -> OptimConfig:
    config = case["config"]
    (group,) = weclip.GROUPS
    assert group.rate * config["lr"] == pytest.approx(config["head_lr"])
    return OptimConfig(
        name="adamw",
        learning_rate=config["lr"],
        power=config["power"],
        warmup_steps=config["warmup_iter"],
        warmup_ratio=config["warmup_ratio"],
        warmup_alone=True,
        betas=tuple(config["betas"]),
        eps=config["eps"],
        weight_decay=config["weight_decay"],
        groups=weclip.GROUPS,
    )


def _batch(case: Case, model: WeCLIP) -> dict[str, jax.Array]:
    present = case["inputs"]["present_classes_0based"]
    tags = np.zeros((len(present), model.clip.class_embeddings.shape[0]), bool)
    for row, ids in zip(tags, present, strict=True):
        row[ids] = True
    return {"image": jnp.asarray(pictures(case)), "tags": jnp.asarray(tags)}


def _features(model: WeCLIP, images: jax.Array) -> Features:
    """The frozen blocks' output, by one program for all cases of a size."""
    graph, state = nnx.split(model.clip.visual)
    every = dataclasses.replace(model.cfg, early_blocks=model.clip.visual.cfg.layers)
    features = _encode(graph, every, state, images)
    used = max(model.cfg.early_blocks, model.cfg.late_blocks) - 1
    return features._replace(maps=features.maps[-used:])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(graph: Any, cfg: Any, state: nnx.State, images: jax.Array) -> Features:
    visual = nnx.merge(graph, state)
    model = SimpleNamespace(cfg=cfg, clip=SimpleNamespace(visual=visual))  # all that it reads
    b, h, w, _ = images.shape
    return WeCLIP.encode(model, images, jnp.broadcast_to(jnp.asarray([h, w]), (b, 2)))


def _spy(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the labels were made of, inside the traced step."""
    made: dict[str, Any] = {}

    def keep(cls, name, values):
        inner = getattr(cls, name)

        def spy(self, *args, **kwargs):
            result = inner(self, *args, **kwargs)
            made.update(values(self, args, result))
            return result

        monkeypatch.setattr(cls, name, spy)

    keep(WeCLIP, "label", lambda self, args, labels: {"labels": labels})
    keep(WeCLIP, "decode", lambda self, args, decoded: {"decoded": decoded})
    keep(
        WeCLIP,
        "combine",
        lambda self, args, _: {
            "sums": jnp.stack([jnp.sum(m, axis=(1, 2)) for m in args[0]], axis=1),
            "chosen": attention_map_weights(jnp.stack(args[0], axis=1)[:, -self.cfg.late_blocks :])
            > 0,
        },
    )
    keep(
        CLIPES,
        "activate",
        lambda self, args, found: {
            "found": found,
            "ln_1": self.visual.transformer.resblocks[-1].ln_1(args[0].tokens)[:, 1:],
        },
    )
    monkeypatch.setattr(weclip, "dropout", lambda _, rate, kept: kept / (1 - rate))
    return made


def _check_labels(
    case: Case, arrays: Arrays, parts: dict[str, Any], shape: tuple[int, int]
) -> None:
    """The chain from Grad-CAM to the pseudo labels, and what the head said."""
    labels, decoded = parts["labels"], parts["decoded"]
    near(cases.nchw(decoded.logits), arrays, "seg_logits")
    about = case["arrays"]
    b = decoded.fused.shape[0]
    fused = np.moveaxis(np.asarray(decoded.fused), 1, 2).reshape(b, -1, *shape)
    fused = fused[:, :: stride(about["fuse_sub"]["meaning"], "channel")]
    near(fused, arrays, "fuse_sub")
    learned = np.asarray(jax.jit(affinity)(decoded.fused))
    step = stride(about["attn_pred_rows"]["meaning"], "row")
    near(learned[:, ::step], arrays, "attn_pred_rows")
    if "layer_mask" in arrays:
        np.testing.assert_array_equal(parts["chosen"], arrays["layer_mask"])
    for i in range(b):
        _check_image(case, arrays, parts, shape, i)
    cases.same_labels(labels.labels, arrays["pseudo_label"], name="pseudo_label")
    find = jax.jit(affinity_targets, static_argnums=(1, 2))
    targets = np.asarray(find(labels.labels, shape, case["config"]["radius"]))
    step = stride(about["aff_label_rows"]["meaning"], "row")
    cases.same_labels(targets[:, ::step], arrays["aff_label_rows"], name="aff_label_rows")
    counts = [np.sum(targets == kind) + 1 for kind in (1, 0)]
    np.testing.assert_allclose(counts, arrays["aff_counts"], rtol=1 - cases.LABELS)


def near(value: Any, arrays: Arrays, key: str) -> None:
    cases.near(value, arrays[key], share=SHARES[re.sub(r"^img\d+_", "", key)], name=key)


def _check_image(
    case: Case, arrays: Arrays, parts: dict[str, Any], shape: tuple[int, int], i: int
) -> None:
    labels, found, about = parts["labels"], parts["found"], case["arrays"]
    k = len(arrays[f"img{i}_keys"])
    np.testing.assert_array_equal(labels.classes[i, :k], arrays[f"img{i}_keys"])
    assert labels.real[i].sum() == k
    p = np.asarray(found.probabilities[i])
    classes = labels.classes.shape[1]
    assert not p[k:classes].any()
    p = np.concatenate([p[:k], p[classes:]])
    made = {
        "probs": p,
        "act_ln1_sub": np.asarray(parts["ln_1"][i]).T,
        "channel_weights": found.weights[i, :k],
        "cam_raw": found.raw[i, :k],
        "cam": labels.cams.cam[i, :k],
        "attn_weight_rows": labels.affinity[i],
        "cam_refined": labels.cams.refined[i, :k],
    }
    made["trans_mat_rows"] = _transitions(labels.affinity[i : i + 1])[0]
    size = labels.labels.shape[1:]
    made["refined_up_sub"] = _upsampled(labels.cams.refined[i : i + 1, :k], size)[0]
    for name, value in made.items():
        key, value = f"img{i}_{name}", np.asarray(value)
        meaning = about[key]["meaning"]
        if name == "act_ln1_sub":
            value = value[:: stride(meaning, "channel"), :: stride(meaning, "position")]
        elif name == "refined_up_sub":
            value = value[:, ::4, ::4]
        elif name.endswith("_rows"):
            value = value[:: stride(meaning, "row")]
        near(value, arrays, key)
    sums = arrays[f"img{i}_attn_patch_sums"][-parts["sums"].shape[1] :]
    np.testing.assert_allclose(parts["sums"][i], sums, rtol=1.5e-6)
    np.testing.assert_array_equal(
        labels.cams.boxes[i, :k], _boxes_mask(arrays[f"img{i}_boxes"], shape)
    )


@jax.jit
def _transitions(affinities: jax.Array) -> jax.Array:
    """Balanced affinities (b, n, n), squared."""
    balanced = sinkhorn_normalize(affinities)
    return jnp.matmul(balanced, balanced, precision="highest")


@functools.partial(jax.jit, static_argnums=1)
def _upsampled(refined: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Refined CAMs (b, k, hp, wp), min-max normalised, at a size (b, k, h, w)."""
    shape = refined.shape[2:]
    scaled = min_max_normalize(refined, jnp.ones((1, *shape), bool))
    return upsample(scaled, jnp.asarray([shape]), jnp.asarray([size]), size)


def _boxes_mask(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Boxes (k, n, 4) = (x0, y0, x1, y1), -1 where there is none -> what lies in them."""
    masks = np.zeros((len(boxes), *shape), bool)
    for mask, own in zip(masks, boxes, strict=True):
        for x0, y0, x1, y1 in own[own[:, 0] >= 0]:
            mask[y0:y1, x0:x1] = True
    return masks
