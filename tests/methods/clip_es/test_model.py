"""Class activation maps: boxes, affinity, labels, files, and CLIP-ES on a tiny CLIP.

Numbers of the published code are held by tests/parity.
"""

from __future__ import annotations

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.methods.clip_es import published_cams as cam_files
from clipseg_jax.methods.clip_es.model import CLIPES, CLIPESConfig, saved_maps
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.ops import attention, cam
from clipseg_jax.ops.affinity import patch_affinity, propagate, sinkhorn_normalize
from clipseg_jax.ops.components import bounding_box, component_bounds, component_boxes_mask
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize, valid_mask
from input_pipeline.datasets.class_sets import (
    coco_stuff_27_labels,
    coco_stuff_171_labels,
    coco_stuff_171_to_27,
    prompt_set,
)
from tests import tiny

CFG = CLIPESConfig(affinity_blocks=(0, 1), box_threshold=0.4)


def flood(mask):
    """Boxes (top, left, bottom, right), last cells included, of 8-connected components."""
    left, boxes = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        todo, part = [left.pop()], []
        while todo:
            y, x = todo.pop()
            part.append((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        ys, xs = zip(*part, strict=True)
        boxes.append((min(ys), min(xs), max(ys), max(xs)))
    return boxes


def drawn_boxes(mask, ends):
    out = np.zeros(mask.shape, bool)
    for top, left, bottom, right in flood(mask):
        out[top : min(bottom + 1, ends[0]), left : min(right + 1, ends[1])] = True
    return out


def test_components_are_a_flood_fills():
    rng = np.random.default_rng(0)
    masks = [rng.random((11, 14)) < share for share in (0.05, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)]
    masks += [np.zeros((11, 14), bool), np.ones((11, 14), bool)]
    for cells in ([(10, 3)], [(4, 13)], [(10, 13)], [(0, 0), (1, 1), (2, 2)], [(0, 0), (0, 2)]):
        mask = np.zeros((11, 14), bool)
        mask[tuple(zip(*cells, strict=True))] = True
        masks.append(mask)
    winding = np.zeros((11, 14), bool)
    winding[::2] = True
    winding[1::4, -1] = winding[3::4, 0] = True
    masks.append(winding)
    masks = np.stack(masks)
    bounds = np.asarray(jax.jit(component_bounds)(jnp.asarray(masks)))
    for i, mask in enumerate(masks):
        assert set(zip(*(b[mask] for b in bounds[:, i]), strict=True)) == set(flood(mask))
    for ends in ((10, 13), (11, 14), (6, 9)):
        inner = masks & (np.arange(11)[:, None] < ends[0] + 1) & (np.arange(14) < ends[1] + 1)
        all_boxed = component_boxes_mask(jnp.asarray(inner), jnp.asarray(ends))
        for mask, boxed in zip(inner, all_boxed, strict=True):
            np.testing.assert_array_equal(boxed, drawn_boxes(mask, ends))


def test_bounding_box():
    masks = np.zeros((3, 4, 6), bool)
    masks[0, 1, 2] = masks[0, 3, 5] = masks[1, 0, 0] = True
    np.testing.assert_array_equal(
        bounding_box(jnp.asarray(masks)), [[1, 2, 4, 6], [0, 0, 1, 1], [0, 0, 0, 0]]
    )


def test_activation_maps_stop_short_of_one():
    rng = np.random.default_rng(0)
    raw = rng.normal(0, 1e-5, (2, 3, 5, 7)).astype(np.float32)
    raw[0, 1] = 0  # no activation
    raw[0, 2] = -np.abs(raw[0, 2])  # negative only
    raw[1, 0] = 3e-5  # constant
    grids = jnp.asarray([[5, 7], [4, 6]])
    real = valid_mask(grids, (5, 7))
    maps = np.asarray(jax.jit(cam.activation_maps)(jnp.asarray(raw), real))
    assert not maps[0, 1].any()
    assert not maps[0, 2].any()
    assert not maps[1, 0].any()
    assert np.floor(255 * maps[0, 0].max()) == np.floor(255 * maps[1, 1].max()) == 254
    # What lies in the padding has no influence and stays 0.
    small = cam.activation_maps(jnp.asarray(raw[1:, :, :4, :6]), jnp.ones((1, 4, 6), bool))
    np.testing.assert_allclose(maps[1, :, :4, :6], small[0], atol=1e-7)
    assert not maps[1, :, 4:].any()
    assert not maps[1, :, :, 6:].any()
    boxes = np.asarray(cam.box_masks(jnp.asarray(maps), grids, 0.4))
    assert not boxes[0, 1:].any()
    assert not boxes[1, :, 3:].any()
    assert not boxes[1, :, :, 5:].any()


def test_box_thresholds_and_the_border():
    maps = np.zeros((1, 2, 4, 4), np.float32)
    maps[0, :, 1, 1], maps[0, :, 3, 2] = 1.0, 0.5
    grids = jnp.asarray([[4, 4]])
    low, high = cam.box_masks(jnp.asarray(maps), grids, jnp.asarray([[0.4, 0.6]]))[0]
    assert np.argwhere(low).tolist() == np.argwhere(high).tolist() == [[1, 1]]
    whole = cam.box_masks(jnp.asarray(maps), grids, 0.4, cover_border=True)[0, 0]
    assert np.argwhere(whole).tolist() == [[1, 1], [3, 2]]
    # Exactly on the threshold is not above it.
    assert not cam.box_masks(jnp.asarray(maps), grids, 0.5, cover_border=True)[0, 0, 3, 2]


def test_affinity_ignores_padding():
    rng = np.random.default_rng(0)
    maps = jnp.asarray(rng.random((1, 7, 7)), jnp.float32)
    real = jnp.asarray([[True, True, False, True, False, True]])
    index = np.flatnonzero(real[0])
    padded = sinkhorn_normalize(patch_affinity(maps, real))[0]
    alone = sinkhorn_normalize(maps[:, 1:, 1:][:, index][:, :, index])[0]
    np.testing.assert_allclose(padded[np.ix_(index, index)], alone, atol=1e-6)
    assert float(jnp.sum(jnp.abs(padded))) == pytest.approx(float(jnp.sum(alone)))
    np.testing.assert_allclose(alone, alone.T)
    np.testing.assert_allclose(jnp.sum(alone, axis=0), 1, atol=0.01)
    x = jnp.asarray(rng.random((1, 3, 4)), jnp.float32)
    squared = jnp.einsum("bki,bij->bkj", x, (alone @ alone)[None])
    np.testing.assert_allclose(propagate(alone[None], x, 2), squared, atol=1e-6)


def test_enlarged_maps_are_opencvs():
    cv2 = pytest.importorskip("cv2")
    maps = np.random.default_rng(0).random((2, 2, 4, 5)).astype(np.float32)
    grids, sizes = np.asarray([[4, 5], [3, 4]]), np.asarray([[63, 70], [40, 64]])
    large = cam.upsample(jnp.asarray(maps), jnp.asarray(grids), jnp.asarray(sizes), (63, 70))
    for i, ((hp, wp), (h, w)) in enumerate(zip(grids, sizes, strict=True)):
        expected = np.stack([cv2.resize(m[:hp, :wp], (w, h)) for m in maps[i]])
        np.testing.assert_allclose(large[i, :, :h, :w], expected, atol=2e-6)
        assert not large[i, :, h:].any()


@pytest.fixture(scope="module")
def scores():
    """CAMs with many ties: (b, k, h, w) float16, real (b, k), classes (b, k)."""
    rng = np.random.default_rng(1)
    maps = np.float16(rng.integers(0, 9, (3, 4, 16, 20)) / 8)
    maps[1] = rng.random((4, 16, 20))
    real = np.asarray([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    classes = np.asarray([[4, 0, 19, 7], [3, 1, 0, 0], [5, 0, 0, 0]], np.int32)
    return maps, real, classes


def test_labels_are_float16s(scores):
    maps, real, classes = scores
    thresholds = (1.0, 2.0, 3.0, 10.0, 0.05, 0.3, 0.5)
    all_labels = jax.jit(cam.cam_labels, static_argnums=3)(maps, real, classes, thresholds)
    assert all_labels.shape == (7, 3, 16, 20)
    for labels, t in zip(np.asarray(all_labels), thresholds, strict=True):
        for one, m, r, c in zip(labels, maps, real, classes, strict=True):
            cams = m[r]
            background = np.power(np.float16(1) - cams.max(0), t) if t >= 1 else np.float16(t)
            background = np.broadcast_to(background, cams.shape[1:]).astype(np.float16)
            index = np.argmax(np.concatenate([background[None], cams]), axis=0)
            np.testing.assert_array_equal(one, np.concatenate([[0], c[r] + 1])[index])
    labels = cam.class_labels(maps, real, classes)
    np.testing.assert_array_equal(labels[1], np.asarray([3, 1])[np.argmax(maps[1, :2], axis=0)])
    assert (labels[2] == 5).all()


def test_unary_and_pseudo_labels(scores):
    maps, real, _ = scores
    unary = np.asarray(jax.jit(cam.cam_unary)(maps, real))
    for i, r in enumerate(real):
        present = maps[i][r]
        p = np.concatenate([(np.float16(1) - present.max(0))[None], present])
        expected = -np.log(np.clip(p, np.float16(1e-5), np.float16(1)))
        assert expected.dtype == np.float16
        kept = np.concatenate([[True], r])
        np.testing.assert_array_equal(np.moveaxis(unary[i], -1, 0)[kept], expected)
        assert np.exp(-unary[i][..., ~kept]).sum() == 0
    without_background = cam.cam_unary(maps, real, background=False)
    np.testing.assert_array_equal(without_background, unary[..., 1:])
    marginals = jnp.asarray([[[[0.96, 0.04], [0.06, 0.94], [0.05, 0.95]]]], jnp.float32)
    labels = jnp.asarray([[0, 8]])
    assert cam.pseudo_labels(marginals, labels).tolist() == [[[0, 255, 8]]]
    assert cam.pseudo_labels(marginals, labels, 0.0).tolist() == [[[0, 8, 8]]]


class Danger:
    def __reduce__(self):
        return (print, ("executed",))


def test_cam_files(tmp_path, capsys):
    maps = np.random.default_rng(0).random((2, 5, 6)).astype(np.float16)
    path = cam_files.write_cam(tmp_path / "a.npy", np.asarray([14, 3]), maps)
    saved = cam_files.read_cam(path)
    np.testing.assert_array_equal(saved.maps, maps)
    assert saved.classes.tolist() == [14, 3]
    # What the published code loads.
    loaded = np.load(path, allow_pickle=True).item()
    assert loaded["keys"].dtype == np.int64
    np.testing.assert_array_equal(loaded["attn_highres"], maps)
    # What it writes, also with arrays in other layouts.
    turned = np.asfortranarray(maps.transpose(0, 2, 1)).astype(">f2")
    np.save(path, {"keys": np.asarray([1, 2]), "attn_highres": turned, "highres": maps})
    np.testing.assert_array_equal(cam_files.read_cam(path).maps, turned)

    bad = {
        "danger": {"keys": Danger(), "attn_highres": maps},
        "no_maps": {"keys": np.asarray([1])},
        "count": {"keys": np.asarray([1]), "attn_highres": maps},
        "list": [1, 2],
    }
    for name, content in bad.items():
        np.save(tmp_path / f"{name}.npy", np.asarray(content, object), allow_pickle=True)
    np.save(tmp_path / "plain.npy", maps)
    whole = path.read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-40])
    (tmp_path / "text.npy").write_bytes(b"no array")
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps({"keys": 1}))
    for name in (*bad, "plain", "cut", "text", "pickle"):
        with pytest.raises(
            ValueError, match=rf"{name}\.npy is not a file of class activation maps"
        ):
            cam_files.read_cam(tmp_path / f"{name}.npy")
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        cam_files.read_cam(tmp_path / "none.npy")
    with pytest.raises(ValueError, match="maps of shape"):
        cam_files.write_cam(path, np.asarray([1]), maps)


def test_prompt_sets():
    voc, coco = prompt_set("voc", synonyms=True), prompt_set("coco", synonyms=True)
    assert (len(voc.prompts), len(voc.background)) == (20, 25)
    assert (len(coco.prompts), len(coco.background)) == (80, 23)
    assert voc.prompts[14] == "person with clothes,people,human"
    assert coco.prompts[31] == "sknowboard"
    assert prompt_set("coco", synonyms=False).prompts == coco.names
    cod = prompt_set("cod", synonyms=True)
    assert (len(cod.prompts), cod.background) == (64, voc.background)
    assert (cod.names[10], cod.prompts[10]) == ("Raccoon", "Reccoon")
    stuff = prompt_set("coco_stuff", synonyms=True)
    assert (len(stuff.prompts), stuff.background) == (171, ("background",))
    assert prompt_set("coco_stuff", synonyms=False).background == ()
    with pytest.raises(ValueError, match="No prompt set 'ade'"):
        prompt_set("ade", synonyms=False)
    raw_to_27, raw_to_171 = coco_stuff_27_labels(), coco_stuff_171_labels()
    fine, has_class = coco_stuff_171_to_27(), raw_to_171 < 255
    np.testing.assert_array_equal(fine[raw_to_171[has_class]], raw_to_27[has_class])
    assert fine.shape == (171,)
    assert set(fine) == set(range(27))
    assert raw_to_27[255] == 255


def model(cfg=CFG, classes=12, seed=0):
    vision = dataclasses.replace(tiny.VIT, position_resize="bilinear")
    visual = tiny.clip(vision, seed=seed).visual
    rows = l2_normalize(
        jax.random.normal(jax.random.key(seed + 1), (classes + 3, vision.embed_dim))
    )
    return CLIPES(visual, rows[:classes], rows[classes:], cfg)


@jax.jit
def stages(state, images, sizes, classes, real):
    net = nnx.merge(GRAPH, state)
    encoding = net.encode(normalize(images, CLIP_MEAN, CLIP_STD), sizes)
    shape = net.visual.grid_shape(*images.shape[1:3])
    grad_cam = net.activate(encoding, classes, real, shape)
    return encoding, grad_cam, net.refine(grad_cam, encoding.grids, real)


GRAPH, STATE = nnx.split(model())


def run(images, labels, shape, k):
    classes, real = np.zeros((len(labels), k), np.int32), np.zeros((len(labels), k), bool)
    for i, ids in enumerate(labels):
        classes[i, : len(ids)], real[i, : len(ids)] = ids, True
    sizes = jnp.asarray([p.shape[:2] for p in images], jnp.int32)
    batch = tiny.padded(images, shape)
    return stages(STATE, batch, sizes, jnp.asarray(classes), jnp.asarray(real))


IMAGES = tiny.images([(64, 96), (80, 64), (96, 96)])
LABELS = [[3], [5, 0, 7], list(range(12))]


@pytest.fixture(scope="module")
def batch():
    return run(IMAGES, LABELS, (96, 96), 12)


def test_neither_padding_nor_other_images_matter(batch):
    _, grad_cam, cams = batch
    for i, (image, ids) in enumerate(zip(IMAGES[:2], LABELS, strict=False)):
        h, w = image.shape[0] // 16, image.shape[1] // 16
        _, alone, one = run([image], [ids], image.shape[:2], len(ids))
        m = len(ids)
        top = np.abs(alone.raw).max()
        np.testing.assert_allclose(grad_cam.raw[i, :m, :h, :w], alone.raw[0], atol=2e-5 * top)
        np.testing.assert_allclose(grad_cam.probabilities[i, 12:], alone.probabilities[0, m:], 3e-5)
        np.testing.assert_allclose(cams.cam[i, :m, :h, :w], one.cam[0], atol=5e-6)
        np.testing.assert_array_equal(cams.boxes[i, :m, :h, :w], one.boxes[0])
        np.testing.assert_allclose(cams.refined[i, :m, :h, :w], one.refined[0], atol=1e-6)
        for maps in (grad_cam.raw, cams.cam, cams.refined):
            assert not np.asarray(maps[i, m:]).any()
            assert not np.asarray(maps[i, :, h:]).any()
            assert not np.asarray(maps[i, :, :, w:]).any()
    assert (np.asarray(cams.cam[2]).max(axis=(1, 2)) > 0).all()  # twelve classes, twelve maps


def test_gradients_are_those_of_the_whole_block(batch):
    """Against the definition: the gradient at every token, class by class, then its mean."""
    encoding, grad_cam, _ = batch
    net = nnx.merge(GRAPH, STATE)
    block = net.visual.transformer.resblocks[-1]
    i, ids = 2, LABELS[2]  # the image that fills the batch's shape
    x = encoding.tokens[i : i + 1]
    rows = jnp.concatenate(
        [net.class_embeddings[...][jnp.asarray(ids)], net.background_embeddings[...]]
    )

    def probability(u, c):
        q, k, v = block.attn.qkv(u)
        y = x + block.attn.mix(q, k, v)
        z = net.visual.ln_post(y + block.mlp(block.ln_2(y)))
        feature = l2_normalize(jnp.mean(z[0, 1:], axis=0) @ net.visual.proj[...])
        return jax.nn.softmax(100 * rows @ feature)[c]

    u = block.ln_1(x)
    gradients = jax.jit(jax.vmap(jax.grad(probability), (None, 0)))(u, jnp.arange(len(ids)))
    weights = gradients[:, 0, 1:].mean(axis=1)  # (k, d)
    top = np.abs(weights).max()
    np.testing.assert_allclose(grad_cam.weights[i], weights, atol=2e-5 * top)
    raw = (u[0, 1:] @ weights.T).T.reshape(len(ids), 6, 6)
    np.testing.assert_allclose(grad_cam.raw[i], raw, atol=2e-5 * np.abs(raw).max())


def test_half_precision_reaches_the_last_attention(monkeypatch):
    """One float32 factor before it would make all of it float32, and no kernel would take it."""
    vision = dataclasses.replace(tiny.VIT, position_resize="bilinear", dtype="bfloat16")
    rows = np.random.default_rng(0).normal(size=(5, vision.embed_dim))
    net = CLIPES(tiny.clip(vision).visual, rows[:3], rows[3:], CFG)
    seen = []

    def refuse(queries, groups):
        seen.append(queries.dtype)
        return False

    monkeypatch.setattr(attention, "_fits_kernel", refuse)

    def gradients(images):
        encoding = net.encode(images, jnp.full((1, 2), 32))
        shape = net.visual.grid_shape(32, 32)
        present = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        return net.activate(encoding, *present, shape).weights

    weights = jax.eval_shape(gradients, jnp.zeros((1, 32, 32, 3)))
    assert weights.dtype == jnp.float32
    assert len(seen) >= vision.layers
    assert set(seen) == {jnp.dtype("bfloat16")}


def test_affinity_is_the_heads_mean(batch):
    encoding, grad_cam, _ = batch
    net = nnx.merge(GRAPH, STATE)
    images = normalize(jnp.asarray(IMAGES[2])[None], CLIP_MEAN, CLIP_STD)
    _, out = net.visual(images, read=["attn0", "attn1", "map0", "map1"])
    for name in "01":
        mean = np.mean(out[f"attn{name}"], axis=1)
        np.testing.assert_allclose(out[f"map{name}"], mean, atol=1e-6)
    expected = (out["map0"] + out["map1"])[0, 1:, 1:] / 2
    np.testing.assert_allclose(grad_cam.affinity[2], expected, atol=1e-6)
    assert encoding.grids.tolist() == [[4, 6], [5, 4], [6, 6]]
    # Read alone, one head at a time.
    _, alone = net.visual(images, read=["map0"])
    np.testing.assert_allclose(alone["map0"], out["map0"], atol=1e-6)


def test_one_program_for_every_batch_of_a_shape():
    count = 0

    @jax.jit
    def program(state, images, sizes, classes, real):
        nonlocal count
        count += 1
        net = nnx.merge(GRAPH, state)
        cams = net(images, sizes, classes, real)
        image_sizes = jnp.asarray([[50, 60], [33, 70]])
        return saved_maps(cams.refined, net.visual.grid_sizes(sizes), image_sizes, (64, 80))

    for sizes, real in (([[64, 64], [48, 80]], [2, 1]), ([[16, 16], [64, 80]], [0, 3])):
        images = tiny.padded(tiny.images(sizes), (64, 80))
        given = jnp.arange(3)[None] < jnp.asarray(real)[:, None]
        maps = program(STATE, images, jnp.asarray(sizes), jnp.asarray([[1, 2, 3]] * 2), given)
        assert maps.dtype == jnp.float16
        assert np.isfinite(maps).all()
        for one, m in zip(np.asarray(maps), real, strict=True):
            assert not one[m:].any()
    assert count == 1


def test_what_does_not_fit_is_refused():
    visual = nnx.merge(GRAPH, STATE).visual
    rows = np.eye(24, dtype=np.float32)
    with pytest.raises(ValueError, match=r"shape \(2, 8\) for an image tower with 24 features"):
        CLIPES(visual, rows[:2, :8], rows)
    with pytest.raises(ValueError, match=r"tower of 2 blocks; choose one or more of 0\.\.1"):
        CLIPES(visual, rows, rows)
