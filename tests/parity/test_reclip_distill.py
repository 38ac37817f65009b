"""ReCLIP's distillation against the published code: `*_distill_*` cases of the `reclip` goldens.

Everything is read from the case's json; weights pass through the converter's key maps.
"""

from __future__ import annotations

import fnmatch
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import weights_convert
from clipseg_jax.core.modules import abstract
from clipseg_jax.core.optim import OptimConfig, optimizer
from clipseg_jax.inference import InferenceConfig, image_scores, label_maps, network_size
from clipseg_jax.methods.reclip import distill_task as reclip_distill
from clipseg_jax.methods.reclip import task as reclip
from clipseg_jax.methods.reclip.distill_task import DistillConfig
from clipseg_jax.methods.reclip.model import filter_classes, reference_ids
from clipseg_jax.models.clip import Tokenizer
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.models.resnet import DilatedResNetConfig
from clipseg_jax.ops.image import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    network_input,
    normalize,
    opencv_resize,
)
from clipseg_jax.ops.resize import resize
from tests import seeded
from tests.parity import cases
from tests.parity.reclip_models import RECLIP, RECLIP_PP
from weights_convert.clip.build import flat_arrays, install
from weights_convert.trained.reclip.keys import DISTILLATION, RECTIFICATION

FOLDER = "reclip"
ONLY = ("reclip_distill", "reclippp_distill")
SLOW = ONLY
LONG = ("reclip_distill_train",)  # ReCLIP++'s takes the same path
TIMES = 5  # the json's, of its float32 run's distances from float64


def test_case(path, goldens):
    case, arrays = cases.load(path)
    if "_train" in path.stem:
        check_train(case, arrays, goldens)
    else:
        assert "_infer" in path.stem, f"no check for a case named {path.stem}"
        train = json.loads(path.with_name(path.name.replace("_infer", "_train")).read_text())
        check_infer(case, arrays, train, goldens)


def golden_json(goldens, name):
    """A json without arrays, from the folder given or else from the repository's own."""
    path = goldens / FOLDER / name
    return json.loads((path if path.is_file() else cases.DEFAULT / FOLDER / name).read_text())


def seeded_arrays(case, shapes, scale, offset, seed):
    """Seeded tensors by published key, adjusted as the case says."""
    out = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            continue
        value = seeded.tensor(key, shape, seed)
        for pattern, factor in scale.items():
            if fnmatch.fnmatchcase(key, pattern):
                value = value * np.float32(factor)
        out[key] = value + np.float32(offset.get(key, 0))
    return out


def put(model, table, arrays):
    """Installs published arrays into a model."""
    shapes = {path: tuple(leaf.shape) for path, leaf in flat_arrays(model).items()}
    made = {}
    for key, value in arrays.items():
        path, transform = table.right(key)
        made[path] = transform.forward(value)
        assert made[path].shape == shapes[path], key
    install(model, made)


def build(case, scale, offset, goldens, cfg, *, statistics):
    """The task that a case describes, ready for its first step."""
    seed, classes = case["seed"], case["num_classes"]
    plus_plus = case["method"] != "ReCLIP"
    name, rows, width, rows_seed = re.search(
        r'seeded\.unit_rows\("(\w+)", (\d+), (\d+), (\d+)\)', case["inputs"]["text_embeddings"]
    ).groups()
    text = seeded.unit_rows(name, int(rows), int(width), int(rows_seed))
    class_set = re.search(r"class_sets\.(\w+)\.", case["inputs"]["cls_name_token"]).group(1)
    names = golden_json(goldens, "class_sets.json")[class_set]["classes"]
    clip_path = goldens / FOLDER / "clip_shapes.json"
    clip_shapes = (
        json.loads(clip_path.read_text())
        if clip_path.is_file()
        else cases.shapes(goldens, "ViT-B/16")
    )
    teacher = reclip.init_reclip(
        weights_convert.clip_from_state_dict(seeded.state_dict(clip_shapes, seed)),
        text,
        reference_ids(Tokenizer.openai(), names),
        RECLIP_PP if plus_plus else RECLIP,
        activation="gelu" if case["visual_activation"].startswith("gelu") else "quick_gelu",
        class_token=seeded.tensor("vit.cls_token", (1, 1, 768), seed),
        rngs=nnx.Rngs(0),
    )
    rect = golden_json(goldens, f"rect_shapes_{case['method']}.json")
    assert rect["num_classes"] == classes
    heads = seeded_arrays(case, rect["shapes"], scale, offset, seed)
    put(teacher, RECTIFICATION, {k: v for k, v in heads.items() if "running" not in k})
    student = student_of(int(width))
    task = reclip_distill.build(teacher, student, cfg)
    told = golden_json(goldens, f"distill_shapes_{case['method']}.json")["shapes"]
    unused = ("decode_head.decode_module.conv_seg.",)
    wanted = ("backbone.", "decode_head.decode_module.")
    shapes = {
        key: shape
        for key, shape in told.items()
        if (key.startswith(wanted) and not key.startswith(unused))
        or (statistics and key.startswith("decode_head.decoder_norm2.running"))
    }
    arrays = seeded_arrays(case, shapes, scale, {}, seed)
    if not statistics:
        arrays = {k: v for k, v in arrays.items() if "running" not in k}
    put(task.model, DISTILLATION, arrays)
    return task


def student_of(features):
    """A student of full size whose parameters are zeros, which costs less than random ones."""
    graph, state = nnx.split(
        abstract(lambda rngs: DeepLab(DilatedResNetConfig(), features, rngs=rngs))
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    student = nnx.merge(graph, zeros)
    ones = {
        path: np.ones(leaf.shape, np.float32)
        for path, leaf in flat_arrays(student).items()
        if path.endswith(".var")
    }
    install(student, ones)
    return student


def picked(array):
    """The elements of a flattened array that the goldens keep."""
    array = np.asarray(array).ravel()
    return array[np.arange(min(64, array.size)) * (array.size // 64 + 1) % array.size]


def published(state):
    """A state's arrays by published key, in PyTorch's layout."""
    return {
        DISTILLATION.left(path)[0]: np.asarray(DISTILLATION.left(path)[1].inverse(np.asarray(leaf)))
        for path, leaf in flat_arrays(state).items()
        if DISTILLATION.left(path)
    }


def batches(case):
    """The batches of a case's steps."""
    about = case["inputs"]
    height, width, base, stride = map(
        int,
        re.search(
            r"seeded\.image\((\d+), (\d+), (\d+) \+ (\d+)\*s \+ i\)", about["images"]
        ).groups(),
    )
    assert "ImageNet" in about["images"]
    labelled = re.search(
        r"seeded\.label_map\((\d+), (\d+), (\d+), (\d+)\+(\d+)\*s\+i\), columns < (\d+) set to 255",
        about["labels"],
    )
    lh, lw, label_classes, label_base, label_stride, border = map(int, labelled.groups())
    for s, tagged in enumerate(about["gt_cls"]):
        tags = np.zeros((len(tagged), case["num_classes"]), bool)
        labels = []
        for i, ids in enumerate(tagged):
            tags[i, ids] = True
            label = seeded.label_map(lh, lw, label_classes, label_base + label_stride * s + i)
            label = np.where(label == 255, 255, -1)
            label[:, :border] = 255
            labels.append(label)
        images = [seeded.image(height, width, base + stride * s + i) for i in range(len(tagged))]
        yield {
            "image": jnp.asarray(np.stack(images)),
            "image_size": jnp.asarray([(height, width)] * len(tagged)),
            "label": jnp.asarray(np.stack(labels), jnp.int32),
            "tags": jnp.asarray(tags),
        }


def check_train(case, arrays, goldens):
    """Three steps of `Task.loss` and our optimiser."""
    cfg = DistillConfig(
        teacher_threshold=case["config"]["PD"], teacher_scale=case["config"]["filter_scale"]
    )
    task = build(case, case["scale"], case["offset"], goldens, cfg, statistics=False)

    def owned(path, variable):
        return isinstance(variable, nnx.Param) and task.trainable(".".join(map(str, path)))

    graph, params, stats, rest = nnx.split(task.model, owned, nnx.BatchStat, ...)
    told = case["optimizer"]
    assert told["type"] == "SGD"
    sgd = optimizer(
        OptimConfig(
            learning_rate=told["lr"],
            schedule="constant",
            momentum=told["momentum"],
            weight_decay=told["weight_decay"],
        ),
        total_steps=1,
    )

    @jax.jit
    def step(params, stats, rest, slots, batch):
        def loss(params):
            model = nnx.merge(graph, params, stats, rest, copy=True)
            value, metrics = task.loss(model, batch, jax.random.key(0), 0)
            return value, (nnx.state(model, nnx.BatchStat), metrics)

        (value, (stats, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, slots = sgd.update(gradient, slots, params)
        return optax.apply_updates(params, updates), stats, slots, value, gradient, metrics

    gaps = case["f32_vs_f64_relative_l2"]

    # Where a ReLU's sign flips by rounding gradients jump, not in ours and theirs alike. The json's
    # factor, of the largest jump instead of each array's own: seen up to three times that.
    jump = TIMES * max(gap for name, gap in gaps.items() if name.startswith("grad."))

    def compare(name, value, least):
        """Relative L2 distance from the float64 run; `least`, or `TIMES` the reference's."""
        expected = arrays.get(f"f64.{name}", arrays[name]).astype(np.float64)
        worst = np.linalg.norm(np.asarray(value, np.float64) - expected) / np.linalg.norm(expected)
        bound = max(least, TIMES * gaps[name])
        assert worst <= bound, f"{name}: relative distance {worst:.2e}, at most {bound:.2e} allowed"

    slots, first = sgd.init(params), published(params)
    keys = case["parameters_with_gradient"]
    assert set(keys) == set(first)
    for s, batch in enumerate(batches(case)):
        if s == 0:
            made = jax.jit(look, static_argnames="cfg")(
                nnx.merge(graph, params, stats, rest), batch, cfg
            )
            check_stages(case, arrays, made, batch)
        params, stats, slots, value, gradient, metrics = step(params, stats, rest, slots, batch)
        compare(f"loss_step{s}", value, 2e-6)
        compare(f"mask_ce_step{s}", metrics["mask_loss"], 2e-6)
        # The last L1 is the one that counts; ReCLIP++ has one before, unused.
        l1, text = arrays[f"l1_step{s}"][-1], np.mean(arrays[f"contrast_step{s}"])
        np.testing.assert_allclose(metrics["feature_loss"], l1, rtol=1e-6)
        # Of 100 times cosines of the student's features, which are 2e-6 apart.
        np.testing.assert_allclose(metrics["text_loss"], text, rtol=1e-5)
        if s == 0:
            gradient = published(gradient)
            compare("grad_norms", [np.linalg.norm(gradient[key]) for key in keys], jump)
            for name in [n for n in arrays if n.startswith("grad.")]:
                compare(name, picked(gradient[name.removeprefix("grad.")]), jump)
    last = published(params)
    moved = {key: last[key] - first[key] for key in keys}
    compare("delta_norms", [np.linalg.norm(moved[key]) for key in keys], jump)
    for name in [n for n in arrays if n.startswith("delta.")]:
        compare(name, picked(moved[name.removeprefix("delta.")]), jump)
    stats = published(stats)
    for name in [n for n in arrays if n.startswith("bn.")]:
        compare(name, stats[name.removeprefix("bn.")], cases.FORWARD)


def look(model, batch, cfg):
    """What a training step makes on its way, in the goldens' layout."""
    images = network_input(batch["image"], batch["image_size"], cfg.mean, cfg.std)
    taught = model.teach(images, train=True)
    real = jnp.ones(taught.logits.shape[:3], bool)
    kept = filter_classes(taught.logits, real, cfg.teacher_scale, cfg.teacher_threshold)
    labels = reclip_distill.teacher_labels(taught.logits, batch["label"], cfg)
    stages = model.student.backbone(images, train=True)
    features = model.student(images, train=True)
    logits = model.classify(features, images.shape[1:3], train=True)
    entropies, similarities = reclip_distill.text_losses(
        model, features, labels, batch["tags"], cfg
    )
    out = {f"backbone{i}": jnp.moveaxis(stage, -1, 1) for i, stage in enumerate(stages)}
    return out | {
        "teacher_logits": resize(kept, labels.shape[1:]),
        "query_logits": jnp.moveaxis(taught.query, -1, 1),
        "pseudo_label": labels,
        "student_feat": jnp.moveaxis(features, -1, 1),
        "seg_logits": jnp.moveaxis(logits, -1, 1),
        "contrast_step0": entropies,
        "similarity": similarities,
    }


def check_stages(case, arrays, made, batch):
    """The step-0 arrays of a training case."""
    cases.same_labels(made["pseudo_label"], arrays["pseudo_label"], name="labels")
    for name, expected in arrays.items():
        if name.startswith("similarity"):
            i = int(name.removeprefix("similarity"))
            value = made["similarity"][i][np.flatnonzero(batch["tags"][i])]
        elif name in made and name != "pseudo_label":
            value = np.asarray(made[name])
            if "::" in case["arrays"][name]["what"]:
                value = value[cases.steps(case["arrays"][name]["what"])]
        else:
            continue
        gap = case["f32_vs_f64_relative_l2"].get(name, 0)
        cases.near(value, expected, share=max(cases.FORWARD, TIMES * gap), name=name)


def check_infer(case, arrays, train, goldens):
    """From the image to labels at its own size, in a padded batch."""
    told = case["config"]
    scale = {k: v for k, v in train["scale"].items() if not k.startswith("backbone.")}
    cfg = DistillConfig()
    if told["PD"] is not None:
        cfg = DistillConfig(test_threshold=told["PD"], test_scale=told["filter_scale"])
    task = build(case, scale, train["offset"], goldens, cfg, statistics=True)
    assert told["normalisation"] == "imagenet"
    numbers = re.search(r"seeded\.image\((\d+), (\d+), (\d+)\)", case["inputs"]["image"]).groups()
    image = seeded.image(*map(int, numbers))
    height, width = image.shape[:2]
    assert (height, width) == tuple(case["original_hw"])
    view_cfg = InferenceConfig(mean=IMAGENET_MEAN, std=IMAGENET_STD, scale_px=tuple(told["SCALE"]))
    small = (height * 3 // 4, width)  # another image of the batch, in the same bucket
    sizes = [(height, width), small]
    at_network = [network_size(*size, view_cfg) for size in sizes]
    assert at_network[0] == tuple(case["resized_hw"])
    shape = tuple(int(side) + 13 for side in np.max(at_network, axis=0))
    padded = np.full((2, height + 5, width + 8, 3), 99, np.uint8)
    padded[0, :height, :width] = image
    padded[1, : small[0], : small[1]] = image[::-1][: small[0]]

    @jax.jit
    def run(model, padded):
        view = image_scores(
            task, model, padded, jnp.asarray(sizes), jnp.asarray(at_network), shape, view_cfg
        )
        upsampled = jnp.einsum("brg,bgkc,bwk->brwc", view.rows, view.logits, view.columns)
        alone = opencv_resize(
            padded[:1], jnp.asarray(sizes[:1]), jnp.asarray(at_network[:1]), at_network[0]
        )
        pixels = normalize(alone, IMAGENET_MEAN, IMAGENET_STD)
        features = model.student(pixels, train=False)
        unfiltered = model.classify(features, at_network[0], train=False)
        return label_maps([view], view_cfg)[0], upsampled, features, unfiltered

    labels, upsampled, features, logits = run(task.model, jnp.asarray(padded))
    cases.same_labels(labels[0, :height, :width], arrays["label"], name="label")
    made = {
        "student_feat": features,
        "logits": logits,
        "upsampled": upsampled[:1, :height, :width],
    }
    for name, value in made.items():
        value = cases.nchw(value)
        if "::" in case["arrays"][name]["what"]:
            value = value[cases.steps(case["arrays"][name]["what"])]
        share = 1.6e-5 if name == "logits" else cases.FORWARD  # batch norms scale the logits up
        cases.near(value, arrays[name], share=share, name=name)
    if "max_confidence" in arrays:
        surest = jax.nn.softmax(cfg.test_scale * logits[0], axis=-1).max(axis=(0, 1))
        cases.close(surest, arrays["max_confidence"], absolute=1e-5, name="max_confidence")
