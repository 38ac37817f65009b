"""WeCLIP's and WTCLIP's files in and out: all keys at full size, toys bit for bit, confusions."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

import weights_convert
from clipseg_jax.core.modules import abstract, initialised
from clipseg_jax.methods.weclip import task as weclip
from clipseg_jax.methods.weclip.head import Head, HeadConfig
from clipseg_jax.models.clip import VisionTransformer, ViTConfig
from tests import seeded
from tests.weights_convert import toys
from weights_convert import WECLIP, CheckpointError
from weights_convert.__main__ import main
from weights_convert.clip.build import flat_arrays, install
from weights_convert.formats.torch_writer import write_torch
from weights_convert.trained.kinds import format_of
from weights_convert.trained.weclip.published import from_published, to_published

NAMES = ["background", "cat", "dog", "tree"]
TOYS = {
    "WeCLIP": HeadConfig(width=32, layers=1, heads=1),
    "WTCLIP": HeadConfig(width=32, layers=1, heads=1, gate=True, wavelet_levels=1),
}
CLIP = {"width": 128, "layers": 3, "patch": 8, "grid": 4}


def zeros(of):
    """Arrays of these shapes that take no memory."""
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in of.items()}


def shapes_of(model):
    return {path: tuple(leaf.shape) for path, leaf in flat_arrays(model).items()}


@pytest.mark.parametrize(
    ("system", "cfg"),
    [("weclip", HeadConfig()), ("wtclip", HeadConfig(gate=True, wavelet_levels=1))],
)
def test_every_key_at_full_size(system, cfg):
    """Spec weclip, section 12; spec wtclip, sections 2 and 7, as the goldens list the keys."""
    listed = json.loads((toys.GOLDEN / system / "infer_voc.json").read_text())["head_shapes"]
    head_shapes = {key: tuple(shape) for key, shape in listed.items()}
    filters = [f"decoder.wtconv.depthwise.{name}_filter" for name in ("wt", "iwt")]
    constants = dict.fromkeys(filters if system == "wtclip" else (), (1024, 1, 2, 2))
    clip = json.loads((toys.GOLDEN / "clip/shapes.json").read_text())["ViT-B/16"]
    written = to_published(from_published(zeros(head_shapes), "file"), zeros(clip))
    clip_shapes = {f"encoder.{key}": tuple(shape) for key, shape in clip.items()}
    assert len(clip_shapes) == 302
    constants["par.kernel"] = (8, 1, 3, 3)
    assert {k: v.shape for k, v in written.items()} == head_shapes | clip_shapes | constants

    model = abstract(lambda rngs: Head(768, 11, 21, cfg, rngs=rngs))
    wanted = {f"head.{path}": shape for path, shape in shapes_of(model).items()}
    arrays = from_published(written, "file")
    assert {path: value.shape for path, value in arrays.items()} == wanted
    learned = sum(int(np.prod(shape)) for shape in wanted.values())
    assert learned == {"weclip": 5_985_045, "wtclip": 5_985_045 + 2_817 + 78_592}[system]


def test_what_is_half_precision():
    """As the published code keeps its CLIP on a GPU; the head is float32."""
    clip = {key: np.ones(shape, np.float32) for key, shape in toys.vit_shapes(**CLIP).items()}
    written = to_published(trained("WeCLIP"), clip)
    block = "encoder.visual.transformer.resblocks.0."
    for key, dtype in {
        "encoder.visual.conv1.weight": np.float16, "encoder.visual.proj": np.float16,
        "encoder.text_projection": np.float16, f"{block}attn.out_proj.weight": np.float16,
        f"{block}mlp.c_fc.bias": np.float16, f"{block}attn.in_proj_weight": np.float32,
        f"{block}ln_1.weight": np.float32, "encoder.positional_embedding": np.float32,
        "encoder.logit_scale": np.float32, "encoder.token_embedding.weight": np.float32,
        "decoder.transformer.resblocks.0.attn.out_proj.weight": np.float32,
    }.items():  # fmt: skip
        assert written[key].dtype == dtype, key


@functools.cache
def trained(method):
    """A toy's head by our paths."""
    sizes = CLIP["width"], CLIP["layers"] - 1, len(NAMES)
    model = abstract(lambda rngs: Head(*sizes, TOYS[method], rngs=rngs))
    zero_arrays = zeros({f"head.{path}": shape for path, shape in shapes_of(model).items()})
    keys = {key: value.shape for key, value in to_published(zero_arrays).items()}
    stored = seeded.state_dict(keys, 3) | {
        key: value
        for key, value in to_published(zero_arrays).items()
        if "filter" in key or "par" in key
    }
    return from_published(stored, "toy")


@functools.cache
def clip():
    return seeded.state_dict(toys.vit_shapes(**CLIP), 1)


def on(tower, method, seed=0):
    """An untrained model on a toy's image tower."""
    visual = weights_convert.clip_from_state_dict(tower).visual
    rows = np.eye(toys.EMBED, dtype=np.float32)
    return weclip.init_weclip(visual, rows[:3], rows[3:], head=TOYS[method], seed=seed)


@pytest.fixture(params=list(TOYS))
def method(request):
    return request.param


@pytest.fixture
def raw(tmp_path, method):
    return write_torch(tmp_path / "model_iter_30000.pth", to_published(trained(method), clip()))


def test_there_and_back_bit_for_bit(raw, method, tmp_path):
    stored = to_published(trained(method), clip())
    stored["encoder.visual.positional_embedding_new"] = np.zeros((26, 128), np.float16)
    raw = write_torch(raw, {f"module.{key}": value for key, value in stored.items()})
    loaded = weights_convert.load_trained(raw, WECLIP, expected={"method": method}, classes=NAMES)
    assert loaded.record["class_count"] == 4
    assert loaded.record["classes"] is None
    toys.assert_same(loaded.arrays, trained(method))
    del stored["encoder.visual.positional_embedding_new"]
    back = weights_convert.export_trained(loaded, tmp_path / "back.pth", WECLIP, clip=clip())
    toys.assert_same(weights_convert.read_state_dict(back), stored)

    model = on(clip(), method)
    install(model, loaded.arrays, complete=("head.",))
    ours = weights_convert.save_trained(
        tmp_path / "ours.safetensors", WECLIP, model, classes=NAMES, details={"step": 7}
    )
    again = weights_convert.load_trained(
        ours, WECLIP, expected={"method": method}, classes=NAMES, visual=model.clip.visual
    )
    assert (again.record["classes"], again.record["step"]) == (NAMES, 7)
    toys.assert_same(again.arrays, {k: np.asarray(v) for k, v in trained(method).items()})
    head = weights_convert.export_trained(again, tmp_path / "head.pth", WECLIP)
    alone = {key: value for key, value in stored.items() if not key.startswith("encoder.")}
    toys.assert_same(weights_convert.read_state_dict(head), alone)
    assert weights_convert.load_trained(head, WECLIP).record["clip_mark"] is None


def test_layouts():
    """What each name holds."""
    theirs, ours = to_published(trained("WTCLIP")), trained("WTCLIP")
    fuse, wavelet = "decoder_fts_fuse.", "decoder.wtconv."
    pairs = {
        "head.fusion.adapters.1.proj.kernel": theirs[f"{fuse}linears_modulelist.1.proj.weight"].T,
        "head.fusion.fuse.kernel": theirs[f"{fuse}linear_fuse.weight"][:, :, 0, 0].T,
        "head.fusion.gate.kernel": theirs[f"{fuse}spatial_attention.0.weight"][:, :, 0, 0].T,
        "head.decoder.transformer.resblocks.0.attn.in_proj.kernel": theirs[
            "decoder.transformer.resblocks.0.attn.in_proj_weight"
        ].T,
        "head.decoder.classifier.kernel": theirs["decoder.linear_pred.weight"][:, :, 0, 0].T,
        "head.decoder.wavelet.bands.0.scale": theirs[
            f"{wavelet}depthwise.wavelet_scale.0.weight"
        ].ravel(),
    }
    kernel = theirs[f"{wavelet}depthwise.base_conv.weight"]
    pairs["head.decoder.wavelet.base.kernel"] = kernel[:, 0].transpose(1, 2, 0)
    for path, expected in pairs.items():
        np.testing.assert_array_equal(ours[path], expected, err_msg=path)


def test_the_wavelet_is_checked():
    """Its constants equal the golden ones; another wavelet is refused."""
    stored = dict(to_published(trained("WTCLIP")))
    with np.load(toys.GOLDEN / "wtclip/wavelet.npz") as golden:
        for name, key in (("wt", "dec_filters"), ("iwt", "rec_filters")):
            filters = stored[f"decoder.wtconv.depthwise.{name}_filter"]
            assert filters.shape == (4 * 32, 1, 2, 2)
            np.testing.assert_allclose(filters[4:8], golden[key][4:8], atol=1e-7)
    stored["decoder.wtconv.depthwise.iwt_filter"] = filters[:, :, ::-1]
    with pytest.raises(CheckpointError, match=r"iwt_filter is not Haar's wavelet"):
        from_published(stored, "file")


def test_all_faults_at_once(tmp_path):
    bad = dict(to_published(trained("WeCLIP"), clip()))
    del bad["decoder_fts_fuse.linears_modulelist.1.proj_2.bias"]
    bad["encoder.visual.proj_2"] = np.zeros(3, np.float32)
    bad["decoder.linear_pred.weight"] = np.zeros((4, 32, 3, 3), np.float32)
    path = write_torch(tmp_path / "bad.pth", bad)
    with pytest.raises(CheckpointError) as caught:
        weights_convert.load_trained(path, WECLIP)
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
        "- decoder_fts_fuse.linears_modulelist.1.proj_2.bias: missing",
        "+ encoder.visual.proj_2 (3,): unexpected",
        "~ decoder.linear_pred.weight: shape (4, 32, 3, 3), expected (4, 32, 1, 1)",
    ]
    del bad["decoder.linear_pred.bias"]
    with pytest.raises(CheckpointError, match=r"linear_pred\.bias is missing; without it the size"):
        from_published(bad, "file")


def test_what_users_confuse(raw, method, tmp_path):
    other = next(name for name in TOYS if name != method)
    model = on(clip(), method)
    ours = weights_convert.save_trained(tmp_path / "ours.safetensors", WECLIP, model, classes=NAMES)
    tower = dict(clip())
    tower["visual.conv1.weight"] = tower["visual.conv1.weight"] + 1
    visual = on(tower, method).clip.visual
    for path in (raw, ours):
        assert format_of(path) is WECLIP
        with pytest.raises(CheckpointError, match=f"is of method {method}, not {other}"):
            weights_convert.load_trained(path, WECLIP, expected={"method": other})
        with pytest.raises(CheckpointError, match="for 4 classes, the class list has 21"):
            weights_convert.load_trained(path, WECLIP, classes=["x"] * 21)
        with pytest.raises(CheckpointError, match="trained with another CLIP"):
            weights_convert.load_trained(path, WECLIP, visual=visual)
    with pytest.raises(CheckpointError, match="number 1 is 'cat', in the class list 'fox'"):
        weights_convert.load_trained(ours, WECLIP, classes=["background", "fox", "dog", "tree"])
    trained_head = weights_convert.load_trained(ours, WECLIP)
    with pytest.raises(CheckpointError, match="trained with another CLIP; give the CLIP"):
        weights_convert.export_trained(trained_head, tmp_path / "no.pth", WECLIP, clip=tower)
    tower = {key: value for key, value in clip().items() if key.startswith("visual.")}
    with pytest.raises(CheckpointError, match="repeat the whole CLIP; give one with its text"):
        weights_convert.export_trained(trained_head, tmp_path / "no.pth", WECLIP, clip=tower)
    plain = write_torch(tmp_path / "clip.pt", clip())
    assert format_of(plain) is None
    with pytest.raises(CheckpointError, match="holds no head of WeCLIP"):
        weights_convert.load_trained(plain, WECLIP)
    with pytest.raises(CheckpointError, match="of format 'clipseg_jax WeCLIP 1'"):
        weights_convert.load_clip(ours)


def test_command(raw, method, tmp_path, capsys):
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    source = write_torch(tmp_path / "clip.pt", clip())
    assert main([str(raw), "-o", str(ours)]) == 0
    line = f"{method}, head of 4 classes, names not recorded"
    assert line in capsys.readouterr().out
    for path in (raw, ours):
        assert main(["--inspect", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        facts = dict(row.split(maxsplit=1) for row in lines[:8])
        assert (facts["layout"], facts["kind"], facts["sizes"]) == (method, "torch zip", line)
    argv = [str(ours), "--export", str(back), "--to", "weclip", "--clip", str(source)]
    assert main(argv) == 0
    toys.assert_same(weights_convert.read_state_dict(back), weights_convert.read_state_dict(raw))
    assert main([str(source), "--export", str(tmp_path / "no.pth"), "--to", "weclip"]) == 2
    assert "holds no head of WeCLIP" in capsys.readouterr().err


def test_heads_are_new_or_loaded():
    """A head that is to be used must be in the file whole."""
    vit = ViTConfig(32, 8, 128, 3, 2, toys.EMBED)
    tower = initialised(lambda rngs: VisionTransformer(vit, rngs=rngs))
    rows = np.eye(toys.EMBED, dtype=np.float32)
    model = weclip.init_weclip(tower, rows[:3], rows[3:], head=TOYS["WTCLIP"])
    with pytest.raises(CheckpointError, match=r"- head\.fusion\.gate\.kernel: missing"):
        install(model, trained("WeCLIP"), complete=("head.",))
