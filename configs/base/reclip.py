"""Every default of ReCLIP and ReCLIP++. Source: spec reclip; sections are given.

Two states of the published code give different numbers and different weights: "2024" (August 2024,
whose table is 73.5 / 79.2 on VOC) and "2025" (July 2025: 85.4 rectified, ReCLIP++ not distilled).
"""

from ml_collections import ConfigDict, config_dict

from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from configs.base import loops

# Section 1: the image tower's activation, and the pixel values that it is normalised by.
REVISIONS = {
    "2024": ("gelu", IMAGENET_MEAN, IMAGENET_STD),
    "2025": ("quick_gelu", CLIP_MEAN, CLIP_STD),
}

# Sections 3 and 4. Both states: tags (K, THRESHOLD) and distillation; each state: rectification.
# scale_px: sides at most, before the random ratio; PD: class filter of ReCLIP and ReCLIP++.
_DATASETS = {
    "voc": {
        "name": "voc12_20", "root": "data/VOCdevkit/VOC2012", "tags": (2, 23.0),
        "2024": {"scale_px": (2048, 512), "crop_px": 512, "epochs": 200, "pd": (0.5, 0.99992)},
        "2025": {"scale_px": (2048, 336), "crop_px": 336, "epochs": (51, 200), "pd": (0.5, 1.0)},
        "distill": {"scale_px": (2048, 512), "crop_px": 512, "epochs": 100, "pd": 0.95},
    },
    "context": {
        "name": "context_59", "root": "data/VOCdevkit/VOC2010", "tags": (6, 20.0),
        "2024": {"scale_px": (520, 520), "crop_px": 480, "epochs": 150, "pd": (0.6, 0.75)},
        "2025": {"scale_px": (2048, 448), "crop_px": 480, "epochs": (51, 400), "pd": (0.6, 0.85)},
        "distill": {"scale_px": (520, 520), "crop_px": 480, "epochs": 150, "pd": 0.0},
    },
    "ade20k": {
        "name": "ade20k", "root": "data/ADEChallengeData2016", "tags": (5, 21.0),
        "2024": {"scale_px": (2048, 512), "crop_px": 512, "epochs": 150, "pd": (0.5, 0.0)},
        "2025": {"scale_px": (2048, 512), "crop_px": 512, "epochs": (101, 600), "pd": (0.5, 0.5)},
        "distill": {"scale_px": (2048, 512), "crop_px": 512, "epochs": 150, "pd": 0.0},
    },
    "cityscapes": {
        "name": "cityscapes", "root": "data/cityscapes", "tags": (2, 21.5),
        "2024": {"scale_px": (1024, 512), "crop_px": 512, "epochs": 150, "pd": (0.5, 0.74)},
        "2025": {"scale_px": (2048, 448), "crop_px": 512, "epochs": (51, 300), "pd": (0.5, 0.5)},
        "distill": {"scale_px": (1024, 512), "crop_px": 512, "epochs": 100, "pd": 0.0},
    },
    "coco_stuff": {
        "name": "coco_stuff_27", "root": "data/coco_stuff164k", "tags": (8, 20.0),
        "2024": {"scale_px": (2048, 512), "crop_px": 512, "epochs": 30, "pd": (0.5, 0.9)},
        "2025": {"scale_px": (2048, 512), "crop_px": 512, "epochs": (101, 800), "pd": (0.5, 0.95)},
        "distill": {"scale_px": (2048, 512), "crop_px": 512, "epochs": 50, "pd": 0.95},
    },
}  # fmt: skip


def dataset_config(model: str, dataset: str, revision: str) -> ConfigDict:
    """The published values of "reclip" or "reclip++" on one of the five datasets."""
    config = get_config(model, revision)
    published = _DATASETS[dataset]
    plus_plus = model == "reclip++"
    config.dataset.name, config.dataset.root = published["name"], published["root"]
    config.tags.k, config.tags.threshold = published["tags"]

    values = published[revision]
    crop_px = (values["crop_px"], values["crop_px"])
    config.tags.crop_px = values["crop_px"]
    config.rectifier.scale_px, config.rectifier.crop_px = values["scale_px"], crop_px
    if revision == "2024":
        config.rectifier.total_epochs = values["epochs"]
    else:  # stops long before its schedule ends
        config.rectifier.total_epochs, config.rectifier.schedule_epochs = values["epochs"]
    if dataset == "cityscapes" and revision == "2025":
        config.rectifier.batch_size, config.rectifier.optim.learning_rate = 16, 0.16
        config.rectifier.norm_over = "batch"
    config.inference.scale_px = values["scale_px"]
    config.inference.class_threshold = values["pd"][int(plus_plus)]

    values = published["distill"]
    config.student.scale_px = values["scale_px"]
    config.student.crop_px = (values["crop_px"], values["crop_px"])
    config.student.total_epochs = values["epochs"]
    config.student.teacher_threshold = values["pd"] if plus_plus else 0.5
    config.student.test_threshold = values["pd"] if plus_plus else 0.0
    return config


def get_config(model: str, revision: str = "2024") -> ConfigDict:
    """Every default but what depends on the dataset."""
    if revision not in REVISIONS:
        raise ValueError(f"no state {revision!r} of ReCLIP; choose one of {[*REVISIONS]}")
    config = ConfigDict()
    config.method = "reclip"
    config.model = model  # "reclip" or "reclip++"
    config.revision = revision
    # Stages run in this order; name some of them to run only those.
    config.stages = ("data", "text", "tags", "rectify", "evaluate", "distill", "evaluate_distilled")
    if revision == "2025" and model == "reclip++":
        config.stages = ("data", "text", "tags", "rectify", "evaluate")
    plus_plus = model == "reclip++"

    config.clip = ConfigDict()
    # A name such as ViT-B/16, an OpenAI .pt, a Hugging Face folder, or what weights_convert made.
    config.clip.weights = config_dict.placeholder(str)
    config.clip.dtype = "float32"  # or "bfloat16" for the matrix products
    # What an OpenCLIP file without its JSON does not say; None: as the file, else OpenAI's.
    config.clip.trained_activation = config_dict.placeholder(str)  # "gelu" or "quick_gelu"
    config.clip.heads = config_dict.placeholder(tuple)  # of both towers: (12, 8)
    config.clip.activation, config.clip.mean, config.clip.std = REVISIONS[revision]

    config.dataset = ConfigDict()
    config.dataset.name = config_dict.placeholder(str)
    config.dataset.root = config_dict.placeholder(str)
    config.dataset.train_split = "train"  # its labels serve as section 18, quirk 11 says
    config.dataset.split = "val"
    config.dataset.class_names = ()  # for name "folder" only; otherwise from the record
    config.dataset.reduce_zero_label = False  # same: 0 in the files is no class, 1 the first
    # Larger images are read shrunk to this longest side, to learn from.
    config.dataset.longest_px = config_dict.placeholder(int)
    # Robustness test: a kind of input_pipeline/batches/corruptions.py at level 1 to 5.
    config.dataset.corruption = config_dict.placeholder(str)
    config.dataset.corruption_level = 1

    config.text = ConfigDict()
    config.text.templates = "maskclip_85"
    config.text.background_words = ()  # more rows, all of which mean label 0

    config.tags = ConfigDict()  # section 7
    config.tags.file = config_dict.placeholder(str)  # a published or own file instead of our guess
    config.tags.method = "windows" if plus_plus else "whole"
    config.tags.threshold = config_dict.placeholder(float)  # "whole": least logit of a class
    config.tags.k = config_dict.placeholder(int)  # classes where none reaches it
    config.tags.crop_px = 512  # windows are a sixth of it
    config.tags.min_votes = 1

    config.rectifier = ConfigDict()  # sections 5 and 10 to 13
    config.rectifier.trained_weights = config_dict.placeholder(str)  # released or own; no training
    # "best" mIoU on the val split, as published, or "last".
    config.rectifier.checkpoint = "best"
    config.rectifier.scale_px = (2048, 512)
    config.rectifier.ratio_range = (0.5, 2.0)  # of the random ratio that scale_px is multiplied by
    config.rectifier.crop_px = (512, 512)
    config.rectifier.total_steps = config_dict.placeholder(int)  # None: total_epochs
    config.rectifier.total_epochs = config_dict.placeholder(int)
    # Where the learning rate would reach 0; 0: at the end.
    config.rectifier.schedule_epochs = 0
    config.rectifier.batch_size = 1
    # How CLIP is read: a name of clipseg_jax/models/clip/read_outs.py, such as "naclip".
    config.rectifier.read_out = "value"
    # Each image's own statistics, so that a batch of n is the mean of n published steps; "batch":
    # of the whole batch.
    config.rectifier.norm_over = "image"
    config.rectifier.gumbel_scale = 100.0 if plus_plus else 1000.0
    config.rectifier.temperature = config_dict.placeholder(float)  # None: the CLIP's own, 100
    config.rectifier.saturation_wrap = True  # quirk 12: values over 255 wrap around
    config.rectifier.reshuffle = False  # quirk 15: one order for all epochs
    # None: evaluate_every_epochs.
    config.rectifier.evaluate_every_steps = config_dict.placeholder(int)
    config.rectifier.evaluate_every_epochs = 1
    config.rectifier.optim = _sgd()

    config.inference = ConfigDict()  # section 14
    config.inference.scale_px = (2048, 512)
    config.inference.class_threshold = config_dict.placeholder(float)  # PD; 0: no class filter
    config.inference.filter_scale = 10.0 if plus_plus else 100.0

    config.student = ConfigDict()  # section 15; ReCLIP++ only in the state of 2024
    config.student.trained_weights = config_dict.placeholder(str)  # released or own; no training
    config.student.checkpoint = "best"
    # A file or a name: resnet50_v1c, of open-mmlab; "random" to start from nothing.
    config.student.init_weights = config_dict.placeholder(str)
    config.student.dtype = "float32"  # of the student's convolutions
    config.student.blocks = (3, 4, 6, 3)
    config.student.width = 64
    config.student.strides = (1, 2, 1, 1)
    config.student.dilations = (1, 1, 2, 4)
    config.student.scale_px = (2048, 512)
    config.student.ratio_range = (0.5, 2.0)
    config.student.crop_px = (512, 512)
    config.student.total_steps = config_dict.placeholder(int)  # None: total_epochs
    config.student.total_epochs = config_dict.placeholder(int)
    config.student.batch_size = 16
    config.student.saturation_wrap = True
    config.student.reshuffle = True
    config.student.evaluate_every_steps = config_dict.placeholder(int)
    config.student.evaluate_every_epochs = 1
    config.student.teacher_scale = 10.0  # of the class filter on the teacher's logits
    config.student.teacher_threshold = config_dict.placeholder(float)
    config.student.test_scale = 2.0
    config.student.test_threshold = config_dict.placeholder(float)  # 0: no filter, as ReCLIP
    config.student.aux = "value"  # quirk 8: these terms are computed and teach nothing; or "off"
    config.student.aux_grad = False  # what the paper describes: they teach the student
    config.student.exp_logit_scale = False
    config.student.teacher_bn = "fresh_train"  # quirk 9; or "loaded_eval"
    config.student.optim = _sgd()
    config.student.optim.min_learning_rate = 1e-4

    config.train = loops.train()  # for both trainings
    config.evaluate = loops.evaluate(published_metric="mIoU_absent_as_0")
    config.run = loops.run()
    config.run.crops_at_once = 256  # of the stage `tags`
    return config


def _sgd() -> ConfigDict:
    """clipseg_jax/core/optim.py; the learning rate changes once an epoch."""
    optim = ConfigDict()
    optim.name = "sgd"
    optim.learning_rate = 0.01
    optim.schedule = "poly"
    optim.power = 0.9
    optim.min_learning_rate = 0.0
    optim.warmup_steps = 0  # for batches of many images
    optim.momentum = 0.9
    optim.weight_decay = 5e-4
    optim.clip_norm = 0.0  # no limit
    return optim
