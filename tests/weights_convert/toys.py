"""Toy checkpoints: shapes by OpenAI's names, and the containers around them."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np

from tests import seeded
from weights_convert.formats import torch_writer as writer

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
EMBED = 32
P = lambda value: writer._pickled(value, [])  # noqa: E731


def _blocks(prefix, width, layers):
    out = {}
    for i in range(layers):
        b = f"{prefix}transformer.resblocks.{i}."
        out |= {
            b + "attn.in_proj_weight": (3 * width, width),
            b + "attn.in_proj_bias": (3 * width,),
            b + "attn.out_proj.weight": (width, width),
            b + "attn.out_proj.bias": (width,),
            b + "ln_1.weight": (width,),
            b + "ln_1.bias": (width,),
            b + "mlp.c_fc.weight": (4 * width, width),
            b + "mlp.c_fc.bias": (4 * width,),
            b + "mlp.c_proj.weight": (width, 4 * width),
            b + "mlp.c_proj.bias": (width,),
            b + "ln_2.weight": (width,),
            b + "ln_2.bias": (width,),
        }
    return out


def text_shapes(width=64, layers=2, vocabulary=600, embed=EMBED):
    return {
        "positional_embedding": (77, width),
        "text_projection": (width, embed),
        "logit_scale": (),
        **_blocks("", width, layers),
        "token_embedding.weight": (vocabulary, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }


def vit_shapes(width=128, layers=2, patch=8, grid=4, embed=EMBED, layers_of_text=2, **text):
    norms = ("visual.ln_pre.weight", "visual.ln_pre.bias")
    norms += ("visual.ln_post.weight", "visual.ln_post.bias")
    return {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (grid**2 + 1, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, patch, patch),
        **dict.fromkeys(norms, (width,)),
        **_blocks("visual.", width, layers),
        **text_shapes(embed=embed, layers=layers_of_text, **text),
    }


def _bn(name, width):
    leaves = ("weight", "bias", "running_mean", "running_var")
    out = {f"{name}.{leaf}": (width,) for leaf in leaves}
    return out | {f"{name}.num_batches_tracked": ()}


def resnet_shapes(width=8):
    half, wide = width // 2, 32 * width
    out = {"visual.conv1.weight": (half, 3, 3, 3), **_bn("visual.bn1", half)}
    out |= {"visual.conv2.weight": (half, half, 3, 3), **_bn("visual.bn2", half)}
    out |= {"visual.conv3.weight": (width, half, 3, 3), **_bn("visual.bn3", width)}
    before = width
    for stage in range(4):
        p, b = width * 2**stage, f"visual.layer{stage + 1}.0."
        out |= {b + "conv1.weight": (p, before, 1, 1), **_bn(b + "bn1", p)}
        out |= {b + "conv2.weight": (p, p, 3, 3), **_bn(b + "bn2", p)}
        out |= {b + "conv3.weight": (4 * p, p, 1, 1), **_bn(b + "bn3", 4 * p)}
        out |= {b + "downsample.0.weight": (4 * p, before, 1, 1), **_bn(b + "downsample.1", 4 * p)}
        before = 4 * p
    out["visual.attnpool.positional_embedding"] = (50, wide)
    for name, rows in (("k", wide), ("q", wide), ("v", wide), ("c", EMBED)):
        out |= {f"visual.attnpool.{name}_proj.weight": (rows, wide)}
        out |= {f"visual.attnpool.{name}_proj.bias": (rows,)}
    return out | text_shapes()


def vit(seed=1, **sizes):
    return seeded.state_dict(vit_shapes(**sizes), seed)


def resnet(seed=1):
    return seeded.state_dict(resnet_shapes(), seed)


def as_released(weights):
    """Half precision where OpenAI's files have it, and their three numbers."""
    kept = ("ln_", "bn", "downsample.1", "embedding", "logit_scale")
    out = {k: v if any(p in k for p in kept) else v.astype(np.float16) for k, v in weights.items()}
    for key, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 600)):
        out[key] = np.asarray(value, np.int64)
    return out


def name(module, attribute):
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def storage(kind, key, count, *rest):
    """Opcodes that refer to a storage; `rest` is a legacy file's view."""
    parts = P("storage") + name("torch", kind)
    parts += b"".join(P(value) for value in (key, "cpu", count, *rest))
    return pickle.MARK + parts + pickle.TUPLE + pickle.BINPERSID


def tensor(storage, offset, size, stride):
    hooks = name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    parts = storage + P(offset) + P(size) + P(stride) + P(False) + hooks
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + pickle.MARK
        + parts
        + pickle.TUPLE
        + pickle.REDUCE
    )


def pickled(body):
    return b"\x80\x02" + body + pickle.STOP


def zipped(path, structure, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", structure)
        for key, data in enumerate(storages):
            archive.writestr(f"archive/data/{key}", data)
    return path


def legacy(path, structure, storages=()):
    """`storages` are (key, array)."""
    out = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001}):
        out.write(pickle.dumps(value, 2))
    out.write(structure)
    out.write(pickle.dumps([key for key, _ in storages], 2))
    for _, array in storages:
        out.write(array.size.to_bytes(8, "little") + array.tobytes())
    path.write_bytes(out.getvalue())
    return path


def assert_same(arrays, expected):
    assert set(arrays) == set(expected)
    for key, value in expected.items():
        assert arrays[key].dtype == value.dtype, key
        assert arrays[key].shape == value.shape, key
        np.testing.assert_array_equal(arrays[key], value, err_msg=key)
