"""What the recipes for a user's own 20 to 2,000 images share; docs/own_images.md is their page.

Sizes follow from the CLIP, so that any released one and the demo's tiny one can be used as they
are: values that are None here and listed in `clip.decides` are filled in by stages/completion.py
when a run begins. Lengths are fixed numbers of steps: of few images each is seen more often, in
another crop and size each time, of many less often.
"""

from ml_collections import ConfigDict, FieldReference, config_dict

from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD


def of_own_images(config: ConfigDict, *decides: str) -> ConfigDict:
    """`config` for a folder of a user's own images; its CLIP `decides` these values."""
    config.clip.weights = "ViT-B/16"  # downloaded once; or any other name, a file or a folder
    config.dataset.name = "folder"
    config.dataset.root = "my_data"
    config.dataset.class_names = ()  # (): those of my_data/classes.txt, one name a line
    config.dataset.split = "val"  # my_data/images, which are segmented, and scored if they can be
    for split in ("train_split", "mask_split", "validation_split"):
        if split in config.dataset:
            config.dataset[split] = "train"  # my_data/train; without it my_data/images
    if "words" in config.text:
        config.text.words = ""
    if "background_words" in config.text:
        # What else the images show. To these the 25 words of CLIP-ES are added that are no class.
        config.text.background_words = ()
        config.text.usual_background = True
    # What the CLIP was trained with, not what a paper normalises by.
    for section in (config.clip, config.get("inference", ConfigDict())):
        if "mean" in section:
            section.mean, section.std = CLIP_MEAN, CLIP_STD
    # Values that follow from the CLIP, by the rules of stages/completion.py, where they are None.
    config.clip.decides = decides
    for name in decides:
        section, _, key = name.partition(".")
        kind = config[section].get_type(key) if key in config[section] else tuple
        config[section][key] = open_value(kind)
    config.run.predictions = True  # label maps, predictions/<image>.png
    config.run.pictures = 20  # overlays of the first images; -1: of all
    config.run.log_every_steps = 20
    return config


def open_value(kind: type) -> FieldReference:
    """A value of a type that is filled in later."""
    return config_dict.placeholder(kind)


def learn_from_nothing_or_imagenet(student: ConfigDict, steps: int) -> None:
    """A DeepLab in minutes on a GPU, whether it starts from ImageNet's weights or from random ones.

    The published SGD suits weights of ImageNet and COCO alone: from random ones it ends in NaN.
    """
    # torchvision's, downloaded once, or its file; "random" needs none and learns far less.
    student.init_weights = "resnet50"
    student.blocks = (3, 4, 6, 3)
    student.variant = "v1"
    student.batch_size = 8
    student.total_steps = steps
    student.optim.name = "adamw"
    student.optim.learning_rate = 5e-4
    student.optim.hold_steps = 1
    student.optim.warmup_steps = 50
    student.optim.weight_decay = 1e-2
    student.head_learning_rate_factor = 1.0
