"""Every recipe loads, names things that exist, and describes what can be built."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import itertools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from clipseg_jax import main
from clipseg_jax.core.metrics import SegmentationMetrics
from clipseg_jax.core.modules import abstract
from clipseg_jax.core.optim import OptimConfig, learning_rate
from clipseg_jax.inference import InferenceConfig, network_size
from clipseg_jax.methods.clip_es import student as deeplab
from clipseg_jax.methods.clip_es.model import CLIPESConfig
from clipseg_jax.methods.clip_rc import build as clip_rc_models
from clipseg_jax.methods.clip_rc.model import CLIPRCConfig
from clipseg_jax.methods.clip_rc.task import CLIPRCTaskConfig
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.methods.maskclip_plus import build as maskclip_plus_models
from clipseg_jax.methods.maskclip_plus import task as maskclip_plus
from clipseg_jax.methods.maskclip_plus.model import MaskCLIPPlus
from clipseg_jax.methods.reclip import build as reclip_models
from clipseg_jax.methods.reclip.model import ReCLIPConfig
from clipseg_jax.methods.reclip.tags import TagsConfig
from clipseg_jax.methods.tagclip.model import TagCLIPConfig
from clipseg_jax.methods.weclip import build as weclip_models
from clipseg_jax.methods.weclip import task as weclip
from clipseg_jax.methods.weclip.head import Head, HeadConfig
from clipseg_jax.methods.weclip.model import WeCLIPConfig
from clipseg_jax.models.clip import CLIP, CLIPConfig, ViTConfig
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.models.resnet import DilatedResNetConfig
from clipseg_jax.ops.crf import CLIP_ES, CRFConfig
from clipseg_jax.ops.crf.config import WECLIP_TEST
from clipseg_jax.ops.par import PARConfig
from clipseg_jax.prompts import templates
from clipseg_jax.stages import clip as clip_es_models
from clipseg_jax.stages import preflight
from clipseg_jax.stages.completion import completed
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.image_classes import class_count, label_of_class
from clipseg_jax.stages.inference import inference_config, inference_values
from clipseg_jax.stages.sections import options
from configs.base import readouts

ROOT = Path(__file__).resolve().parent.parent
# The towers by what configs call them, and the demo's.
NAMES = {"rn50": "RN50", "rn50x16": "RN50x16", "vit_b16": "ViT-B/16"}
_SHAPES = json.loads((ROOT / "tests/golden/clip/shapes.json").read_text())
TOWERS = {
    name: {k: tuple(v) for k, v in _SHAPES[released].items() if k.startswith("visual.")}
    for name, released in NAMES.items()
}
TINY = ViTConfig(image_px=64, patch_px=8, width=128, layers=4, heads=4, embed_dim=96)
# MaskCLIP+'s published variants: config -> config strings, as docs/results.md has them.
_COMMAND = re.compile(r"--config=configs/((?!demo)\w+_maskclip_plus)\.py:([\w=,]+)`")
ROWS = collections.defaultdict(list)
for _name, _string in _COMMAND.findall((ROOT / "docs/results.md").read_text()):
    ROWS[_name].append(_string)
# What a table of a zero-shot recipe can print, and with it any other's.
PUBLISHED = SegmentationMetrics.from_confusion(np.eye(2)).summary(unseen=[1]).keys()
PATHS = sorted((ROOT / "configs").glob("*.py"))
RECIPES = [path for path in PATHS if path.stem != "__init__"]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def strings(path):
    """The config strings that a file takes."""
    special = {
        "voc_clip_es": ("coco", "imagenet"), "voc_wtclip": ("weclip", "released"),
        "own_maskclip": ("maskclip", *readouts.CHOICES[:-1]), "own_reclippp": (None,),
        "own_clip_rc": ("all", "some", "inductive"),
    }  # fmt: skip
    if path.stem in special:
        return special[path.stem]
    if path.stem.endswith("clip_rc"):
        return ("inductive", "transductive", "fully")
    if path.stem.endswith("_maskclip_plus"):
        demo = "demo" in path.stem
        return ("annotation_free", "zero_shot") if demo else ("", *ROWS[path.stem])
    if path.stem.endswith("_readout"):
        return readouts.CHOICES[:-1] if "demo" in path.stem else readouts.CHOICES
    return ("2024", "2025") if "reclip" in path.stem and "demo" not in path.stem else (None,)


@pytest.mark.parametrize(
    ("path", "string"),
    [(path, string) for path in RECIPES for string in strings(path)],
    ids=lambda x: getattr(x, "stem", str(x)),
)
def test_recipe(path, string, tmp_path):
    module = load(path)
    config = module.get_config() if string is None else module.get_config(string)
    if path.stem.startswith("own_"):
        config = own(config, tmp_path)
    assert f"configs/{path.name}" in module.__doc__  # the command that runs it
    assert all(word in module.__doc__ for word in ("Hardware: ", "Hours: ", "Ours"))
    stages = main.stages_of(config.method)
    assert set(config.stages) <= set(stages)
    assert templates(config.text.templates)
    assert config.evaluate.published_metric in PUBLISHED
    dataset = find_dataset(config.dataset)
    assert len(dataset.prompts) in (dataset.num_classes, dataset.num_classes - 1)
    checks = {
        "maskclip": check_maskclip,
        "maskclip_plus": check_maskclip_plus,
        "reclip": check_reclip,
        "clip_es": check_clip_es,
        "weclip": check_weclip,
        "clip_rc": check_clip_rc,
        "readouts": check_readouts,
    }
    checks[config.method](config)


def own(config, folder):
    """A recipe for a user's images with names and a CLIP, and what follows from them."""
    config.clip.weights, config.dataset.root = "demo", str(folder)
    config.dataset.class_names = ("background", "cat", "dog")
    if config.method == "clip_rc" and config.clip_rc.setting != "fully":
        config.dataset.unseen = ("dog",)
    return completed(config, folder)


def check_maskclip(config):
    MaskCLIPConfig(**config.maskclip.to_dict())
    cfg = InferenceConfig(
        mean=tuple(config.clip.mean),
        std=tuple(config.clip.std),
        **inference_values(config.inference),
    )
    assert min(network_size(375, 500, cfg)) > 0


def check_readouts(config):
    """Every class has a row; the protocol makes what inference takes."""
    config.dino.weights = "stands in"
    preflight._check_read_out(config)
    cfg = inference_config(config)
    assert set(cfg.embedding_labels) == set(range(find_dataset(config.dataset).num_classes))
    assert min(network_size(375, 500, cfg)) > 0
    if config.dataset.name not in ("demo_world", "folder"):
        assert (cfg.pad_to_px > 0) == (config.read_out.name in ("clearclip", "proxyclip"))


# Columns of the specification's table of results, whose order is that of docs/results.md.
READOUTS = ("voc21", "context60", "coco_object", "voc20", "cityscapes", "context59", "ade20k",
            "coco_stuff")  # fmt: skip
SPEC = (ROOT / "docs/specs/readouts.md").read_text("utf-8")


def cells(text, heading):
    """The rows of the first table behind a heading, without its two lines of head."""
    lines = text[text.index(f"\n{heading}\n") :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    split = [[cell.strip(" *") for cell in row.strip("|").split("|")] for row in rows]
    return split[0], split[2:]


PROTOCOLS = cells(SPEC, "## 9. Protocol")


@pytest.mark.parametrize("dataset", READOUTS)
def test_readout_protocols(dataset):
    """Spec readouts, sections 1 and 9: every cell, and what holds of each method."""
    names = ("VOC21", "Context60", "COCO-Object", "VOC20", "Cityscapes", "Context59", "ADE20K",
             "COCO-Stuff 164k")  # fmt: skip
    head, rows = PROTOCOLS
    assert [row[0] for row in rows] == list(names)
    row = rows[READOUTS.index(dataset)]
    module = load(ROOT / f"configs/{dataset}_readout.py")
    assert module.get_config() == module.get_config("scclip")
    for method, cell in zip(head[2:], row[2:], strict=True):
        config = module.get_config(method.lower().replace("-", ""))
        clear, proxy = method == "ClearCLIP", method == "ProxyCLIP"
        whole = method in ("NACLIP", "ResCLIP") and dataset.startswith("voc")
        window, stride = (448, 224) if clear else (336, 112) if proxy else (224, 112)
        side, numbers = 448 if clear else 336, []
        scale, *others = re.split(r"[;,] ?", cell.replace("*", ""))
        for part in others:
            if part == "whole":
                assert whole
            elif part.startswith(("crop ", "stride ")):
                value = int(part.split()[1])
                window, stride = (value, stride) if part[0] == "c" else (window, value)
            elif re.fullmatch(r"\d{3}", part):
                side = int(part)
            else:
                numbers += map(float, part.split())
        thresholds = [float(n) for n in re.findall(r"[\d.]+", scale)] + [0.0, 0.0]
        inference = config.inference
        assert [
            inference.temperature, inference.background_threshold, inference.area_threshold,
        ] == thresholds[:3]  # fmt: skip
        assert inference.scale_px == (2048, side)
        assert inference.mode == ("whole" if whole else "slide")
        assert (inference.crop_px, inference.stride_px) == ((window, window), (stride, stride))
        if numbers:
            feedback = config.read_out.feedback
            assert feedback.enabled
            assert [
                feedback.threshold, config.read_out.cross, feedback.gain, feedback.share,
            ] == numbers  # fmt: skip
        assert bool(numbers) == (method == "ResCLIP")
        used = json.loads((ROOT / "docs/specs/readouts_classes.json").read_text())["sets"]
        assert method in used[config.text.names]["used_by"]
    for name in ("clip", "value"):  # as SCLIP's authors ran them
        ours, theirs = (module.get_config(each) for each in (name, "sclip"))
        ours.read_out.name = "sclip"
        assert ours == theirs


def test_readout_results():
    """Spec readouts, section 10, in docs/results.md and, rounded, in the configs' docstrings."""
    published = {
        row[0]: row[1:] for row in cells(SPEC, "## 10. Published results (mIoU, ViT-B/16)")[1]
    }
    head, rows = cells((ROOT / "docs/results.md").read_text("utf-8"), "## Read-outs of CLIP")
    assert tuple(head[1:9]) == READOUTS
    assert [row[1:10] for row in rows] == [row.copy() for row in published.values()]
    words = ("clip", "value", "sclip", None, "clearclip", "naclip", "refine=pamr`", "resclip",
             "default)", "proxyclip")  # fmt: skip
    for column, dataset in enumerate(READOUTS):
        text = " ".join((ROOT / f"configs/{dataset}_readout.py").read_text("utf-8").split())
        text = text.replace(" (MaskCLIP in this protocol)", "")
        for word, row in zip(words, rows, strict=True):
            if word is not None:
                assert f"{word} {float(row[1 + column]):.1f}" in text


def check_maskclip_plus(config):
    """The student and its teacher fit together, in shapes alone."""
    student, dataset = config.student, find_dataset(config.dataset)
    cfg = maskclip_plus_models.task_config(config)
    optim = OptimConfig(**student.optim.to_dict())
    assert learning_rate(optim, student.total_steps)(0) == pytest.approx(optim.learning_rate)
    end = float(learning_rate(optim, student.total_steps)(student.total_steps))
    assert end == pytest.approx(1e-4, rel=1e-3)
    assert min(network_size(375, 500, maskclip_plus_models.inference(config))) > 0
    zero_shot = student.setting == "zero_shot"
    assert cfg.unlabelled_classes == maskclip_plus_models.unseen(config)
    assert bool(cfg.unlabelled_classes) == zero_shot
    if zero_shot:  # the first evaluation sees the student as self-training begins
        switch = cfg.self_training_steps[0]
        assert cfg.guided_steps == (1, switch - 1)
        assert switch % student.evaluate_every_steps == 0
    shapes = TOWERS.get(config.clip.tower)
    vision = TINY if shapes is None else CLIPConfig.from_shapes(shapes).vision
    assert maskclip_plus_models.tower_name(vision) == config.clip.tower

    def make(rngs):
        clip = CLIP(CLIPConfig(vision, None), rngs=rngs)
        e = vision.embed_dim
        made = maskclip_plus_models.student_of(config, e, rngs)
        rows = np.zeros((len(dataset.prompts), e), np.float32)
        return MaskCLIPPlus(made, rows, clip.visual, background=dataset.background, rngs=rngs)

    model = abstract(make)
    assert model.classes == dataset.num_classes
    task = maskclip_plus.build(model, cfg)
    height, width = student.crop_px
    image = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    logits = nnx.eval_shape(lambda model, x: task.predict(model, x, None), model, image)
    stride = 4 if student.decoder == "deeplabv3plus" else 8
    assert logits.shape == (1, height // stride, width // stride, dataset.num_classes)


def check_reclip(config):
    """Every value that a stage needs is set, and makes what the stage makes of it."""
    for section in (config.rectifier, config.student):
        assert (section.total_steps or section.total_epochs) > 0
        assert (
            learning_rate(OptimConfig(**section.optim.to_dict()), 10)(0)
            == section.optim.learning_rate
        )
    assert config.inference.class_threshold is not None
    assert config.student.teacher_threshold is not None
    for cfg in (
        reclip_models.rectified_inference(config),
        reclip_models.distilled_inference(config),
    ):
        assert min(network_size(375, 500, cfg)) > 0
    ReCLIPConfig(
        plus_plus=config.model == "reclip++",
        gumbel_scale=config.rectifier.gumbel_scale,
        filter_scale=config.inference.filter_scale,
        norm_over=config.rectifier.norm_over,
    )
    TagsConfig(
        method=config.tags.method, threshold=config.tags.threshold, k=config.tags.k,
        crop_px=config.tags.crop_px, min_votes=config.tags.min_votes,
    )  # fmt: skip
    student = options(DilatedResNetConfig, config.student)
    abstract(lambda rngs: DeepLab(student, 512, rngs=rngs))


def check_clip_es(config):
    assert options(CLIPESConfig, config.cams).temperature > 1
    options(TagCLIPConfig, config.tags)
    CRFConfig(**config.crf.to_dict())
    OptimConfig(**config.student.optim.to_dict())
    dataset = find_dataset(config.dataset)
    for split in ("train_split", "mask_split", "split"):
        assert dataset.layout.split(config.dataset[split])
    classes, background = clip_es_models.word_lists(config)
    assert len(classes) == class_count(config)
    assert background or not config.cams.background
    labels = label_of_class(config)
    assert max(labels[labels < 255]) == dataset.num_classes - 1
    if not config.student.trained_weights:
        model = nnx.eval_shape(lambda: deeplab.build(config))
        assert model.aspp[0].bias.shape == (dataset.num_classes,)


def check_weclip(config):
    dataset = find_dataset(config.dataset)
    for split in ("train_split", "validation_split", "split"):
        assert dataset.layout.split(config.dataset[split])
    assert dataset.layout.split(config.masks.split)
    classes, background = clip_es_models.word_lists(config)
    assert len(classes) == len(dataset.foreground)
    assert dataset.background
    assert background
    head = options(HeadConfig, config.head)
    made = abstract(lambda rngs: Head(768, 11, dataset.num_classes, head, rngs=rngs))
    assert made.decoder.classifier.bias.shape == (dataset.num_classes,)
    WeCLIPConfig(**config.cams.to_dict(), par=PARConfig(**config.par.to_dict()))
    task = weclip_models.task_config(config)
    assert 0 < task.late_step < config.head.total_steps
    rate = learning_rate(OptimConfig(**config.head.optim.to_dict()), config.head.total_steps)
    assert float(rate(50)) == pytest.approx(2e-4 * (1 - 50 / config.head.total_steps))
    assert min(network_size(375, 500, weclip_models.inference(config))) > 0


def test_weclip_published_values():
    """Spec weclip, sections 9 to 11; spec wtclip, sections 4 and 6; spec densecrf, section 8."""
    files = {name: load(ROOT / f"configs/{name}.py") for name in
             ("voc_weclip", "coco_weclip", "voc_wtclip", "cod_wtclip")}  # fmt: skip
    voc, coco = (files[f"{name}_weclip"].get_config() for name in ("voc", "coco"))
    assert CRFConfig(**voc.crf.to_dict()) == WECLIP_TEST
    assert options(HeadConfig, voc.head) == HeadConfig()
    assert PARConfig(**voc.par.to_dict()) == PARConfig()
    coco_cams = WeCLIPConfig(box_threshold=0.7, late_blocks=10)
    for config, published in ((voc, WeCLIPConfig()), (coco, coco_cams)):
        assert WeCLIPConfig(**config.cams.to_dict()) == published
    assert weclip_models.task_config(voc) == weclip.PUBLISHED
    assert voc.head.late_step == weclip.late_step(15000, images=1464, every=2000)
    assert (coco.head.late_step, coco.head.total_steps) == (40_000, 80_000)
    words = [clip_es_models.word_lists(config) for config in (voc, coco)]
    assert [(len(a), len(b)) for a, b in words] == [(20, 25), (80, 23)]

    released = files["voc_wtclip"].get_config("released")
    assert options(HeadConfig, released.head) == HeadConfig(gate=True, wavelet_levels=1)
    assert released.head.late_step == weclip.late_step(15000, images=1464, every=1)
    assert files["voc_wtclip"].get_config().head.late_step == voc.head.late_step
    cod = files["cod_wtclip"].get_config()
    classes, background = clip_es_models.word_lists(cod)
    assert (len(classes), background) == (64, words[0][1])
    assert (classes[10], classes[63]) == ("Reccoon", "Katydid")
    with pytest.raises(ValueError, match="no state 'new'"):
        files["voc_wtclip"].get_config("new")
    cfg = weclip_models.inference(voc)
    assert network_size(375, 500, cfg) == (384, 512)
    assert network_size(333, 347, cfg) == (491, 511)  # quirk: all sides are rounded down


def check_clip_rc(config):
    cfg = clip_rc_models.model_config(config)
    seen = clip_rc_models.task_config(config).seen
    unseen = clip_rc_models.unseen(config)
    classes = find_dataset(config.dataset).num_classes
    fully = config.clip_rc.setting == "fully"
    assert len(seen) == (classes if fully else classes - len(unseen))
    task, transductive = config.clip_rc, config.clip_rc.setting == "transductive"
    assert bool(task.init_weights or task.self_training_step) == transductive
    assert config.clip_rc.total_steps > config.clip_rc.optim.warmup_steps
    OptimConfig(**config.clip_rc.optim.to_dict())
    inference = clip_rc_models.inference_config(config)
    assert inference.crop_px == (cfg.crop_px, cfg.crop_px)
    assert min(network_size(375, 500, inference)) == cfg.crop_px
    for split in ("train_split", "split"):
        assert find_dataset(config.dataset).layout.split(config.dataset[split])


def test_clip_rc_published_values():
    """Spec clip_rc, sections 3, 8, 9.4 and 11: the table, and what all configurations share."""
    rows = {
        ("voc", "inductive"): (40000, 10, 100, 1, 2, 4000),
        ("voc", "transductive"): (20000, 10, 100, 1, 2, 2000),
        ("voc", "fully"): (40000, 10, 100, 1, 0, 4000),
        ("coco_stuff", "inductive"): (80000, 100, 200, 3, 50, 8000),
        ("coco_stuff", "transductive"): (40000, 100, 200, 3, 50, 4000),
        ("coco_stuff", "fully"): (80000, 100, 100, 1.5, 1, 8000),
        ("context", "inductive"): (40000, 10, 100, 1, 2, 4000),
    }
    for (name, setting), expected in rows.items():
        config = load(ROOT / f"configs/{name}_clip_rc.py").get_config(setting)
        task = config.clip_rc
        weights = (task.mask_weight, task.dice_weight, task.recovery_weight)
        values = (task.total_steps, task.prompts, *weights, task.evaluate_every_steps)
        assert values == expected
        assert OptimConfig(**task.optim.to_dict()) == OptimConfig(
            name="adamw", learning_rate=2e-4, end_learning_rate=1e-6, warmup_steps=1500,
            weight_decay=0.01,
        )  # fmt: skip
        assert CLIPRCTaskConfig(setting, seen=(0,)).seen_offset == task.seen_offset
        assert dataclasses.replace(
            CLIPRCConfig(), prompts=expected[1]
        ) == clip_rc_models.model_config(config)
    assert len(templates("clip_rc_15")) == 15
    assert templates("clip_rc_voc") == ("a photo of a {}",)
    # No limit on the long side; ratios below 1 are published, and fall back to 1.
    inference = clip_rc_models.inference_config(config)
    assert network_size(100, 1000, inference) == (512, 5120)
    assert network_size(300, 400, inference, 1.5) == (768, 1024)
    with pytest.raises(ValueError, match="no setting 'zero'"):
        load(ROOT / "configs/voc_clip_rc.py").get_config("zero")


def test_clip_es_published_values():
    """Spec clip_es, sections 3, 10 and 11; spec tagclip, section 9; spec densecrf, section 8."""
    voc, coco = (load(ROOT / f"configs/{name}_clip_es.py").get_config() for name in ("voc", "coco"))
    assert (voc.cams.box_threshold, coco.cams.box_threshold) == (0.4, 0.7)
    crf = CRFConfig(**voc.crf.to_dict())
    assert crf == CLIP_ES
    assert voc.student.optim.learning_rate == 2.5e-5
    assert coco.student.optim.learning_rate == 2e-4
    words = [clip_es_models.word_lists(config) for config in (voc, coco)]
    assert [(len(a), len(b)) for a, b in words] == [(20, 25), (80, 23)]
    stuff = load(ROOT / "configs/coco_stuff_tagclip.py").get_config()
    words = clip_es_models.word_lists(stuff, synonyms=False)
    assert (len(words[0]), len(words[1])) == (171, 0)
    assert stuff.tags.relative_threshold == 0.1


def test_maskclip_plus_published_values():
    """Spec maskclip, sections 12.3, 12.4, 14 and 17: one command a published figure."""
    assert {name: len(found) for name, found in ROWS.items()} == {
        "voc_maskclip_plus": 4, "context_maskclip_plus": 4, "coco_stuff_maskclip_plus": 4,
    }  # fmt: skip
    context = load(ROOT / "configs/context_maskclip_plus.py")
    config = context.get_config("student=deeplabv3plus_r101,teacher=rn50,setting=zero_shot")
    assert (config.student.optim.learning_rate, config.student.optim.weight_decay) == (0.004, 1e-4)
    assert (config.student.total_steps, config.student.evaluate_every_steps) == (40_000, 4000)
    assert config.student.self_training_steps == (4000, -1)
    assert config.student.guided_steps == (1, 3999)
    assert config.student.crop_px == (480, 480)
    assert config.dataset.name == "context_60"
    assert len(maskclip_plus_models.unseen(config)) == 10
    free = context.get_config("teacher=rn50x16")
    assert (free.student.optim.learning_rate, free.student.optim.weight_decay) == (0.01, 5e-4)
    assert (free.student.total_steps, free.student.guided_steps) == (4000, (1, -1))
    assert free.dataset.name == "context_59"
    voc = load(ROOT / "configs/voc_maskclip_plus.py").get_config("setting=zero_shot,classes=21")
    assert maskclip_plus_models.unseen(voc) == (16, 17, 18, 19, 20)
    assert voc.dataset.train_split == "trainaug"
    for wrong, message in (
        ("students=deeplabv2_r50", "unknown 'students=deeplabv2_r50'"),
        ("student=unet", "student=unet .* choose of .*'deeplabv2_r50'"),
        ("classes=21", "classes=21 .* choose of"),
    ):
        with pytest.raises(ValueError, match=message):
            context.get_config(wrong)


def test_reclip_published_values():
    """Spec reclip, section 3: some of the table's entries, in both states of the code."""
    a, b = (load(ROOT / "configs/voc_reclippp.py").get_config(s) for s in ("2024", "2025"))
    assert (a.rectifier.total_epochs, a.rectifier.schedule_epochs, a.rectifier.crop_px) == (
        200,
        0,
        (512, 512),
    )
    assert (b.rectifier.total_epochs, b.rectifier.schedule_epochs, b.rectifier.crop_px) == (
        51,
        200,
        (336, 336),
    )
    assert (a.inference.class_threshold, b.inference.class_threshold) == (0.99992, 1.0)
    assert (a.clip.activation, b.clip.activation) == ("gelu", "quick_gelu")
    assert a.clip.mean != b.clip.mean
    assert "distill" in a.stages
    assert "distill" not in b.stages
    city = load(ROOT / "configs/cityscapes_reclippp.py").get_config("2025")
    assert (city.rectifier.batch_size, city.rectifier.optim.learning_rate) == (16, 0.16)
    assert city.rectifier.norm_over == "batch"
    context = load(ROOT / "configs/context_reclip.py").get_config()
    assert (context.tags.k, context.tags.threshold, context.tags.method) == (6, 20.0, "whole")
    assert context.inference.class_threshold == 0.6
    assert context.rectifier.gumbel_scale == 1000
    with pytest.raises(ValueError, match="no state '2023'"):
        load(ROOT / "configs/voc_reclip.py").get_config("2023")


def test_published_sizes():
    """Spec maskclip, section 7: the size at the network of a typical photo."""
    sizes = {}
    for path in RECIPES:
        config = load(path).get_config()
        if config.method != "maskclip":
            continue
        cfg = InferenceConfig(mean=(0, 0, 0), std=(1, 1, 1), **inference_values(config.inference))
        sizes[path.stem] = network_size(375, 500, cfg)
    assert sizes["voc_maskclip"] == (512, 683)
    assert sizes["coco_stuff_maskclip"] == (512, 683)
    assert sizes["context_maskclip"] == (390, 520)
