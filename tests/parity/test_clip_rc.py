"""CLIP-RC against the published code: cases in the `clip_rc` folder of goldens.

Everything is read from the case's json; weights pass through the converter's key map.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.clip_rc import task as clip_rc
from clipseg_jax.methods.clip_rc.encoder import (
    Encoding,
    crop_image_tower,
    first_regions,
    region_attention,
    regions_of_patches,
)
from clipseg_jax.methods.clip_rc.head import image_token_inputs, region_queries
from clipseg_jax.methods.clip_rc.loss import mask_losses, recovery_loss
from clipseg_jax.models.clip import (
    TextConfig,
    TextTransformer,
    Tokenizer,
    VisionTransformer,
    ViTConfig,
    l2_normalize,
)
from clipseg_jax.ops.resize import resize
from input_pipeline.datasets.catalog import COCO_STUFF_164K
from tests import seeded
from tests.parity import cases
from tests.parity import clip_rc_models as models
from tests.parity.clip_rc_train_cases import check_train
from weights_convert.clip.build import install
from weights_convert.clip.keys import OPENAI

FOLDER = models.FOLDER
NOT_HERE = ("augment", "metrics", "slide")  # other modules' cases
SLOW = ("encoder", "forward", "text_encoder", "train")


def test_case(path, goldens, monkeypatch):
    case, arrays = cases.load(path)
    checks = {
        "clip_init": check_clip_init,
        "encoder": check_encoder,
        "forward": check_forward,
        "head": check_head,
        "losses": check_losses,
        "mask": check_mask,
        "text_encoder": check_text_encoder,
        "train": check_train,
    }
    found = [check for stem, check in checks.items() if path.stem.startswith(stem)]
    assert found, f"no check for a case named {path.stem}"
    more = {"monkeypatch": monkeypatch} if found[0] is check_train else {}
    found[0](case, arrays, goldens, **more)


def compare(made, arrays, case, *, share=cases.FORWARD):
    """All arrays of `made`, thinned as the json says, within a share of the largest value."""
    for name, value in made.items():
        value = models.thinned(value, models.meaning(case, name))
        cases.near(value, arrays[name], share=share, name=name)


def check_mask(case, arrays, goldens):
    """Who sees whom, read off the attention itself: with one-hot values it returns its maps."""
    for name, packed in arrays.items():
        grid, regions, prompts = map(
            int, re.fullmatch(r"allowed_grid(\d+)_rlb(\d+)_prompts(\d+)", name).groups()
        )
        t = 1 + prompts + grid**2 + regions
        q, k = np.random.RandomState(0).standard_normal((2, 1, 1, t, 8)).astype(np.float32)
        covers = np.asarray(regions_of_patches((grid, grid), round(regions**0.5)))
        values = np.eye(t, dtype=np.float32)[None, None]
        maps = np.asarray(jax.jit(region_attention)(q, k, values, covers))[0, 0]
        expected = np.unpackbits(packed)[: t * t].reshape(t, t).astype(bool)
        np.testing.assert_array_equal(maps > 0, expected, err_msg=name)
        scores = q[0, 0].astype(np.float64) @ k[0, 0].T / np.sqrt(8)
        powers = np.where(expected, np.exp(scores), 0)
        masked = powers / powers.sum(axis=-1, keepdims=True)
        cases.near(maps, masked, share=8e-7, name=name)


def check_clip_init(case, arrays, goldens):
    given = {
        key: seeded.tensor(
            f"visual.{key}", tuple(map(int, shape.strip(",").split(","))), case["seed"]
        )
        for key, shape in re.findall(r"'visual\.(\w+)' \(([\d,]+)\)", case["inputs"])
    }
    count, width = given["positional_embedding"].shape
    side = round((count - 1) ** 0.5)
    regions = case["reference_config"]["region_level_bridge_size"]
    cfg = ViTConfig(side * 16, 16, width, layers=1, heads=1, embed_dim=8)
    visual = cases.zeros(lambda rngs: VisionTransformer(cfg, rngs=rngs))
    install(visual, given)
    for crop in {int(name.rsplit("_", 1)[1]) for name in arrays}:
        tower = crop_image_tower(visual, crop)
        made = {
            f"positional_embedding_{crop}": tower.positional_embedding[...],
            f"region_level_bridge_{crop}": first_regions(tower, round(regions**0.5)),
        }
        compare(made, arrays, case, share=6e-7)


def check_text_encoder(case, arrays, goldens):
    prefix = "text_encoder."
    shapes = {k: v for k, v in models.shapes(goldens).items() if k.startswith(prefix)}
    stored = {
        key.removeprefix(prefix): value
        for key, value in seeded.state_dict(shapes, case["seed"]).items()
    }
    length, width = stored["positional_embedding"].shape
    cfg = TextConfig(
        context_length=length,
        vocabulary=len(stored["token_embedding.weight"]),
        width=width,
        layers=sum(key.endswith("in_proj_weight") for key in stored),
        heads=width // 64,
        embed_dim=stored["text_projection"].shape[1],
    )
    text = abstract(lambda rngs: TextTransformer(cfg, rngs=rngs))
    renamed, unknown = OPENAI.rename(stored)
    assert not unknown
    install(text, {k.removeprefix("text."): v for k, v in renamed.items()}, complete=("",))
    tokenizer = Tokenizer.openai()
    ids = tokenizer(case["prompts"])
    np.testing.assert_array_equal(ids, arrays["tokens"])
    names = COCO_STUFF_164K.class_names
    columns = arrays["coco_tokens"].shape[1]
    template = re.search(r"in template '(.+?)'", models.meaning(case, "coco_tokens")).group(1)
    coco = tokenizer([template.format(name) for name in names])
    np.testing.assert_array_equal(coco[:, :columns], arrays["coco_tokens"])
    assert not np.any(coco[:, columns:])

    @jax.jit
    def run(text, ids):
        rows = text(ids)
        return rows, l2_normalize(rows)

    for name, made in zip(("embedding", "normalised"), run(text, ids), strict=True):
        cases.near(made, arrays[name], name=name)


def check_encoder(case, arrays, goldens):
    encoder = models.model(case, goldens, np.zeros((1, 512))).encoder
    blocks = [int(name[5:]) for name in arrays if name.startswith("block")]

    @jax.jit
    def run(encoder, images):
        return (
            encoder(images),
            encoder.first_tokens(images, None, None),
            encoder.blocks(images, read=blocks)[1],
        )

    encoding, first, read = run(encoder, models.network_images(case))
    index = arrays["token_index"]
    tokens = {"tokens_in": first} | {f"block{i}": x for i, x in read.items()}
    compare({name: np.asarray(x)[:, index] for name, x in tokens.items()}, arrays, case)
    patches, regions = cases.nchw(encoding.patches), cases.nchw(encoding.regions)
    made = {"global_embedding": encoding.image, "region": regions}
    made |= {name: patches[int(name[7:])] for name in arrays if name.startswith("visual_")}
    compare(made, arrays, case)


def check_head(case, arrays, goldens):
    told, b = case["inputs"], case["batch"]
    grid = case["reference_config"]["grid"]
    regions = case["reference_config"]["region_level_bridge_size"]
    side = round(regions**0.5)
    text = models.text_rows(told)
    e, seed = text.shape[1], case["seed"]
    assert all(f"unit_rows('{name}'" in told for name in ("visual", "cls", "rlb"))

    def rows(name, *shape):
        return jnp.asarray(seeded.unit_rows(name, int(np.prod(shape)), e, seed).reshape(*shape, e))

    encoding = Encoding(
        rows("visual", b, grid, grid), rows("cls", b), rows("rlb", b, side, side), None
    )
    model = models.model(case, goldens, text)
    size = case["reference_config"]["crop_size"]

    @jax.jit
    def run(head, encoding, text):
        decoded = head(encoding, text)
        q, lateral = region_queries(encoding, text), image_token_inputs(encoding)
        made = {"query_in": q, "lateral_in": lateral}
        q, lateral = head.q_proj(q), head.lateral_proj(lateral)
        made |= {"q0": q, "lateral0": lateral}
        layers = zip(head.decoder_q, head.decoder_v, strict=True)
        for i, (of_q, of_lateral) in enumerate(layers, 1):
            q, lateral = of_q(q, lateral), of_lateral(lateral, q)
            made |= {f"q{i}": q, f"lateral{i}": lateral}
        recovered = head.recovery_decoder(decoded.queries, decoded.image_tokens)
        made |= dict(zip(("recovered_q", "recovered_lateral"), recovered, strict=True))
        masks = resize(decoded.logits, tuple(size))
        maps = {"mask_logits": decoded.logits, "pred_masks": masks} | scores(model, case, masks)
        return made | {name: jnp.moveaxis(x, -1, 1) for name, x in maps.items()}

    made = run(model.head, encoding, jnp.asarray(text))
    assert made.keys() == arrays.keys()
    compare(made, arrays, case, share=8e-6)


def scores(model, case, masks):
    """Both test modes' scores of upsampled mask logits."""
    seen = tuple(case.get("base_class") or case["reference_config"]["base_class"])
    return {
        f"prob_{name}": clip_rc.build(
            model, clip_rc.CLIPRCTaskConfig(setting=setting, seen=seen)
        ).pixel_scores(masks)
        for name, setting in (("inductive", "inductive"), ("self_training", "transductive"))
    }


def check_losses(case, arrays, goldens):
    weight = case["weights_of_terms"]
    given = {
        name: seeded.tensor(f"loss.{name}", tuple(map(int, shape.split(","))), case["seed"])
        for names, shape in re.findall(
            r"seeded\.tensor\('loss\.([\w.'|]+)',\(([\d,]+)\),seed", case["inputs"]
        )
        for name in names.replace("loss.", "").replace("'", "").split("|")
    }
    masks = given["pred_masks"]
    masks = masks / masks.std(ddof=1, dtype=np.float64).astype(np.float32) * np.float32(1.5)
    labels = jnp.asarray(arrays["labels"], jnp.int32)

    @jax.jit
    def run(masks, q, lateral):
        def total(masks, q, lateral):
            made = mask_losses(masks, labels)
            terms = {
                "loss_mask": weight["mask_weight"] * made.focal,
                "loss_dice": weight["dice_weight"] * made.dice,
                "recovery_loss_q": weight["recovery_loss_weight"]
                * recovery_loss(q, given["ori_q"]),
                "recovery_loss_k": weight["recovery_loss_weight"]
                * recovery_loss(lateral, given["ori_lateral"]),
            }
            value = sum(terms.values())
            return value, terms | {
                "total": value,
                "acc_seg": made.accuracy,
                "num_masks": made.pairs,
            }

        return jax.grad(total, (0, 1, 2), has_aux=True)(masks, q, lateral)

    gradients, made = run(np.moveaxis(masks, 1, -1), given["q"], given["lateral"])
    for name, value in made.items():
        np.testing.assert_allclose(value, arrays[name][0], rtol=1.2e-6, err_msg=name)
    names = ("grad_pred_masks", "grad_q", "grad_lateral")
    for name, value in zip(names, (cases.nchw(gradients[0]), *gradients[1:]), strict=True):
        value = models.thinned(value, case["arrays"][name]["meaning"])
        cases.near(value, arrays[name], share=1e-6, name=name)


def check_forward(case, arrays, goldens):
    text = None
    if "text" in case:
        text = np.load(models.text_file(goldens, case["text"]))
        assert text.dtype == np.float16
    model = models.model(case, goldens, text)
    images = models.network_images(case)

    @jax.jit
    def run(model, images):
        logits, encoding = model(images), model.encoder(images)
        return scores(model, case, resize(logits, images.shape[1:3])), encoding

    made, encoding = run(model, images)
    made = {name: cases.nchw(x) for name, x in made.items()}
    made |= {name.replace("prob", "label"): x.argmax(1) for name, x in made.items()}
    if "prob" in arrays:  # one image, one mode
        made = {name: made[f"{name}_inductive"][0] for name in ("prob", "label")}
        made |= {
            "visual": cases.nchw(encoding.patches)[0],
            "region": cases.nchw(encoding.regions)[0],
        }
    assert made.keys() == arrays.keys()
    for name, value in made.items():
        if name.startswith("label"):
            cases.same_labels(value, arrays[name], name=name)
        else:  # sigmoids are of sums over many channels
            share = 2e-5 if name.startswith("prob") else cases.FORWARD
            compare({name: value}, arrays, case, share=share)
