"""The dense CRF against pydensecrf: every case in the `densecrf` folder of goldens.

Cases are recognised by the start of their name; everything else is read from their json. Photos
lie in `examples`, beside the cases or else in the repository.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from clipseg_jax.ops.crf import (
    UPSTREAM,
    CRFConfig,
    dense_crf,
    dense_crf_monitored,
    lattice,
    unary_from_labels,
    unary_from_softmax,
    wrapped_image,
)
from tests import seeded
from tests.parity import cases

FOLDER = "densecrf"
SLOW = ("exact_small", "photo")
MARGINAL = 8e-6  # five times what rounding does to a probability here; the jsons allow 1e-4


def test_case(path, goldens):
    checks = {
        "exact": check_exact,
        "lattice": check_lattice,
        "options": check_options,
        "photo": check_photo,
        "unary_half": check_half,
        "seeded_label": check_label_unary,
        "seeded": check_softmax_unary,
        "odd": check_softmax_unary,
        "many": check_softmax_unary,
    }
    found = [check for stem, check in checks.items() if path.stem.startswith(stem)]
    assert found, f"no check for a case named {path.stem}"
    case, arrays = cases.load(path)
    found[0](case, arrays, goldens)


def limit(text, before):
    """The number after `before` in a tolerance's text."""
    return float(re.search(rf"{re.escape(before)} *([\d.e-]+)", text).group(1))


def close(actual, arrays, name, absolute=MARGINAL):
    """Marginals (h, w, c) against every k-th pixel of (c, h, w), as the array's meaning says."""
    expected = arrays[name]
    step = round(np.asarray(actual).shape[1] / expected.shape[-1])
    actual = np.moveaxis(np.asarray(actual), -1, 0)[:, ::step, ::step]
    cases.close(actual, expected, absolute=absolute, name=name)


def same(labels, arrays, name, case):
    share = limit(case["tolerance"], "labels >=") / 100
    cases.same_labels(labels, arrays[name], share=share, name=name)


def config(given):
    names = {
        "gauss_sxy": "theta_gamma",
        "gauss_compat": "w2",
        "bilateral_sxy": "theta_alpha",
        "bilateral_srgb": "theta_beta",
        "bilateral_compat": "w1",
    }
    return CRFConfig(**{names[name]: value for name, value in given.items()})


def inputs(given):
    """Softmax scores and image of a seeded case, as its "construction" says."""
    h, w, c, seed = (given[key] for key in ("h", "w", "C", "seed"))
    label = seeded.label_map(h, w, c, seed, None)
    noise = np.sqrt(h * w) * seeded.unit_rows("crf_noise", c, h * w, seed).reshape(c, h, w)
    logits = 2.0 * np.eye(c)[label].transpose(2, 0, 1) + noise.astype(np.float64)
    prob = np.exp(logits - logits.max(0))
    prob = (prob / prob.sum(0)).astype(np.float32)
    return prob.transpose(1, 2, 0), seeded.image(h, w, seed)


run = jax.jit(
    lambda unary, image, cfg, n=None: dense_crf(unary[None], image[None], cfg, iterations=n)[0],
    static_argnums=2,
)
monitored = jax.jit(dense_crf_monitored, static_argnums=2)


def check_softmax_unary(case, arrays, _):
    prob, image = inputs(case["inputs"])
    wanted = [int(name[1:]) for name in arrays if re.fullmatch(r"q\d+", name)]
    unary, cfg = unary_from_softmax(prob), config(case["config"])
    for n in wanted:
        q = run(unary, image, cfg, n)
        close(q, arrays, f"q{n}")
        if f"label{n}" in arrays:
            same(np.argmax(q, -1), arrays, f"label{n}", case)
    if "kl" in arrays:
        most = len(arrays["kl"]) - 1
        q, seen = monitored(unary[None], image[None], cfg.replace(iterations=most))
        close(q[0], arrays, f"q{most}")
        # A sum over all pixels and labels, whose terms cancel; the json allows 1e-3.
        np.testing.assert_allclose(seen[0], arrays["kl"], rtol=4e-5)


def check_label_unary(case, arrays, _):
    given = case["inputs"]
    h, w, c, seed = (given[key] for key in ("h", "w", "C", "seed"))
    labels = seeded.label_map(h, w, c, seed, None)
    unary = unary_from_labels(labels, c, given["gt_prob"], zero_unsure=False)
    expected = arrays["unary"]
    np.testing.assert_allclose(
        np.asarray(unary).reshape(-1, c).T[:, : expected.shape[1]], expected, rtol=2.5e-7
    )
    q = run(unary, seeded.image(h, w, seed), config(case["config"]), 10)
    close(q, arrays, "q10")
    same(np.argmax(q, -1), arrays, "label10", case)


def check_exact(case, arrays, _):
    prob, image = inputs(case["inputs"])
    unary = unary_from_softmax(prob)
    for name, given in case["config"].items():
        for kind in ("lattice", "exact"):
            stem = f"{name}_{kind}"
            wanted = [int(key.removeprefix(stem)) for key in arrays if key.startswith(stem)]
            cfg = config(given).replace(filter=kind)
            assert wanted, stem
            text = case["tolerance"][kind]
            tolerance = limit(text, "atol" if kind == "exact" else "max abs")
            for n in wanted:
                actual = np.moveaxis(np.asarray(run(unary, image, cfg, n)), -1, 0)
                # Ten rounds carry rounding on where two classes are nearly equal: the json's bound.
                absolute = MARGINAL if n <= 5 else tolerance
                cases.close(actual, arrays[f"{stem}{n}"], absolute=absolute, name=f"{stem}{n}")


def check_lattice(case, arrays, _):
    h, w, c, seed = (case["inputs"][key] for key in ("h", "w", "C", "seed"))
    image = seeded.image(h, w, seed)
    values = np.sqrt(h * w) * seeded.unit_rows("lattice_values", c, h * w, seed)
    rows, columns = np.indices((h, w)).reshape(2, -1)
    index = [columns, rows, *image.reshape(-1, 3).T]
    for name, points in case["lattice_points"].items():
        sxy, *srgb = map(np.float32, re.findall(r"\d+", name))
        levels = [np.arange(n, dtype=np.float32) / sxy for n in (w, h)]
        levels += [np.arange(256, dtype=np.float32) / s for s in srgb for _ in range(3)]

        @jax.jit
        def run(index, values, levels=levels):
            built, numbers = lattice.build(levels, index, jnp.ones(index.shape[1], bool))
            near = lattice.neighbours(built, numbers, built.cells.size)

            def filtered(values, reverse=False):
                return lattice.filter_values(
                    values, built.weights, built.vertices, near, reverse=reverse
                ).T

            ones = filtered(jnp.ones((values.shape[0], 1)))[0]
            out = {"ones": ones, "fwd": filtered(values), "rev": filtered(values, reverse=True)}
            return out | {"bary": built.weights.T}, built.total

        out, count = run(jnp.asarray(np.stack(index[: len(levels)]).astype(np.int32)), values.T)
        # The reference pads the points to a multiple of 4 with points that count.
        assert count == points if h * w % 4 == 0 else count <= points
        for key, actual in out.items():
            expected = arrays[f"{name}_{key}"]
            cases.near(actual, expected, share=cases.ULPS, name=f"{name}_{key}")


def check_options(case, arrays, goldens):
    beside = goldens / FOLDER / f"{case['inputs'].removeprefix('as ')}.json"
    source = beside if beside.is_file() else cases.DEFAULT / FOLDER / beside.name
    prob, image = inputs(cases.load(source)[0]["inputs"])
    text = case["ran"]
    pair = [eval_tuple(t) for t in re.findall(r"\(([\d,]+)\)", text)]
    base = CRFConfig(
        iterations=int(limit("n " + text, "n")),
        theta_gamma=limit(text, "Gaussian sxy"),
        w2=limit(text, "compat"),
        theta_alpha=pair[0],
        theta_beta=pair[1],
        w1=limit(case["arrays"]["norm_none"]["meaning"], "compat"),
    )
    chosen = {
        "compat_diag": {"w1": tuple(map(float, arrays["diag"]))},
        "compat_matrix": {"w1": tuple(map(tuple, arrays["matrix"].tolist()))},
    }
    chosen |= {
        name: {"normalisation": name.removeprefix("norm_")}
        for name in arrays
        if name.startswith("norm_")
    }
    unary = unary_from_softmax(prob)
    for name, changes in chosen.items():
        # Without normalisation messages are sums over all pixels, and so is their rounding.
        absolute = 4e-5 if name == "norm_none" else MARGINAL
        close(run(unary, image, base.replace(**changes)), arrays, name, absolute)


def eval_tuple(text):
    return tuple(float(part) for part in text.split(","))


def check_half(case, arrays, _):
    half = unary_from_softmax(np.moveaxis(arrays["prob"], 0, -1))
    full = unary_from_softmax(np.moveaxis(arrays["prob"], 0, -1).astype(np.float32))
    for actual, name in ((half, "unary"), (full, "unary_if_float32")):
        expected = arrays[name]
        actual = np.asarray(actual).reshape(-1, len(expected)).T
        ulp = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float32)
        assert np.all(np.abs(actual - expected) <= (ulp if name == "unary" else 1e-6)), name
    assert np.mean(np.asarray(half) == np.asarray(full)) < 0.5


def check_photo(case, arrays, goldens):
    folder = goldens / FOLDER / "examples"
    folder = folder if folder.is_dir() else cases.DEFAULT / FOLDER / "examples"
    given = case["inputs"]
    image = read(folder / re.search(r"im[\w-]+\.png", given["image"]).group())
    drawn = read(folder / re.search(r"anno[\w-]+\.png", given["annotation"]).group())
    unsure = "zero_unsure=True" in given["unary"]
    codes = np.unique(code(drawn))
    labels = np.searchsorted(codes, code(drawn))
    if not unsure:
        assert codes[0] != 0  # nothing is black: labels start at 0
    count = int(limit(given["unary"], "n_labels="))
    unary = unary_from_labels(labels, count, limit(given["unary"], "gt_prob="), zero_unsure=unsure)

    example, clip_es = case["config"]["example"], case["config"]["clip_es"]
    gamma, w2 = example["gauss"]
    alpha, beta, w1 = example["bilateral"]
    upstream = CRFConfig(gamma, w2, alpha, beta, w1, example["iterations"])
    assert upstream == UPSTREAM
    bgr, wrapped = image[..., ::-1], wrapped_image(image)
    q = run(unary, bgr, upstream)
    close(q, arrays, "q5")
    same(np.argmax(q, -1), arrays, "label5", case)
    generic = np.argmax(run(unary, bgr, upstream.replace(rows_first=True)), -1)
    same(generic, arrays, "label5_generic", case)
    # Colours of the published picture, whose own build rounds otherwise: the json's share.
    published = code(
        read(folder / re.search(r"anno([\w-]+)\.png", given["annotation"]).expand(r"out\1.png"))
    )
    colours = codes[codes != 0] if unsure else codes
    agreement = np.mean(colours[generic] == published)
    assert agreement >= case["agreement_with_published_output"] - 2e-4

    np.testing.assert_array_equal(np.asarray(wrapped)[::3, ::3], arrays["wrapped"])
    cfg = config(clip_es).replace(iterations=case["config"]["clip_es_iterations"])
    q = run(unary, wrapped, cfg)
    close(q, arrays, "clip_es_q")
    sure = np.max(q, -1) >= case["config"]["confidence"]
    same(np.where(sure, np.argmax(q, -1), 255), arrays, "clip_es_label", case)


def read(path):
    """RGB uint8 (h, w, 3)."""
    return np.asarray(Image.open(path).convert("RGB"))


def code(rgb):
    """One integer for a colour: B + 256 G + 65536 R."""
    return rgb.astype(np.int64) @ np.array([65536, 256, 1])
