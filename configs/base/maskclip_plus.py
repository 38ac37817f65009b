"""Every default of MaskCLIP+. Source: spec maskclip, sections 11 to 14, unless said otherwise.

A config string chooses among the published variants, such as
"student=deeplabv2_r101,teacher=rn50,setting=zero_shot".
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict, config_dict

from configs.base import loops, maskclip

# Decoder, and blocks of the ResNet's stages. Published configs named after a ViT and an R-101 train
# a ResNet-50 in fact (section 16, quirk 5).
STUDENTS = {
    "deeplabv2_r50": ("deeplabv2", (3, 4, 6, 3)),
    "deeplabv2_r101": ("deeplabv2", (3, 4, 23, 3)),
    "deeplabv3plus_r50": ("deeplabv3plus", (3, 4, 6, 3)),
    "deeplabv3plus_r101": ("deeplabv3plus", (3, 4, 23, 3)),
}
TEACHERS = ("rn50", "rn101", "rn50x4", "rn50x16", "rn50x64", "vit_b32", "vit_b16", "vit_l14")
SETTINGS = ("annotation_free", "zero_shot")
_DEFAULTS = {
    "student": "deeplabv2_r101",
    "teacher": "vit_b16",
    "setting": "annotation_free",
    "classes": "",  # the published number of them
}

# Section 12.4. steps: of the whole run; evaluate: every so many steps.
_DATASETS: dict[str, dict[str, Any]] = {
    "voc": {
        "root": "data/VOCdevkit/VOC2012", "train_split": "trainaug",
        "scale_px": (2048, 512), "crop_px": (512, 512),
        "annotation_free": {"classes": "20", "steps": 2000, "evaluate": 1000},
        "zero_shot": {"classes": "20", "steps": 20_000, "evaluate": 2000},
        "names": {"20": "voc12_20", "21": "voc12_21"},
    },
    "context": {
        "root": "data/VOCdevkit/VOC2010", "train_split": "train",
        "scale_px": (520, 520), "crop_px": (480, 480),
        "annotation_free": {"classes": "59", "steps": 4000, "evaluate": 2000},
        "zero_shot": {"classes": "60", "steps": 40_000, "evaluate": 4000},
        "names": {"59": "context_59", "60": "context_60"},
    },
    "coco_stuff": {
        "root": "data/coco_stuff164k", "train_split": "train",
        "scale_px": (2048, 512), "crop_px": (512, 512),
        "annotation_free": {"classes": "171", "steps": 8000, "evaluate": 4000},
        "zero_shot": {"classes": "171", "steps": 80_000, "evaluate": 8000},
        "names": {"171": "coco_stuff_164k"},
    },
}  # fmt: skip


def dataset_config(dataset: str, string: str = "") -> ConfigDict:
    """The published values of a variant on "voc", "context" or "coco_stuff".

    Args:
      string: comma-separated `student=`, `teacher=`, `setting=` and `classes=` (21 on VOC and 60 on
        Context have a background), those that aren't the default.

    Raises:
      ValueError: an unknown name or value.
    """
    published = _DATASETS[dataset]
    chosen = parse(string, names=tuple(published["names"]))
    setting = chosen["setting"]
    values = published[setting]
    config = get_config(chosen["student"], chosen["teacher"], setting)
    config.dataset.name = published["names"][chosen["classes"] or values["classes"]]
    config.dataset.root, config.dataset.train_split = published["root"], published["train_split"]
    config.student.scale_px, config.student.crop_px = published["scale_px"], published["crop_px"]
    config.inference.scale_px = published["scale_px"]
    set_length(config, values["steps"], values["evaluate"])
    if (dataset, setting) == ("context", "zero_shot"):
        config.student.optim.learning_rate, config.student.optim.weight_decay = 0.004, 1e-4
    return config


def parse(string: str, *, names: tuple[str, ...]) -> dict[str, str]:
    """A variant's values by name, the defaults filled in; `names` are those of `classes`.

    Raises:
      ValueError: an unknown name or value.
    """
    allowed = {"student": (*STUDENTS,), "teacher": TEACHERS, "setting": SETTINGS, "classes": names}
    chosen = dict(_DEFAULTS)
    for part in filter(None, string.split(",")):
        name, _, value = part.partition("=")
        if name not in allowed:
            raise ValueError(f"unknown {part!r} in the config string; choose of {[*allowed]}")
        if value not in allowed[name]:
            raise ValueError(f"{name}={value} in the config string; choose of {[*allowed[name]]}")
        chosen[name] = value
    return chosen


def set_length(config: ConfigDict, steps: int, evaluate_every: int) -> None:
    """The run's steps; in the zero-shot setting the student is on its own after a tenth of them."""
    config.student.total_steps, config.student.evaluate_every_steps = steps, evaluate_every
    if config.student.setting == "zero_shot":
        config.student.guided_steps = (1, steps // 10 - 1)
        config.student.self_training_steps = (steps // 10, -1)


def get_config(student: str, teacher: str, setting: str) -> ConfigDict:
    """Every default but what depends on the dataset; MaskCLIP's are the teacher's."""
    config = maskclip.get_config()
    config.method = "maskclip_plus"
    # Stages run in this order; name some of them to run only those. Others: `evaluate_maskclip`,
    # the teacher by itself; `evaluate_guided`, the student before it was on its own; `robustness`.
    config.stages = ("data", "text", "train", "evaluate")

    config.clip.tower = teacher  # what config.clip.weights must be of; "": any

    config.dataset.train_split = "train"
    # Names of the classes held out in the zero-shot setting; (): those of the record, as published.
    config.dataset.unseen = ()
    # Larger images are read shrunk to this longest side, to learn from.
    config.dataset.longest_px = config_dict.placeholder(int)

    config.student = ConfigDict()
    config.student.trained_weights = config_dict.placeholder(str)  # released or own; no training
    # A name: resnet50_v1c, resnet101_v1c (variant "v1": resnet50, resnet101); a file; or "random".
    config.student.init_weights = config_dict.placeholder(str)
    config.student.decoder, config.student.blocks = STUDENTS[student]
    config.student.width = 64
    config.student.strides = (1, 2, 1, 1)
    config.student.dilations = (1, 1, 2, 4)
    config.student.variant = "v1c"
    config.student.dtype = "float32"  # of the convolutions
    config.student.setting = setting  # "annotation_free" or "zero_shot"
    # First and last step, from 1, at which MaskCLIP and at which the student itself labels.
    config.student.guided_steps = (1, -1)  # -1: to the end
    config.student.self_training_steps = (-1, -1)  # never
    # How a ViT teaches: a name of clipseg_jax/models/clip/read_outs.py, such as "naclip".
    config.student.teacher_read_out = "value"
    # Section 16, quirk 6: what the ground truth ignores (VOC's background) trains nothing. False:
    # it is labelled as well; the annotation-free setting then reads no label files.
    config.student.use_gt_ignore = True
    config.student.distill = False  # section 12.2: the teacher's features instead of its labels
    config.student.distill_labelled = True
    config.student.distill_weight = 1.0
    config.student.distill_detach = True  # quirk 7: published without a gradient
    config.student.scale_px = (2048, 512)  # long and short side at most, before the random ratio
    config.student.ratio_range = (0.5, 2.0)
    config.student.crop_px = (512, 512)
    config.student.batch_size = 16  # published: 4 GPUs x 4
    config.student.total_steps = config_dict.placeholder(int)
    config.student.evaluate_every_steps = config_dict.placeholder(int)
    config.student.optim = ConfigDict()  # clipseg_jax/core/optim.py; section 12.3
    config.student.optim.name = "sgd"
    config.student.optim.learning_rate = 0.01
    config.student.optim.schedule = "poly"
    config.student.optim.power = 0.9
    config.student.optim.end_learning_rate = 1e-4
    config.student.optim.warmup_steps = 0  # for batches of many images
    config.student.optim.momentum = 0.9
    config.student.optim.weight_decay = 5e-4
    config.student.optim.clip_norm = 0.0  # no limit

    config.train = loops.train()
    return config
