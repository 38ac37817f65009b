"""WTCLIP against its published code: every case in the `wtclip` folder of goldens."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.weclip.head import WaveletBlock
from clipseg_jax.ops.canny import canny
from clipseg_jax.ops.wavelet import haar, inverse_haar
from tests import seeded
from tests.parity import cases
from tests.parity.weclip_head_cases import check_head
from tests.parity.weclip_models import published, stride, thinned
from tests.parity.weclip_train_cases import check_train
from weights_convert.clip.build import install
from weights_convert.trained.weclip.keys import HEAD

FOLDER = "wtclip"
SLOW = ("train",)
LONG = ("train_voc_early",)  # the late phase has the early one's parts
NOT_HERE = ("infer",)  # another module's cases
_OURS = "head.decoder.wavelet."
BLOCK = 4e-6  # of the largest value: the rounding of a few convolutions


def test_case(path, goldens, monkeypatch):
    checks = {
        "edge": check_edge,
        "head": check_head,
        "train": functools.partial(check_train, monkeypatch=monkeypatch),
        "wavelet": check_wavelet,
    }
    found = [check for stem, check in checks.items() if path.stem.startswith(stem)]
    assert found, f"no check for a case named {path.stem}"
    case, arrays = cases.load(path)
    found[0](case, arrays)


def check_edge(case, arrays):
    maps, find = arrays["scoremaps"], jax.jit(canny)
    # As released: in maps cut to 0 and 1 no edge is found, so that "off" is the same.
    assert not find(np.floor(maps)).any()
    np.testing.assert_array_equal(arrays["enhanced"], maps)
    edges = np.asarray(find(np.floor(255 * maps)))
    assert edges.any()
    np.testing.assert_array_equal(255 * edges, arrays["canny_255"])
    np.testing.assert_array_equal(
        maps * np.float32(255) + np.float32(0.5 * 255) * edges, arrays["enhanced_255"]
    )


def check_wavelet(case, arrays):
    inputs = case["inputs"]
    pattern = r"unit_rows\('wt_in', (\d+)\*(\d+)\*(\d+), (\d+), seed\)"
    b, c, h, w = map(int, re.search(pattern, inputs["wt_in"]).groups())
    x = seeded.unit_rows("wt_in", b * c * h, w, inputs["seed"]).reshape(b, c, h, w) * math.sqrt(w)
    bands = jax.jit(haar)(np.moveaxis(x, 1, -1))
    made = np.transpose(bands, (0, 3, 4, 1, 2))
    cases.near(made, arrays["wt"], share=cases.ULPS, name="wt")
    back = cases.nchw(jax.jit(inverse_haar)(bands))
    cases.near(back, arrays["iwt_of_wt"], share=cases.ULPS, name="iwt_of_wt")
    check_filters(arrays)
    for kind in (name for name, told in inputs.items() if isinstance(told, dict)):
        check_block(case, arrays, kind)


def check_filters(arrays):
    """What our transforms do to one pixel, against the filters that a file holds."""
    for name, transform in (("dec_filters", haar), ("rec_filters", inverse_haar)):
        filters = arrays[name][:4, 0]
        if transform is haar:
            pixels = np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1)
            made = np.asarray(jax.jit(haar)(pixels)).reshape(4, 4).T
        else:
            bands = np.eye(4, dtype=np.float32).reshape(4, 1, 1, 1, 4)
            made = np.asarray(jax.jit(inverse_haar)(bands))
        cases.near(np.reshape(made, (4, 2, 2)), filters, share=cases.ULPS, name=name)


def check_block(case, arrays, kind):
    told, seed = case["inputs"][kind], case["inputs"]["seed"]
    weights = {
        f"decoder.wtconv.{key}": seeded.tensor(f"decoder.wtconv.{key}", shape, seed)
        * np.float32(16 if "scale" in key else 1)
        for key, shape in told["shapes"].items()
    }
    assert "'scale' additionally multiplied by 16" in told["weights"]
    named, unknown = HEAD.rename(weights)
    assert not unknown
    width = told["shapes"]["pointwise.weight"][0]
    block = abstract(lambda rngs: WaveletBlock(width, told["wt_levels"], rngs=rngs))
    install(block, {k.removeprefix(_OURS): v for k, v in named.items()}, complete=("",))

    b, c, h, w = map(int, re.search(r"reshape\((\d+),(\d+),(\d+),(\d+)\)", told["x"]).groups())
    x, probe = (
        seeded.unit_rows(f"wtconv_{name}_{kind}", b * c * h, w, seed).reshape(b, c, h, w)
        for name in ("in", "probe")
    )
    x = jnp.moveaxis(jnp.asarray(x * math.sqrt(w)), 1, -1)
    graph, state = nnx.split(block)

    @jax.jit
    def run(state, x):
        def scalar(state, x):
            block = nnx.merge(graph, state)
            convolved = block.convolve(x)
            out = block.pointwise(convolved)
            return jnp.sum(jnp.moveaxis(out, -1, 1) * probe), (convolved, out)

        return jax.grad(scalar, argnums=(0, 1), has_aux=True)(state, x)

    (gradient, slope), (convolved, out) = run(state, x)
    for name, value in (("depthwise", convolved), ("out", out), ("grad_x", slope)):
        key = f"{kind}_{name}_sub"
        value = cases.nchw(value)[:, :: stride(case["arrays"][key]["meaning"], "channel")]
        cases.near(value, arrays[key], share=BLOCK, name=key)
    gradient = published(gradient, _OURS)
    for key in told["shapes"]:
        made = thinned(gradient[f"decoder.wtconv.{key}"])
        cases.near(made, arrays[f"{kind}_grad:{key}"], share=BLOCK, name=f"{kind} {key}")
