"""The head of WeCLIP and WTCLIP alone: what it makes of seeded tokens, and its gradients."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipseg_jax.methods.weclip.head import affinity
from tests import seeded
from tests.parity import cases
from tests.parity.weclip_models import (
    Arrays,
    Case,
    head_of,
    published,
    stride,
    thinned,
)
from weights_convert.trained.weclip.keys import COMPUTED


def check_head(case: Case, arrays: Arrays) -> None:
    """Every stage, and the gradient of "sum(seg_logits * probe) + 0.01*sum(attn_pred)"."""
    head, inputs = head_of(case), case["inputs"]
    b, h, w, seed = (inputs[name] for name in ("batch", "h", "w", "weight_seed"))
    width = head.fusion.adapters[0].proj.in_features
    layers = [
        np.stack(
            [
                seeded.unit_rows(f"tokens_b{i}_l{layer}", h * w, width, seed) * math.sqrt(width)
                for i in range(b)
            ]
        )
        for layer in range(len(head.fusion.adapters))
    ]
    classes = head.decoder.classifier.out_features
    probe = seeded.unit_rows("probe", b * classes, h * w, seed).reshape(b, classes, h, w)
    graph, state = nnx.split(head)

    @jax.jit
    def run(state, layers):
        def scalar(state):
            head = nnx.merge(graph, state)
            logits, fused = head(layers, (h, w))
            learned = affinity(fused)
            value = jnp.sum(jnp.moveaxis(logits, -1, 1) * probe) + 0.01 * jnp.sum(learned)
            return value, stages(head, layers, logits, fused, learned, (h, w))

        return jax.value_and_grad(scalar, has_aux=True)(state)

    (value, made), gradient = run(state, layers)
    np.testing.assert_allclose(value, arrays["scalar"], rtol=cases.FORWARD)
    for name in arrays.keys() & made.keys():
        about = case["arrays"][name]["meaning"]
        actual = np.asarray(made[name])
        if "channels 0::" in about:
            actual = actual[:, :: stride(about, "channel")]
        if "rows 0::" in about:
            actual = actual[:, :: stride(about, "row")]
        cases.near(actual, arrays[name], name=name)
    checked = {name for name in arrays if not name.startswith("grad") and name != "scalar"}
    assert checked <= made.keys()
    check_gradients(case, arrays, published(gradient))


def stages(head, layers, logits, fused, learned, shape):
    """Every named stage, in the goldens' layout."""
    fusion, decoder = head.fusion, head.decoder

    def maps(x):  # (b, n, d) -> (b, d, h, w)
        return jnp.moveaxis(x.reshape(x.shape[0], *shape, -1), -1, 1)

    adapted = [adapt(x) for adapt, x in zip(fusion.adapters, layers, strict=True)]
    out = {f"adapter{i}": maps(x) for i, x in enumerate(adapted)}
    tokens, read = decoder.transformer(fused, read=["map0"])
    out |= {"fuse": maps(fused), "decoder_attn0": read["map0"]}
    out |= {"seg_logits": jnp.moveaxis(logits, -1, 1)}
    out |= {"attn_pred": learned, "attn_pred_rows": learned}
    if fusion.gate is not None:
        gate = jax.nn.sigmoid(fusion.gate(jnp.concatenate(adapted, axis=-1)))
        out["spatial_attention"] = maps(gate)
    if decoder.wavelet is not None:
        block = decoder.wavelet(tokens.reshape(tokens.shape[0], *shape, -1))
        out |= {"wtconv_in_sub": maps(tokens), "wtconv_out_sub": jnp.moveaxis(block, -1, 1)}
    return out


def check_gradients(case: Case, arrays: Arrays, gradient: Arrays, *, share: float = 8e-6) -> None:
    """Norms of all gradients, and the kept elements of some."""
    names = [name for name in case["grad_norm_names"] if name not in COMPUTED]
    assert sorted(names) == sorted(gradient)
    norms = dict(zip(case["grad_norm_names"], arrays["grad_norms"], strict=True))
    # Theirs are float32 sums of up to millions of squares: seen 1.4e-5 off where gradients are not.
    lengths = [np.linalg.norm(gradient[name].astype(np.float64)) for name in names]
    np.testing.assert_allclose(lengths, [norms[name] for name in names], rtol=max(share, 6e-5))
    for name in (n for n in arrays if n.startswith("grad:")):
        cases.near(thinned(gradient[name[5:]]), arrays[name], name=name, share=share)
