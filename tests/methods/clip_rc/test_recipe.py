"""CLIP-RC's recipe whole: three settings on three layouts, unseen labels, devices, files."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import weights_convert
from clipseg_jax import main
from clipseg_jax.methods.clip_rc.recipe import HALF, LAST
from configs import coco_stuff_clip_rc, context_clip_rc, demo_clip_rc, voc_clip_rc
from tests import folders
from tests.weights_convert import toys

MODULES = {"voc": voc_clip_rc, "context": context_clip_rc, "coco": coco_stuff_clip_rc}
CLASSES = {"voc": (20, 5), "context": (60, 10), "coco": (171, 15)}
STEPS = 4
# A network of milliseconds, on crops of 4 x 4 patches; as a command line has it.
SMALL = {
    "clip_rc.crop_px": 32, "clip_rc.prompts": 2, "clip_rc.region_side": 2,
    "clip_rc.decoder_blocks": 1, "clip_rc.heads": 2, "clip_rc.hidden": 16,
    "clip_rc.scale_px": (96, 48), "clip_rc.batch_size": 2, "clip_rc.total_steps": STEPS,
    "clip_rc.evaluate_every_steps": 0, "clip_rc.optim.learning_rate": 1e-3,
    "clip_rc.optim.warmup_steps": 0,
    "inference.scale_px": (1000, 40), "inference.crop_px": (32, 32),
    "inference.stride_px": (24, 24),
    "run.log_every_steps": 1, "run.checkpoint_every_steps": 3, "run.batch_size": 2,
    "text.templates": "clip_rc_voc",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The three datasets in their layouts, and a CLIP of two blocks."""
    root = tmp_path_factory.mktemp("home")
    shapes = toys.vit_shapes(
        width=64, layers=2, patch=8, grid=4, embed=16, vocabulary=49408, layers_of_text=1
    )
    folders.write_clip(root / "clip.safetensors", shapes)
    folders.write_voc(root / "voc", aug=2)
    folders.write_context(root / "context")
    folders.write_coco_stuff(root / "coco")
    return root


def config_of(home, dataset, setting, **changes):
    """A published configuration, made small."""
    config = MODULES[dataset].get_config(setting)
    config.clip.weights = str(home / "clip.safetensors")
    config.dataset.root = str(home / dataset)
    for name, value in (SMALL | changes).items():
        *sections, leaf = name.split(".")
        section = config
        for each in sections:
            section = section[each]
        section[leaf] = value
    config.run.devices = config.run.devices or 1
    config.run.predictions = True
    return config


def arrays(path):
    return weights_convert.load_trained(path, weights_convert.CLIP_RC).arrays


def assert_same(one, two):
    one, two = arrays(one), arrays(two)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


def check_run(home, dataset, setting, folder, printed):
    """Runs a recipe whole, and looks at all that it leaves."""
    classes, unseen = CLASSES[dataset]
    config = config_of(home, dataset, setting)
    if setting == "transductive":
        config.clip_rc.init_weights = str(folder / "inductive" / HALF)
        # So small that float32 has 0: the result tells what it started from.
        config.clip_rc.optim.learning_rate, config.clip_rc.optim.end_learning_rate = 1e-60, 0.0
    records = main.run(config, folder / setting)
    assert list(records) == ["data", "text", "train", "evaluate"]
    assert records["text"]["rows"] == classes
    assert records["train"]["steps"] == STEPS
    assert np.isfinite(records["train"]["loss"])
    metrics = json.loads((folder / setting / "metrics.json").read_text())
    assert metrics["images"] == 2
    assert len(metrics["classes"]) == classes
    assert len(metrics["unseen"]) == unseen
    assert metrics["pAcc"] == metrics["aAcc"]
    table = printed()
    assert "mIoU(U), unseen classes" in table
    assert metrics["published_metric"] == "hIoU"
    assert len(list((folder / setting / "predictions").iterdir())) == 2
    assert f"{metrics['unseen'][0]} (unseen)" in table
    told = weights_convert.load_trained(folder / setting / LAST, weights_convert.CLIP_RC).record
    assert (told["setting"], len(told["classes"])) == (setting, classes)
    assert len(told["seen"]) == (classes if setting == "fully" else classes - unseen)


@pytest.mark.long
@pytest.mark.parametrize("dataset", ["context", "coco"])
def test_layouts(home, dataset, tmp_path, capsys):
    """The other two settings on them: `test_full_size`."""
    check_run(home, dataset, "inductive", tmp_path, lambda: capsys.readouterr().out)


@pytest.mark.long
def test_three_settings(home, tmp_path, capsys):
    """Inductive, then transductive from its half-way weights, and fully; with their tables."""
    for setting in ("inductive", "transductive", "fully"):
        check_run(home, "voc", setting, tmp_path, lambda: capsys.readouterr().out)
    half = weights_convert.load_trained(tmp_path / "inductive" / HALF, weights_convert.CLIP_RC)
    assert half.record["figures"] == {"steps": STEPS // 2}
    last, own = arrays(tmp_path / "inductive" / LAST), half.arrays
    assert any(not np.array_equal(own[name], last[name]) for name in own)
    assert not (tmp_path / "transductive" / HALF).exists()
    # It learned nothing (see `check_run`), and so ends where it started.
    assert_same(tmp_path / "transductive" / LAST, tmp_path / "inductive" / HALF)


def corrupt(root, wrong):
    """VOC in `root`, with labels of unseen classes drawn from `wrong`; returns `root`."""
    rng = np.random.RandomState(0)

    def change(label):
        unseen = (label >= 16) & (label <= 20)
        return np.where(unseen, rng.choice(wrong, label.shape), label).astype(np.uint8)

    folders.write_voc(root, aug=2, change=change)
    return root


def trained(home, setting, root, work):
    """The file that a run of the stages up to the training leaves."""
    config = config_of(home, "voc", setting, **{"dataset.root": str(root)})
    config.clip_rc.self_training_step = 1 if setting == "transductive" else 0
    config.clip_rc.init_weights = None
    config.stages = ("data", "text", "train")
    main.run(config, work)
    return work / LAST


@pytest.mark.long
@pytest.mark.parametrize("setting", ["inductive", "transductive"])
def test_labels_of_unseen_classes_never_reach_the_loss(home, setting, tmp_path):
    """Corrupted where they are, the same parameters come out, bit for bit."""
    wrong = (*range(16, 21), 255) if setting == "inductive" else tuple(range(16, 21))
    clean = trained(home, setting, home / "voc", tmp_path / "clean")
    root = corrupt(tmp_path / "corrupt", wrong)
    assert_same(clean, trained(home, setting, root, tmp_path / "dirty"))


@pytest.mark.long
def test_labels_that_training_may_see_count(home, tmp_path):
    clean = arrays(trained(home, "fully", home / "voc", tmp_path / "clean"))
    root = corrupt(tmp_path / "corrupt", (*range(16, 21), 255))
    dirty = arrays(trained(home, "fully", root, tmp_path / "dirty"))
    assert any(not np.array_equal(clean[name], dirty[name]) for name in clean)


@pytest.mark.long
def test_devices_agree(home, tmp_path):
    """Within the order of sums: AdamW turns a gradient of rounding into a whole step."""
    made = {}
    for devices in (1, 2):
        config = config_of(home, "voc", "inductive", **{"run.devices": devices})
        config.clip_rc.dropout = 0.0
        config.stages = ("text", "train")
        main.run(config, tmp_path / str(devices))
        made[devices] = arrays(tmp_path / str(devices) / LAST)
    for name, value in made[1].items():
        if "multihead_attn.k.bias" in name:  # has no true gradient, only rounding
            continue
        off = np.abs(value - made[2][name])
        assert np.mean(off <= 1e-5) >= 0.98, f"{name}: {off.max()}"
        assert off.max() <= 2 * STEPS * 1e-3, f"{name}: {off.max()}"


def small_settings(home, **more):
    """The same as a command has it."""
    own = {"clip.weights": home / "clip.safetensors", "dataset.root": home / "voc"}
    return {k: str(v).replace(" ", "") for k, v in (SMALL | own | more).items()}


@pytest.mark.slow
def test_a_published_file_needs_no_clip(home, tmp_path):
    """Trained, written as the published code writes, and scored from that file alone."""
    config = config_of(home, "voc", "inductive")
    main.run(config, tmp_path / "ours")
    clip = weights_convert.load_clip(home / "clip.safetensors").model
    released = tmp_path / "iter_4.pth"
    ours = weights_convert.load_trained(tmp_path / "ours" / LAST, weights_convert.CLIP_RC)
    weights = weights_convert.clip_to_state_dict(clip)
    weights_convert.export_trained(ours, released, weights_convert.CLIP_RC, clip=weights)
    rows = np.load(tmp_path / "ours" / "text_embeddings.npy")
    np.save(tmp_path / "rows.npy", rows)
    config = config_of(home, "voc", "inductive")
    config.clip.weights, config.text.file = None, str(tmp_path / "rows.npy")
    config.clip_rc.trained_weights = str(released)
    records = main.run(config, tmp_path / "theirs")
    assert "skipped" in records["train"]
    one, two = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("ours", "theirs"))
    assert one == two
    whole = config_of(home, "voc", "inductive", **{"inference.mode": "whole"})
    whole.clip_rc.trained_weights, whole.stages = str(released), ("text", "evaluate")
    main.run(whole, tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["images"] == 2


def test_text_files(home, tmp_path):
    """Published rows are taken exactly, and checked against the text tower."""
    config = config_of(home, "context", "inductive")
    config.stages = ("text",)
    assert main.run(config, tmp_path / "a")["text"]["prompts"][0] == "background"
    rows = np.load(tmp_path / "a" / "text_embeddings.npy")
    half = rows.astype(np.float16)
    np.save(tmp_path / "half.npy", half)
    config.text.file, config.stages = str(tmp_path / "half.npy"), ("text", "check_text")
    record = main.run(config, tmp_path / "b")["check_text"]
    assert record["rows"] == 60
    assert 0.9999 < record["least_cosine"] <= 1.0001
    assert 0 < record["largest_difference"] < 1e-3
    taken = np.load(tmp_path / "b" / "text_embeddings.npy")
    np.testing.assert_array_equal(taken, half.astype(np.float32))

    swapped = half.copy()
    swapped[[3, 5]] = half[[5, 3]]
    np.save(tmp_path / "half.npy", swapped)
    with pytest.raises(ValueError, match="for 2 of 60 classes: bed, bench; least cosine"):
        main.run(config, tmp_path / "c")
    np.save(tmp_path / "half.npy", half[:59])
    with pytest.raises(ValueError, match=r"shape \(59, 16\) for 60 classes"):
        main.run(config, tmp_path / "d")
    np.save(tmp_path / "half.npy", 2 * half)
    with pytest.raises(ValueError, match="its rows are not of length 1"):
        main.run(config, tmp_path / "e")
    config.text.file, config.stages = None, ("check_text",)
    with pytest.raises(ValueError, match="no file to check"):
        main.run(config, tmp_path / "f")


def test_what_users_get_wrong(home, tmp_path):
    config = config_of(home, "voc", "transductive")
    config.stages = ("text", "train")
    config.clip_rc.init_weights = str(tmp_path / "none" / HALF)
    with pytest.raises(FileNotFoundError, match=r"init_weights=.* run first what writes it"):
        main.run(config, tmp_path / "a")
    config.clip_rc.init_weights = None
    with pytest.raises(
        ValueError, match=r"must be trained already: pass --config\.clip_rc\.init_weights"
    ):
        main.run(config, tmp_path / "b")
    config = config_of(home, "voc", "inductive", **{"dataset.unseen": ("zebra",)})
    config.stages = ("text", "train")
    with pytest.raises(ValueError, match=r"unseen classes \['zebra'\] are not among VOC12_20's"):
        main.run(config, tmp_path / "c")
    config = demo_clip_rc.get_config()
    config.dataset.name, config.dataset.root, config.dataset.unseen = "folder", str(tmp_path), ()
    config.stages = ("text", "train")
    with pytest.raises(ValueError, match=r"has no published unseen classes"):
        main.run(config, tmp_path / "d")
    config = config_of(home, "voc", "inductive")
    config.stages = ("train",)
    with pytest.raises(ValueError, match="run the stage `text` first"):
        main.run(config, tmp_path / "e")


@pytest.mark.long
@pytest.mark.parametrize("dataset", MODULES)
def test_full_size(dataset, tmp_path):
    """ViT-B/16, the published sizes but for the crop: the three settings, few steps."""
    folders.write_full_size(tmp_path)
    folders.write_voc(tmp_path / "voc", aug=2)
    folders.write_context(tmp_path / "context")
    folders.write_coco_stuff(tmp_path / "coco")
    names = ("clip_rc.prompts", "clip_rc.region_side", "clip_rc.decoder_blocks", "clip_rc.heads",
             "clip_rc.hidden", "text.templates")  # fmt: skip
    for setting in ("inductive", "transductive", "fully"):
        published = MODULES[dataset].get_config(setting)
        own = {name: published[name.split(".")[0]][name.split(".")[1]] for name in names}
        changes = {"clip_rc.crop_px": 64, "inference.crop_px": (64, 64), "clip_rc.total_steps": 2}
        changes |= {"inference.scale_px": (1000, 64), "inference.stride_px": (53, 53)}
        config = config_of(tmp_path, dataset, setting, **own, **changes)
        config.clip.weights = str(tmp_path / "vit_b16.safetensors")
        if setting == "transductive":
            config.clip_rc.init_weights = str(tmp_path / "inductive" / HALF)
        records = main.run(config, tmp_path / setting)
        assert np.isfinite(records["train"]["loss"])
        assert records["evaluate"]["images"] == 2
        jax.clear_caches()
