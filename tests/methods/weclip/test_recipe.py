"""WeCLIP's and WTCLIP's recipes whole: stages, odd images, devices."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import cv2
import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from clipseg_jax import main
from clipseg_jax.demo import world
from clipseg_jax.evaluate import headline
from clipseg_jax.inference import network_size
from clipseg_jax.methods.weclip import build as weclip_models
from clipseg_jax.methods.weclip import task as weclip
from clipseg_jax.ops.image import normalize
from clipseg_jax.ops.resize import resize
from clipseg_jax.stages.image_classes import tagged_examples
from configs import demo_weclip, demo_wtclip
from tests import folders
from tests.events import read_events
from tests.reports.pages import Page
from weights_convert import WECLIP, load_trained

ALL = ("data", "text", "train", "evaluate", "evaluate_crf")


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """Three pictures to score and nine to train on, among them the odd ones."""
    root = folders.write_painted(tmp_path_factory.mktemp("world"), 3, 9)
    images, labels = root / "train/images", root / "train/labels"
    empty, full, small = sorted(path.stem for path in images.iterdir())[:3]
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(labels / f"{empty}.png")
    stripes = np.minimum(np.arange(64) // 4, 12).astype(np.uint8)  # the background and all classes
    Image.fromarray(np.tile(stripes, (64, 1))).save(labels / f"{full}.png")
    for folder in (images, labels):
        path = folder / f"{small}.png"
        Image.fromarray(np.asarray(Image.open(path))[:17, :30]).save(path)
    return root


def small(module, root):
    """A demo config in seconds: all stages, and a few steps on either side of the late phase."""
    config = module.get_config()
    config.dataset.name, config.dataset.root = "folder", str(root)
    config.head.width, config.head.layers, config.head.heads = 32, 1, 1
    config.par.iterations = 2
    config.head.crop_px, config.head.batch_size = (48, 48), 4
    config.head.total_steps, config.head.late_step = 4, 2
    config.head.evaluate_every_steps = 2
    config.head.optim.warmup_steps = 1
    config.inference.scale_px = (64, 64)
    config.crf.iterations = 2
    config.run.batch_size, config.run.pictures = 3, 2
    config.run.log_every_steps = 1
    config.run.devices = 1
    return config


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def seen(folder, both):
    """TensorBoard has every evaluation with panel and classes, the report has all curves."""
    during = read_events(folder / "tensorboard" / "train_evaluations")
    panel = [tag for tag in during if tag.startswith("panel/")]
    assert len(panel) == 6
    assert all([*during[tag]] == [2, 4] for tag in (*panel, "mIoU", "iou/background"))
    for figures, name in zip(both, ("", "_crf"), strict=True):
        final = read_events(folder / "tensorboard" / f"evaluate{name}")
        assert final["mIoU"][0] == pytest.approx(figures["mIoU"])
        assert sum(tag.startswith("panel/") for tag in final) == 3
    page = Page((folder / "report.html").read_text())
    assert "Training: train" in page.text
    drawn = [attrs["aria-label"] for _, attrs in page.tags if attrs.get("class") == "curve"]
    assert {"loss", "learning rate", "affinity_loss", "mIoU of evaluations"} <= {*drawn}
    for figures, name in zip(both, ("evaluation", "with CRF"), strict=True):
        assert f"{name}{figures['mIoU_of_labelled']:.2f}mIoU_of_labelled, 3 images" in page.text


@pytest.mark.slow
@pytest.mark.parametrize("module", [demo_weclip, pytest.param(demo_wtclip, marks=pytest.mark.long)])
def test_the_whole_recipe(module, painted, tmp_path, capsys, caplog):
    """No image needs a path of its own: one with no class, one with all, one below the crop."""
    config = small(module, painted)
    config.run.predictions = True
    with jax.log_compiles():
        records = main.run(config, tmp_path)
    compiled = [r.getMessage() for r in caplog.records if "Compiling jit(update)" in r.getMessage()]
    assert len(compiled) == 1  # both phases, and any number of classes
    assert tuple(records) == ALL
    assert (records["train"]["steps"], records["train"]["images"]) == (4, 9)
    steps = lines(tmp_path / "train.jsonl")
    assert [line["late"] for line in steps] == [0, 0, 1, 1]
    assert all(np.isfinite(line["loss"]) for line in steps)
    assert [line["step"] for line in lines(tmp_path / "train_evaluations.jsonl")] == [2, 4]
    method = "WTCLIP" if module is demo_wtclip else "WeCLIP"
    for which in ("last", "best"):
        head = load_trained(
            tmp_path / f"head_{which}.safetensors", WECLIP, expected={"method": method}
        )
        assert head.record["classes"][:2] == ["background", "boat"]
    both = [json.loads((tmp_path / f"metrics{n}.json").read_text()) for n in ("", "_crf")]
    for figures, name in zip(both, ("", "_crf"), strict=True):
        assert figures["images"] == 3
        assert len(list((tmp_path / f"pictures{name}").iterdir())) == 2
        labels = [np.asarray(Image.open(p)) for p in (tmp_path / f"predictions{name}").iterdir()]
        assert [label.shape for label in labels] == [(64, 64)] * 3
        assert max(label.max() for label in labels) <= 12
    # Never one without the other.
    record = records["evaluate_crf"]
    told = record["mIoU_of_labelled_without_crf"], record["mIoU_of_labelled"]
    assert told == tuple(figures["mIoU_of_labelled"] for figures in both)
    said = f"mIoU_of_labelled without CRF {told[0]:.2f}, with CRF {told[1]:.2f}"
    assert said in capsys.readouterr().out
    seen(tmp_path, both)

    assert main.run(config, tmp_path) == records
    assert capsys.readouterr().out.count("done before") == len(ALL)


@pytest.mark.slow
def test_own_heads_and_labels_replace_stages(painted, tmp_path):
    config = small(demo_weclip, painted)
    config.stages = ("text", "train")
    main.run(config, tmp_path / "a")
    config.head.trained_weights = str(tmp_path / "a" / "head_last.safetensors")
    config.stages = ("text", "train", "evaluate_crf")
    config.head.padding = "ignored"
    records = main.run(config, tmp_path / "b")
    assert "skipped" in records["train"]
    assert (tmp_path / "b" / "metrics.json").exists()  # made with the other, unasked

    config.head.gate = True
    with pytest.raises(ValueError, match="is of method WeCLIP, not WTCLIP"):
        main.run(config, tmp_path / "c")
    config.head.gate = False
    config.dataset.class_names = ("background", *world.CLASSES[:11], "kite")
    with pytest.raises(ValueError, match=r"other classes: number 12 is 'balloon'"):
        main.run(config, tmp_path / "d")


@pytest.mark.slow
def test_masks_are_the_labels_of_whole_images(painted, tmp_path):
    """On request; in a padded batch the same as each image alone."""
    config = small(demo_weclip, painted)
    config.stages, config.head.evaluate_every_steps = ("text", "train", "masks"), 0
    config.run.batch_size, config.run.max_buckets, config.run.devices = 5, 1, 1
    records = main.run(config, tmp_path)
    assert records["masks"]["images"] == 9
    figures = json.loads((tmp_path / "metrics_masks.json").read_text())
    assert headline(records["masks"]) == headline(figures)
    assert figures["published_metric"] == "mIoU_of_labelled"
    assert figures["classes"]["background"]["IoU"] > 0

    examples, tags = tagged_examples(config, tmp_path, "train", label_maps=False)
    cfg = dataclasses.replace(weclip_models.inference(config), ratios=(1.0,))
    graph, state = nnx.split(weclip_models.load_trained(config, tmp_path))

    @functools.partial(jax.jit, static_argnums=3)
    def alone(state, pixels, tags, size):
        images = resize(normalize(pixels, cfg.mean, cfg.std), network_size(*size, cfg))
        return weclip.pseudo_labels(nnx.merge(graph, state), images, tags, size=size)

    found = set()
    for example, shown in zip(examples, tags, strict=True):
        pixels = np.asarray(Image.open(example.image_path))
        mask = cv2.imread(str(tmp_path / f"masks/{example.name}.png"), cv2.IMREAD_GRAYSCALE)
        expected = alone(state, pixels[None], shown[None], pixels.shape[:2])[0]
        assert mask.shape == pixels.shape[:2]
        assert np.mean(mask == expected) > 0.999
        found |= set(np.unique(mask))
        assert set(np.unique(mask)) <= {0, *(np.flatnonzero(shown) + 1)}
    assert len(found) > 3


@pytest.mark.slow
def test_images_that_cannot_be_used_are_named(painted, tmp_path):
    """A truncated picture gives its place to another; unknown labels leave an image out."""
    root = tmp_path / "world"
    shutil.copytree(painted, root)
    stems = sorted(path.stem for path in (root / "train/images").iterdir())
    truncated, unknown = (root / f"train/images/{stem}.png" for stem in stems[4:6])
    truncated.write_bytes(truncated.read_bytes()[:300])
    label = root / f"train/labels/{unknown.stem}.png"
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(label)
    config = small(demo_weclip, root)
    config.stages, config.head.evaluate_every_steps = ("text", "train"), 0
    config.head.padding = "ignored"
    records = main.run(config, tmp_path / "run")
    assert (records["train"]["images"], records["train"]["steps"]) == (8, 4)
    problems = json.loads((tmp_path / "run/labels_problems.json").read_text())
    assert list(problems) == [unknown.stem]
    assert "77" in problems[unknown.stem]

    config.labels.file = str(tmp_path / "labels.npy")
    vectors = {stem: np.eye(12, dtype=np.float32)[i] for i, stem in enumerate(stems[5:])}
    np.save(config.labels.file, vectors, allow_pickle=True)
    records = main.run(config, tmp_path / "listed")
    assert records["train"]["images"] == 4
    problems = json.loads((tmp_path / "listed/labels_problems.json").read_text())
    assert list(problems) == stems[:5]


def test_what_users_get_wrong(painted, tmp_path):
    config = small(demo_weclip, painted)
    for stages, message in (
        (("train",), "run the stage `text` first"),
        (("text", "evaluate"), "head_last.safetensors is missing; run the stage `train` first"),
    ):
        config.stages = stages
        with pytest.raises(ValueError, match=message):
            main.run(config, tmp_path / stages[-1])
    config.stages = ("text", "train")
    config.labels.source = "tags"
    with pytest.raises(ValueError, match='must be "masks" or "annotations"'):
        main.run(config, tmp_path / "source")
    config.labels.source = "masks"
    config.head.checkpoint, config.head.evaluate_every_steps = "best", 0
    with pytest.raises(ValueError, match=r"pass --config\.head\.evaluate_every_steps=N"):
        main.run(config, tmp_path / "use")
    config.head.checkpoint, config.dataset.reduce_zero_label = "last", True
    config.dataset.class_names = world.CLASSES
    with pytest.raises(ValueError, match=r"12 words for the 12 classes .* without a background"):
        main.run(config, tmp_path / "background")


@pytest.mark.long
def test_devices_share_a_batch(painted, tmp_path):
    """1, 2 and 4 devices train the same head, but for the order of sums."""
    heads, losses = [], []
    for devices in (1, 2, 4):
        config = small(demo_weclip, painted)
        config.stages, config.head.evaluate_every_steps = ("text", "train"), 0
        config.run.devices = devices
        main.run(config, tmp_path / str(devices))
        heads.append(load_trained(tmp_path / f"{devices}/head_last.safetensors", WECLIP).arrays)
        losses.append([line["loss"] for line in lines(tmp_path / f"{devices}/train.jsonl")])
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-4)
    rate = 10 * config.head.optim.learning_rate
    for other in heads[1:]:
        for key, value in heads[0].items():
            if key.endswith("in_proj.bias"):  # the keys' third has no gradient but rounding
                continue
            # Adam's first steps are of the rate's size, whatever the gradient's.
            apart = np.abs(other[key] - value) > 0.01 * rate
            assert apart.mean() < 0.01, key
