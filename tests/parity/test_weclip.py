"""WeCLIP against its published code: every case in the `weclip` folder of goldens.

Cases are recognised by their name; everything else is read from their json.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from clipseg_jax.core.modules import abstract
from clipseg_jax.core.optim import OptimConfig, learning_rate
from clipseg_jax.methods.clip_es.model import CLIPES, CLIPESConfig, Encoding
from clipseg_jax.methods.weclip.affinity_loss import affinity_loss, affinity_targets
from clipseg_jax.methods.weclip.task import GROUPS, PUBLISHED
from clipseg_jax.models.clip import TextConfig, TextTransformer, Tokenizer
from clipseg_jax.ops.affinity import sinkhorn_normalize
from clipseg_jax.ops.cam import box_masks
from clipseg_jax.ops.cross_entropy import upsampled_balanced_cross_entropy
from clipseg_jax.ops.par import PARConfig, diffuse, neighbour_weights, par, position_weights
from clipseg_jax.prompts import class_embeddings, templates, text_encoder
from input_pipeline.datasets.class_sets import prompt_set
from tests import seeded
from tests.parity import cases
from tests.parity.weclip_head_cases import check_head
from tests.parity.weclip_models import normalised, pictures, visual_of
from tests.parity.weclip_train_cases import check_train
from weights_convert.clip.build import install
from weights_convert.clip.keys import OPENAI

FOLDER = "weclip"
SLOW = ("train", "text")
NOT_HERE = ("augment", "metrics", "infer")  # another module's cases


def test_case(path, goldens, monkeypatch):
    checks = {
        "boxes": check_boxes,
        "features": check_features,
        "head": check_head,
        "losses": check_losses,
        "par": check_par,
        "text": check_text,
        "train": functools.partial(check_train, monkeypatch=monkeypatch),
        "transition": check_transition,
    }
    found = [check for stem, check in checks.items() if path.stem.startswith(stem)]
    assert found, f"no check for a case named {path.stem}"
    case, arrays = cases.load(path)
    found[0](case, arrays)


def check_boxes(case, arrays):
    maps = jnp.asarray(arrays["scoremaps"])[None]
    grids = jnp.asarray([maps.shape[2:]])
    for threshold in (0.4, 0.7):
        masks = np.asarray(jax.jit(box_masks)(maps, grids, threshold))[0]
        np.testing.assert_array_equal(masks, arrays[f"mask_{threshold}"])


def check_features(case, arrays):
    visual, inputs = visual_of(case).visual, case["inputs"]
    dim, seed = visual.cfg.embed_dim, inputs["weight_seed"]
    rows = [
        seeded.unit_rows(f"{kind}_text_features", inputs[f"n_{kind}"], dim, seed)
        for kind in ("fg", "bg")
    ]
    last = visual.cfg.layers - 1
    model = CLIPES(visual, *rows, CLIPESConfig(affinity_blocks=(last,)))
    images = normalised(pictures(case))
    shape = visual.grid_shape(*images.shape[1:3])
    assert list(shape) == case["config"]["grid"]

    @jax.jit
    def run(model, images):
        blocks = [f"block{i}" for i in range(last)]
        maps = [f"map{i}" for i in range(last + 1)]
        x, bias = model.visual.embed(images, jnp.asarray([images.shape[1:3]]))
        _, out = model.visual.transformer(x, bias, read=blocks + maps)
        grids = jnp.asarray([shape])
        encoding = Encoding(out[blocks[-1]], jnp.zeros(()), bias, grids)
        classes = jnp.arange(inputs["n_fg"])[None]
        found = model.activate(encoding, classes, jnp.ones(classes.shape, bool), shape)
        tokens = jnp.stack([out[name][0] for name in blocks])
        maps = jnp.stack([out[name][0] for name in maps])
        return tokens, maps, model.visual.positions(shape), found.probabilities

    tokens, maps, positions, probabilities = jax.device_get(run(model, images))
    positions = positions[0, ::5, ::16]
    cases.near(positions, arrays["pos_embed_sub"], share=cases.ULPS, name="pos_embed_sub")
    index = arrays["token_index"]
    # Sharp attention, as in CLIP-ES's cases, if less so.
    cases.near(tokens[:, index, ::6], arrays["tokens"], share=2e-5, name="tokens")
    size = np.sqrt(np.mean(np.square(tokens, dtype=np.float64), axis=(1, 2)))
    np.testing.assert_allclose(size, arrays["token_rms"], rtol=1e-6)
    cases.near(maps[:, index], arrays["attn_rows"], share=3e-5, name="attn_rows")
    cases.near(probabilities[0], arrays["probs"], share=6e-5, name="probs")  # of 100 cosines


def check_losses(case, arrays):
    inputs = case["inputs"]
    b, h, w, seed = (inputs[name] for name in ("batch", "h", "w", "seed"))
    classes = arrays["grad_logits_sub"].shape[1]
    logits = seeded.unit_rows("logits", b * h * w, classes, seed) * 2 * math.sqrt(classes)
    size = inputs["H"], inputs["W"]
    pattern = r"label_map\(H,W,(\d+),(\d+)\+b\)"
    kinds, first = map(int, re.search(pattern, inputs["labels"]).groups())
    labels = np.stack([seeded.label_map(*size, kinds, first + i) for i in range(b)])
    labels = labels.astype(np.int32)
    embedded = [seeded.unit_rows(f"emb{i}", h * w, 16, seed) for i in range(b)]
    attention = jax.nn.sigmoid(np.stack([3 * e @ e.T for e in embedded]))

    find = jax.jit(affinity_targets, static_argnums=(1, 2))
    targets = np.asarray(find(labels, (h, w), PUBLISHED.affinity_radius))
    np.testing.assert_array_equal(targets[:, ::5], arrays["aff_label_rows"])
    near = np.asarray(find(np.zeros_like(labels), (h, w), PUBLISHED.affinity_radius)) == 1
    np.testing.assert_array_equal(near[0, ::5], arrays["radius_mask_rows"])

    def total(logits, attention):
        segmentation = upsampled_balanced_cross_entropy(logits, labels) / 2
        pairs = affinity_loss(attention, targets)
        return segmentation + PUBLISHED.affinity_weight * pairs, (segmentation, pairs)

    run = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    gradients, losses = run(jnp.asarray(logits.reshape(b, h, w, classes)), attention)
    counts = [np.sum(targets == kind) + 1 for kind in (1, 0)]
    np.testing.assert_allclose([*losses, *counts], arrays["losses"], rtol=cases.ULPS)
    sub = cases.nchw(gradients[0])[:, :, ::2, ::2]
    cases.near(sub, arrays["grad_logits_sub"], name="grad_logits_sub")
    cases.near(
        np.asarray(gradients[1])[:, ::11, ::7], arrays["grad_attn_sub"], name="grad_attn_sub"
    )
    check_rates(case, arrays)


def check_rates(case, arrays):
    """The schedule in float64: float32 has only seven digits."""
    about = case["arrays"]["lr_voc"]["meaning"]
    steps = np.asarray(re.findall(r"\d+", about.split("[")[1]), np.float64)
    (group,) = GROUPS
    for name, total in (("voc", 30000), ("coco", 80000)):
        # The published rate stays what it was at the last step.
        cfg = dataclasses.replace(RATES, min_learning_rate=RATES.learning_rate / total)
        with jax.enable_x64(True):
            rates = [group.rate * float(learning_rate(cfg, total)(step)) for step in steps]
        np.testing.assert_allclose(rates, arrays[f"lr_{name}"], rtol=1e-10)


RATES = OptimConfig(
    name="adamw",
    learning_rate=2e-4,
    power=1.0,
    warmup_steps=50,
    warmup_alone=True,
    weight_decay=0.01,
)


def check_par(case, arrays):
    config = case["config"]
    cfg = PARConfig(config["num_iter"], tuple(config["dilations"]), config["w1"], config["w2"])
    assert cfg == PARConfig()
    numbers = re.search(r"seeded\.image\((\d+),(\d+),(\d+)\)", case["inputs"]["image"]).groups()
    image = normalised(seeded.image(*map(int, numbers))[None])
    masks = jnp.asarray(arrays["masks"])
    weights = jax.jit(neighbour_weights)(image)  # (b, h, n, w)
    sub = np.asarray(weights)[0].swapaxes(0, 1)[:, ::13, ::17]
    cases.near(sub, arrays["aff_sub"], name="aff_sub")
    cases.near(position_weights(), arrays["pos_weights"], share=cases.ULPS, name="pos_weights")
    once = jax.jit(diffuse, static_argnums=2)(
        weights, masks.swapaxes(1, 2), dataclasses.replace(cfg, iterations=1)
    )
    once = np.asarray(once).swapaxes(1, 2)[:, :, ::3, ::3]
    cases.near(once, arrays["out_1iter_sub"], name="out_1iter_sub")
    run = jax.jit(par)
    out = run(image, masks)
    cases.near(out, arrays["out"], share=2e-5, name="out")  # rounding, carried on 20 times
    cases.same_labels(np.argmax(out, axis=1), arrays["argmax"], name="argmax")
    small = run(image, jnp.asarray(arrays["masks_small"]))
    cases.near(small, arrays["out_small"], share=2e-5, name="out_small")


def check_text(case, arrays):
    shapes = {key: tuple(shape) for key, shape in case["inputs"]["shapes"].items()}
    made = seeded.state_dict(shapes, case["inputs"]["weight_seed"])
    named, unknown = OPENAI.rename(made)
    assert not unknown
    length, width = shapes["positional_embedding"]
    cfg = TextConfig(
        context_length=length,
        vocabulary=shapes["token_embedding.weight"][0],
        width=width,
        layers=sum(key.endswith("ln_1.weight") for key in shapes),
        heads=width // 64,
        embed_dim=shapes["text_projection"][1],
    )
    tower = abstract(lambda rngs: TextTransformer(cfg, rngs=rngs))
    arrays_of = {k.removeprefix("text."): v for k, v in named.items() if k.startswith("text.")}
    install(tower, arrays_of, complete=("",))

    (template,) = templates("clip_es")
    assert f'template "{template}"' in case["what"]
    words, tokenizer = {}, Tokenizer.openai()
    for name in ("voc", "coco"):
        found = prompt_set(name, synonyms=True)
        words |= {f"{name}_fg": found.prompts, f"{name}_bg": found.background}
    for name, own in words.items():
        assert list(own) == case["inputs"][name]
        tokens = arrays[f"{name}_tokens"]
        ids = tokenizer([template.format(word) for word in own])
        np.testing.assert_array_equal(ids[:, : tokens.shape[1]], tokens)
        assert not ids[:, tokens.shape[1] :].any()
    every = list(dict.fromkeys(word for own in words.values() for word in own))
    rows = class_embeddings(
        every, text_encoder(tower), tokenizer, prompt_templates=(template,), batch_size=16
    )
    place = {word: i for i, word in enumerate(every)}
    for name, own in words.items():
        expected = arrays[f"{name}_features"]
        step = re.search(r"classes 0::(\d+)", case["arrays"][f"{name}_features"]["meaning"])
        step = int(step.group(1)) if step else 1
        kept = rows[[place[word] for word in own]][::step]
        cases.near(kept, expected, name=name)


def check_transition(case, arrays):
    inputs = case["inputs"]
    share, sharpness = map(
        float, re.search(r"^([\d.]+) .*\* ([\d.]+)\*sqrt", inputs["attn"]).groups()
    )
    n = inputs["n"]
    logits = seeded.unit_rows("attn_logits", n, n, inputs["seed"]) * sharpness * math.sqrt(n)

    @jax.jit
    def squared(logits):
        balanced = sinkhorn_normalize(share * jax.nn.softmax(logits[None], axis=-1))[0]
        return jnp.matmul(balanced, balanced, precision="highest")

    cases.near(squared(logits), arrays["trans_mat"], share=1e-6, name="trans_mat")
