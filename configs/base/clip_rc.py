"""Every default of CLIP-RC. Source: spec clip_rc; sections are given.

The published code has VOC 2012 and COCO-Stuff 164k. Its paper names Pascal Context too, of which
neither a configuration nor numbers are public: those values are inferred (section 11).
"""

from ml_collections import ConfigDict, config_dict

from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD
from configs.base import loops

SETTINGS = ("inductive", "transductive", "fully")

# Section 8; steps and the weights of masks, dice and recovery by setting, in the order of SETTINGS.
_DATASETS = {
    "voc": {
        "name": "voc12_20", "root": "data/VOCdevkit/VOC2012", "train_split": "trainaug",
        "templates": "clip_rc_voc", "prompts": 10, "scale_px": (2048, 512),
        "steps": (40_000, 20_000, 40_000), "weights": ((100, 1, 2), (100, 1, 2), (100, 1, 0)),
    },
    "coco_stuff": {
        "name": "coco_stuff_164k", "root": "data/coco_stuff164k", "train_split": "train",
        "templates": "clip_rc_15", "prompts": 100, "scale_px": (2048, 512),
        "steps": (80_000, 40_000, 80_000), "weights": ((200, 3, 50), (200, 3, 50), (100, 1.5, 1)),
    },
    "context": {
        "name": "context_60", "root": "data/VOCdevkit/VOC2010", "train_split": "train",
        "templates": "clip_rc_15", "prompts": 10, "scale_px": (520, 520),
        "steps": (40_000, 20_000, 40_000), "weights": ((100, 1, 2), (100, 1, 2), (100, 1, 0)),
    },
}  # fmt: skip


def dataset_config(dataset: str, setting: str) -> ConfigDict:
    """The published values of a setting on "voc" or "coco_stuff", inferred ones on "context"."""
    config = get_config(setting)
    published, which = _DATASETS[dataset], SETTINGS.index(setting)
    config.dataset.name, config.dataset.root = published["name"], published["root"]
    config.dataset.train_split = published["train_split"]
    config.text.templates = published["templates"]
    config.clip_rc.prompts = published["prompts"]
    config.clip_rc.scale_px = published["scale_px"]
    config.clip_rc.total_steps = published["steps"][which]
    config.clip_rc.evaluate_every_steps = published["steps"][which] // 10
    weights = (float(weight) for weight in published["weights"][which])
    config.clip_rc.mask_weight, config.clip_rc.dice_weight, config.clip_rc.recovery_weight = weights
    if setting == "transductive":
        config.clip_rc.init_weights = (
            f"workdir/{dataset}_clip_rc_inductive/clip_rc_half.safetensors"
        )
    return config


def get_config(setting: str = "inductive") -> ConfigDict:
    """Every default but what depends on the dataset.

    Raises:
      ValueError: an unknown setting.
    """
    if setting not in SETTINGS:
        raise ValueError(
            f"no setting {setting!r} of CLIP-RC; choose one of {', '.join(SETTINGS)}, as in "
            "voc_clip_rc.py:inductive"
        )
    config = ConfigDict()
    config.method = "clip_rc"
    # Stages run in this order; name some of them to run only those. Others there are: `count`,
    # parameters and FLOPs as the original reports them, and `check_text`, whether `text.file` is
    # what the CLIP's text tower makes of the prompts.
    config.stages = ("data", "text", "train", "evaluate")

    config.clip = ConfigDict()
    # A name such as ViT-B/16, an OpenAI .pt, a Hugging Face folder, or what weights_convert made.
    config.clip.weights = config_dict.placeholder(str)
    config.clip.dtype = "float32"  # or "bfloat16" for the image tower's matrix products
    # What an OpenCLIP file without its JSON does not say; None: as the file, else OpenAI's.
    config.clip.activation = config_dict.placeholder(str)  # "gelu" or "quick_gelu"
    config.clip.heads = config_dict.placeholder(tuple)  # of both towers: (12, 8)

    config.dataset = ConfigDict()
    config.dataset.name = config_dict.placeholder(str)
    config.dataset.root = config_dict.placeholder(str)
    config.dataset.train_split = "train"
    config.dataset.split = "val"
    config.dataset.class_names = ()  # for name "folder" only; otherwise from the record
    # Names of the classes held out; (): those of the record, as published.
    config.dataset.unseen = ()
    config.dataset.reduce_zero_label = False  # same: 0 in the files is no class, 1 the first
    # Larger images are read shrunk to this longest side, to learn from.
    config.dataset.longest_px = config_dict.placeholder(int)
    config.dataset.corruption = config_dict.placeholder(str)  # see configs/base/maskclip.py
    config.dataset.corruption_level = 1

    config.text = ConfigDict()  # section 3
    # The published voc12_single.npy or coco_multi.npy; None: by the CLIP's own text tower.
    config.text.file = config_dict.placeholder(str)
    config.text.templates = config_dict.placeholder(str)

    config.clip_rc = ConfigDict()  # methods/clip_rc/model.py; sections 4 and 5
    config.clip_rc.crop_px = 512
    config.clip_rc.prompts = 10
    config.clip_rc.region_side = 4
    config.clip_rc.decoder_blocks = 3
    config.clip_rc.heads = 8
    config.clip_rc.hidden = 2048
    config.clip_rc.dropout = 0.1
    config.clip_rc.head_init = "reference"  # quirk 4; "intended": the head's own initialisation
    # The loss: methods/clip_rc/task.py; sections 6 and 7.
    config.clip_rc.setting = setting
    config.clip_rc.mask_weight = 100.0
    config.clip_rc.dice_weight = 1.0
    config.clip_rc.recovery_weight = 2.0  # quirk 12
    config.clip_rc.self_training_step = 0  # transductive: labels itself from here on
    config.clip_rc.unlabelled = "told"  # quirk 7; "hidden": where unseen classes are is not known
    config.clip_rc.seen_offset = 0.1  # quirk 8; none in the transductive setting
    config.clip_rc.train_regions = False  # quirk 1
    # Training: section 8. Trained weights: ours (.safetensors) or released ones (.pth).
    config.clip_rc.trained_weights = config_dict.placeholder(str)
    # What training begins with: None, the CLIP; or weights of a run. Published for transductive:
    # those of the inductive run half-way.
    config.clip_rc.init_weights = config_dict.placeholder(str)
    config.clip_rc.scale_px = (2048, 512)
    config.clip_rc.ratio_range = (0.5, 2.0)  # of the random ratio that scale_px is multiplied by
    config.clip_rc.batch_size = 16  # published: 2 GPUs x 8; COCO: 2 each, on GPUs not counted
    config.clip_rc.total_steps = config_dict.placeholder(int)
    config.clip_rc.evaluate_every_steps = 0  # on `dataset.split`; 0: only in the end
    # Published: the choice of a crop counts the pixels of each class, unseen ones too, so that
    # their labels have a part in what is seen, though none in the loss. Here they have none at all.
    config.clip_rc.crops_by_unseen = False
    config.clip_rc.optim = ConfigDict()  # clipseg_jax/core/optim.py
    config.clip_rc.optim.name = "adamw"
    config.clip_rc.optim.learning_rate = 2e-4  # 2e-5, times 10 for all that is trained
    config.clip_rc.optim.schedule = "poly"
    config.clip_rc.optim.power = 0.9
    config.clip_rc.optim.end_learning_rate = 1e-6
    config.clip_rc.optim.warmup_steps = 1500
    config.clip_rc.optim.warmup_ratio = 1e-6
    config.clip_rc.optim.betas = (0.9, 0.999)
    config.clip_rc.optim.weight_decay = 0.01
    config.clip_rc.optim.clip_norm = 0.0  # no limit
    config.clip_rc.decay_norms = True  # quirk 5; False: what the published rules were meant to say

    config.inference = ConfigDict()  # sections 9.4 and 10
    config.inference.mean = IMAGENET_MEAN  # also of training
    config.inference.std = IMAGENET_STD
    config.inference.scale_px = (100_000, 512)  # the short side; the long one has no limit
    config.inference.keep_ratio = True
    config.inference.mode = "slide"  # "whole": one pass, of any size
    config.inference.crop_px = (512, 512)
    config.inference.stride_px = (426, 426)
    # --aug-test: (1.0, 1.0, 1.0, 1.25, 1.5, 1.75), for ratios below 1 fall back to 1; and `flip`.
    config.inference.ratios = (1.0,)
    config.inference.flip = False

    config.train = loops.train()
    config.evaluate = loops.evaluate(published_metric="hIoU")
    config.run = loops.run(log_every_steps=50)
    config.run.remat = False  # True: blocks run again in the backward pass; less memory, more time
    return config
